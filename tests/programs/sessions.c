/* sessions DIR: children in a session of their own, in another process group, and in the group of a
 * sibling. */
#include "program.h"

#include <unistd.h>

enum { OWN_SESSION, OWN_GROUP, SIBLING_GROUP, CHILDREN };
static struct program_child children[CHILDREN];
static pid_t pids[3]; /* pid, group, session of this process */

static void remember(void)
{
    pids[0] = getpid();
    pids[1] = getpgid(0);
    pids[2] = getsid(0);
}

static const char *check_self(void)
{
    PROGRAM_EXPECT(getpid() == pids[0], "pid %d instead of %d", getpid(), pids[0]);
    PROGRAM_EXPECT(getpgid(0) == pids[1], "group %d instead of %d", getpgid(0), pids[1]);
    PROGRAM_EXPECT(getsid(0) == pids[2], "session %d instead of %d", getsid(0), pids[2]);
    return NULL;
}

static void own_session(void)
{
    program_ok(setsid(), "setsid");
    remember();
}

static void own_group(void)
{
    program_ok(setpgid(0, 0), "setpgid");
    remember();
}

static void sibling_group(void)
{
    program_ok(setpgid(0, children[OWN_GROUP].pid), "setpgid");
    remember();
}

static const char *check(void)
{
    const char *words = check_self();
    for (int i = 0; i < CHILDREN && words == NULL; i++)
        words = program_ask(&children[i]);
    return words;
}

int main(int argc, char **argv)
{
    program_begin(argc, argv);
    remember();
    program_fork(&children[OWN_SESSION], own_session, check_self);
    program_fork(&children[OWN_GROUP], own_group, check_self);
    program_fork(&children[SIBLING_GROUP], sibling_group, check_self);
    program_serve(check);
}

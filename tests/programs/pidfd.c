/* pidfd DIR: a pidfd of the process itself and one of a child; both must still reach them. */
#include "program.h"

#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static int own, childs;
static struct program_child child;

static const char *check(void)
{
    PROGRAM_EXPECT(syscall(SYS_pidfd_send_signal, own, 0, NULL, 0) == 0, "own pidfd is dead");
    PROGRAM_EXPECT(syscall(SYS_pidfd_send_signal, childs, 0, NULL, 0) == 0,
                   "child's pidfd is dead");
    siginfo_t info = {0};
    PROGRAM_EXPECT(waitid(P_PIDFD, (id_t)childs, &info, WEXITED | WNOHANG | WNOWAIT) == 0,
                   "the pidfd is not our child's");
    return program_ask(&child);
}

int main(int argc, char **argv)
{
    program_begin(argc, argv);
    program_fork(&child, NULL, NULL);
    own = (int)syscall(SYS_pidfd_open, getpid(), 0);
    childs = (int)syscall(SYS_pidfd_open, child.pid, 0);
    if (own < 0 || childs < 0)
        program_skip("no pidfd_open");
    program_serve(check);
}

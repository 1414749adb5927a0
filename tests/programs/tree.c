/* tree DIR [DEPTH]: a chain of processes, each forked from a thread that is not its parent's main
 * one (children come from any thread), each with memory of its own. */
#include "program.h"

#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

enum { PAGES = 64 };
static size_t depth, level;
static char *memory;
static struct program_child child;
static atomic_int forked;
static pid_t parent, self;
static void descend(void);

static const char *check(void)
{
    PROGRAM_EXPECT(getppid() == parent || level == 0, "level %zu: parent %d instead of %d", level,
                   getppid(), parent);
    PROGRAM_EXPECT(getpid() == self, "level %zu: pid %d instead of %d", level, getpid(), self);
    for (size_t i = 0; i < PAGES; i++)
        PROGRAM_EXPECT(program_filled(memory + i * PROGRAM_PAGE, level * 1000 + i),
                       "level %zu, page %zu is wrong", level, i);
    return level < depth ? program_ask(&child) : NULL;
}

static void start(void)
{
    level++;
    descend();
}

static void *fork_from_thread(void *argument)
{
    (void)argument;
    program_fork(&child, start, check);
    atomic_store(&forked, 1);
    for (;;)
        pause();
    return NULL;
}

static void descend(void)
{
    parent = getppid();
    self = getpid();
    memory = program_map(PAGES * PROGRAM_PAGE);
    for (size_t i = 0; i < PAGES; i++)
        program_fill(memory + i * PROGRAM_PAGE, level * 1000 + i);
    if (level == depth)
        return;
    pthread_t thread;
    atomic_store(&forked, 0);
    if (pthread_create(&thread, NULL, fork_from_thread, NULL) != 0)
        program_die("pthread_create");
    while (atomic_load(&forked) == 0)
        usleep(1000);
}

int main(int argc, char **argv)
{
    program_begin(argc, argv);
    depth = program_arg_size(2, 6);
    descend();
    program_serve(check);
}

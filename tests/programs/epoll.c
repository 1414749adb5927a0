/* epoll DIR: an epoll over a pipe, an eventfd, a unix socket (edge-triggered) and another epoll,
 * and a thread that is inside epoll_wait. */
#include "program.h"

#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

static int outer, inner, pipes[2], event, sockets[2], loop_event, loop_epoll;
static atomic_ulong loops;

static void add(int epoll, int fd, uint32_t events, uint64_t tag)
{
    struct epoll_event entry = {.events = events, .data.u64 = tag};
    program_ok(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &entry), "epoll_ctl");
}

static const char *expect(int epoll, uint64_t tag)
{
    struct epoll_event entry = {0};
    int got = epoll_wait(epoll, &entry, 1, 2000);
    PROGRAM_EXPECT(got == 1 && entry.data.u64 == tag, "%d events, tag %llx instead of %llx", got,
                   (unsigned long long)entry.data.u64, (unsigned long long)tag);
    return NULL;
}

static void *loop(void *argument)
{
    (void)argument;
    for (;;) {
        struct epoll_event entry;
        uint64_t value;
        if (epoll_wait(loop_epoll, &entry, 1, -1) == 1 && read(loop_event, &value, 8) == 8)
            atomic_fetch_add(&loops, 1);
    }
    return NULL;
}

static const char *check(void)
{
    uint64_t one = 1;
    char byte;
    PROGRAM_EXPECT(write(pipes[1], "x", 1) == 1, "write");
    const char *words = expect(inner, 0x1111);
    if (words == NULL)
        words = expect(outer, 0x4444);
    PROGRAM_EXPECT(read(pipes[0], &byte, 1) == 1, "read");
    if (words != NULL)
        return words;
    PROGRAM_EXPECT(write(event, &one, 8) == 8, "write");
    words = expect(outer, 0x2222222222222222);
    PROGRAM_EXPECT(read(event, &one, 8) == 8, "read");
    if (words != NULL)
        return words;
    PROGRAM_EXPECT(write(sockets[1], "y", 1) == 1, "write");
    words = expect(outer, 0x3333);
    struct epoll_event entry;
    if (words == NULL && epoll_wait(outer, &entry, 1, 0) != 0)
        words = "edge-triggered no longer";
    PROGRAM_EXPECT(read(sockets[0], &byte, 1) == 1, "read");
    if (words != NULL)
        return words;
    unsigned long before = atomic_load(&loops);
    PROGRAM_EXPECT(write(loop_event, &one, 8) == 8, "write");
    uint64_t end = program_now_ms() + 3000;
    while (atomic_load(&loops) == before && program_now_ms() < end)
        usleep(1000);
    PROGRAM_EXPECT(atomic_load(&loops) == before + 1, "the thread in epoll_wait was not woken");
    return NULL;
}

int main(int argc, char **argv)
{
    program_begin(argc, argv);
    program_ok(pipe(pipes), "pipe");
    program_ok(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets), "socketpair");
    event = (int)program_ok(eventfd(0, 0), "eventfd");
    loop_event = (int)program_ok(eventfd(0, 0), "eventfd");
    inner = (int)program_ok(epoll_create1(0), "epoll_create1");
    outer = (int)program_ok(epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
    loop_epoll = (int)program_ok(epoll_create1(0), "epoll_create1");
    add(inner, pipes[0], EPOLLIN, 0x1111);
    add(outer, event, EPOLLIN, 0x2222222222222222);
    add(outer, sockets[0], EPOLLIN | EPOLLET, 0x3333);
    add(outer, inner, EPOLLIN, 0x4444);
    add(loop_epoll, loop_event, EPOLLIN, 0x5555);
    pthread_t thread;
    if (pthread_create(&thread, NULL, loop, NULL) != 0)
        program_die("pthread_create");
    program_serve(check);
}

/* inotify DIR: watches on a directory and a file; events after the restore must come with the old
 * watch numbers. */
#include "program.h"

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

static int notify, dir_watch, file_watch;
static char *file_path;

static const char *expect(int watch, uint32_t mask)
{
    char buffer[4096] __attribute__((aligned(8)));
    uint64_t end = program_now_ms() + 2000;
    while (program_now_ms() < end) {
        struct pollfd poller = {.fd = notify, .events = POLLIN};
        if (poll(&poller, 1, 200) != 1)
            continue;
        ssize_t got = read(notify, buffer, sizeof(buffer));
        for (ssize_t at = 0; at < got;) {
            const struct inotify_event *event = (const void *)(buffer + at);
            if (event->wd == watch && (event->mask & mask) != 0)
                return NULL;
            at += (ssize_t)(sizeof(*event) + event->len);
        }
    }
    return program_words("no event %x of watch %d", mask, watch);
}

static const char *check(void)
{
    static unsigned round;
    char name[64];
    snprintf(name, sizeof(name), "watched/new-%d-%u", getpid(), round++);
    int fd = open(program_path(name), O_CREAT | O_WRONLY, 0600);
    PROGRAM_EXPECT(fd >= 0, "cannot create %s", name);
    close(fd);
    const char *words = expect(dir_watch, IN_CREATE);
    unlink(program_path(name));
    if (words != NULL)
        return words;
    fd = open(file_path, O_WRONLY);
    PROGRAM_EXPECT(fd >= 0 && write(fd, "x", 1) == 1, "write");
    close(fd);
    return expect(file_watch, IN_MODIFY);
}

int main(int argc, char **argv)
{
    program_begin(argc, argv);
    char *path = program_path("watched");
    file_path = program_path("file");
    mkdirat(program_dir_fd, "watched", 0700);
    close(open(file_path, O_CREAT | O_WRONLY, 0600));
    notify = (int)program_ok(inotify_init1(IN_NONBLOCK), "inotify_init1");
    file_watch = (int)program_ok(inotify_add_watch(notify, file_path, IN_MODIFY), "watch");
    dir_watch = (int)program_ok(inotify_add_watch(notify, path, IN_CREATE | IN_DELETE), "watch");
    program_serve(check);
}

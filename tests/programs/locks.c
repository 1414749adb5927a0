/* locks DIR [flock|posix|ofd]: an exclusive lock on a file; a child that tries it must be refused.
 */
#include "program.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

static const char *kind;
static char *path;
static struct program_child child;
static struct flock range = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 10, .l_len = 5};

/* 0 when the lock was taken. */
static int take(int fd)
{
    if (strcmp(kind, "flock") == 0)
        return flock(fd, LOCK_EX | LOCK_NB);
    return fcntl(fd, strcmp(kind, "posix") == 0 ? F_SETLK : F_OFD_SETLK, &range);
}

static const char *child_check(void)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    PROGRAM_EXPECT(fd >= 0, "open");
    errno = 0;
    int taken = take(fd);
    int cause = errno;
    close(fd);
    errno = 0;
    PROGRAM_EXPECT(taken != 0, "the %s lock is lost: another process got it", kind);
    PROGRAM_EXPECT(cause == EAGAIN || cause == EACCES, "errno %d", cause);
    return NULL;
}

static const char *check(void)
{
    return program_ask(&child);
}

int main(int argc, char **argv)
{
    program_begin(argc, argv);
    kind = program_arg(2, "flock");
    path = program_path("locked");
    int fd = (int)program_ok(open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600), "open");
    program_ok(write(fd, "0123456789012345", 16), "write");
    /* A flock and an OFD lock belong to the open file: the child must not share it. */
    program_ok(take(fd), "lock");
    program_fork(&child, NULL, child_check);
    program_serve(check);
}

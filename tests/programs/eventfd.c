/* eventfd DIR [semaphore]: counters with values, one non-blocking and empty; if asked, one in
 * semaphore mode. */
#include "program.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

static int plain, semaphore = -1, empty;

static const char *check(void)
{
    uint64_t value = 0;
    PROGRAM_EXPECT(read(plain, &value, 8) == 8 && value == 3456789012, "the counter has %llu",
                   (unsigned long long)value);
    PROGRAM_EXPECT(write(plain, &value, 8) == 8, "write");
    if (semaphore >= 0)
        PROGRAM_EXPECT(read(semaphore, &value, 8) == 8 && value == 1, "not a semaphore any more");
    if (semaphore >= 0)
        PROGRAM_EXPECT(write(semaphore, &value, 8) == 8, "write");
    PROGRAM_EXPECT(read(empty, &value, 8) < 0 && errno == EAGAIN, "the empty one is not empty");
    PROGRAM_EXPECT((fcntl(empty, F_GETFL) & O_NONBLOCK) != 0, "O_NONBLOCK is lost");
    PROGRAM_EXPECT((fcntl(plain, F_GETFD) & FD_CLOEXEC) != 0, "FD_CLOEXEC is lost");
    errno = 0;
    return NULL;
}

int main(int argc, char **argv)
{
    program_begin(argc, argv);
    plain = (int)program_ok(eventfd(0, EFD_CLOEXEC), "eventfd");
    uint64_t value = 3456789012;
    program_ok(write(plain, &value, 8), "write");
    if (strcmp(program_arg(2, ""), "semaphore") == 0)
        semaphore = (int)program_ok(eventfd(5, EFD_SEMAPHORE), "eventfd");
    empty = (int)program_ok(eventfd(0, EFD_NONBLOCK), "eventfd");
    program_serve(check);
}

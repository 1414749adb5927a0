/* timerfd DIR: a periodic timer that must go on, a far one whose rest must be kept, and one that
 * has expired unread. */
#include "program.h"

#include <poll.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

static int periodic, far, expired;

static const char *check(void)
{
    uint64_t count = 0;
    struct itimerspec left;
    PROGRAM_EXPECT(read(periodic, &count, 8) == 8 && count >= 1, "the periodic timer is silent");
    PROGRAM_EXPECT(timerfd_gettime(periodic, &left) == 0 && left.it_interval.tv_nsec == 20000000,
                   "the interval is lost");
    PROGRAM_EXPECT(timerfd_gettime(far, &left) == 0, "timerfd_gettime");
    PROGRAM_EXPECT(left.it_value.tv_sec > 3000 && left.it_value.tv_sec <= 3600,
                   "the far timer has %ld s", (long)left.it_value.tv_sec);
    struct pollfd poller = {.fd = expired, .events = POLLIN};
    PROGRAM_EXPECT(poll(&poller, 1, 2000) == 1, "the expired timer is not readable");
    return NULL;
}

int main(int argc, char **argv)
{
    program_begin(argc, argv);
    periodic = (int)program_ok(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC), "timerfd_create");
    far = (int)program_ok(timerfd_create(CLOCK_REALTIME, 0), "timerfd_create");
    expired = (int)program_ok(timerfd_create(CLOCK_BOOTTIME, TFD_NONBLOCK), "timerfd_create");
    struct itimerspec every = {.it_interval.tv_nsec = 20000000, .it_value.tv_nsec = 20000000};
    struct itimerspec later = {.it_value.tv_sec = 3600};
    struct itimerspec soon = {.it_value.tv_nsec = 1000000};
    program_ok(timerfd_settime(periodic, 0, &every, NULL), "timerfd_settime");
    program_ok(timerfd_settime(far, 0, &later, NULL), "timerfd_settime");
    program_ok(timerfd_settime(expired, 0, &soon, NULL), "timerfd_settime");
    usleep(5000);
    program_serve(check);
}

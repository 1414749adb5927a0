/* timers DIR: interval timers of the three kinds, POSIX timers, and an alarm that ticks: what was
 * running goes on, what was far away keeps its rest. */
#include "program.h"

#include <signal.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static timer_t ticking, far;
static volatile sig_atomic_t alarms, ticks;

static void on_alarm(int number)
{
    (void)number;
    alarms = alarms + 1;
    alarm(1);
}

static void on_tick(int number)
{
    (void)number;
    ticks = ticks + 1;
}

static const char *check(void)
{
    int alarms_before = alarms, ticks_before = ticks;
    uint64_t end = program_now_ms() + 3000;
    while ((alarms == alarms_before || ticks < ticks_before + 3) && program_now_ms() < end)
        usleep(1000);
    PROGRAM_EXPECT(alarms != alarms_before, "the alarm is silent");
    PROGRAM_EXPECT(ticks >= ticks_before + 3, "the POSIX timer is silent");
    struct itimerspec left;
    PROGRAM_EXPECT(timer_gettime(far, &left) == 0 && left.it_value.tv_sec > 3000 &&
                       left.it_value.tv_sec <= 3600 && left.it_interval.tv_sec == 60,
                   "the far POSIX timer has %ld s", (long)left.it_value.tv_sec);
    static const __itimer_which_t kinds[] = {ITIMER_VIRTUAL, ITIMER_PROF};
    for (int i = 0; i < 2; i++) {
        struct itimerval value;
        PROGRAM_EXPECT(getitimer(kinds[i], &value) == 0 && value.it_value.tv_sec > 1000 &&
                           value.it_interval.tv_sec == 7,
                       "interval timer %d has %ld s", i, (long)value.it_value.tv_sec);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    program_begin(argc, argv);
    signal(SIGALRM, on_alarm);
    signal(SIGRTMIN + 1, on_tick);
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 1};
    program_ok(timer_create(CLOCK_MONOTONIC, &event, &ticking), "timer_create");
    program_ok(timer_create(CLOCK_REALTIME, &event, &far), "timer_create");
    struct itimerspec every = {.it_interval.tv_nsec = 20000000, .it_value.tv_nsec = 20000000};
    struct itimerspec later = {.it_interval.tv_sec = 60, .it_value.tv_sec = 3600};
    program_ok(timer_settime(ticking, 0, &every, NULL), "timer_settime");
    program_ok(timer_settime(far, 0, &later, NULL), "timer_settime");
    struct itimerval slow = {.it_interval.tv_sec = 7, .it_value.tv_sec = 2000};
    program_ok(setitimer(ITIMER_VIRTUAL, &slow, NULL), "setitimer");
    program_ok(setitimer(ITIMER_PROF, &slow, NULL), "setitimer");
    alarm(1);
    program_serve(check);
}

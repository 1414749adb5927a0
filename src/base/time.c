#include "base/time.h"

#include <stdio.h>
#include <time.h>

static uint64_t read_clock(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * REWARM_NS_PER_S + (uint64_t)t.tv_nsec;
}

uint64_t rewarm_time_now_ns(void)
{
    return read_clock(CLOCK_MONOTONIC);
}

uint64_t rewarm_time_wall_ns(void)
{
    return read_clock(CLOCK_REALTIME);
}

int rewarm_time_poll_ms(uint64_t deadline_ns)
{
    if (deadline_ns == REWARM_NEVER_NS)
        return -1;
    uint64_t now = rewarm_time_now_ns();
    if (now >= deadline_ns)
        return 0;
    uint64_t ms = (deadline_ns - now + REWARM_NS_PER_MS - 1) / REWARM_NS_PER_MS;
    return ms > 3600000 ? 3600000 : (int)ms;
}

char *rewarm_time_iso(uint64_t wall_ns, char out[32])
{
    time_t seconds = (time_t)(wall_ns / REWARM_NS_PER_S);
    struct tm utc;
    gmtime_r(&seconds, &utc);
    strftime(out, 32, "%Y-%m-%dT%H:%M:%SZ", &utc);
    return out;
}

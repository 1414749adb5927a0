/* Time: monotonic nanoseconds, and deadlines passed down as absolute monotonic times. */
#ifndef REWARM_BASE_TIME_H
#define REWARM_BASE_TIME_H

#include <stdint.h>

#define REWARM_NS_PER_S  1000000000ull
#define REWARM_NS_PER_MS 1000000ull
#define REWARM_NEVER_NS  UINT64_MAX

/* CLOCK_MONOTONIC; comparable between the processes of one host. */
uint64_t rewarm_time_now_ns(void);

/* CLOCK_REALTIME since the epoch. */
uint64_t rewarm_time_wall_ns(void);

/* Milliseconds left until `deadline_ns`, rounded up, for poll(2): -1 for never, 0 when past. */
int rewarm_time_poll_ms(uint64_t deadline_ns);

/* "2026-11-24T07:24:45Z" of a wall time; `out` has room for 32 bytes. Returns `out`. */
char *rewarm_time_iso(uint64_t wall_ns, char out[32]);

#endif

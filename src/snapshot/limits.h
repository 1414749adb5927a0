/* The host-wide limits that a dump without CAP_SYS_RESOURCE needs raised, and putting them back. */
#ifndef REWARM_SNAPSHOT_LIMITS_H
#define REWARM_SNAPSHOT_LIMITS_H

#include "base/error.h"

struct rewarm_limits {
    int lock_fd; /* -1: nothing was raised */
};
#define REWARM_LIMITS_INIT {-1}

/* Raises /proc/sys/fs/pipe-max-size to what CRIU's page pipes want, unless this process may exceed
 * it anyway. Several freezes may hold it raised at the same time; the last one puts it back. The
 * old value is kept in /run/rewarm-pipe-max-size, so that a killed holder's is found by
 * rewarm_limits_repair(). */
int rewarm_limits_raise(struct rewarm_limits *limits, struct rewarm_error *err);
void rewarm_limits_restore(struct rewarm_limits *limits);

/* Puts back what a killed freeze left raised; returns 1 if there was something, 0 if not. */
int rewarm_limits_repair(void);

#endif

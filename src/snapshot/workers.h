/* The register of workers: RUN/workers/NAME.json, written by the supervisor, which holds NAME.lock
 * for as long as it lives. */
#ifndef REWARM_SNAPSHOT_WORKERS_H
#define REWARM_SNAPSHOT_WORKERS_H

#include <sys/types.h>

#include "base/error.h"
#include "snapshot/session.h"
#include "snapshot/snapshot.h"

struct rewarm_register {
    char *name;
    int dirfd;
    struct rewarm_run_lock lock;
};
#define REWARM_REGISTER_INIT {.dirfd = -1, .lock = REWARM_RUN_LOCK_INIT}

/* Takes the name. REWARM_E_BUSY when a supervisor has it, or its worker still runs without one. */
int rewarm_register_claim(const char *name, struct rewarm_register *ret_register,
                          struct rewarm_error *err);

/* Says what the worker is now. `log` and `launch` (identity.h; borrowed) may be NULL. */
int rewarm_register_update(struct rewarm_register *reg, pid_t pid, const char *snapshot,
                           const char *state, const char *log, json_t *launch,
                           struct rewarm_error *err);

/* The worker has ended. Idempotent. */
void rewarm_register_release(struct rewarm_register *reg);

#endif

/* `rewarm run` and `rewarm restore`: a worker in the foreground (or with a supervisor in the
 * background), with this process as its parent: stdio, signals and the exit status pass through. */
#ifndef REWARM_SNAPSHOT_RUN_H
#define REWARM_SNAPSHOT_RUN_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "snapshot/snapshot.h"

/* When a cold worker is ready to be frozen. At most one of the five is set; with none it is ready
 * once it runs for a second without ending. */
struct rewarm_ready {
    const char *http;    /* URL: GET answers 2xx */
    const char *tcp;     /* HOST:PORT accepts */
    const char *file;    /* exists */
    const char *exec;    /* shell command exits 0 */
    const char *log;     /* POSIX extended regex: a line of the worker's stdout or stderr matches */
    uint64_t timeout_ns; /* then: REWARM_E_TIMEOUT, no snapshot, the worker goes on */
};

struct rewarm_run_options {
    const char *name;     /* of snapshot and worker */
    char *const *command; /* argv, NULL-terminated */
    struct rewarm_ready ready;
    bool no_save; /* never freeze */
    bool refresh; /* ignore an existing snapshot: start cold, freeze anew */
    bool detach;  /* return once the worker is ready (cold) or whole (restored) */
    bool allow_io_uring;
    bool any_kernel;
    const char *const
        *ignore_env; /* globs of variables that may differ, NULL-terminated, or NULL */
    const struct rewarm_progress *progress;
};

/* `store` may be NULL: cold, and nothing is saved. Returns 0 with *ret_exit_status = the worker's
 * exit code, or 128 + signal (0 when detached), or a negative code with err: then 126/127 are in
 * *ret_exit_status when the command could not be executed, else 125. */
int rewarm_run(struct rewarm_store *store, const struct rewarm_run_options *options,
               int *ret_exit_status, struct rewarm_error *err);

struct rewarm_restore_run_options {
    const char *snapshot;
    const char *worker; /* NULL: the snapshot's name; copies are WORKER.1, WORKER.2, ... */
    bool detach; /* return once whole (no_wait: once running), supervisor in the background */
    bool no_wait;
    unsigned copies; /* 0 and 1: one. More need isolate pid, and net if it listens. All are started
                        side by side */
    unsigned isolate;
    const char *const
        *publish; /* "HOST:GUEST"; with copies the host port counts up: HOST + index */
    bool any_kernel;
    const struct rewarm_progress *progress;
};

/* One entry a copy, for --json. Free with free(). */
struct rewarm_restored {
    char worker[160];
    struct rewarm_restore_result result;
};

/* As rewarm_run(). With detach, *ret_restored has an entry a copy (may be NULL). */
int rewarm_restore_run(struct rewarm_store *store, const struct rewarm_restore_run_options *options,
                       struct rewarm_restored **ret_restored, unsigned *ret_count,
                       int *ret_exit_status, struct rewarm_error *err);

#endif

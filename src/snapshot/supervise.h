/* The supervisor: the parent of one worker, cold or restored, until it ends.
 *
 * One thread, one loop over signals, a timer, the readiness match and the filler's end. It forwards
 * signals, reaps (it is a subreaper), has the worker frozen once it is ready, and falls back to a
 * cold start when a restore fails and there is a command to start. */
#ifndef REWARM_SNAPSHOT_SUPERVISE_H
#define REWARM_SNAPSHOT_SUPERVISE_H

#include "base/error.h"
#include "snapshot/run.h"
#include "snapshot/snapshot.h"

/* What a detached supervisor tells the process that waits for it, in memory they share. */
struct rewarm_announcement {
    int result; /* 1: up; negative: err; 0: nothing was said */
    int exit_status;
    struct rewarm_error err;
    struct rewarm_restored restored;
};

struct rewarm_supervise {
    struct rewarm_store *store;
    const char *worker;                           /* name in the register */
    const char *snapshot;                         /* to restore, and to save as */
    const struct rewarm_run_options *run;         /* NULL: nothing to start cold */
    const struct rewarm_restore_options *restore; /* template; NULL with `run` */
    bool detached;                                /* stdio is a log */
    bool no_wait;                                 /* up as soon as it runs */
    struct rewarm_announcement *announcement;     /* NULL in the foreground */
    int announce_fd;                              /* closed once `announcement` is filled; -1 */
    const struct rewarm_progress *progress;
};

/* Runs the worker to its end. Returns 0 with its exit status (128 + signal if killed), or a
 * negative code when there was none to run. */
int rewarm_supervise(const struct rewarm_supervise *plan, int *ret_exit_status,
                     struct rewarm_error *err);

#endif

/* A pipeline is a table of stages, run in order; when one fails, it and those before it are undone
 * in reverse order. Every stage is journaled before it runs and timed. */
#ifndef REWARM_SNAPSHOT_STAGE_H
#define REWARM_SNAPSHOT_STAGE_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "snapshot/session.h"

struct rewarm_stage {
    const char *name;
    int (*run)(void *context, struct rewarm_error *err);
    /* Undoes what run() did, or as much of it as had been done when it failed. Idempotent. NULL:
     * nothing outside the process was changed. */
    void (*undo)(void *context);
};

#define REWARM_STAGES_MAX 16
struct rewarm_stage_time {
    const char *name;
    uint64_t start_ns, end_ns;
};
struct rewarm_stage_times {
    struct rewarm_stage_time stages[REWARM_STAGES_MAX];
    size_t count;
};

/* Runs stages[0..count-1]. `session` may be NULL before there is one: a stage may open it, so it is
 * looked at again before each. $REWARM_FAULT = "VERB/STAGE" kills this process with SIGKILL when
 * the stage has been journaled, "VERB/STAGE/end" when it has run, "VERB/STAGE/fail" makes it fail:
 * for the fault tests. */
int rewarm_stages_run(const char *verb, const struct rewarm_stage *stages, size_t count,
                      struct rewarm_session *session, void *context,
                      struct rewarm_stage_times *times, struct rewarm_error *err);

#endif

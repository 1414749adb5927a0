#include "snapshot/stage.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/str.h"
#include "base/time.h"
#include "base/trace.h"

static bool fault(const char *verb, const char *stage, const char *point)
{
    const char *wanted = getenv("REWARM_FAULT");
    if (wanted == NULL)
        return false;
    char here[96];
    snprintf(here, sizeof(here), "%s/%s%s", verb, stage, point);
    return strcmp(wanted, here) == 0;
}

static int run_one(const char *verb, const struct rewarm_stage *stage,
                   struct rewarm_session *session, void *context, struct rewarm_error *err)
{
    if (session->path != NULL) {
        int result = rewarm_session_note_stage(session, stage->name, err);
        if (result != 0)
            return result;
    }
    if (fault(verb, stage->name, ""))
        kill(getpid(), SIGKILL);
    int result = stage->run(context, err);
    if (result == 0 && fault(verb, stage->name, "/end"))
        kill(getpid(), SIGKILL);
    if (result == 0 && fault(verb, stage->name, "/fail"))
        result = rewarm_error_set(err, REWARM_E_SYSTEM, 0, "stage %s fails, as REWARM_FAULT asks",
                                  stage->name);
    return result;
}

int rewarm_stages_run(const char *verb, const struct rewarm_stage *stages, size_t count,
                      struct rewarm_session *session, void *context,
                      struct rewarm_stage_times *times, struct rewarm_error *err)
{
    for (size_t i = 0; i < count; i++) {
        uint64_t start = rewarm_time_now_ns();
        int result = run_one(verb, &stages[i], session, context, err);
        uint64_t end = rewarm_time_now_ns();
        if (times != NULL && times->count < REWARM_STAGES_MAX)
            times->stages[times->count++] = (struct rewarm_stage_time){stages[i].name, start, end};
        rewarm_trace_span("pipeline", stages[i].name, start, end, 0);
        char took[REWARM_STR_HUMAN];
        rewarm_verbose("%s: %s %s %s", verb, stages[i].name, result == 0 ? "took" : "failed after",
                       rewarm_str_seconds(end - start, took));
        if (result == 0)
            continue;
        for (size_t j = i + 1; j-- > 0;) {
            if (stages[j].undo != NULL)
                stages[j].undo(context);
        }
        return result;
    }
    return 0;
}

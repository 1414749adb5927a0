/* RUN/traces: the trace of the last freeze and the last restore of each snapshot. */
#ifndef REWARM_SNAPSHOT_TRACES_H
#define REWARM_SNAPSHOT_TRACES_H

/* Opens a new trace for `verb` ("freeze" or "restore") of snapshot `name` in this process, in place
 * of the last one. A trace is never worth failing for: says nothing when it can't.
 * rewarm_trace_close() ends it. */
void rewarm_trace_begin(const char *name, const char *verb);

#endif

/* Trace of one freeze or restore: spans on lanes, appended to a file by every process that takes
 * part.
 *
 * The file has one JSON object a line: {"lane":"fill","name":"chunks","t0":NS,"t1":NS,"bytes":N},
 * times from rewarm_time_now_ns(). Appends are single write(2) calls on an O_APPEND descriptor, so
 * threads and processes need no lock between them. With no file open every call is a no-op. */
#ifndef REWARM_BASE_TRACE_H
#define REWARM_BASE_TRACE_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

/* Opens (appends to) the process's trace file below `dirfd`; children of fork() keep it. */
int rewarm_trace_open(int dirfd, const char *path, struct rewarm_error *err);
void rewarm_trace_close(void);

/* Records a finished span. `lane` and `name` are plain ASCII without quotes. `bytes` 0 = none. */
void rewarm_trace_span(const char *lane, const char *name, uint64_t start_ns, uint64_t end_ns,
                       uint64_t bytes);

struct rewarm_span {
    char lane[32];
    char name[48];
    uint64_t start_ns;
    uint64_t end_ns;
    uint64_t bytes;
};

/* Parses a trace file's text; lines that do not parse are skipped (the file may end in the middle
 * of a line after a crash). Free the result. Spans are sorted by start. */
int rewarm_trace_parse(const char *text, size_t bytes, struct rewarm_span **ret_spans,
                       size_t *ret_count, struct rewarm_error *err);

#endif

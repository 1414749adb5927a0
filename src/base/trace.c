#include "base/trace.h"

#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clean.h"
#include "base/str.h"

static int trace_fd = -1;

int rewarm_trace_open(int dirfd, const char *path, struct rewarm_error *err)
{
    rewarm_trace_close();
    int fd = openat(dirfd, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd < 0)
        return rewarm_error_errno(err, "opening trace %s", path);
    trace_fd = fd;
    return 0;
}

void rewarm_trace_close(void)
{
    if (trace_fd >= 0)
        close(trace_fd);
    trace_fd = -1;
}

void rewarm_trace_span(const char *lane, const char *name, uint64_t start_ns, uint64_t end_ns,
                       uint64_t bytes)
{
    if (trace_fd < 0)
        return;
    char line[256];
    int length = snprintf(line, sizeof(line),
                          "{\"lane\":\"%.31s\",\"name\":\"%.47s\",\"t0\":%" PRIu64
                          ",\"t1\":%" PRIu64 ",\"bytes\":%" PRIu64 "}\n",
                          lane, name, start_ns, end_ns, bytes);
    ssize_t ignored = write(trace_fd, line, (size_t)length);
    (void)ignored; /* a trace is never worth failing for */
}

static bool parse_line(const char *line, size_t length, struct rewarm_span *span)
{
    json_t *object = json_loadb(line, length, 0, NULL);
    const char *lane = json_string_value(json_object_get(object, "lane"));
    const char *name = json_string_value(json_object_get(object, "name"));
    json_int_t t0 = json_integer_value(json_object_get(object, "t0"));
    json_int_t t1 = json_integer_value(json_object_get(object, "t1"));
    json_int_t bytes = json_integer_value(json_object_get(object, "bytes"));
    bool good = lane != NULL && name != NULL && t0 > 0 && t1 >= t0 && bytes >= 0;
    if (good) {
        snprintf(span->lane, sizeof(span->lane), "%s", lane);
        snprintf(span->name, sizeof(span->name), "%s", name);
        span->start_ns = (uint64_t)t0;
        span->end_ns = (uint64_t)t1;
        span->bytes = (uint64_t)bytes;
    }
    json_decref(object);
    return good;
}

static int by_start(const void *a, const void *b)
{
    const struct rewarm_span *x = a;
    const struct rewarm_span *y = b;
    return x->start_ns < y->start_ns ? -1 : x->start_ns > y->start_ns;
}

int rewarm_trace_parse(const char *text, size_t bytes, struct rewarm_span **ret_spans,
                       size_t *ret_count, struct rewarm_error *err)
{
    (void)err;
    struct rewarm_span *spans = NULL;
    size_t count = 0;
    size_t capacity = 0;
    for (size_t at = 0; at < bytes;) {
        const char *end = memchr(text + at, '\n', bytes - at);
        size_t length = end != NULL ? (size_t)(end - (text + at)) : bytes - at;
        REWARM_GROW(&spans, &capacity, count);
        if (parse_line(text + at, length, &spans[count]))
            count++;
        at += length + 1;
    }
    if (count != 0)
        qsort(spans, count, sizeof(*spans), by_start);
    *ret_spans = spans;
    *ret_count = count;
    return 0;
}

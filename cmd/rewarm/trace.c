/* `rewarm trace`: the last freeze and restore of a snapshot, as the JSON that chrome://tracing and
 * ui.perfetto.dev read, or as a picture (trace_svg.c).
 *
 * Freeze and restore are two processes of the trace, the lanes their threads. Both begin at 0: what
 * matters is their shape, and hours may lie between them. */
#include "trace.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <string.h>

#include "base/clean.h"
#include "base/str.h"
#include "commands.h"
#include "output.h"
#include "snapshot/snapshot.h"

struct trace_values {
    const char *out_path;
    const char *svg_path;
};

static const struct rewarm_cli_option trace_options[] = {
    {.name = "out",
     .argument = "FILE",
     .help = "Write the JSON here instead of to stdout",
     .kind = REWARM_CLI_TEXT,
     .word = REWARM_WORD_FILE,
     .offset = offsetof(struct trace_values, out_path)},
    {.name = "svg",
     .argument = "FILE",
     .help = "Draw the lanes here; JSON is then written only with --out",
     .kind = REWARM_CLI_TEXT,
     .word = REWARM_WORD_FILE,
     .offset = offsetof(struct trace_values, svg_path)},
    {0},
};

uint64_t rewarm_trace_part_start_ns(const struct rewarm_trace_part *part)
{
    return part->spans[0].start_ns;
}

uint64_t rewarm_trace_part_end_ns(const struct rewarm_trace_part *part)
{
    uint64_t end_ns = 0;
    for (size_t i = 0; i < part->count; i++) {
        if (part->spans[i].end_ns > end_ns)
            end_ns = part->spans[i].end_ns;
    }
    return end_ns;
}

static int load_part(const char *name, struct rewarm_trace_part *part, struct rewarm_error *err)
{
    rewarm_auto_free char *text = NULL;
    size_t bytes;
    int rc = rewarm_trace_load(name, part->verb, &text, &bytes, err);
    if (rc < 0)
        return rc;
    return rewarm_trace_parse(text, bytes, &part->spans, &part->count, err);
}

static void append_name(json_t *events, const char *kind, int pid, int tid, const char *name)
{
    json_array_append_new(events, json_pack("{s:s, s:s, s:i, s:i, s:{s:s}}", "ph", "M", "name",
                                            kind, "pid", pid, "tid", tid, "args", "name", name));
}

/* The lane's thread number: its position among the part's lanes. */
static int lane_thread(json_t *threads, const char *lane)
{
    json_t *known = json_object_get(threads, lane);
    return known != NULL ? (int)json_integer_value(known) : 0;
}

static void append_part(json_t *events, const struct rewarm_trace_part *part, int pid)
{
    uint64_t start_ns = rewarm_trace_part_start_ns(part);
    json_t *threads = json_object();
    append_name(events, "process_name", pid, 0, part->verb);
    for (size_t i = 0; i < part->count; i++) {
        const struct rewarm_span *span = &part->spans[i];
        int tid = lane_thread(threads, span->lane);
        if (tid == 0) {
            tid = (int)json_object_size(threads) + 1;
            json_object_set_new(threads, span->lane, json_integer(tid));
            append_name(events, "thread_name", pid, tid, span->lane);
        }
        double took_us = (double)(span->end_ns - span->start_ns) / 1e3;
        json_t *args = json_object();
        if (span->bytes > 0) {
            json_object_set_new(args, "bytes", json_integer((json_int_t)span->bytes));
            if (took_us > 0.0)
                json_object_set_new(
                    args, "bytes_per_s",
                    json_integer((json_int_t)((double)span->bytes * 1e6 / took_us)));
        }
        json_array_append_new(events,
                              json_pack("{s:s, s:s, s:s, s:i, s:i, s:f, s:f, s:o}", "ph", "X",
                                        "name", span->name, "cat", part->verb, "pid", pid, "tid",
                                        tid, "ts", (double)(span->start_ns - start_ns) / 1e3, "dur",
                                        took_us, "args", args));
    }
    json_decref(threads);
}

static json_t *make_events(const struct rewarm_trace_part *parts, size_t count)
{
    json_t *events = json_array();
    for (size_t i = 0; i < count; i++)
        append_part(events, &parts[i], (int)i + 1);
    return events;
}

static int close_file(FILE *file, const char *path, struct rewarm_error *err)
{
    errno = 0;
    bool failed = ferror(file) != 0;
    if (fclose(file) != 0 || failed)
        return rewarm_error_errno(err, "writing %s", path);
    return 0;
}

static int write_json(const char *path, const json_t *events, struct rewarm_error *err)
{
    FILE *file = fopen(path, "we");
    if (file == NULL)
        return rewarm_error_errno(err, "opening %s", path);
    json_dumpf(events, file, JSON_INDENT(1) | JSON_REAL_PRECISION(12));
    fputc('\n', file);
    return close_file(file, path, err);
}

static int write_svg(const char *path, const char *name, const struct rewarm_trace_part *parts,
                     size_t count, struct rewarm_error *err)
{
    FILE *file = fopen(path, "we");
    if (file == NULL)
        return rewarm_error_errno(err, "opening %s", path);
    rewarm_trace_svg(file, name, parts, count);
    return close_file(file, path, err);
}

static int write_all(struct rewarm_cli *cli, const struct trace_values *trace, const char *name,
                     const struct rewarm_trace_part *parts, size_t count, struct rewarm_error *err)
{
    int rc = 0;
    if (trace->svg_path != NULL)
        rc = write_svg(trace->svg_path, name, parts, count, err);
    if (rc == 0 && trace->out_path != NULL) {
        json_t *events = make_events(parts, count);
        rc = write_json(trace->out_path, events, err);
        json_decref(events);
    } else if (rc == 0 && trace->svg_path == NULL) {
        rewarm_output_json(cli, make_events(parts, count));
    }
    return rc;
}

static int trace_run(struct rewarm_cli *cli, const void *values, char **operands, size_t count)
{
    (void)count;
    const char *name = operands[0];
    struct rewarm_error err = REWARM_ERROR_INIT;
    if (rewarm_str_check_name(name, &err) < 0)
        return rewarm_cli_fail(cli, &err);

    struct rewarm_trace_part parts[2] = {{.verb = "freeze"}, {.verb = "restore"}};
    size_t found = 0;
    int rc = 0;
    for (size_t i = 0; i < 2 && rc == 0; i++) {
        struct rewarm_trace_part part = {.verb = parts[i].verb};
        rc = load_part(name, &part, &err);
        if (rc == 0 && part.count > 0) {
            parts[found++] = part;
        } else if (rc == -REWARM_E_NOT_FOUND) { /* frozen elsewhere, or never restored */
            rewarm_error_clear(&err);
            rc = 0;
        }
    }
    if (rc == 0 && found == 0)
        rc = rewarm_error_set(&err, REWARM_E_NOT_FOUND, 0,
                              "no freeze or restore of '%s' was traced here", name);
    if (rc == 0)
        rc = write_all(cli, values, name, parts, found, &err);
    for (size_t i = 0; i < found; i++)
        free(parts[i].spans);
    return rc < 0 ? rewarm_cli_fail(cli, &err) : 0;
}

const struct rewarm_cli_command rewarm_command_trace = {
    .name = "trace",
    .operands = "NAME",
    .summary = "Write the last freeze and restore as a Chrome/Perfetto trace or a picture",
    .details = "Open the JSON in ui.perfetto.dev or chrome://tracing.",
    .options = trace_options,
    .values_bytes = sizeof(struct trace_values),
    .operands_min = 1,
    .operands_max = 1,
    .word = REWARM_WORD_SNAPSHOT,
    .run = trace_run,
};

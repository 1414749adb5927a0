/* What `rewarm trace` hands to its drawing. */
#ifndef REWARM_CMD_TRACE_H
#define REWARM_CMD_TRACE_H

#include <stddef.h>
#include <stdio.h>

#include "base/trace.h"

/* One recorded freeze or restore. */
struct rewarm_trace_part {
    const char *verb;          /* "freeze" */
    struct rewarm_span *spans; /* sorted by start; at least one */
    size_t count;
};

uint64_t rewarm_trace_part_start_ns(const struct rewarm_trace_part *part);
uint64_t rewarm_trace_part_end_ns(const struct rewarm_trace_part *part);

/* Draws the parts of snapshot `name` one below the other as an SVG picture. */
void rewarm_trace_svg(FILE *out, const char *name, const struct rewarm_trace_part *parts,
                      size_t count);

#endif

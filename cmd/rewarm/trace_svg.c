/* The picture of `rewarm trace --svg`: one chart a verb, one below the other, each with its own
 * time axis.
 *
 * Two passes. The layout gives every span a lane and, where spans of one lane overlap (several
 * threads), the first row of that lane that is free; it yields the height. Then the drawing goes
 * lane by lane. Colours come from classes with a light and a dark set, chosen by the viewer's
 * preference; the words in the bars are white on both. Only generic fonts are named, so text widths
 * are estimates, made on the wide side: a label that might not fit is shortened, put beside its
 * bar, or left to the tooltip. */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/clean.h"
#include "base/str.h"
#include "trace.h"

enum {
    WIDTH = 1000,
    MARGIN = 20,
    LABELS = 150, /* the lane names' column */
    PLOT_X = MARGIN + LABELS,
    PLOT_WIDTH = WIDTH - PLOT_X - MARGIN - 10,
    ROW = 22,
    BAR = 18,
    LANE_GAP = 8,
    HEAD = 58, /* a chart's title and axis */
    TAIL = 18,
    ROWS_MAX = 8,
    LANES_MAX = 32,
    COLOURS = 7,
};

struct lane {
    const char *name;
    uint64_t bytes;
    uint64_t busy_ns; /* at least one of its spans runs */
    uint64_t busy_until_ns;
    uint64_t row_end_ns[ROWS_MAX];
    unsigned rows;
    unsigned y;
};

struct chart {
    const struct rewarm_trace_part *part;
    uint64_t start_ns, length_ns;
    struct lane lanes[LANES_MAX];
    unsigned lane_count;
    unsigned char *lane_of, *row_of; /* by span */
    unsigned y, height;
};

/* --- layout -------------------------------------------------------------------------------------
 */

/* The last lane takes what does not fit: nothing is left out. */
static unsigned find_lane(struct chart *chart, const char *name)
{
    for (unsigned i = 0; i < chart->lane_count; i++) {
        if (strcmp(chart->lanes[i].name, name) == 0)
            return i;
    }
    if (chart->lane_count == LANES_MAX)
        return LANES_MAX - 1;
    chart->lanes[chart->lane_count].name = name;
    return chart->lane_count++;
}

static unsigned find_row(struct lane *lane, const struct rewarm_span *span)
{
    unsigned row = 0;
    while (row < lane->rows && lane->row_end_ns[row] > span->start_ns)
        row++;
    if (row == ROWS_MAX)
        return ROWS_MAX - 1;
    if (row == lane->rows)
        lane->rows++;
    return row;
}

static void layout(struct chart *chart, const struct rewarm_trace_part *part, unsigned y)
{
    chart->part = part;
    chart->start_ns = rewarm_trace_part_start_ns(part);
    chart->length_ns = rewarm_trace_part_end_ns(part) - chart->start_ns;
    if (chart->length_ns == 0)
        chart->length_ns = 1;
    chart->lane_of = rewarm_mem_new(part->count, 1);
    chart->row_of = rewarm_mem_new(part->count, 1);
    for (size_t i = 0; i < part->count; i++) {
        const struct rewarm_span *span = &part->spans[i];
        unsigned index = find_lane(chart, span->lane);
        struct lane *lane = &chart->lanes[index];
        unsigned row = find_row(lane, span);
        lane->row_end_ns[row] = span->end_ns;
        lane->bytes += span->bytes;
        if (span->end_ns > lane->busy_until_ns) {
            uint64_t from_ns =
                span->start_ns > lane->busy_until_ns ? span->start_ns : lane->busy_until_ns;
            lane->busy_ns += span->end_ns - from_ns;
            lane->busy_until_ns = span->end_ns;
        }
        chart->lane_of[i] = (unsigned char)index;
        chart->row_of[i] = (unsigned char)row;
    }
    chart->y = y;
    y += HEAD;
    for (unsigned i = 0; i < chart->lane_count; i++) {
        struct lane *lane = &chart->lanes[i];
        lane->y = y;
        if (lane->bytes > 0 && lane->rows < 2)
            lane->rows = 2; /* room for the second line of its label */
        y += lane->rows * ROW + LANE_GAP;
    }
    chart->height = y + TAIL - chart->y;
}

static void layout_free(struct chart *chart)
{
    free(chart->lane_of);
    free(chart->row_of);
}

/* --- words --------------------------------------------------------------------------------------
 */

static void put_text(FILE *out, const char *text)
{
    for (; *text != '\0'; text++) {
        switch (*text) {
        case '&':
            fputs("&amp;", out);
            break;
        case '<':
            fputs("&lt;", out);
            break;
        case '>':
            fputs("&gt;", out);
            break;
        case '"':
            fputs("&quot;", out);
            break;
        default:
            fputc((unsigned char)*text < 0x20 ? '?' : *text, out);
        }
    }
}

static double text_width(const char *text)
{
    return 6.6 * (double)strlen(text);
}

static char *time_text(double ns, char out[32])
{
    if (ns < 1e4)
        snprintf(out, 32, "%.1f us", ns / 1e3);
    else if (ns < 1e6)
        snprintf(out, 32, "%.0f us", ns / 1e3);
    else if (ns < 1e7)
        snprintf(out, 32, "%.1f ms", ns / 1e6);
    else if (ns < 1e9)
        snprintf(out, 32, "%.0f ms", ns / 1e6);
    else
        snprintf(out, 32, "%.2f s", ns / 1e9);
    return out;
}

/* "" where there is no rate to speak of. */
static char *rate_text(uint64_t bytes, uint64_t ns, char out[64])
{
    out[0] = '\0';
    if (bytes > 0 && ns > 0) {
        char rate[REWARM_STR_HUMAN];
        rewarm_str_bytes((uint64_t)((double)bytes * 1e9 / (double)ns), rate);
        snprintf(out, 64, "%s/s", rate);
    }
    return out;
}

/* --- drawing ------------------------------------------------------------------------------------
 */

static double x_of(const struct chart *chart, uint64_t ns)
{
    return (double)PLOT_X +
           (double)PLOT_WIDTH * (double)(ns - chart->start_ns) / (double)chart->length_ns;
}

/* 1, 2 or 5 times a power of ten, for 4 to 10 ticks. */
static double tick_ns(const struct chart *chart)
{
    double about = (double)chart->length_ns / 8.0;
    double power = 1.0;
    while (power * 10.0 <= about)
        power *= 10.0;
    double first = about / power;
    return power * (first <= 1.0 ? 1.0 : first <= 2.0 ? 2.0 : first <= 5.0 ? 5.0 : 10.0);
}

static void draw_axis(FILE *out, const struct chart *chart)
{
    double step = tick_ns(chart);
    unsigned top = chart->y + HEAD - 10;
    unsigned bottom = chart->y + chart->height - TAIL;
    for (double at = 0.0; at <= (double)chart->length_ns; at += step) {
        double x = (double)PLOT_X + (double)PLOT_WIDTH * at / (double)chart->length_ns;
        char text[32];
        if (at <= 0.0)
            snprintf(text, sizeof(text), "0");
        else if (step >= 1e8)
            snprintf(text, sizeof(text), "%.1f s", at / 1e9);
        else if (step >= 1e6)
            snprintf(text, sizeof(text), "%.0f ms", at / 1e6);
        else if (step >= 1e5)
            snprintf(text, sizeof(text), "%.1f ms", at / 1e6);
        else
            snprintf(text, sizeof(text), "%.0f us", at / 1e3);
        fprintf(out, "<line class=\"grid\" x1=\"%.1f\" y1=\"%u\" x2=\"%.1f\" y2=\"%u\"/>\n", x, top,
                x, bottom);
        fprintf(out, "<text class=\"small\" x=\"%.1f\" y=\"%u\" text-anchor=\"middle\">%s</text>\n",
                x, top - 6, text);
    }
}

static void draw_lane_labels(FILE *out, const struct chart *chart)
{
    for (unsigned i = 0; i < chart->lane_count; i++) {
        const struct lane *lane = &chart->lanes[i];
        fprintf(out, "<text class=\"lane\" x=\"%d\" y=\"%u\">", MARGIN, lane->y + 13);
        put_text(out, lane->name);
        fputs("</text>\n", out);
        if (lane->bytes > 0) {
            char bytes[REWARM_STR_HUMAN], rate[64];
            fprintf(out, "<text class=\"small\" x=\"%d\" y=\"%u\">%s, %s</text>\n", MARGIN,
                    lane->y + 29, rewarm_str_bytes(lane->bytes, bytes),
                    rate_text(lane->bytes, lane->busy_ns, rate));
        }
        if (i > 0)
            fprintf(out, "<line class=\"grid\" x1=\"%d\" y1=\"%u\" x2=\"%d\" y2=\"%u\"/>\n", MARGIN,
                    lane->y - LANE_GAP / 2 - 1, WIDTH - MARGIN, lane->y - LANE_GAP / 2 - 1);
    }
}

/* Where the next bar of the same row begins: a label beside the bar must end before it. */
static double free_until(const struct chart *chart, size_t index)
{
    for (size_t i = index + 1; i < chart->part->count; i++) {
        if (chart->lane_of[i] == chart->lane_of[index] && chart->row_of[i] == chart->row_of[index])
            return x_of(chart, chart->part->spans[i].start_ns);
    }
    return WIDTH - MARGIN;
}

static void draw_bar_label(FILE *out, const struct chart *chart, size_t index, double x,
                           double width, unsigned y)
{
    const struct rewarm_span *span = &chart->part->spans[index];
    char took[32], rate[64], labels[3][160];
    time_text((double)(span->end_ns - span->start_ns), took);
    rate_text(span->bytes, span->end_ns - span->start_ns, rate);
    snprintf(labels[0], sizeof(labels[0]), "%s  %s%s%s", span->name, took,
             rate[0] != '\0' ? "  " : "", rate);
    snprintf(labels[1], sizeof(labels[1]), "%s  %s", span->name, took);
    snprintf(labels[2], sizeof(labels[2]), "%s", span->name);
    double room_beside = free_until(chart, index) - (x + width) - 8.0;
    const char *class = NULL;
    const char *label = NULL;
    for (size_t i = 0; i < 3 && class == NULL; i++) {
        label = labels[i];
        if (text_width(label) + 8.0 <= width)
            class = "in";
        else if (text_width(label) <= room_beside)
            class = "beside";
    }
    if (class == NULL)
        return;
    double text_x = strcmp(class, "in") == 0 ? x + 5.0 : x + width + 4.0;
    fprintf(out, "<text class=\"%s\" x=\"%.1f\" y=\"%u\" xml:space=\"preserve\">", class, text_x,
            y + 13);
    put_text(out, label);
    fputs("</text>\n", out);
}

static void draw_bars(FILE *out, const struct chart *chart)
{
    for (size_t i = 0; i < chart->part->count; i++) {
        const struct rewarm_span *span = &chart->part->spans[i];
        const struct lane *lane = &chart->lanes[chart->lane_of[i]];
        unsigned y = lane->y + chart->row_of[i] * (unsigned)ROW;
        double x = x_of(chart, span->start_ns);
        double width = x_of(chart, span->end_ns) - x;
        if (width < 1.5)
            width = 1.5;
        char took[32], bytes[REWARM_STR_HUMAN], rate[64];
        fprintf(out,
                "<rect class=\"bar c%d\" x=\"%.1f\" y=\"%u\" width=\"%.1f\" height=\"%d\" "
                "rx=\"2\"><title>",
                chart->lane_of[i] % COLOURS, x, y, width, BAR);
        put_text(out, span->lane);
        fputs(": ", out);
        put_text(out, span->name);
        fprintf(out, ", %s", time_text((double)(span->end_ns - span->start_ns), took));
        if (span->bytes > 0)
            fprintf(out, ", %s, %s", rewarm_str_bytes(span->bytes, bytes),
                    rate_text(span->bytes, span->end_ns - span->start_ns, rate));
        fputs("</title></rect>\n", out);
        draw_bar_label(out, chart, i, x, width, y);
    }
}

static void draw_chart(FILE *out, const struct chart *chart, const char *name)
{
    char took[32];
    fprintf(out, "<text class=\"title\" x=\"%d\" y=\"%u\">%s ", MARGIN, chart->y + 20,
            chart->part->verb);
    put_text(out, name);
    fprintf(out, "<tspan class=\"small\" dx=\"10\">%s</tspan></text>\n",
            time_text((double)chart->length_ns, took));
    draw_axis(out, chart);
    draw_lane_labels(out, chart);
    draw_bars(out, chart);
}

static void draw_head(FILE *out, unsigned height)
{
    fprintf(out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%u\" "
            "viewBox=\"0 0 %d %u\" role=\"img\">\n",
            WIDTH, height, WIDTH, height);
    fputs("<style>\n"
          "text { font-family: system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif; font-size: 11px; "
          "fill: #1f2328; }\n"
          ".card { fill: #ffffff; stroke: #d0d7de; }\n"
          ".grid { stroke: #d8dee4; stroke-width: 1; }\n"
          ".bar { stroke: #ffffff; stroke-width: 0.7; }\n"
          ".title { font-size: 15px; font-weight: 600; }\n"
          ".title .small { font-weight: 400; font-size: 13px; }\n"
          ".lane { font-size: 12px; font-weight: 600; }\n"
          ".small { fill: #59636e; font-size: 10.5px; }\n"
          "text.in { fill: #ffffff; }\n"
          ".c0 { fill: #2b6cb0; } .c1 { fill: #2f7d4f; } .c2 { fill: #b7570b; } "
          ".c3 { fill: #6b46c1; }\n"
          ".c4 { fill: #1a7484; } .c5 { fill: #b83264; } .c6 { fill: #68701a; }\n"
          "@media (prefers-color-scheme: dark) {\n"
          "text { fill: #e6edf3; } .small { fill: #9198a1; } text.in { fill: #ffffff; }\n"
          ".card { fill: #0d1117; stroke: #3d444d; } .grid { stroke: #30363d; }\n"
          ".bar { stroke: #0d1117; }\n"
          ".c0 { fill: #3579c4; } .c3 { fill: #7c5fd3; }\n"
          "}\n"
          "</style>\n",
          out);
    fprintf(out, "<rect class=\"card\" x=\"0.5\" y=\"0.5\" width=\"%d\" height=\"%u\" rx=\"8\"/>\n",
            WIDTH - 1, height - 1);
}

void rewarm_trace_svg(FILE *out, const char *name, const struct rewarm_trace_part *parts,
                      size_t count)
{
    rewarm_auto_free struct chart *charts = rewarm_mem_new(count, sizeof(*charts));
    unsigned y = 12;
    for (size_t i = 0; i < count; i++) {
        layout(&charts[i], &parts[i], y);
        y += charts[i].height;
    }
    draw_head(out, y);
    fputs("<title>rewarm trace of ", out);
    put_text(out, name);
    fputs("</title>\n", out);
    for (size_t i = 0; i < count; i++) {
        draw_chart(out, &charts[i], name);
        layout_free(&charts[i]);
    }
    fputs("</svg>\n", out);
}

/* Each update only notes the numbers; it draws when enough time has passed since the last drawing
 * (a tenth of a second on a terminal, a second elsewhere), and once more at the end. The rate is
 * that of the last two seconds, smoothed, so that the remaining time neither jumps nor lags. A line
 * is one write(2), as in base/log.c. With -v plain lines are used on a terminal too: a bar and log
 * lines would overwrite each other. */
#include "progress.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/str.h"
#include "base/time.h"

struct rewarm_cli_progress {
    struct rewarm_progress hook;
    const char *what;
    bool bar, worker_follows;
    bool drawn; /* the bar is on the terminal's line */
    uint64_t every_ns;
    char stage[48];
    uint64_t done_bytes, total_bytes;
    uint64_t stage_start_ns, drawn_ns;
    bool shown;  /* the numbers above are on the screen */
    double rate; /* bytes a second; 0 = not known yet */
    uint64_t rate_ns, rate_bytes;
};

static void hook(void *context, const char *stage, uint64_t done_bytes, uint64_t total_bytes)
{
    rewarm_cli_progress_update(context, stage, done_bytes, total_bytes);
}

struct rewarm_cli_progress *rewarm_cli_progress_new(const struct rewarm_cli *cli, const char *what,
                                                    bool worker_follows)
{
    if (cli->quiet)
        return NULL;
    struct rewarm_cli_progress *progress = rewarm_mem_new(1, sizeof(*progress));
    const char *term = getenv("TERM");
    progress->bar =
        cli->verbose == 0 && isatty(STDERR_FILENO) && (term == NULL || strcmp(term, "dumb") != 0);
    progress->every_ns = progress->bar ? REWARM_NS_PER_S / 10 : REWARM_NS_PER_S;
    progress->what = what;
    progress->worker_follows = worker_follows;
    progress->hook = (struct rewarm_progress){.update = hook, .context = progress};
    return progress;
}

const struct rewarm_progress *rewarm_cli_progress_hook(struct rewarm_cli_progress *progress)
{
    return progress != NULL ? &progress->hook : NULL;
}

static void put(const char *text)
{
    ssize_t ignored = write(STDERR_FILENO, text, strlen(text));
    (void)ignored; /* nobody is left to tell */
}

static int terminal_columns(void)
{
    struct winsize size;
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0)
        return size.ws_col;
    return 80;
}

/* "1.2 GiB of 2.0 GiB, 1.5 GiB/s, 1 s left" */
static void describe(const struct rewarm_cli_progress *progress, char *out, size_t size)
{
    char done[REWARM_STR_HUMAN], total[REWARM_STR_HUMAN], rate[REWARM_STR_HUMAN];
    rewarm_str_bytes(progress->done_bytes, done);
    rewarm_str_bytes(progress->total_bytes, total);
    int used = progress->total_bytes > 0 ? snprintf(out, size, "%s of %s", done, total)
                                         : snprintf(out, size, "%s", done);
    if (progress->rate < 1.0 || used < 0 || (size_t)used >= size)
        return;
    rewarm_str_bytes((uint64_t)progress->rate, rate);
    used += snprintf(out + used, size - (size_t)used, ", %s/s", rate);
    if (progress->done_bytes >= progress->total_bytes || (size_t)used >= size)
        return;
    double left_s = (double)(progress->total_bytes - progress->done_bytes) / progress->rate;
    if (left_s < 1.0)
        snprintf(out + used, size - (size_t)used, ", under 1 s left");
    else if (left_s < 100.0)
        snprintf(out + used, size - (size_t)used, ", %.0f s left", left_s);
    else
        snprintf(out + used, size - (size_t)used, ", %.0f min left", left_s / 60.0);
}

static void draw_bar(struct rewarm_cli_progress *progress, const char *numbers)
{
    double part = progress->total_bytes > 0
                      ? (double)progress->done_bytes / (double)progress->total_bytes
                      : 0.0;
    if (part > 1.0)
        part = 1.0;
    int columns = terminal_columns();
    char head[160];
    int used = snprintf(head, sizeof(head), "%s: %s ", progress->what, progress->stage);
    int room = columns - 1 - used - (int)strlen(numbers) - 9; /* "[] 100%  " */
    char bar[64] = "";
    if (room >= 8) {
        if (room > 40)
            room = 40;
        int full = (int)(part * room);
        memset(bar, '#', (size_t)full);
        memset(bar + full, '-', (size_t)(room - full));
        bar[room] = '\0';
    }
    char line[512], text[sizeof(line) + 16];
    if (bar[0] != '\0')
        snprintf(line, sizeof(line), "%s[%s] %3.0f%%  %s", head, bar, part * 100.0, numbers);
    else
        snprintf(line, sizeof(line), "%s%3.0f%%  %s", head, part * 100.0, numbers);
    snprintf(text, sizeof(text), "\r%.*s\033[K", columns - 1, line);
    put(text);
    progress->drawn = true;
}

static void end_bar(struct rewarm_cli_progress *progress)
{
    if (progress->drawn)
        put("\n");
    progress->drawn = false;
}

static void draw(struct rewarm_cli_progress *progress, uint64_t now_ns)
{
    char numbers[160];
    describe(progress, numbers, sizeof(numbers));
    if (progress->bar) {
        draw_bar(progress, numbers);
    } else {
        char line[400];
        snprintf(line, sizeof(line), "rewarm: %s: %s: %s\n", progress->what, progress->stage,
                 numbers);
        put(line);
    }
    progress->drawn_ns = now_ns;
    progress->shown = true;
}

static void begin_stage(struct rewarm_cli_progress *progress, const char *stage, uint64_t now_ns)
{
    snprintf(progress->stage, sizeof(progress->stage), "%s", stage);
    progress->stage_start_ns = now_ns;
    progress->rate = 0.0;
    progress->rate_ns = now_ns;
    progress->rate_bytes = 0;
    if (!progress->bar) /* a stage that is over within a second needs no line before its last one */
        progress->drawn_ns = now_ns;
}

static void measure(struct rewarm_cli_progress *progress, uint64_t now_ns, bool complete)
{
    uint64_t since_ns = now_ns - progress->rate_ns;
    if (complete) { /* the whole stage: what people want to read at its end */
        since_ns = now_ns - progress->stage_start_ns;
        if (since_ns > 0)
            progress->rate = (double)progress->done_bytes * 1e9 / (double)since_ns;
        return;
    }
    if (since_ns < REWARM_NS_PER_S / 10 || progress->done_bytes < progress->rate_bytes)
        return;
    double now = (double)(progress->done_bytes - progress->rate_bytes) * 1e9 / (double)since_ns;
    double weight = (double)since_ns / (2.0 * (double)REWARM_NS_PER_S);
    if (weight > 1.0 || progress->rate < 1.0)
        weight = 1.0;
    progress->rate += weight * (now - progress->rate);
    progress->rate_ns = now_ns;
    progress->rate_bytes = progress->done_bytes;
}

void rewarm_cli_progress_update(struct rewarm_cli_progress *progress, const char *stage,
                                uint64_t done_bytes, uint64_t total_bytes)
{
    if (progress == NULL)
        return;
    uint64_t now_ns = rewarm_time_now_ns();
    if (strncmp(progress->stage, stage, sizeof(progress->stage) - 1) != 0)
        begin_stage(progress, stage, now_ns);
    bool complete = total_bytes > 0 && done_bytes >= total_bytes;
    bool was_complete = progress->shown && progress->total_bytes > 0 &&
                        progress->done_bytes >= progress->total_bytes;
    progress->done_bytes = done_bytes;
    progress->total_bytes = total_bytes;
    if (complete && was_complete)
        return;
    progress->shown = false;
    measure(progress, now_ns, complete);
    bool at_once = complete && (progress->bar || progress->worker_follows);
    if (at_once || now_ns - progress->drawn_ns >= progress->every_ns)
        draw(progress, now_ns);
    if (complete) /* one line a stage; what comes next may be somebody else's */
        end_bar(progress);
}

void rewarm_cli_progress_free(struct rewarm_cli_progress *progress)
{
    if (progress == NULL)
        return;
    if (progress->stage[0] != '\0' && !progress->shown && !progress->worker_follows)
        draw(progress, rewarm_time_now_ns());
    end_bar(progress);
    free(progress);
}

/* `rewarm bench`: this machine's numbers, ours against CRIU alone on a synthetic worker. */
#include "bench.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clean.h"
#include "base/log.h"
#include "base/str.h"
#include "commands.h"
#include "io/parallel.h"
#include "output.h"
#include "proc/host.h"

#define GIB         (1024ull * 1024 * 1024)
#define SIZE_MAX_   512u
#define ROUNDS_MAX  50u
#define SPARE_BYTES (1 * GIB)

struct bench_values {
    uint64_t size_gib, rounds;
    struct rewarm_cli_list only;
};

static const struct bench_values bench_defaults = {.size_gib = 2, .rounds = 5};

static const struct rewarm_cli_option bench_options[] = {
    {.name = "size",
     .argument = "GIB",
     .help = "Size of the worker (default: 2)",
     .kind = REWARM_CLI_NUMBER,
     .offset = offsetof(struct bench_values, size_gib)},
    {.name = "rounds",
     .argument = "N",
     .help = "Measure so often and print the median (default: 5)",
     .kind = REWARM_CLI_NUMBER,
     .offset = offsetof(struct bench_values, rounds)},
    {.name = "only",
     .argument = "CASE",
     .help = "Measure this alone: restore, freeze, command, memory, fill or maps; repeatable",
     .choices = "restore freeze command memory fill maps",
     .word = REWARM_WORD_CHOICE,
     .kind = REWARM_CLI_LIST,
     .offset = offsetof(struct bench_values, only)},
    {0},
};

/* --- results -------------------------------------------------------------------------------------
 */

void rewarm_bench_add(struct bench_samples *samples, double value)
{
    const size_t room = sizeof(samples->values) / sizeof(samples->values[0]);
    if (samples->count < room)
        samples->values[samples->count++] = value;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a;
    double y = *(const double *)b;
    return x < y ? -1 : x > y;
}

double rewarm_bench_median(const struct bench_samples *samples)
{
    struct bench_samples sorted = *samples;
    if (sorted.count == 0)
        return NAN;
    qsort(sorted.values, sorted.count, sizeof(sorted.values[0]), by_value);
    unsigned middle = sorted.count / 2;
    if (sorted.count % 2 != 0)
        return sorted.values[middle];
    return (sorted.values[middle - 1] + sorted.values[middle]) / 2;
}

/* Three digits that mean something. */
static void put_value(double value, char *text, size_t size)
{
    double magnitude = value < 0 ? -value : value;
    snprintf(text, size, "%.*f", magnitude < 10 ? 2 : magnitude < 100 ? 1 : 0, value);
}

void rewarm_bench_bar(struct bench *bench, const char *name, double value, const char *unit,
                      bool at_least, double goal)
{
    const char *direction = at_least ? "at-least" : "at-most";
    char text[32];
    put_value(value, text, sizeof(text));
    json_array_append_new(bench->bars,
                          json_pack("{s:s, s:f, s:s, s:s, s:f, s:b}", "name", name, "value", value,
                                    "unit", unit, "direction", direction, "goal", goal, "reached",
                                    at_least ? value >= goal : value <= goal));
    if (bench->json)
        return;
    printf("bar %s %s %s %s %g\n", name, text, unit, direction, goal);
    fflush(stdout);
}

void rewarm_bench_more(struct bench *bench, const char *name, double value, const char *unit)
{
    char text[32];
    put_value(value, text, sizeof(text));
    json_array_append_new(bench->more,
                          json_pack("{s:s, s:f, s:s}", "name", name, "value", value, "unit", unit));
    if (bench->json)
        return;
    printf("measured %s %s %s\n", name, text, unit);
    fflush(stdout);
}

void rewarm_bench_say(const char *text)
{
    rewarm_note("bench: %s", text);
}

/* --- the machine ---------------------------------------------------------------------------------
 */

static int describe_machine(struct bench *bench, json_t **ret_machine, struct rewarm_error *err)
{
    json_t *host = NULL;
    int result = rewarm_host_describe(&host, err);
    if (result != 0)
        return result;
    json_int_t memory = (json_int_t)sysconf(_SC_PHYS_PAGES) * (json_int_t)sysconf(_SC_PAGESIZE);
    *ret_machine =
        json_pack("{s:s, s:s, s:s, s:s, s:I, s:I}", "rewarm", REWARM_VERSION, "criu",
                  bench->criu->version_text, "kernel", rewarm_json_text(host, "kernel", "?"), "cpu",
                  rewarm_json_text(host, "cpu_model", "?"), "threads",
                  (json_int_t)rewarm_parallel_width(), "memory_bytes", memory);
    json_decref(host);
    return 0;
}

static void print_machine(const struct bench *bench, const json_t *machine)
{
    char size[REWARM_STR_HUMAN];
    char memory[REWARM_STR_HUMAN];
    if (bench->json)
        return;
    printf("rewarm %s and CRIU %s on Linux %s, %s, %d threads, %s; worker of %s, images in "
           "/dev/shm, medians of %u rounds\n",
           rewarm_json_text(machine, "rewarm", "?"), rewarm_json_text(machine, "criu", "?"),
           rewarm_json_text(machine, "kernel", "?"), rewarm_json_text(machine, "cpu", "?"),
           (int)rewarm_json_u64(machine, "threads"),
           rewarm_str_bytes(rewarm_json_u64(machine, "memory_bytes"), memory),
           rewarm_str_bytes(bench->size_bytes, size), bench->rounds);
    fflush(stdout);
}

/* --- the command ---------------------------------------------------------------------------------
 */

static bool is_wanted(const struct bench_values *values, const char *name)
{
    for (size_t i = 0; i < values->only.count; i++) {
        if (strcmp(values->only.items[i], name) == 0)
            return true;
    }
    return values->only.count == 0;
}

static int check_values(const struct bench_values *values, struct rewarm_error *err)
{
    if (values->size_gib < 1 || values->size_gib > SIZE_MAX_)
        return rewarm_error_set(err, REWARM_E_USAGE, 0, "--size wants 1 to %u (GiB)", SIZE_MAX_);
    if (values->rounds < 1 || values->rounds > ROUNDS_MAX)
        return rewarm_error_set(err, REWARM_E_USAGE, 0, "--rounds wants 1 to %u", ROUNDS_MAX);
    return 0;
}

static int run_cases(struct bench *bench, const struct bench_values *values,
                     struct rewarm_error *err)
{
    for (const struct bench_case *item = rewarm_bench_cases; item->name != NULL; item++) {
        if (!is_wanted(values, item->name))
            continue;
        rewarm_bench_say(item->what);
        int result = rewarm_bench_room_check_stop(err);
        if (result == 0)
            result = rewarm_bench_room_empty(bench, "store", err);
        if (result == 0)
            result = rewarm_bench_room_empty(bench, "criu", err);
        if (result == 0)
            result = item->run(bench, err);
        if (result != 0)
            return rewarm_error_wrap(err, "measuring %s", item->name);
    }
    return 0;
}

static int measure(struct bench *bench, const struct bench_values *values, json_t **ret_machine,
                   struct rewarm_error *err)
{
    double memory = 0;
    double room = 0;
    for (const struct bench_case *item = rewarm_bench_cases; item->name != NULL; item++) {
        if (is_wanted(values, item->name)) {
            memory = item->memory > memory ? item->memory : memory;
            room = item->room > room ? item->room : room;
        }
    }
    uint64_t memory_bytes = (uint64_t)(memory * (double)bench->size_bytes) + SPARE_BYTES;
    uint64_t room_bytes = (uint64_t)(room * (double)bench->size_bytes) + SPARE_BYTES / 2;
    int result = rewarm_host_check_privileges(err);
    if (result == 0)
        result = rewarm_criu_find(&bench->criu, err);
    if (result == 0)
        result = rewarm_bench_room_open(bench, room_bytes, memory_bytes, err);
    if (result == 0)
        result = describe_machine(bench, ret_machine, err);
    if (result != 0)
        return result;
    print_machine(bench, *ret_machine);
    rewarm_bench_say("touching and freeing memory, so that its first touch is not measured");
    result = rewarm_bench_room_warm(memory_bytes - SPARE_BYTES / 2, err);
    return result != 0 ? result : run_cases(bench, values, err);
}

static int bench_run(struct rewarm_cli *cli, const void *given, char **operands, size_t count)
{
    (void)operands, (void)count;
    const struct bench_values *values = given;
    struct rewarm_error err = REWARM_ERROR_INIT;
    struct bench bench = {.json = cli->json,
                          .size_bytes = values->size_gib * GIB,
                          .rounds = (unsigned)values->rounds,
                          .self = realpath("/proc/self/exe", NULL),
                          .bars = json_array(),
                          .more = json_array()};
    json_t *machine = NULL;
    int result = bench.self != NULL ? check_values(values, &err)
                                    : rewarm_error_errno(&err, "finding this program");
    if (result == 0)
        result = measure(&bench, values, &machine, &err);
    rewarm_bench_room_close(&bench);
    if (result == 0 && bench.json)
        rewarm_output_json(cli, json_pack("{s:o, s:I, s:i, s:O, s:O}", "machine",
                                          json_incref(machine), "size_bytes",
                                          (json_int_t)bench.size_bytes, "rounds", (int)bench.rounds,
                                          "bars", bench.bars, "measured", bench.more));
    json_decref(machine);
    json_decref(bench.bars);
    json_decref(bench.more);
    free(bench.self);
    return result == 0 ? 0 : rewarm_cli_fail(cli, &err);
}

const struct rewarm_cli_command rewarm_command_bench = {
    .name = "bench",
    .operands = "",
    .summary = "Measure this machine: rewarm against CRIU alone on a synthetic worker",
    .details = "Makes a worker whose memory is random and checked, and freezes and restores it "
               "with rewarm and with CRIU in turn, all in RAM (/dev/shm). Each line 'bar NAME "
               "VALUE UNIT at-least|at-most GOAL' is what rewarm promises. Takes about a minute "
               "and a half, and leaves nothing behind. On a machine that does other work, trust "
               "the ratios only.",
    .options = bench_options,
    .values_bytes = sizeof(struct bench_values),
    .defaults = &bench_defaults,
    .json = true,
    .run = bench_run,
};

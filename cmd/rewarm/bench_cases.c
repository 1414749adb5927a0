/* What `rewarm bench` measures: one function a case, each from a fresh worker to its end.
 *
 * In every round ours comes first and CRIU's second, so that both meet the same weather; what is
 * printed is the median of each over the rounds, and their ratio. Every restored worker checks all
 * of its memory afterwards: a wrong page ends the bench. */
#include "bench.h"

#include <stdlib.h>
#include <string.h>

#include "base/time.h"
#include "output.h"

#define SMALL_BYTES (4u << 20)
#define SMALL_LEAST 11 /* rounds: milliseconds scatter */
#define MAPS        3000u
#define MAPS_BYTES  (MAPS * 16384u)
#define MIB         (1024.0 * 1024.0)

static double ms(uint64_t ns)
{
    return (double)ns / 1e6;
}

static double gb_per_s(uint64_t bytes, uint64_t ns)
{
    return (double)bytes / (double)ns;
}

/* --- restore -------------------------------------------------------------------------------------
 */

struct restore_samples {
    struct bench_samples first_ms, touched_ms;
};

/* From the request to the worker's first instruction, and until it has touched all of its memory:
 * it begins with that as soon as it runs. */
static int restore_round(struct bench *bench, enum bench_who who, struct restore_samples *samples,
                         struct rewarm_error *err)
{
    struct bench_board *board = bench->board;
    atomic_store(&board->first_tick_ns, 0);
    atomic_store(&board->touched_ns, 0);
    atomic_store(&board->bad_pages, 0);
    atomic_store(&board->done, BENCH_TICK);
    atomic_store(&board->wanted, BENCH_TOUCH);
    uint64_t request_wall_ns;
    uint64_t took_ns;
    int result = rewarm_bench_restore(bench, who, &request_wall_ns, &took_ns, NULL, err);
    if (result == 0)
        result = rewarm_bench_await_step(bench, BENCH_TOUCH, err);
    if (result != 0)
        return result;
    rewarm_bench_add(&samples->first_ms, ms(atomic_load(&board->first_tick_ns) - request_wall_ns));
    rewarm_bench_add(&samples->touched_ms, ms(atomic_load(&board->touched_ns) - request_wall_ns));
    atomic_store(&board->wanted, BENCH_VERIFY);
    result = rewarm_bench_await_step(bench, BENCH_VERIFY, err);
    return result != 0 ? result : rewarm_bench_worker_end(bench, err);
}

static int restore_rounds(struct bench *bench, struct restore_samples samples[2],
                          struct rewarm_error *err)
{
    for (unsigned i = 0; i < bench->rounds; i++) {
        for (enum bench_who who = BENCH_OURS; who <= BENCH_THEIRS; who++) {
            int result = restore_round(bench, who, &samples[who], err);
            if (result != 0)
                return result;
        }
    }
    return 0;
}

/* A worker, frozen both ways, and gone. */
static int prepare_images(struct bench *bench, uint64_t bytes, unsigned areas,
                          struct rewarm_error *err)
{
    uint64_t took_ns;
    int result = rewarm_bench_worker_start(bench, bytes, areas, err);
    for (enum bench_who who = BENCH_OURS; result == 0 && who <= BENCH_THEIRS; who++)
        result = rewarm_bench_freeze(bench, who, &took_ns, NULL, err);
    return result != 0 ? result : rewarm_bench_worker_end(bench, err);
}

static void report_restore(struct bench *bench, const char *prefix,
                           const struct restore_samples samples[2])
{
    char name[64];
    static const char *const who[] = {"rewarm", "criu"};
    for (size_t i = 0; i < 2; i++) {
        snprintf(name, sizeof(name), "%s_first_instruction_%s", prefix, who[i]);
        rewarm_bench_more(bench, name, rewarm_bench_median(&samples[i].first_ms), "ms");
        snprintf(name, sizeof(name), "%s_touched_%s", prefix, who[i]);
        rewarm_bench_more(bench, name, rewarm_bench_median(&samples[i].touched_ms), "ms");
    }
}

static int run_restore(struct bench *bench, struct rewarm_error *err)
{
    struct restore_samples samples[2] = {0};
    int result = prepare_images(bench, bench->size_bytes, 1, err);
    if (result == 0)
        result = restore_rounds(bench, samples, err);
    if (result != 0)
        return result;
    report_restore(bench, "restore", samples);
    rewarm_bench_bar(bench, "criu_over_restore_first_instruction",
                     rewarm_bench_median(&samples[BENCH_THEIRS].first_ms) /
                         rewarm_bench_median(&samples[BENCH_OURS].first_ms),
                     "x", true, 20);
    rewarm_bench_bar(bench, "criu_over_restore_touched",
                     rewarm_bench_median(&samples[BENCH_THEIRS].touched_ms) /
                         rewarm_bench_median(&samples[BENCH_OURS].touched_ms),
                     "x", true, 3);
    return 0;
}

static int run_maps(struct bench *bench, struct rewarm_error *err)
{
    struct restore_samples samples[2] = {0};
    int result = prepare_images(bench, MAPS_BYTES, MAPS, err);
    if (result == 0)
        result = restore_rounds(bench, samples, err);
    if (result == 0)
        report_restore(bench, "maps", samples);
    return result;
}

/* --- freeze --------------------------------------------------------------------------------------
 */

/* The longest time that the worker did not tick while it was frozen. */
static int freeze_round(struct bench *bench, enum bench_who who, struct bench_samples *pause_ms,
                        struct bench_samples *whole_ms, struct rewarm_error *err)
{
    uint64_t took_ns;
    atomic_store(&bench->board->longest_gap_ns, 0);
    int result = rewarm_bench_freeze(bench, who, &took_ns, NULL, err);
    if (result != 0)
        return result;
    /* The tick that ends the gap. */
    atomic_store(&bench->board->first_tick_ns, 0);
    result = rewarm_bench_await_tick(bench, err);
    rewarm_bench_add(pause_ms, ms(atomic_load(&bench->board->longest_gap_ns)));
    rewarm_bench_add(whole_ms, ms(took_ns));
    return result;
}

static int add_stage(struct bench *bench, const char *stage, struct bench_samples *samples,
                     struct rewarm_error *err)
{
    uint64_t took_ns = 0;
    int result = rewarm_bench_stage_ns(stage, &took_ns, err);
    if (result == 0)
        rewarm_bench_add(samples, gb_per_s(bench->size_bytes, took_ns));
    return result;
}

static int run_freeze(struct bench *bench, struct rewarm_error *err)
{
    struct bench_samples pause_ms[2] = {0};
    struct bench_samples whole_ms[2] = {0};
    struct bench_samples read_rate = {0};
    struct bench_samples store_rate = {0};
    int result = rewarm_bench_worker_start(bench, bench->size_bytes, 1, err);
    for (unsigned i = 0; result == 0 && i < bench->rounds; i++) {
        for (enum bench_who who = BENCH_OURS; result == 0 && who <= BENCH_THEIRS; who++)
            result = freeze_round(bench, who, &pause_ms[who], &whole_ms[who], err);
        if (result == 0)
            result = add_stage(bench, "read", &read_rate, err);
        if (result == 0)
            result = add_stage(bench, "store", &store_rate, err);
    }
    if (result == 0)
        result = rewarm_bench_worker_end(bench, err);
    if (result != 0)
        return result;
    rewarm_bench_more(bench, "freeze_pause_rewarm", rewarm_bench_median(&pause_ms[BENCH_OURS]),
                      "ms");
    rewarm_bench_more(bench, "freeze_pause_criu", rewarm_bench_median(&pause_ms[BENCH_THEIRS]),
                      "ms");
    rewarm_bench_more(bench, "freeze_whole_rewarm", rewarm_bench_median(&whole_ms[BENCH_OURS]),
                      "ms");
    rewarm_bench_more(bench, "freeze_whole_criu", rewarm_bench_median(&whole_ms[BENCH_THEIRS]),
                      "ms");
    rewarm_bench_more(bench, "freeze_read_rate", rewarm_bench_median(&read_rate), "GB/s");
    rewarm_bench_more(bench, "freeze_store_rate", rewarm_bench_median(&store_rate), "GB/s");
    rewarm_bench_bar(bench, "freeze_pause_over_criu",
                     rewarm_bench_median(&pause_ms[BENCH_OURS]) /
                         rewarm_bench_median(&pause_ms[BENCH_THEIRS]),
                     "x", false, 0.5);
    return 0;
}

/* --- the command's own cost ----------------------------------------------------------------------
 */

static int run_command(struct bench *bench, struct rewarm_error *err)
{
    struct bench_samples took_ms[2] = {0};
    unsigned rounds = bench->rounds > SMALL_LEAST ? bench->rounds : SMALL_LEAST;
    int result = prepare_images(bench, SMALL_BYTES, 1, err);
    atomic_store(&bench->board->wanted, BENCH_TICK);
    for (unsigned i = 0; result == 0 && i < rounds; i++) {
        for (enum bench_who who = BENCH_OURS; result == 0 && who <= BENCH_THEIRS; who++) {
            uint64_t request_wall_ns;
            uint64_t took_ns = 0;
            result = rewarm_bench_restore(bench, who, &request_wall_ns, &took_ns, NULL, err);
            rewarm_bench_add(&took_ms[who], ms(took_ns));
            if (result == 0)
                result = rewarm_bench_worker_end(bench, err);
        }
    }
    if (result != 0)
        return result;
    double ours = rewarm_bench_median(&took_ms[BENCH_OURS]);
    double theirs = rewarm_bench_median(&took_ms[BENCH_THEIRS]);
    rewarm_bench_more(bench, "small_restore_rewarm", ours, "ms");
    rewarm_bench_more(bench, "small_restore_criu", theirs, "ms");
    rewarm_bench_bar(bench, "small_restore_beyond_criu", ours - theirs, "ms", false, 30);
    return 0;
}

/* --- memory of rewarm itself, and the rate of the fill -------------------------------------------
 */

static int run_memory(struct bench *bench, struct rewarm_error *err)
{
    uint64_t bytes = 2 * bench->size_bytes;
    uint64_t took_ns;
    uint64_t peak_bytes = 0;
    json_t *answer = NULL;
    int result = rewarm_bench_worker_start(bench, bytes, 1, err);
    pid_t worker = bench->worker;
    if (result == 0)
        result = rewarm_bench_freeze(bench, BENCH_OURS, &took_ns, NULL, err);
    if (result == 0)
        result = rewarm_bench_worker_end(bench, err);
    if (result == 0)
        result = rewarm_bench_restore_sampled(bench, worker, &peak_bytes, &answer, err);
    if (result == 0) {
        atomic_store(&bench->board->wanted, BENCH_VERIFY);
        result = rewarm_bench_await_step(bench, BENCH_VERIFY, err);
    }
    json_decref(answer);
    if (result == 0)
        result = rewarm_bench_worker_end(bench, err);
    if (result == 0)
        rewarm_bench_bar(bench, "restore_resident_memory", (double)peak_bytes / MIB, "MiB", false,
                         256);
    return result;
}

static int fill_round(struct bench *bench, struct bench_samples *ours, struct bench_samples *bare,
                      struct rewarm_error *err)
{
    uint64_t request_wall_ns;
    uint64_t took_ns;
    json_t *answer = NULL;
    double rate = 0;
    int result = rewarm_bench_restore(bench, BENCH_OURS, &request_wall_ns, &took_ns, &answer, err);
    if (result == 0) {
        uint64_t running_ns = rewarm_json_u64(answer, "running_ns");
        uint64_t complete_ns = rewarm_json_u64(answer, "complete_ns");
        uint64_t fill_ns = complete_ns > running_ns ? complete_ns - running_ns : 1;
        rewarm_bench_add(ours, gb_per_s(rewarm_json_u64(answer, "supplied_bytes"), fill_ns));
        result = rewarm_bench_worker_end(bench, err);
    }
    json_decref(answer);
    if (result == 0)
        result = rewarm_bench_fill_bare(bench->size_bytes, &rate, err);
    if (result == 0)
        rewarm_bench_add(bare, rate / 1e9);
    return result;
}

static int run_fill(struct bench *bench, struct rewarm_error *err)
{
    struct bench_samples ours = {0};
    struct bench_samples bare = {0};
    uint64_t took_ns;
    int result = rewarm_bench_worker_start(bench, bench->size_bytes, 1, err);
    if (result == 0)
        result = rewarm_bench_freeze(bench, BENCH_OURS, &took_ns, NULL, err);
    if (result == 0)
        result = rewarm_bench_worker_end(bench, err);
    for (unsigned i = 0; result == 0 && i < bench->rounds; i++)
        result = fill_round(bench, &ours, &bare, err);
    if (result != 0)
        return result;
    rewarm_bench_more(bench, "fill_rate_rewarm", rewarm_bench_median(&ours), "GB/s");
    rewarm_bench_more(bench, "fill_rate_bare_copy", rewarm_bench_median(&bare), "GB/s");
    rewarm_bench_more(bench, "fill_rate_of_bare_copy",
                      rewarm_bench_median(&ours) / rewarm_bench_median(&bare), "x");
    return 0;
}

/* Memory: the worker; beside it, in turn or together, the store, CRIU's images and what a freeze
 * reads into. */
const struct bench_case rewarm_bench_cases[] = {
    {"restore", "restoring a worker, until it runs and until it has all of its memory", 4.2, 2.2,
     run_restore},
    {"freeze", "freezing a worker that goes on", 4.2, 2.2, run_freeze},
    {"command", "the cost of the command with a worker of 4 MiB", 0, 0, run_command},
    {"memory", "memory of rewarm itself while it restores a worker of twice the size", 6.3, 2.1,
     run_memory},
    {"fill", "the fill against a bare copy loop", 3.2, 1.1, run_fill},
    {"maps", "restoring a worker with 3000 small mappings", 0, 0, run_maps},
    {0},
};

/* Inside `rewarm bench`: what its files share. bench.c has the command and its answer,
 * bench_cases.c what is measured, bench_drive.c the commands that are measured, bench_room.c the
 * place where it happens, bench_worker.c the synthetic worker, bench_fill.c the bare copy loop. */
#ifndef REWARM_CMD_BENCH_H
#define REWARM_CMD_BENCH_H

#include <jansson.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "proc/criu.h"

/* --- the worker and its board */

enum bench_step { BENCH_TICK, BENCH_TOUCH, BENCH_VERIFY };

/* Shared with the worker: one page, a file, so that it is the same one after a restore. Points in
 * time are rewarm_time_wall_ns(), 0: not yet. CRIU restores into a time namespace in which
 * CLOCK_MONOTONIC goes on from the freeze, so that one can't be compared with ours. */
struct bench_board {
    atomic_uint events; /* a futex: counts up whenever something below became true */
    atomic_uint wanted; /* enum bench_step, set by the bench: what to do beside ticking */
    atomic_uint done;   /* the last step that was done */
    atomic_int owner;   /* PID of the bench; without it the worker ends itself */
    atomic_uint_fast64_t first_tick_ns; /* the first time the worker saw 0 here */
    atomic_uint_fast64_t longest_gap_ns;
    atomic_uint_fast64_t touched_ns; /* every page was read and is right in two places */
    atomic_uint_fast64_t bad_pages;  /* pages that were not what they must be */
};
#define BENCH_BOARD_BYTES 4096u

/* Says that something happened, or waits (at most 100 ms) until something does after `events` was
 * `seen`. */
void rewarm_bench_board_post(struct bench_board *board);
void rewarm_bench_board_wait(struct bench_board *board, unsigned seen);

/* The program of the worker: `rewarm bench-worker BOARD BYTES AREAS`, a mode that --help does not
 * show. Its memory is BYTES of pages that are all different and don't compress, in AREAS separate
 * mappings. Ticks every half millisecond until it is killed. */
int rewarm_bench_worker_main(int argc, char **argv);

/* --- bench_room.c: the place */

struct bench {
    char *self; /* this program */
    const struct rewarm_criu *criu;
    char *room; /* the folder, in RAM */
    struct bench_board *board;
    uint64_t size_bytes;
    unsigned rounds;
    pid_t worker;        /* 0: none */
    json_t *bars, *more; /* results, for the answer */
    bool json;
};

/* Makes the folder with the board, after removing what a killed bench has left; points
 * REWARM_STORE and REWARM_RUN into it; catches signals that would end this process.
 * REWARM_E_NO_SPACE, saying how much is missing and what to do, when `need_room_bytes` in the
 * folder's file system or `need_memory_bytes` (the former included) are not there. */
int rewarm_bench_room_open(struct bench *bench, uint64_t need_room_bytes,
                           uint64_t need_memory_bytes, struct rewarm_error *err);
/* Ends every process of ours and removes the folder. Idempotent. */
void rewarm_bench_room_close(struct bench *bench);

/* Touches and frees so much memory: a virtual machine's host hands out memory at first touch, which
 * is much slower than anything measured here. */
int rewarm_bench_room_warm(uint64_t bytes, struct rewarm_error *err);

/* Empties a folder of the room (made when missing). */
int rewarm_bench_room_empty(struct bench *bench, const char *name, struct rewarm_error *err);

/* REWARM_E_CANCELLED once a signal has asked to stop. */
int rewarm_bench_room_check_stop(struct rewarm_error *err);

/* --- bench_drive.c: the commands */

/* What to do with a worker: with rewarm, or with CRIU alone. */
enum bench_who { BENCH_OURS, BENCH_THEIRS };

int rewarm_bench_worker_start(struct bench *bench, uint64_t bytes, unsigned areas,
                              struct rewarm_error *err);
/* Kills the worker and waits until nothing that we started is left. */
int rewarm_bench_worker_end(struct bench *bench, struct rewarm_error *err);

/* Wait until the worker has ticked after first_tick_ns was set to 0, or done its step. */
int rewarm_bench_await_tick(struct bench *bench, struct rewarm_error *err);
int rewarm_bench_await_step(struct bench *bench, enum bench_step step, struct rewarm_error *err);

/* Freeze the running worker, which goes on, into an empty store or folder; restore it. `ret_ns`:
 * from the request to the end of the command. Ours: `ret_answer` (may be NULL) is its JSON. */
int rewarm_bench_freeze(struct bench *bench, enum bench_who who, uint64_t *ret_ns,
                        json_t **ret_answer, struct rewarm_error *err);
int rewarm_bench_restore(struct bench *bench, enum bench_who who, uint64_t *ret_request_wall_ns,
                         uint64_t *ret_ns, json_t **ret_answer, struct rewarm_error *err);

/* As rewarm_bench_restore() of ours, sampling the memory of every process of rewarm meanwhile: the
 * sum of each one's peak of anonymous and shared memory. `worker` is the PID that comes back. */
int rewarm_bench_restore_sampled(struct bench *bench, pid_t worker, uint64_t *ret_peak_bytes,
                                 json_t **ret_answer, struct rewarm_error *err);

/* A stage's time of the snapshot that rewarm_bench_freeze() made. */
int rewarm_bench_stage_ns(const char *stage, uint64_t *ret_ns, struct rewarm_error *err);

/* --- bench_cases.c: the measurements */

struct bench_case {
    const char *name; /* --only */
    const char *what;
    double memory, room; /* needed at once, in worker sizes; room is part of memory */
    int (*run)(struct bench *bench, struct rewarm_error *err);
};
extern const struct bench_case rewarm_bench_cases[]; /* ends with one without a name */

/* --- bench.c: results */

struct bench_samples {
    double values[64];
    unsigned count;
};
void rewarm_bench_add(struct bench_samples *samples, double value);
double rewarm_bench_median(const struct bench_samples *samples);

/* A bar: what must be reached. */
void rewarm_bench_bar(struct bench *bench, const char *name, double value, const char *unit,
                      bool at_least, double goal);
/* What a bar is made of, or stands beside it. */
void rewarm_bench_more(struct bench *bench, const char *name, double value, const char *unit);
/* A line for a person about what is coming. */
void rewarm_bench_say(const char *text);

/* --- bench_fill.c */

/* Bytes a second of a loop of UFFDIO_COPY into another process, with as many threads as a restore
 * has. */
int rewarm_bench_fill_bare(uint64_t bytes, double *ret_bytes_per_s, struct rewarm_error *err);

#endif

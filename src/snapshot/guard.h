/* The filler process and its supervisor: two holders of a tree's userfaultfds, so that the death of
 * one never turns missing memory into zeros.
 *
 * The filler is made with clone(CLONE_FILES): both processes share one descriptor table. Whatever
 * userfaultfd the filler receives (from CRIU, or with a fork event) is in the supervisor's hands in
 * the same instant, with no message that could be lost in between. Each watches the other through a
 * pidfd; whoever survives kills the tree before it lets go. */
#ifndef REWARM_SNAPSHOT_GUARD_H
#define REWARM_SNAPSHOT_GUARD_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "proc/lazy.h"
#include "snapshot/session.h"

/* In memory that supervisor, filler and (when isolated) the namespace's init share. */
struct rewarm_guard_shared {
    atomic_int complete; /* every page is in the tree */
    atomic_uint_fast64_t done_bytes, total_bytes;
    struct rewarm_lazy_stats stats;   /* valid once complete */
    struct rewarm_error filler_error; /* valid once `failed` */
    atomic_int failed; /* the filler gives up: it kills CRIU and the tree, and ends */
    /* What has to be killed if the fill fails. 0: not started. */
    atomic_int criu_pid, root_pid, init_pid;
    /* Of the namespace's init (isolate.c). */
    atomic_int init_result; /* 1: the tree runs; negative: init_error says why not */
    atomic_int root_status; /* wait status of the root, + 1 */
    struct rewarm_error init_error;
};

struct rewarm_guard {
    struct rewarm_guard_shared *shared;
    pid_t filler;
    int filler_pidfd;
    pid_t supervisor;
    int supervisor_pidfd;
    int listen_fd;
    uint64_t start_ns; /* CLOCK_BOOTTIME: what started before is not ours */
};
#define REWARM_GUARD_INIT {.filler_pidfd = -1, .supervisor_pidfd = -1, .listen_fd = -1}

/* Listens at SESSION/lazy-pages.socket and starts the filler. `options` (without listen and cancel
 * descriptors and callbacks) must stay valid; the caller must be single-threaded. */
int rewarm_guard_start(struct rewarm_guard *guard, struct rewarm_session *session,
                       const struct rewarm_lazy_options *options, struct rewarm_error *err);

/* Waits for the filler's end. 0 when the tree is complete; else what went wrong (the tree must be
 * killed before rewarm_guard_fini()). */
int rewarm_guard_wait(struct rewarm_guard *guard, struct rewarm_error *err);

/* Kills CRIU and the tree, as far as they were started; by either holder, any number of times. */
void rewarm_guard_kill_tree(struct rewarm_guard *guard);

/* Ends the filler if it still runs, and lets go. */
void rewarm_guard_fini(struct rewarm_guard *guard);

#endif

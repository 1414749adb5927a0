/* The lazy-pages peer: answers the userfaultfds of a tree that CRIU restores, faults first, then
 * the rest.
 *
 * rewarm_lazy_serve() runs in the *filler* process (src/snapshot/guard.h says who else holds the
 * descriptors). It speaks CRIU's lazy-pages protocol on a listening stream socket and serves pages
 * from a memmap until every process is complete or gone. */
#ifndef REWARM_PROC_LAZY_H
#define REWARM_PROC_LAZY_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "io/memmap.h"

/* Where the chunks come from: a const table, so that tests serve from memory and a daemon from RAM.
 */
struct rewarm_lazy_source {
    /* Fills `buffer` with the raw bytes of chunk `chunk` (REWARM_WINDOW_BYTES at most), verified.
     * Any thread. A failure stops the service: the caller must then end the tree. */
    int (*get)(void *context, uint32_t chunk, void *buffer, struct rewarm_error *err);
};

/* Ranges that a forked child must see as zeros (MADV_WIPEONFORK), by image PID; sorted, may be
 * empty. */
struct rewarm_lazy_wipe {
    int32_t pid;
    uint64_t start, end;
};

struct rewarm_lazy_options {
    const struct rewarm_memmap *map;
    const struct rewarm_lazy_source *source;
    void *source_context;
    const struct rewarm_lazy_wipe *wipes;
    size_t wipe_count;
    unsigned threads; /* 0: rewarm_parallel_width() */
    int listen_fd;    /* bound and listening: CRIU's WORKDIR/lazy-pages.socket */
    int cancel_fd;    /* readable or hung up: stop with REWARM_E_CANCELLED; -1 for none */
    bool background;  /* also supply what nobody faults on (off only in tests) */
    /* Called once, when CRIU says that the tree is about to run; and often enough for a progress
     * bar, from one thread. Each may be NULL. */
    void (*on_running)(void *context);
    void (*on_progress)(void *context, uint64_t done_bytes, uint64_t total_bytes);
    void *context;
};

struct rewarm_lazy_stats {
    uint64_t supplied_bytes; /* copied into the tree */
    uint64_t dropped_bytes;  /* gone before they were needed: unmapped, discarded, process exited */
    uint64_t faults, zero_faults, events, forks;
    uint64_t running_ns; /* monotonic time of "about to run" */
    uint64_t complete_ns;
};

/* Blocks until the tree is complete: then every descriptor is closed and nothing of the tree
 * depends on this process any more. On failure the descriptors stay OPEN (they are leaked on
 * purpose), so that no page turns into zeros before the caller has killed the tree. */
int rewarm_lazy_serve(const struct rewarm_lazy_options *options,
                      struct rewarm_lazy_stats *ret_stats, struct rewarm_error *err);

#endif

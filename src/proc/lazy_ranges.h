/* Where the memory of a snapshot is now, in a process that goes on changing its layout.
 *
 * Every page of the snapshot starts at home: its current address is its original one. mremap moves
 * pages, munmap and madvise drop them; a page that was dropped, or that never was here, reads as
 * zero. An original page has at most one current address and the reverse. Not thread-safe. */
#ifndef REWARM_PROC_LAZY_RANGES_H
#define REWARM_PROC_LAZY_RANGES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct rewarm_lazy_range {
    uint64_t current, original, bytes;
};

struct rewarm_lazy_ranges {
    struct rewarm_lazy_range *home; /* current == original; sorted, with gaps between */
    size_t home_count, home_capacity;
    struct rewarm_lazy_range *moved; /* sorted by original: supplying looks up by that */
    size_t moved_count, moved_capacity;
};

/* The whole address space, at home. */
void rewarm_lazy_ranges_init(struct rewarm_lazy_ranges *ranges);
void rewarm_lazy_ranges_copy(struct rewarm_lazy_ranges *ranges,
                             const struct rewarm_lazy_ranges *from);
void rewarm_lazy_ranges_fini(struct rewarm_lazy_ranges *ranges);

/* What is at the current addresses [start, end) is gone. */
void rewarm_lazy_ranges_drop(struct rewarm_lazy_ranges *ranges, uint64_t start, uint64_t end);

/* The original pages [start, end) are gone, wherever they are. */
void rewarm_lazy_ranges_forget(struct rewarm_lazy_ranges *ranges, uint64_t start, uint64_t end);

/* What is at current address `from` is now at `to`; what was there is gone. */
void rewarm_lazy_ranges_move(struct rewarm_lazy_ranges *ranges, uint64_t from, uint64_t to,
                             uint64_t bytes);

/* The part of the list from current address `current` on that is contiguous in both; false when
 * there is no snapshot memory: then ret_range->bytes is the distance to the next (or to the end).
 */
bool rewarm_lazy_ranges_at(const struct rewarm_lazy_ranges *ranges, uint64_t current,
                           struct rewarm_lazy_range *ret_range);

/* The lowest part of the original pages [start, end) that is still somewhere. */
bool rewarm_lazy_ranges_first(const struct rewarm_lazy_ranges *ranges, uint64_t start, uint64_t end,
                              struct rewarm_lazy_range *ret_range);

#endif

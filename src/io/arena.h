/* An arena: memory that is populated before it is needed, cut into equal slots that are recycled.
 *
 * Fresh pages cost more than the copy into them (measured on 2 cores: 1.7 GB/s into fresh memory, 8
 * to 11 into populated), so a freeze populates its arena while the worker still runs. */
#ifndef REWARM_IO_ARENA_H
#define REWARM_IO_ARENA_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct rewarm_arena;

/* Reserves slots * slot_bytes (slot_bytes a multiple of 4 KiB) and populates them with `threads`
 * threads, huge pages where the kernel gives them. Not dumpable (no copy in a core file). */
int rewarm_arena_new(size_t slots, size_t slot_bytes, unsigned threads,
                     struct rewarm_arena **ret_arena, struct rewarm_error *err);
void rewarm_arena_free(struct rewarm_arena *arena);

/* Takes a slot, waiting while none is free; NULL once rewarm_arena_stop() was called. Any thread.
 */
void *rewarm_arena_get(struct rewarm_arena *arena);
void rewarm_arena_put(struct rewarm_arena *arena, void *slot);

/* Wakes all waiters with NULL, for cancelling. */
void rewarm_arena_stop(struct rewarm_arena *arena);

size_t rewarm_arena_slot_bytes(const struct rewarm_arena *arena);

#endif

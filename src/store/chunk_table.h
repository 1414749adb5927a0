/* The chunk table of a snapshot that is being written: chunks by index, and by digest. */
#ifndef REWARM_STORE_CHUNK_TABLE_H
#define REWARM_STORE_CHUNK_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "io/memmap.h"

struct rewarm_chunk_table {
    struct rewarm_chunk *chunks;
    size_t count, capacity;
    uint32_t *slots;   /* index + 1 into chunks; 0 = free. Open addressing, at most half full. */
    size_t slot_count; /* a power of two */
};

bool rewarm_chunk_table_find(const struct rewarm_chunk_table *table,
                             const uint8_t digest[REWARM_DIGEST_BYTES], uint32_t *ret_index);

/* Adds a chunk whose digest is not there yet; returns its index. The caller keeps count below
 * UINT32_MAX. */
uint32_t rewarm_chunk_table_add(struct rewarm_chunk_table *table, const struct rewarm_chunk *chunk);
void rewarm_chunk_table_fini(struct rewarm_chunk_table *table);

#endif

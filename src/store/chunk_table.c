#include "store/chunk_table.h"

#include <stdlib.h>
#include <string.h>

#include "base/str.h"

static size_t slot_of(const struct rewarm_chunk_table *table,
                      const uint8_t digest[REWARM_DIGEST_BYTES])
{
    uint64_t hash; /* a digest is as good as random */
    memcpy(&hash, digest, sizeof(hash));
    size_t mask = table->slot_count - 1;
    size_t slot = (size_t)hash & mask;
    while (table->slots[slot] != 0 &&
           memcmp(table->chunks[table->slots[slot] - 1].digest, digest, REWARM_DIGEST_BYTES) != 0)
        slot = (slot + 1) & mask;
    return slot;
}

bool rewarm_chunk_table_find(const struct rewarm_chunk_table *table,
                             const uint8_t digest[REWARM_DIGEST_BYTES], uint32_t *ret_index)
{
    if (table->slot_count == 0)
        return false;
    uint32_t entry = table->slots[slot_of(table, digest)];
    if (entry == 0)
        return false;
    *ret_index = entry - 1;
    return true;
}

uint32_t rewarm_chunk_table_add(struct rewarm_chunk_table *table, const struct rewarm_chunk *chunk)
{
    if ((table->count + 1) * 2 > table->slot_count) {
        free(table->slots);
        table->slot_count = table->slot_count != 0 ? table->slot_count * 2 : 1024;
        table->slots = rewarm_mem_new(table->slot_count, sizeof(*table->slots));
        for (size_t i = 0; i < table->count; i++)
            table->slots[slot_of(table, table->chunks[i].digest)] = (uint32_t)i + 1;
    }
    size_t slot = slot_of(table, chunk->digest);
    REWARM_GROW(&table->chunks, &table->capacity, table->count);
    table->chunks[table->count] = *chunk;
    table->slots[slot] = (uint32_t)++table->count;
    return (uint32_t)table->count - 1;
}

void rewarm_chunk_table_fini(struct rewarm_chunk_table *table)
{
    free(table->chunks);
    free(table->slots);
    memset(table, 0, sizeof(*table));
}

/* The index of a pack: its chunks by digest, for finding what is stored already. docs/format.md,
 * "Index". */
#ifndef REWARM_STORE_IDX_H
#define REWARM_STORE_IDX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "io/memmap.h"
#include "store/pack.h"

/* A decoded index borrows the file's bytes. */
struct rewarm_idx {
    const uint8_t *data;
    size_t count;
    struct rewarm_pack_ref pack;
};

/* Encodes the index of `chunks` (any order, no digest twice; `pack` fields are not stored). Free
 * `*ret_data`. */
int rewarm_idx_encode(const struct rewarm_pack_ref *pack, const struct rewarm_chunk *chunks,
                      size_t count, uint8_t **ret_data, size_t *ret_bytes,
                      struct rewarm_error *err);

/* Checks all of it; `ret_idx` is valid while `data` is. */
int rewarm_idx_decode(const uint8_t *data, size_t bytes, const char *what,
                      struct rewarm_idx *ret_idx, struct rewarm_error *err);

/* Finds a digest; false if it is not there. `pack` of the chunk is 0. */
bool rewarm_idx_find(const struct rewarm_idx *idx, const uint8_t digest[REWARM_DIGEST_BYTES],
                     struct rewarm_chunk *ret_chunk);

/* Chunk `index` (below idx->count), in the order of digests. */
void rewarm_idx_at(const struct rewarm_idx *idx, size_t index, struct rewarm_chunk *ret_chunk);

/* Reads and decodes packs/<id>.idx, whose bytes go into `*ret_data` (free it after the index). A
 * missing file is REWARM_E_CORRUPT, as is one of another pack. */
int rewarm_idx_load(int packs_fd, const uint8_t id[REWARM_PACK_ID_BYTES], uint8_t **ret_data,
                    struct rewarm_idx *ret_idx, struct rewarm_error *err);

#endif

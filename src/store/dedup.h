/* What the store holds already: the indexes of all published packs, for one writer. */
#ifndef REWARM_STORE_DEDUP_H
#define REWARM_STORE_DEDUP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "store/internal.h"

struct rewarm_dedup;

/* Reads all indexes. The caller holds locks/gc shared until rewarm_dedup_close(). Packs whose index
 * or file is damaged are left out, with a warning: their chunks are stored again. */
int rewarm_dedup_open(struct rewarm_store *store, struct rewarm_dedup **ret_dedup,
                      struct rewarm_error *err);
void rewarm_dedup_close(struct rewarm_dedup *dedup);

/* How many packs; the `ret_pack` of a find is below. */
size_t rewarm_dedup_packs(const struct rewarm_dedup *dedup);
struct rewarm_pack_ref rewarm_dedup_pack(const struct rewarm_dedup *dedup, size_t index);

/* Finds a chunk with this digest and reads it: true only if its stored bytes equal `data` now, so
 * that a new snapshot never leans on a damaged chunk. Any thread; blocks on the disk when the
 * digest is known. */
bool rewarm_dedup_find(struct rewarm_dedup *dedup, const uint8_t digest[REWARM_DIGEST_BYTES],
                       const void *data, size_t bytes, struct rewarm_chunk *ret_chunk,
                       size_t *ret_pack);

#endif

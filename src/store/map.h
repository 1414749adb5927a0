/* The memory map of a snapshot as bytes (docs/format.md, "Map"). Pure functions: the fuzz target is
 * these. */
#ifndef REWARM_STORE_MAP_H
#define REWARM_STORE_MAP_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "io/memmap.h"
#include "store/pack.h"

/* Encodes a map that is well formed (what the writer built). Free `*ret_data`. */
int rewarm_map_encode(const struct rewarm_memmap *map, const struct rewarm_pack_ref *packs,
                      size_t pack_count, uint8_t **ret_data, size_t *ret_bytes,
                      struct rewarm_error *err);

/* Decodes and checks everything that can be checked without the packs: every count, index, offset
 * and order. `what` names the file in messages. `ret_map` is to be finished, `*ret_packs` freed. */
int rewarm_map_decode(const uint8_t *data, size_t bytes, const char *what,
                      struct rewarm_memmap *ret_map, struct rewarm_pack_ref **ret_packs,
                      size_t *ret_pack_count, struct rewarm_error *err);

/* What is wrong with one process's windows and runs, or NULL: the rules that writer and reader
 * share. The runs of window i are runs[first_run ...]. `ret_pages` is the number of pages stored.
 */
const char *rewarm_map_space_problem(const struct rewarm_space *space,
                                     const struct rewarm_window *windows, size_t window_count,
                                     const struct rewarm_run *runs, size_t run_count,
                                     const struct rewarm_chunk *chunks, size_t chunk_count,
                                     uint64_t *ret_pages);

/* A name that a blob may have: not empty, not "." or "..", no '/', at most 255 bytes. */
bool rewarm_map_blob_name_ok(const char *name, size_t bytes);

#endif

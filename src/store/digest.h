/* SHA-256 and XXH3 of buffers, and buffers that each thread keeps. */
#ifndef REWARM_STORE_DIGEST_H
#define REWARM_STORE_DIGEST_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "io/memmap.h"

/* Any thread; each thread keeps its own context, so that a call allocates nothing. */
int rewarm_store_sha256(const void *data, size_t bytes, uint8_t ret_digest[REWARM_DIGEST_BYTES],
                        struct rewarm_error *err);

uint64_t rewarm_store_xxh3(const void *data, size_t bytes);
/* The same, for a CPU with AVX2; only in builds for x86-64. */
uint64_t rewarm_store_xxh3_avx2(const void *data, size_t bytes);

/* Buffers of REWARM_WINDOW_BYTES, aligned to 4 KiB, one of each a thread; freed with the thread.
 * What is in one is lost at the next call that uses the same one: COMPARE belongs to the look-up of
 * stored chunks, BLOB to the moving of blobs. */
enum rewarm_store_scratch { REWARM_SCRATCH_COMPARE, REWARM_SCRATCH_BLOB, REWARM_SCRATCH_COUNT };
uint8_t *rewarm_store_scratch(enum rewarm_store_scratch which);

#endif

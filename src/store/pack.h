/* Packs: files of chunks, written once. And what the other modules share about chunks. */
#ifndef REWARM_STORE_PACK_H
#define REWARM_STORE_PACK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "io/memmap.h"

#define REWARM_PACK_ALIGN_BYTES  4096u
#define REWARM_PACK_HEADER_BYTES 4096u /* the first chunk's offset */
#define REWARM_PACK_ID_BYTES     16
#define REWARM_PACK_ID_HEX       (2 * REWARM_PACK_ID_BYTES + 1)
#define REWARM_PACK_NAME         (REWARM_PACK_ID_HEX + 8) /* "<id>.pack", "<id>.idx" and room */

/* A pack as a snapshot refers to it. */
struct rewarm_pack_ref {
    uint8_t id[REWARM_PACK_ID_BYTES];
    uint64_t bytes; /* length of the file when it was published: it never grows or shrinks after */
};

static inline uint64_t rewarm_pack_align(uint64_t bytes)
{
    return (bytes + REWARM_PACK_ALIGN_BYTES - 1) & ~(uint64_t)(REWARM_PACK_ALIGN_BYTES - 1);
}

/* "<id><suffix>" of an id into `out`; returns it. */
char *rewarm_pack_name(const uint8_t id[REWARM_PACK_ID_BYTES], const char *suffix,
                       char out[REWARM_PACK_NAME]);

/* The id of a file name "<id><suffix>"; false for any other name. */
bool rewarm_pack_parse_name(const char *name, const char *suffix,
                            uint8_t ret_id[REWARM_PACK_ID_BYTES]);

/* Writes the header of a new pack. */
int rewarm_pack_write_header(int fd, const uint8_t id[REWARM_PACK_ID_BYTES], const char *what,
                             struct rewarm_error *err);

/* Opens packs/<id>.pack; a missing one is REWARM_E_CORRUPT. */
int rewarm_pack_open(int packs_fd, const struct rewarm_pack_ref *ref, bool write, int *ret_fd,
                     struct rewarm_error *err);

/* Checks that the file behind `fd` has this pack's header and is not shorter than ref->bytes. */
int rewarm_pack_check(int fd, const struct rewarm_pack_ref *ref, struct rewarm_error *err);

/* The record of a chunk, 64 bytes in maps and indexes alike (`pack` is 0 in an index). */
#define REWARM_CHUNK_RECORD_BYTES 64
void rewarm_chunk_encode(const struct rewarm_chunk *chunk, uint8_t out[REWARM_CHUNK_RECORD_BYTES]);
void rewarm_chunk_decode(const uint8_t in[REWARM_CHUNK_RECORD_BYTES],
                         struct rewarm_chunk *ret_chunk);

/* What is wrong with a chunk of a pack of `pack_bytes`, or NULL. */
const char *rewarm_chunk_problem(const struct rewarm_chunk *chunk, uint64_t pack_bytes);

/* Reads chunk `chunk` of the pack behind `fd` into `buffer` and checks its XXH3: the bytes are
 * right, or REWARM_E_CORRUPT names chunk, pack and offset. */
int rewarm_chunk_read(int fd, const struct rewarm_chunk *chunk, const struct rewarm_pack_ref *ref,
                      void *buffer, struct rewarm_error *err);

#endif

/* The manifest of a snapshot: a JSON document that carries its own digest. docs/format.md,
 * "Manifest". */
#ifndef REWARM_STORE_MANIFEST_H
#define REWARM_STORE_MANIFEST_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "io/memmap.h"
#include "store/pack.h"

#define REWARM_MANIFEST_LIMIT_BYTES ((size_t)64 << 20)
#define REWARM_MAP_NAME             (2 * REWARM_DIGEST_BYTES + 8) /* "<sha256>.map" and room */

/* How much must be there; a reader compares. */
struct rewarm_contents {
    uint64_t processes, windows, runs, chunks, blobs, lazy_pages;
};

struct rewarm_manifest {
    json_t *document;
    uint8_t map_sha256[REWARM_DIGEST_BYTES];
    uint64_t map_bytes;
    struct rewarm_pack_ref *packs;
    size_t pack_count;
    struct rewarm_contents contents;
};

/* The contents of a map. */
struct rewarm_contents rewarm_contents_of(const struct rewarm_memmap *map);
json_t *rewarm_contents_encode(const struct rewarm_contents *contents);

/* The file name of a map below maps/. Returns `out`. */
char *rewarm_manifest_map_name(const uint8_t sha256[REWARM_DIGEST_BYTES],
                               char out[REWARM_MAP_NAME]);

/* The text of a document (an object with "format" as first key) with its digest in front. Free it.
 */
int rewarm_manifest_encode(const json_t *document, char **ret_text, size_t *ret_bytes,
                           struct rewarm_error *err);

/* Checks digest, structure and types; `name` is the snapshot's (also in messages). The result is to
 * be finished with rewarm_manifest_fini(). */
int rewarm_manifest_decode(const void *text, size_t bytes, const char *name,
                           struct rewarm_manifest *ret_manifest, struct rewarm_error *err);
void rewarm_manifest_fini(struct rewarm_manifest *manifest);

#endif

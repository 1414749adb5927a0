/* The pack index.
 *
 * header | fan-out | records sorted by digest | XXH3 of everything before it. The fan-out has, for
 * each first byte, how many digests begin with it or a smaller one, so that a look-up is a binary
 * search among 1/256 of the records. An index says what may be *shared*; what a snapshot needs
 * stands in its map. So an index that is lost or damaged costs space, never data, and gc writes it
 * again from the maps. */
#include "store/idx.h"

#include <stdlib.h>
#include <string.h>

#include "base/clean.h"
#include "base/fs.h"
#include "base/str.h"
#include "store/digest.h"
#include "store/wire.h"

#define MAGIC         "\x89RWIDX\r\n"
#define VERSION       1
#define HEADER_BYTES  64
#define FANOUT        256
#define FANOUT_BYTES  (FANOUT * 4)
#define RECORDS_AT    (HEADER_BYTES + FANOUT_BYTES)
#define TRAILER_BYTES 8
#define LIMIT_BYTES   ((size_t)1 << 30)

enum {
    AT_MAGIC = 0,
    AT_VERSION = 8,
    AT_FEATURES = 12,
    AT_ID = 16,
    AT_PACK_BYTES = 32,
    AT_COUNT = 40
};

static int compare_chunks(const void *a, const void *b)
{
    const struct rewarm_chunk *left = *(const struct rewarm_chunk *const *)a;
    const struct rewarm_chunk *right = *(const struct rewarm_chunk *const *)b;
    return memcmp(left->digest, right->digest, REWARM_DIGEST_BYTES);
}

int rewarm_idx_encode(const struct rewarm_pack_ref *pack, const struct rewarm_chunk *chunks,
                      size_t count, uint8_t **ret_data, size_t *ret_bytes, struct rewarm_error *err)
{
    if (count > UINT32_MAX)
        return rewarm_error_set(err, REWARM_E_REFUSED, 0, "too many chunks for one pack: %zu",
                                count);
    rewarm_auto_free const struct rewarm_chunk **sorted =
        rewarm_mem_new(count + 1, sizeof(*sorted));
    for (size_t i = 0; i < count; i++)
        sorted[i] = &chunks[i];
    qsort(sorted, count, sizeof(*sorted), compare_chunks);

    size_t total = RECORDS_AT + count * REWARM_CHUNK_RECORD_BYTES + TRAILER_BYTES;
    uint8_t *data = rewarm_mem_new(total, 1);
    memcpy(data + AT_MAGIC, MAGIC, 8);
    rewarm_wire_put32(data + AT_VERSION, VERSION);
    rewarm_wire_put32(data + AT_FEATURES, 0);
    memcpy(data + AT_ID, pack->id, REWARM_PACK_ID_BYTES);
    rewarm_wire_put64(data + AT_PACK_BYTES, pack->bytes);
    rewarm_wire_put64(data + AT_COUNT, count);
    uint32_t ends[FANOUT] = {0};
    for (size_t i = 0; i < count; i++) {
        struct rewarm_chunk chunk = *sorted[i];
        chunk.pack = 0;
        rewarm_chunk_encode(&chunk, data + RECORDS_AT + i * REWARM_CHUNK_RECORD_BYTES);
        ends[chunk.digest[0]]++;
    }
    uint32_t end = 0;
    for (size_t byte = 0; byte < FANOUT; byte++) {
        end += ends[byte];
        rewarm_wire_put32(data + HEADER_BYTES + byte * 4, end);
    }
    rewarm_wire_put64(data + total - TRAILER_BYTES, rewarm_store_xxh3(data, total - TRAILER_BYTES));
    *ret_data = data;
    *ret_bytes = total;
    return 0;
}

static uint32_t fanout(const uint8_t *data, size_t byte)
{
    return rewarm_wire_get32(data + HEADER_BYTES + byte * 4);
}

static const uint8_t *record(const uint8_t *data, size_t index)
{
    return data + RECORDS_AT + index * REWARM_CHUNK_RECORD_BYTES;
}

static const char *records_problem(const struct rewarm_idx *idx)
{
    uint32_t start = 0;
    for (size_t byte = 0; byte < FANOUT; byte++) {
        uint32_t end = fanout(idx->data, byte);
        if (end < start || end > idx->count)
            return "its fan-out is not in order";
        for (uint32_t i = start; i < end; i++)
            if (record(idx->data, i)[0] != byte)
                return "its fan-out does not fit its records";
        start = end;
    }
    if (start != idx->count)
        return "its fan-out does not cover its records";
    for (size_t i = 0; i < idx->count; i++) {
        struct rewarm_chunk chunk;
        rewarm_idx_at(idx, i, &chunk);
        const char *problem = rewarm_chunk_problem(&chunk, idx->pack.bytes);
        if (problem != NULL)
            return problem;
        if (i > 0 &&
            memcmp(record(idx->data, i - 1), record(idx->data, i), REWARM_DIGEST_BYTES) >= 0)
            return "its records are not in the order of their digests";
    }
    return NULL;
}

int rewarm_idx_decode(const uint8_t *data, size_t bytes, const char *what,
                      struct rewarm_idx *ret_idx, struct rewarm_error *err)
{
    if (bytes < RECORDS_AT + TRAILER_BYTES || memcmp(data + AT_MAGIC, MAGIC, 8) != 0)
        return rewarm_error_set(err, REWARM_E_CORRUPT, 0, "%s is damaged: it is not an index",
                                what);
    if (rewarm_wire_get64(data + bytes - TRAILER_BYTES) !=
        rewarm_store_xxh3(data, bytes - TRAILER_BYTES))
        return rewarm_error_set(err, REWARM_E_CORRUPT, 0, "%s is damaged: its checksum differs",
                                what);
    uint32_t version = rewarm_wire_get32(data + AT_VERSION);
    uint32_t features = rewarm_wire_get32(data + AT_FEATURES);
    if (version != VERSION || features != 0)
        return rewarm_error_set(err, REWARM_E_MISFIT, 0,
                                "%s was written by a newer rewarm (version %u, features %#x)", what,
                                version, features);
    uint64_t count = rewarm_wire_get64(data + AT_COUNT);
    size_t room = bytes - RECORDS_AT - TRAILER_BYTES;
    if (room % REWARM_CHUNK_RECORD_BYTES != 0 || room / REWARM_CHUNK_RECORD_BYTES != count ||
        count > UINT32_MAX)
        return rewarm_error_set(err, REWARM_E_CORRUPT, 0,
                                "%s is damaged: it has not the length of its records", what);
    struct rewarm_idx idx = {.data = data, .count = (size_t)count};
    memcpy(idx.pack.id, data + AT_ID, REWARM_PACK_ID_BYTES);
    idx.pack.bytes = rewarm_wire_get64(data + AT_PACK_BYTES);
    const char *problem = records_problem(&idx);
    if (problem != NULL)
        return rewarm_error_set(err, REWARM_E_CORRUPT, 0, "%s is damaged: %s", what, problem);
    *ret_idx = idx;
    return 0;
}

void rewarm_idx_at(const struct rewarm_idx *idx, size_t index, struct rewarm_chunk *ret_chunk)
{
    rewarm_chunk_decode(record(idx->data, index), ret_chunk);
    ret_chunk->pack = 0;
}

bool rewarm_idx_find(const struct rewarm_idx *idx, const uint8_t digest[REWARM_DIGEST_BYTES],
                     struct rewarm_chunk *ret_chunk)
{
    uint32_t low = digest[0] != 0 ? fanout(idx->data, digest[0] - 1u) : 0;
    uint32_t high = fanout(idx->data, digest[0]);
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        int order = memcmp(record(idx->data, middle), digest, REWARM_DIGEST_BYTES);
        if (order == 0) {
            rewarm_idx_at(idx, middle, ret_chunk);
            return true;
        }
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return false;
}

int rewarm_idx_load(int packs_fd, const uint8_t id[REWARM_PACK_ID_BYTES], uint8_t **ret_data,
                    struct rewarm_idx *ret_idx, struct rewarm_error *err)
{
    char name[REWARM_PACK_NAME];
    rewarm_auto_free char *text = NULL;
    size_t bytes;
    rewarm_pack_name(id, ".idx", name);
    struct rewarm_error local = REWARM_ERROR_INIT;
    int result = rewarm_fs_read_file(packs_fd, name, LIMIT_BYTES, &text, &bytes, &local);
    if (result == -REWARM_E_NOT_FOUND)
        return rewarm_error_set(err, REWARM_E_CORRUPT, 0, "packs/%s is missing", name);
    if (result < 0)
        return rewarm_error_set(err, (enum rewarm_code)local.code, 0, "%s", local.message);
    char what[REWARM_PACK_NAME + 8] = "packs/";
    strcat(what, name);
    struct rewarm_idx idx;
    result = rewarm_idx_decode((const uint8_t *)text, bytes, what, &idx, err);
    if (result < 0)
        return result;
    if (memcmp(idx.pack.id, id, REWARM_PACK_ID_BYTES) != 0)
        return rewarm_error_set(err, REWARM_E_CORRUPT, 0, "%s is the index of another pack", what);
    *ret_data = (uint8_t *)rewarm_steal_ptr(&text);
    *ret_idx = idx;
    return 0;
}

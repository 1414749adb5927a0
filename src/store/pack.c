/* Packs.
 *
 * A pack is a 4 KiB header and chunks, each at a multiple of 4 KiB, padded with zeros. It is
 * written once, by one writer, in that writer's staging directory, and moved to packs/ when it is
 * complete and durable; after that nothing changes it but gc, which punches holes where no snapshot
 * refers to. The header says which pack it is, so that a file under a wrong name is found out
 * before its bytes are. */
#include "store/pack.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/clean.h"
#include "base/fs.h"
#include "base/str.h"
#include "store/digest.h"
#include "store/wire.h"

#define MAGIC   "\x89RWPACK\n"
#define VERSION 1

/* The header's fields (docs/format.md). */
enum {
    AT_MAGIC = 0,
    AT_VERSION = 8,
    AT_FEATURES = 12,
    AT_ID = 16,
    AT_XXH3 = 56, /* of the 56 bytes before it */
    FIELD_BYTES = 64,
};

char *rewarm_pack_name(const uint8_t id[REWARM_PACK_ID_BYTES], const char *suffix,
                       char out[REWARM_PACK_NAME])
{
    rewarm_str_hex(id, REWARM_PACK_ID_BYTES, out);
    snprintf(out + REWARM_PACK_ID_HEX - 1, REWARM_PACK_NAME - REWARM_PACK_ID_HEX + 1, "%s", suffix);
    return out;
}

bool rewarm_pack_parse_name(const char *name, const char *suffix,
                            uint8_t ret_id[REWARM_PACK_ID_BYTES])
{
    char hex[REWARM_PACK_ID_HEX], again[REWARM_PACK_NAME];
    uint8_t id[REWARM_PACK_ID_BYTES];
    size_t digits = REWARM_PACK_ID_HEX - 1;
    if (strnlen(name, digits) < digits || strcmp(name + digits, suffix) != 0)
        return false;
    memcpy(hex, name, digits);
    hex[digits] = '\0';
    /* Compared with what we would have written: no second spelling of one pack. */
    if (!rewarm_str_unhex(hex, id, sizeof(id)) ||
        strcmp(rewarm_pack_name(id, suffix, again), name) != 0)
        return false;
    memcpy(ret_id, id, sizeof(id));
    return true;
}

int rewarm_pack_write_header(int fd, const uint8_t id[REWARM_PACK_ID_BYTES], const char *what,
                             struct rewarm_error *err)
{
    uint8_t header[REWARM_PACK_HEADER_BYTES] = {0};
    memcpy(header + AT_MAGIC, MAGIC, 8);
    rewarm_wire_put32(header + AT_VERSION, VERSION);
    rewarm_wire_put32(header + AT_FEATURES, 0);
    memcpy(header + AT_ID, id, REWARM_PACK_ID_BYTES);
    rewarm_wire_put64(header + AT_XXH3, rewarm_store_xxh3(header, AT_XXH3));
    return rewarm_fs_pwrite_full(fd, header, sizeof(header), 0, what, err);
}

static int check_header(int fd, const struct rewarm_pack_ref *ref, const char *name,
                        struct rewarm_error *err)
{
    uint8_t header[FIELD_BYTES];
    int result = rewarm_fs_pread_full(fd, header, sizeof(header), 0, name, err);
    if (result < 0)
        return result;
    if (memcmp(header + AT_MAGIC, MAGIC, 8) != 0 ||
        rewarm_wire_get64(header + AT_XXH3) != rewarm_store_xxh3(header, AT_XXH3))
        return rewarm_error_set(err, REWARM_E_CORRUPT, 0, "packs/%s: its header is damaged", name);
    if (rewarm_wire_get32(header + AT_VERSION) != VERSION ||
        rewarm_wire_get32(header + AT_FEATURES) != 0)
        return rewarm_error_set(err, REWARM_E_MISFIT, 0,
                                "packs/%s was written by a newer rewarm (version %u, features %#x)",
                                name, rewarm_wire_get32(header + AT_VERSION),
                                rewarm_wire_get32(header + AT_FEATURES));
    if (memcmp(header + AT_ID, ref->id, REWARM_PACK_ID_BYTES) != 0)
        return rewarm_error_set(err, REWARM_E_CORRUPT, 0, "packs/%s holds another pack", name);
    return 0;
}

int rewarm_pack_open(int packs_fd, const struct rewarm_pack_ref *ref, bool write, int *ret_fd,
                     struct rewarm_error *err)
{
    char name[REWARM_PACK_NAME];
    rewarm_pack_name(ref->id, ".pack", name);
    int fd = openat(packs_fd, name, (write ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 && errno == ENOENT)
        return rewarm_error_set(err, REWARM_E_CORRUPT, 0, "packs/%s is missing", name);
    if (fd < 0)
        return rewarm_error_errno(err, "cannot open packs/%s", name);
    *ret_fd = fd;
    return 0;
}

int rewarm_pack_check(int fd, const struct rewarm_pack_ref *ref, struct rewarm_error *err)
{
    char name[REWARM_PACK_NAME];
    rewarm_pack_name(ref->id, ".pack", name);
    struct stat st;
    if (fstat(fd, &st) != 0)
        return rewarm_error_errno(err, "cannot examine packs/%s", name);
    if (!S_ISREG(st.st_mode))
        return rewarm_error_set(err, REWARM_E_CORRUPT, 0, "packs/%s is not a regular file", name);
    if ((uint64_t)st.st_size < ref->bytes)
        return rewarm_error_set(err, REWARM_E_CORRUPT, 0,
                                "packs/%s is cut short: %llu of %llu bytes", name,
                                (unsigned long long)st.st_size, (unsigned long long)ref->bytes);
    return check_header(fd, ref, name, err);
}

/* The fields of a chunk record (docs/format.md). */
enum {
    CHUNK_XXH3 = 32,
    CHUNK_OFFSET = 40,
    CHUNK_PACK = 48,
    CHUNK_STORED = 52,
    CHUNK_RAW = 56,
    CHUNK_CODEC = 60
};

void rewarm_chunk_encode(const struct rewarm_chunk *chunk, uint8_t out[REWARM_CHUNK_RECORD_BYTES])
{
    memcpy(out, chunk->digest, REWARM_DIGEST_BYTES);
    rewarm_wire_put64(out + CHUNK_XXH3, chunk->xxh3);
    rewarm_wire_put64(out + CHUNK_OFFSET, chunk->offset_bytes);
    rewarm_wire_put32(out + CHUNK_PACK, chunk->pack);
    rewarm_wire_put32(out + CHUNK_STORED, chunk->stored_bytes);
    rewarm_wire_put32(out + CHUNK_RAW, chunk->raw_bytes);
    rewarm_wire_put32(out + CHUNK_CODEC, chunk->codec);
}

void rewarm_chunk_decode(const uint8_t in[REWARM_CHUNK_RECORD_BYTES],
                         struct rewarm_chunk *ret_chunk)
{
    memcpy(ret_chunk->digest, in, REWARM_DIGEST_BYTES);
    ret_chunk->xxh3 = rewarm_wire_get64(in + CHUNK_XXH3);
    ret_chunk->offset_bytes = rewarm_wire_get64(in + CHUNK_OFFSET);
    ret_chunk->pack = rewarm_wire_get32(in + CHUNK_PACK);
    ret_chunk->stored_bytes = rewarm_wire_get32(in + CHUNK_STORED);
    ret_chunk->raw_bytes = rewarm_wire_get32(in + CHUNK_RAW);
    ret_chunk->codec = rewarm_wire_get32(in + CHUNK_CODEC);
}

const char *rewarm_chunk_problem(const struct rewarm_chunk *chunk, uint64_t pack_bytes)
{
    if (chunk->raw_bytes == 0 || chunk->raw_bytes > REWARM_WINDOW_BYTES)
        return "has an impossible length";
    if (chunk->codec > REWARM_CODEC_ZSTD)
        return "has an unknown codec";
    if (chunk->stored_bytes == 0 || chunk->stored_bytes > chunk->raw_bytes ||
        (chunk->codec == REWARM_CODEC_RAW && chunk->stored_bytes != chunk->raw_bytes))
        return "has an impossible stored length";
    if (chunk->offset_bytes < REWARM_PACK_HEADER_BYTES ||
        chunk->offset_bytes % REWARM_PACK_ALIGN_BYTES != 0)
        return "is at an impossible offset";
    if (chunk->offset_bytes > pack_bytes || pack_bytes - chunk->offset_bytes < chunk->stored_bytes)
        return "lies beyond the end of its pack";
    return NULL;
}

static int damaged(const struct rewarm_chunk *chunk, const struct rewarm_pack_ref *ref, int native,
                   const char *how, struct rewarm_error *err)
{
    char pack[REWARM_PACK_NAME], digest[2 * REWARM_DIGEST_BYTES + 1];
    rewarm_str_hex(chunk->digest, REWARM_DIGEST_BYTES, digest);
    return rewarm_error_set(
        err, REWARM_E_CORRUPT, native, "chunk %.16s at offset %llu of packs/%s %s", digest,
        (unsigned long long)chunk->offset_bytes, rewarm_pack_name(ref->id, ".pack", pack), how);
}

int rewarm_chunk_read(int fd, const struct rewarm_chunk *chunk, const struct rewarm_pack_ref *ref,
                      void *buffer, struct rewarm_error *err)
{
    if (fd < 0)
        return damaged(chunk, ref, 0, "can't be read: the pack is missing", err);
    for (size_t done = 0; done < chunk->raw_bytes;) {
        ssize_t got = pread(fd, (char *)buffer + done, chunk->raw_bytes - done,
                            (off_t)(chunk->offset_bytes + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return damaged(chunk, ref, errno, "can't be read", err);
        if (got == 0)
            return damaged(chunk, ref, 0, "lies beyond the end of the file, which is cut short",
                           err);
        done += (size_t)got;
    }
    if (rewarm_store_xxh3(buffer, chunk->raw_bytes) != chunk->xxh3)
        return damaged(chunk, ref, 0, "is damaged: its checksum differs", err);
    return 0;
}

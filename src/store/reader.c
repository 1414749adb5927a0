#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/clean.h"
#include "base/fs.h"
#include "base/str.h"
#include "io/parallel.h"
#include "store/digest.h"
#include "store/internal.h"

/* From here on a blob is worth several threads. */
#define PARALLEL_BYTES ((uint64_t)16 << 20)

struct rewarm_store_reader {
    struct rewarm_loaded loaded;
    int gc_fd;
    int *pack_fds; /* of loaded.manifest.packs */
};

static int open_packs(struct rewarm_store *store, struct rewarm_store_reader *reader,
                      struct rewarm_error *err)
{
    const struct rewarm_manifest *manifest = &reader->loaded.manifest;
    reader->pack_fds = rewarm_mem_new(manifest->pack_count, sizeof(int));
    for (size_t i = 0; i < manifest->pack_count; i++)
        reader->pack_fds[i] = -1;
    for (size_t i = 0; i < manifest->pack_count; i++) {
        int result = rewarm_pack_open(store->packs_fd, &manifest->packs[i], false,
                                      &reader->pack_fds[i], err);
        if (result == 0)
            result = rewarm_pack_check(reader->pack_fds[i], &manifest->packs[i], err);
        if (result < 0)
            return result;
    }
    return 0;
}

int rewarm_store_reader_open(struct rewarm_store *store, const char *name,
                             struct rewarm_store_reader **ret_reader, struct rewarm_error *err)
{
    struct rewarm_store_reader *reader = rewarm_mem_new(1, sizeof(*reader));
    reader->gc_fd = -1;
    /* The lock first: from then on nothing that a manifest names can go away. */
    int result = rewarm_store_lock_shared(store, &reader->gc_fd, err);
    if (result == 0)
        result = rewarm_store_load(store, name, &reader->loaded, err);
    if (result == 0) {
        result = open_packs(store, reader, err);
        if (result < 0)
            rewarm_error_wrap(err, "snapshot %s is not complete", name);
    }
    if (result < 0) {
        rewarm_store_reader_close(reader);
        return result;
    }
    *ret_reader = reader;
    return 0;
}

void rewarm_store_reader_close(struct rewarm_store_reader *reader)
{
    if (reader == NULL)
        return;
    if (reader->pack_fds != NULL)
        for (size_t i = 0; i < reader->loaded.manifest.pack_count; i++)
            rewarm_clean_fd(&reader->pack_fds[i]);
    free(reader->pack_fds);
    rewarm_loaded_fini(&reader->loaded);
    rewarm_clean_fd(&reader->gc_fd);
    free(reader);
}

const json_t *rewarm_store_reader_manifest(const struct rewarm_store_reader *reader)
{
    return reader->loaded.manifest.document;
}

const struct rewarm_memmap *rewarm_store_reader_memmap(const struct rewarm_store_reader *reader)
{
    return &reader->loaded.map;
}

int rewarm_store_reader_get(struct rewarm_store_reader *reader, uint32_t chunk, void *buffer,
                            struct rewarm_error *err)
{
    const struct rewarm_memmap *map = &reader->loaded.map;
    if (chunk >= map->chunk_count)
        return rewarm_error_set(err, REWARM_E_USAGE, 0,
                                "there is no chunk %u: the snapshot has %zu", chunk,
                                map->chunk_count);
    const struct rewarm_chunk *entry = &map->chunks[chunk];
    return rewarm_chunk_read(reader->pack_fds[entry->pack], entry,
                             &reader->loaded.manifest.packs[entry->pack], buffer, err);
}

/* One blob on its way into a file, by several threads when it is large (shared memory is). */
struct extraction {
    struct rewarm_store_reader *reader;
    const struct rewarm_blob *blob;
    uint64_t *offsets; /* of each chunk in the file */
    int fd;
    atomic_size_t next;
};

static int extract_chunks(void *context, unsigned index, struct rewarm_error *err)
{
    struct extraction *extraction = context;
    const struct rewarm_memmap *map = &extraction->reader->loaded.map;
    const struct rewarm_blob *blob = extraction->blob;
    uint8_t *buffer = rewarm_store_scratch(REWARM_SCRATCH_BLOB);
    (void)index;
    for (;;) {
        size_t i = atomic_fetch_add(&extraction->next, 1);
        if (i >= blob->chunks)
            return 0;
        uint32_t chunk = (uint32_t)(blob->first_chunk + i);
        int result = rewarm_store_reader_get(extraction->reader, chunk, buffer, err);
        if (result == 0)
            result = rewarm_fs_pwrite_full(extraction->fd, buffer, map->chunks[chunk].raw_bytes,
                                           extraction->offsets[i], blob->name, err);
        if (result < 0)
            return result;
    }
}

int rewarm_store_reader_extract(struct rewarm_store_reader *reader, size_t index, int dirfd,
                                struct rewarm_error *err)
{
    const struct rewarm_memmap *map = &reader->loaded.map;
    if (index >= map->blob_count)
        return rewarm_error_set(err, REWARM_E_USAGE, 0,
                                "there is no blob %zu: the snapshot has %zu", index,
                                map->blob_count);
    const struct rewarm_blob *blob = &map->blobs[index];
    rewarm_auto_fd int fd =
        openat(dirfd, blob->name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return rewarm_error_errno(err, "cannot create %s", blob->name);
    rewarm_auto_free uint64_t *offsets = rewarm_mem_new(blob->chunks, sizeof(*offsets));
    uint64_t offset = 0;
    for (uint64_t i = 0; i < blob->chunks; i++) {
        offsets[i] = offset;
        offset += map->chunks[blob->first_chunk + i].raw_bytes;
    }
    struct extraction extraction = {.reader = reader, .blob = blob, .offsets = offsets, .fd = fd};
    unsigned threads = blob->bytes >= PARALLEL_BYTES ? rewarm_parallel_width() : 1;
    return rewarm_parallel_run(threads, extract_chunks, &extraction, err);
}

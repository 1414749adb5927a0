/* verify: reads everything that a snapshot consists of, and goes on after damage, so that one run
 * tells all of it. Only a damaged manifest or map ends it early: without them nobody knows what
 * there should be. */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "base/clean.h"
#include "base/str.h"
#include "store/digest.h"
#include "store/idx.h"
#include "store/internal.h"

struct verify {
    struct rewarm_store *store;
    rewarm_store_verify_fn *report;
    void *context;
    uint64_t done_bytes, total_bytes;
    unsigned damages;
};

static void damage(struct verify *verify, const char *message)
{
    verify->damages++;
    if (verify->report != NULL)
        verify->report(verify->context, message, verify->done_bytes, verify->total_bytes);
}

/* In the order in which the disk has them; chunks that are there twice come together. */
static int compare_places(const void *a, const void *b)
{
    const struct rewarm_chunk *left = *(const struct rewarm_chunk *const *)a;
    const struct rewarm_chunk *right = *(const struct rewarm_chunk *const *)b;
    if (left->pack != right->pack)
        return left->pack < right->pack ? -1 : 1;
    if (left->offset_bytes != right->offset_bytes)
        return left->offset_bytes < right->offset_bytes ? -1 : 1;
    return memcmp(left->digest, right->digest, REWARM_DIGEST_BYTES);
}

/* Damage of the packs as files. `fds` gets -1 for those that can't be opened. */
static void check_packs(struct verify *verify, const struct rewarm_manifest *manifest, int *fds)
{
    for (size_t i = 0; i < manifest->pack_count; i++) {
        struct rewarm_error local = REWARM_ERROR_INIT;
        fds[i] = -1;
        if (rewarm_pack_open(verify->store->packs_fd, &manifest->packs[i], false, &fds[i], &local) <
                0 ||
            rewarm_pack_check(fds[i], &manifest->packs[i], &local) < 0)
            damage(verify, local.message);
        if (fds[i] >= 0)
            (void)posix_fadvise(fds[i], 0, 0, POSIX_FADV_SEQUENTIAL);

        rewarm_auto_free uint8_t *data = NULL;
        struct rewarm_idx idx;
        rewarm_error_clear(&local);
        if (rewarm_idx_load(verify->store->packs_fd, manifest->packs[i].id, &data, &idx, &local) <
            0) {
            rewarm_auto_free char *message = rewarm_str_format(
                "%s (no snapshot needs it to be restored; `rewarm gc` writes it again)",
                local.message);
            damage(verify, message);
        }
    }
}

static void check_chunk(struct verify *verify, int fd, const struct rewarm_chunk *chunk,
                        const struct rewarm_pack_ref *pack, uint8_t *buffer)
{
    struct rewarm_error local = REWARM_ERROR_INIT;
    uint8_t digest[REWARM_DIGEST_BYTES];
    if (rewarm_chunk_read(fd, chunk, pack, buffer, &local) < 0 ||
        rewarm_store_sha256(buffer, chunk->raw_bytes, digest, &local) < 0) {
        damage(verify, local.message);
        return;
    }
    if (memcmp(digest, chunk->digest, sizeof(digest)) != 0) {
        char hex[2 * REWARM_DIGEST_BYTES + 1], name[REWARM_PACK_NAME];
        rewarm_str_hex(chunk->digest, REWARM_DIGEST_BYTES, hex);
        rewarm_auto_free char *message = rewarm_str_format(
            "chunk %.16s at offset %llu of packs/%s is damaged: its digest differs", hex,
            (unsigned long long)chunk->offset_bytes, rewarm_pack_name(pack->id, ".pack", name));
        damage(verify, message);
    }
}

static void check_chunks(struct verify *verify, const struct rewarm_loaded *loaded, const int *fds)
{
    size_t count = loaded->map.chunk_count, kept = 0;
    rewarm_auto_free const struct rewarm_chunk **order = rewarm_mem_new(count, sizeof(*order));
    for (size_t i = 0; i < count; i++)
        order[i] = &loaded->map.chunks[i];
    qsort(order, count, sizeof(*order), compare_places);
    for (size_t i = 0; i < count; i++)
        if (kept == 0 || compare_places(&order[kept - 1], &order[i]) != 0)
            order[kept++] = order[i];
    for (size_t i = 0; i < kept; i++)
        verify->total_bytes += order[i]->raw_bytes;
    uint8_t *buffer = rewarm_store_scratch(REWARM_SCRATCH_BLOB);
    for (size_t i = 0; i < kept; i++) {
        check_chunk(verify, fds[order[i]->pack], order[i], &loaded->manifest.packs[order[i]->pack],
                    buffer);
        verify->done_bytes += order[i]->raw_bytes;
        if (verify->report != NULL)
            verify->report(verify->context, NULL, verify->done_bytes, verify->total_bytes);
    }
}

int rewarm_store_verify(struct rewarm_store *store, const char *name,
                        rewarm_store_verify_fn *report, void *context, struct rewarm_error *err)
{
    struct verify verify = {.store = store, .report = report, .context = context};
    rewarm_auto_fd int lock = -1;
    struct rewarm_error local = REWARM_ERROR_INIT;
    int result = rewarm_store_lock_shared(store, &lock, err);
    if (result < 0)
        return result;
    struct rewarm_loaded loaded;
    result = rewarm_store_load(store, name, &loaded, &local);
    if (result < 0) {
        if (result == -REWARM_E_CORRUPT)
            damage(&verify, local.message);
        if (err != NULL && err->code == 0)
            *err = local;
        return result;
    }
    rewarm_auto_free int *fds = rewarm_mem_new(loaded.manifest.pack_count, sizeof(*fds));
    check_packs(&verify, &loaded.manifest, fds);
    check_chunks(&verify, &loaded, fds);
    for (size_t i = 0; i < loaded.manifest.pack_count; i++)
        rewarm_clean_fd(&fds[i]);
    rewarm_loaded_fini(&loaded);
    if (verify.damages == 0)
        return 0;
    return rewarm_error_set(err, REWARM_E_CORRUPT, 0, "snapshot %s is damaged in %u place%s", name,
                            verify.damages, verify.damages == 1 ? "" : "s");
}

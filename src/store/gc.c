/* gc: takes back what no published snapshot refers to.
 *
 * It holds locks/gc alone, so there is no reader and no writer: every staging directory is a dead
 * writer's, and nothing changes while the live chunks are counted. What is live is computed from
 * the maps of all snapshots, never from the indexes. If one snapshot can't be read, nothing can be
 * known to be dead, and gc stops there with that error, having removed stagings only.
 *
 * A pack with no live chunk is removed, its index first. In a pack with some, the dead ranges are
 * punched out where the file system can; before that the index is written again without them (and
 * made durable), so that no writer ever shares a chunk that is a hole. A crash at any point leaves
 * a store in which the next gc goes on. */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/clean.h"
#include "base/fs.h"
#include "base/str.h"
#include "store/idx.h"
#include "store/internal.h"

/* A chunk that some snapshot refers to. Sorted by pack, offset; no pair twice. */
struct live {
    struct rewarm_pack_ref pack;
    struct rewarm_chunk chunk;
};

struct gc {
    struct rewarm_store *store;
    bool dry_run;
    struct live *live;
    size_t live_count, live_capacity;
    char (*maps)[REWARM_MAP_NAME]; /* names of referenced maps */
    size_t map_count, map_capacity;
    struct rewarm_store_gc_result result;
};

static int compare_live(const void *a, const void *b)
{
    const struct live *left = a, *right = b;
    int order = memcmp(left->pack.id, right->pack.id, REWARM_PACK_ID_BYTES);
    if (order != 0)
        return order;
    return (left->chunk.offset_bytes > right->chunk.offset_bytes) -
           (left->chunk.offset_bytes < right->chunk.offset_bytes);
}

static int collect_snapshot(struct gc *gc, const char *name, struct rewarm_error *err)
{
    struct rewarm_loaded loaded;
    int result = rewarm_store_load(gc->store, name, &loaded, err);
    if (result < 0)
        return rewarm_error_wrap(err,
                                 "gc can't tell what is still needed while snapshot %s is "
                                 "unreadable (`rewarm rm %s` gives it up)",
                                 name, name);
    REWARM_GROW(&gc->maps, &gc->map_capacity, gc->map_count);
    rewarm_manifest_map_name(loaded.manifest.map_sha256, gc->maps[gc->map_count++]);
    for (size_t i = 0; i < loaded.map.chunk_count; i++) {
        REWARM_GROW(&gc->live, &gc->live_capacity, gc->live_count);
        struct live *live = &gc->live[gc->live_count++];
        live->chunk = loaded.map.chunks[i];
        live->pack = loaded.manifest.packs[live->chunk.pack];
    }
    rewarm_loaded_fini(&loaded);
    return 0;
}

/* Fills gc->live and gc->maps. */
static int collect(struct gc *gc, struct rewarm_error *err)
{
    char **names;
    size_t count;
    int result = rewarm_store_snapshot_names(gc->store, &names, &count, err);
    if (result < 0)
        return result;
    for (size_t i = 0; i < count && result == 0; i++)
        result = collect_snapshot(gc, names[i], err);
    rewarm_store_names_free(names, count);
    if (result < 0 || gc->live_count == 0)
        return result;
    qsort(gc->live, gc->live_count, sizeof(*gc->live), compare_live);
    size_t kept = 1;
    for (size_t i = 1; i < gc->live_count; i++)
        if (compare_live(&gc->live[kept - 1], &gc->live[i]) != 0)
            gc->live[kept++] = gc->live[i];
    gc->live_count = kept;
    return 0;
}

/* --- stagings
 * ------------------------------------------------------------------------------------------- */

static uint64_t disk_bytes(int dirfd, const char *name)
{
    struct stat st;
    if (fstatat(dirfd, name, &st, AT_SYMLINK_NOFOLLOW) != 0)
        return 0;
    uint64_t total = S_ISREG(st.st_mode) ? (uint64_t)st.st_blocks * 512 : 0;
    rewarm_auto_fd int fd = -1;
    char **names;
    size_t count;
    if (!S_ISDIR(st.st_mode) || rewarm_fs_open_dir(dirfd, name, false, &fd, NULL) < 0 ||
        rewarm_store_names(fd, name, &names, &count, NULL) < 0)
        return total;
    for (size_t i = 0; i < count; i++)
        total += disk_bytes(fd, names[i]);
    rewarm_store_names_free(names, count);
    return total;
}

static int sweep_stagings(struct gc *gc, struct rewarm_error *err)
{
    char **names;
    size_t count;
    int result = rewarm_store_names(gc->store->staging_fd, "staging", &names, &count, err);
    if (result < 0)
        return result;
    for (size_t i = 0; i < count && result == 0; i++) {
        uint64_t bytes = disk_bytes(gc->store->staging_fd, names[i]);
        if (!gc->dry_run)
            result = rewarm_fs_remove_tree(gc->store->staging_fd, names[i], err);
        if (result == 0) {
            gc->result.stagings_removed++;
            gc->result.freed_bytes += bytes;
        }
    }
    rewarm_store_names_free(names, count);
    return result;
}

/* --- packs
 * ---------------------------------------------------------------------------------------------- */

static int remove_file(struct gc *gc, int dirfd, const char *name, struct rewarm_error *err)
{
    uint64_t bytes = disk_bytes(dirfd, name);
    if (!gc->dry_run && unlinkat(dirfd, name, 0) != 0)
        return rewarm_error_errno(err, "cannot remove %s", name);
    gc->result.freed_bytes += bytes;
    return 0;
}

/* The bytes of [start, end) that take space: counted, and punched out unless this is a dry run. A
 * file system that can't punch holes keeps them, which is not an error. */
static int punch(struct gc *gc, int fd, uint64_t start, uint64_t end, const char *name,
                 struct rewarm_error *err)
{
    while (start < end) {
        off_t data = lseek(fd, (off_t)start, SEEK_DATA);
        if (data < 0 && errno == ENXIO)
            return 0; /* a hole up to the end of the file */
        if (data < 0)
            return rewarm_error_errno(err, "cannot look for holes in packs/%s", name);
        if ((uint64_t)data >= end)
            return 0;
        off_t hole = lseek(fd, data, SEEK_HOLE);
        if (hole < 0)
            return rewarm_error_errno(err, "cannot look for holes in packs/%s", name);
        uint64_t stop = (uint64_t)hole < end ? (uint64_t)hole : end;
        if (!gc->dry_run && fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, data,
                                      (off_t)(stop - (uint64_t)data)) != 0) {
            if (errno == EOPNOTSUPP || errno == ENOSYS)
                return 0;
            return rewarm_error_errno(err, "cannot free a part of packs/%s", name);
        }
        gc->result.freed_bytes += stop - (uint64_t)data;
        start = stop;
    }
    return 0;
}

/* Whether the index lists exactly the live chunks (or fewer). */
static bool idx_honest(const struct rewarm_idx *idx, const struct live *live, size_t count)
{
    for (size_t i = 0; i < idx->count; i++) {
        struct live wanted = {.pack = live->pack};
        rewarm_idx_at(idx, i, &wanted.chunk);
        const struct live *found = bsearch(&wanted, live, count, sizeof(*live), compare_live);
        if (found == NULL ||
            memcmp(found->chunk.digest, wanted.chunk.digest, REWARM_DIGEST_BYTES) != 0)
            return false;
    }
    return true;
}

static int compare_digests(const void *a, const void *b)
{
    return memcmp(((const struct rewarm_chunk *)a)->digest,
                  ((const struct rewarm_chunk *)b)->digest, REWARM_DIGEST_BYTES);
}

/* Writes the index of the live chunks. */
static int rewrite_idx(struct gc *gc, const struct live *live, size_t count, const char *name,
                       struct rewarm_error *err)
{
    rewarm_auto_free struct rewarm_chunk *chunks = rewarm_mem_new(count, sizeof(*chunks));
    for (size_t i = 0; i < count; i++)
        chunks[i] = live[i].chunk;
    qsort(chunks, count, sizeof(*chunks), compare_digests);
    size_t kept = 1; /* a digest may be there twice only if somebody made the maps by hand */
    for (size_t i = 1; i < count; i++)
        if (compare_digests(&chunks[kept - 1], &chunks[i]) != 0)
            chunks[kept++] = chunks[i];
    rewarm_auto_free uint8_t *data = NULL;
    size_t bytes;
    int result = rewarm_idx_encode(&live->pack, chunks, kept, &data, &bytes, err);
    if (result == 0)
        result = rewarm_fs_write_durable(gc->store->packs_fd, name, 0600, data, bytes, err);
    return result;
}

/* A pack with live chunks: live[0 .. count - 1]. */
static int sweep_live_pack(struct gc *gc, const struct live *live, size_t count,
                           struct rewarm_error *err)
{
    char pack_name[REWARM_PACK_NAME], idx_name[REWARM_PACK_NAME];
    rewarm_pack_name(live->pack.id, ".pack", pack_name);
    rewarm_pack_name(live->pack.id, ".idx", idx_name);
    for (size_t i = 0; i < count; i++)
        gc->result.live_bytes += rewarm_pack_align(live[i].chunk.stored_bytes);

    rewarm_auto_free uint8_t *data = NULL;
    struct rewarm_idx idx;
    bool honest = rewarm_idx_load(gc->store->packs_fd, live->pack.id, &data, &idx, NULL) == 0 &&
                  idx_honest(&idx, live, count);
    int result = 0;
    if (!honest && !gc->dry_run)
        result = rewrite_idx(gc, live, count, idx_name, err);
    if (result < 0)
        return result;

    rewarm_auto_fd int fd = -1;
    if (rewarm_pack_open(gc->store->packs_fd, &live->pack, !gc->dry_run, &fd, err) < 0 ||
        rewarm_pack_check(fd, &live->pack, err) < 0)
        return rewarm_error_wrap(err, "gc left a damaged pack alone (`rewarm verify` tells whose)");
    uint64_t next = REWARM_PACK_HEADER_BYTES;
    for (size_t i = 0; i < count && result == 0; i++) {
        const struct rewarm_chunk *chunk = &live[i].chunk;
        if (next < chunk->offset_bytes)
            result = punch(gc, fd, next, chunk->offset_bytes, pack_name, err);
        uint64_t end = chunk->offset_bytes + rewarm_pack_align(chunk->stored_bytes);
        if (end > next)
            next = end;
    }
    if (result == 0 && next < live->pack.bytes)
        result = punch(gc, fd, next, live->pack.bytes, pack_name, err);
    return result;
}

static const struct live *find_pack(const struct gc *gc, const uint8_t id[REWARM_PACK_ID_BYTES],
                                    size_t *ret_count)
{
    size_t low = 0, high = gc->live_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (memcmp(gc->live[middle].pack.id, id, REWARM_PACK_ID_BYTES) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    size_t end = low;
    while (end < gc->live_count && memcmp(gc->live[end].pack.id, id, REWARM_PACK_ID_BYTES) == 0)
        end++;
    *ret_count = end - low;
    return end != low ? &gc->live[low] : NULL;
}

/* One file of packs/. Names come sorted, so an index is met before its pack: removed in that order.
 */
static int sweep_pack_file(struct gc *gc, const char *name, struct rewarm_error *err)
{
    uint8_t id[REWARM_PACK_ID_BYTES];
    size_t count;
    int packs_fd = gc->store->packs_fd;
    if (rewarm_pack_parse_name(name, ".pack", id)) {
        const struct live *live = find_pack(gc, id, &count);
        if (live != NULL)
            return sweep_live_pack(gc, live, count, err);
        gc->result.packs_removed++;
        return remove_file(gc, packs_fd, name, err);
    }
    if (rewarm_pack_parse_name(name, ".idx", id))
        return find_pack(gc, id, &count) != NULL ? 0 : remove_file(gc, packs_fd, name, err);
    /* A gc that was killed while it wrote an index. Anything else is not ours. */
    if (strstr(name, ".idx.tmp-") != NULL)
        return remove_file(gc, packs_fd, name, err);
    return 0;
}

static int sweep_packs(struct gc *gc, struct rewarm_error *err)
{
    char **names;
    size_t count;
    int result = rewarm_store_names(gc->store->packs_fd, "packs", &names, &count, err);
    if (result < 0)
        return result;
    /* A damaged pack must not keep the others' space: all are visited, the first error is told. */
    for (size_t i = 0; i < count; i++)
        if (sweep_pack_file(gc, names[i], err) < 0)
            result = -1;
    rewarm_store_names_free(names, count);
    if (!gc->dry_run && fsync(gc->store->packs_fd) != 0)
        result = rewarm_error_errno(err, "cannot make the folder packs durable");
    return result;
}

/* --- maps and locks
 * ------------------------------------------------------------------------------------- */

static bool map_is_live(const struct gc *gc, const char *name)
{
    for (size_t i = 0; i < gc->map_count; i++)
        if (strcmp(gc->maps[i], name) == 0)
            return true;
    return false;
}

static int sweep_maps(struct gc *gc, struct rewarm_error *err)
{
    char **names;
    size_t count;
    int result = rewarm_store_names(gc->store->maps_fd, "maps", &names, &count, err);
    if (result < 0)
        return result;
    for (size_t i = 0; i < count && result == 0; i++) {
        if (!rewarm_str_ends(names[i], ".map") || map_is_live(gc, names[i]))
            continue;
        result = remove_file(gc, gc->store->maps_fd, names[i], err);
        if (result == 0)
            gc->result.maps_removed++;
    }
    rewarm_store_names_free(names, count);
    if (result == 0 && !gc->dry_run && fsync(gc->store->maps_fd) != 0)
        result = rewarm_error_errno(err, "cannot make the folder maps durable");
    return result;
}

/* Nobody can hold or wait for a name's lock without holding locks/gc. */
static void sweep_locks(struct gc *gc)
{
    char **names;
    size_t count;
    if (gc->dry_run || rewarm_store_names(gc->store->locks_fd, "locks", &names, &count, NULL) < 0)
        return;
    for (size_t i = 0; i < count; i++)
        if (rewarm_str_ends(names[i], ".lock"))
            (void)unlinkat(gc->store->locks_fd, names[i], 0);
    rewarm_store_names_free(names, count);
}

int rewarm_store_gc(struct rewarm_store *store, bool dry_run, uint64_t deadline_ns,
                    struct rewarm_store_gc_result *ret_result, struct rewarm_error *err)
{
    rewarm_auto_fd int lock = -1;
    struct rewarm_error local = REWARM_ERROR_INIT;
    int result = rewarm_store_lock_alone(store, deadline_ns, &lock, err);
    if (result < 0)
        return result;
    struct gc gc = {.store = store, .dry_run = dry_run};
    result = sweep_stagings(&gc, &local);
    if (result == 0)
        result = collect(&gc, &local);
    if (result == 0) {
        sweep_packs(&gc, &local); /* its error is in `local`: the maps are swept nevertheless */
        sweep_maps(&gc, &local);
        sweep_locks(&gc);
    }
    free(gc.live);
    free(gc.maps);
    if (local.code != 0) {
        if (err != NULL && err->code == 0)
            *err = local;
        return -local.code;
    }
    if (ret_result != NULL)
        *ret_result = gc.result;
    return 0;
}

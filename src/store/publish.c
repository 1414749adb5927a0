/* Publication: what a writer has taken in becomes a snapshot.
 *
 *   1. the pack is cut to its length and made durable, in the staging directory;
 *   2. index, map and manifest are written there and made durable;
 *   3. pack, index and map are renamed into packs/ and maps/, and these folders made durable;
 *   4. the manifest is renamed to snapshots/NAME.json: this is the moment; and the folder made
 * durable.
 *
 * A crash before 4 leaves the old snapshot (or none) and files that nobody refers to, for gc. They
 * are not removed here when a later step fails either: since step 3 another writer may share their
 * chunks. What the old snapshot referred to is untouched until gc runs. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clean.h"
#include "base/str.h"
#include "base/time.h"
#include "store/digest.h"
#include "store/idx.h"
#include "store/map.h"
#include "store/writer.h"

static int compare_spaces(const void *a, const void *b)
{
    int32_t left = ((const struct rewarm_pending_space *)a)->space.pid;
    int32_t right = ((const struct rewarm_pending_space *)b)->space.pid;
    return (left > right) - (left < right);
}

static int compare_blobs(const void *a, const void *b)
{
    return strcmp(((const struct rewarm_pending_blob *)a)->name,
                  ((const struct rewarm_pending_blob *)b)->name);
}

static void assemble_spaces(struct rewarm_store_writer *writer, struct rewarm_memmap *map)
{
    if (writer->space_count != 0)
        qsort(writer->spaces, writer->space_count, sizeof(*writer->spaces), compare_spaces);
    for (size_t i = 0; i < writer->space_count; i++) {
        map->window_count += writer->spaces[i].window_count;
        map->run_count += writer->spaces[i].run_count;
    }
    map->space_count = writer->space_count;
    map->spaces = rewarm_mem_new(map->space_count, sizeof(*map->spaces));
    map->windows = rewarm_mem_new(map->window_count, sizeof(*map->windows));
    map->runs = rewarm_mem_new(map->run_count, sizeof(*map->runs));
    size_t window = 0, run = 0;
    for (size_t i = 0; i < writer->space_count; i++) {
        const struct rewarm_pending_space *pending = &writer->spaces[i];
        map->spaces[i] = (struct rewarm_space){.pid = pending->space.pid,
                                               .first_window = window,
                                               .windows = pending->window_count,
                                               .lazy_pages = pending->space.lazy_pages};
        for (size_t w = 0; w < pending->window_count; w++) {
            map->windows[window] = pending->windows[w];
            map->windows[window++].first_run += (uint32_t)run;
        }
        if (pending->run_count != 0)
            memcpy(map->runs + run, pending->runs, pending->run_count * sizeof(*map->runs));
        run += pending->run_count;
    }
}

/* A blob's chunks must stand side by side in the chunk table: where sharing has scattered them, the
 * table gets copies of their records at its end. */
static int assemble_blobs(struct rewarm_store_writer *writer, struct rewarm_memmap *map,
                          struct rewarm_error *err)
{
    if (writer->blob_count != 0)
        qsort(writer->blobs, writer->blob_count, sizeof(*writer->blobs), compare_blobs);
    size_t extra = 0;
    for (size_t i = 0; i < writer->blob_count; i++)
        extra += writer->blobs[i].chunk_count;
    map->chunks = rewarm_mem_new(writer->table.count + extra, sizeof(*map->chunks));
    if (writer->table.count != 0)
        memcpy(map->chunks, writer->table.chunks, writer->table.count * sizeof(*map->chunks));
    map->chunk_count = writer->table.count;
    map->blobs = rewarm_mem_new(writer->blob_count, sizeof(*map->blobs));
    for (size_t i = 0; i < writer->blob_count; i++) {
        const struct rewarm_pending_blob *pending = &writer->blobs[i];
        if (i > 0 && strcmp(pending->name, writer->blobs[i - 1].name) == 0)
            return rewarm_error_set(err, REWARM_E_USAGE, 0, "blob %s was stored twice",
                                    pending->name);
        bool together = true;
        for (size_t c = 1; c < pending->chunk_count; c++)
            together = together && pending->chunks[c] == pending->chunks[c - 1] + 1;
        struct rewarm_blob *blob = &map->blobs[map->blob_count++];
        *blob = (struct rewarm_blob){.name = rewarm_str_dup(pending->name),
                                     .bytes = pending->bytes,
                                     .chunks = pending->chunk_count};
        if (together) {
            blob->first_chunk = pending->chunk_count != 0 ? pending->chunks[0] : 0;
            continue;
        }
        blob->first_chunk = map->chunk_count;
        for (size_t c = 0; c < pending->chunk_count; c++)
            map->chunks[map->chunk_count++] = writer->table.chunks[pending->chunks[c]];
    }
    return 0;
}

/* Steps 1 and 2 for pack and index. */
static int finish_pack(struct rewarm_store_writer *writer, struct rewarm_error *err)
{
    struct rewarm_pack_ref *pack = &writer->packs[writer->own_pack];
    pack->bytes = writer->next_offset;
    if (ftruncate(writer->pack_fd, (off_t)pack->bytes) != 0 || fsync(writer->pack_fd) != 0)
        return rewarm_error_errno(err, "cannot make the pack durable (%s)",
                                  REWARM_STORE_NO_SPACE_HINT);
    rewarm_auto_free struct rewarm_chunk *own = rewarm_mem_new(writer->table.count, sizeof(*own));
    size_t count = 0;
    for (size_t i = 0; i < writer->table.count; i++)
        if (writer->table.chunks[i].pack == writer->own_pack)
            own[count++] = writer->table.chunks[i];
    rewarm_auto_free uint8_t *data = NULL;
    size_t bytes;
    int result = rewarm_idx_encode(pack, own, count, &data, &bytes, err);
    if (result == 0)
        result = rewarm_store_write_new(writer->staging_fd, REWARM_STAGING_IDX, data, bytes, err);
    return result;
}

/* Steps 1 and 2 for the map. */
static int finish_map(struct rewarm_store_writer *writer, const struct rewarm_memmap *map,
                      uint8_t ret_sha256[REWARM_DIGEST_BYTES], size_t *ret_bytes,
                      struct rewarm_error *err)
{
    rewarm_auto_free uint8_t *data = NULL;
    int result = rewarm_map_encode(map, writer->packs, writer->pack_count, &data, ret_bytes, err);
    if (result == 0)
        result = rewarm_store_sha256(data, *ret_bytes, ret_sha256, err);
    if (result == 0)
        result =
            rewarm_store_write_new(writer->staging_fd, REWARM_STAGING_MAP, data, *ret_bytes, err);
    return result;
}

static json_t *build_document(const struct rewarm_store_writer *writer,
                              const struct rewarm_memmap *map,
                              const uint8_t map_sha256[REWARM_DIGEST_BYTES], size_t map_bytes,
                              json_t *details)
{
    char map_hex[2 * REWARM_DIGEST_BYTES + 1], map_name[REWARM_MAP_NAME], created[32],
        hex[REWARM_PACK_ID_HEX];
    rewarm_str_hex(map_sha256, REWARM_DIGEST_BYTES, map_hex);
    rewarm_manifest_map_name(map_sha256, map_name);
    rewarm_time_iso(rewarm_time_wall_ns(), created);
    rewarm_auto_free char *uuid =
        rewarm_str_format("%.8s-%.4s-%.4s-%.4s-%s", writer->hex, writer->hex + 8, writer->hex + 12,
                          writer->hex + 16, writer->hex + 20);
    json_t *packs = json_array();
    for (size_t i = 0; i < writer->pack_count; i++) {
        rewarm_str_hex(writer->packs[i].id, REWARM_PACK_ID_BYTES, hex);
        json_array_append_new(
            packs, json_pack("{s:s, s:I}", "id", hex, "bytes", (json_int_t)writer->packs[i].bytes));
    }
    const struct rewarm_store_totals *totals = &writer->totals;
    struct rewarm_contents contents = rewarm_contents_of(map);
    json_t *document = json_object();
    json_object_set_new(document, "format", json_string("rewarm-snapshot"));
    json_object_set_new(document, "version", json_integer(1));
    json_object_set_new(document, "requires", json_array());
    json_object_set_new(document, "name", json_string(writer->name));
    json_object_set_new(document, "id", json_string(uuid));
    json_object_set_new(document, "created", json_string(created));
    json_object_set_new(document, "map",
                        json_pack("{s:s, s:I, s:s}", "file", map_name, "bytes",
                                  (json_int_t)map_bytes, "sha256", map_hex));
    json_object_set_new(document, "packs", packs);
    json_object_set_new(document, "contents", rewarm_contents_encode(&contents));
    json_object_set_new(
        document, "totals",
        json_pack("{s:I, s:I, s:I, s:I, s:I, s:I}", "logical_bytes",
                  (json_int_t)totals->logical_bytes, "zero_bytes", (json_int_t)totals->zero_bytes,
                  "stored_bytes", (json_int_t)totals->stored_bytes, "shared_bytes",
                  (json_int_t)totals->shared_bytes, "chunks", (json_int_t)totals->chunks,
                  "chunks_shared", (json_int_t)totals->chunks_shared));
    json_object_set_new(document, "snapshot",
                        details != NULL ? json_incref(details) : json_object());
    return document;
}

static int sync_folder(int fd, const char *name, struct rewarm_error *err)
{
    return fsync(fd) == 0 ? 0 : rewarm_error_errno(err, "cannot make the folder %s durable", name);
}

static int move(struct rewarm_store_writer *writer, const char *from, int to_fd, const char *to,
                struct rewarm_error *err)
{
    if (renameat(writer->staging_fd, from, to_fd, to) != 0)
        return rewarm_error_errno(err, "cannot move the %s into place (%s)", from,
                                  REWARM_STORE_NO_SPACE_HINT);
    return 0;
}

/* Step 3. */
static int move_parts(struct rewarm_store_writer *writer,
                      const uint8_t map_sha256[REWARM_DIGEST_BYTES], struct rewarm_error *err)
{
    struct rewarm_store *store = writer->store;
    char name[REWARM_PACK_NAME], map_name[REWARM_MAP_NAME];
    int result = 0;
    if (writer->own_pack != REWARM_WRITER_NO_PACK) {
        /* The index last: who sees it may count on the pack. */
        result = move(writer, REWARM_STAGING_PACK, store->packs_fd,
                      rewarm_pack_name(writer->id, ".pack", name), err);
        if (result == 0)
            result = move(writer, REWARM_STAGING_IDX, store->packs_fd,
                          rewarm_pack_name(writer->id, ".idx", name), err);
    }
    /* Over an equal map, if there is one: that one might be damaged. */
    if (result == 0)
        result = move(writer, REWARM_STAGING_MAP, store->maps_fd,
                      rewarm_manifest_map_name(map_sha256, map_name), err);
    /* Always: chunks may be shared with a pack that its own writer has not made durable there yet.
     */
    if (result == 0)
        result = sync_folder(store->packs_fd, "packs", err);
    if (result == 0)
        result = sync_folder(store->maps_fd, "maps", err);
    return result;
}

/* Step 4. When the folder can't be made durable, what was there before is put back. */
static int move_manifest(struct rewarm_store_writer *writer, struct rewarm_error *err)
{
    int snapshots_fd = writer->store->snapshots_fd;
    rewarm_auto_free char *file = rewarm_str_format("%s.json", writer->name);
    bool kept = linkat(snapshots_fd, file, writer->staging_fd, REWARM_STAGING_OLD, 0) == 0;
    bool fresh = !kept && errno == ENOENT;
    int result = move(writer, REWARM_STAGING_MANIFEST, snapshots_fd, file, err);
    if (result < 0)
        return result;
    result = sync_folder(snapshots_fd, "snapshots", err);
    if (result < 0 && kept)
        (void)renameat(writer->staging_fd, REWARM_STAGING_OLD, snapshots_fd, file);
    else if (result < 0 && fresh)
        (void)unlinkat(snapshots_fd, file, 0);
    return result;
}

static int publish(struct rewarm_store_writer *writer, json_t *details, struct rewarm_error *err)
{
    struct rewarm_memmap map = {0};
    uint8_t map_sha256[REWARM_DIGEST_BYTES];
    size_t map_bytes, manifest_bytes;
    rewarm_auto_free char *manifest = NULL;
    int result = 0;
    if (writer->own_pack != REWARM_WRITER_NO_PACK)
        result = finish_pack(writer, err);
    if (result == 0) {
        assemble_spaces(writer, &map);
        result = assemble_blobs(writer, &map, err);
    }
    if (result == 0)
        result = finish_map(writer, &map, map_sha256, &map_bytes, err);
    if (result == 0) {
        json_t *document = build_document(writer, &map, map_sha256, map_bytes, details);
        result = rewarm_manifest_encode(document, &manifest, &manifest_bytes, err);
        json_decref(document);
    }
    if (result == 0)
        result = rewarm_store_write_new(writer->staging_fd, REWARM_STAGING_MANIFEST, manifest,
                                        manifest_bytes, err);
    if (result == 0)
        result = move_parts(writer, map_sha256, err);
    if (result == 0)
        result = move_manifest(writer, err);
    rewarm_memmap_fini(&map);
    return result;
}

int rewarm_store_writer_publish(struct rewarm_store_writer *writer, json_t *details,
                                struct rewarm_store_totals *ret_totals, struct rewarm_error *err)
{
    struct rewarm_error error = REWARM_ERROR_INIT;
    pthread_mutex_lock(
        &writer->lock); /* no put is under way: this only orders their writes before us */
    if (writer->published)
        rewarm_error_set(&error, REWARM_E_USAGE, 0, "snapshot %s is published already",
                         writer->name);
    else if (writer->failure.code != 0)
        error = writer->failure;
    else if (details != NULL && !json_is_object(details))
        rewarm_error_set(&error, REWARM_E_USAGE, 0, "a snapshot's details must be a JSON object");
    else
        publish(writer, details, &error);
    if (error.code == 0) {
        writer->published = true;
        if (ret_totals != NULL)
            *ret_totals = writer->totals;
    } else if (writer->failure.code == 0 && !writer->published) {
        writer->failure = error; /* half of it may be moved: a second try would miss files */
    }
    pthread_mutex_unlock(&writer->lock);
    if (error.code == 0)
        return 0;
    rewarm_error_wrap(&error, "cannot publish snapshot %s", writer->name);
    if (err != NULL && err->code == 0)
        *err = error;
    return -error.code;
}

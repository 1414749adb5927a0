#include <stdlib.h>
#include <string.h>

#include "base/clean.h"
#include "base/fs.h"
#include "base/str.h"
#include "store/digest.h"
#include "store/internal.h"
#include "store/map.h"

#define MAP_LIMIT_BYTES ((size_t)4 << 30)

int rewarm_store_load_manifest(struct rewarm_store *store, const char *name,
                               struct rewarm_manifest *ret_manifest, struct rewarm_error *err)
{
    int result = rewarm_str_check_name(name, err);
    if (result < 0)
        return result;
    rewarm_auto_free char *file = rewarm_str_format("%s.json", name);
    rewarm_auto_free char *text = NULL;
    size_t bytes;
    struct rewarm_error local = REWARM_ERROR_INIT;
    result = rewarm_fs_read_file(store->snapshots_fd, file, REWARM_MANIFEST_LIMIT_BYTES, &text,
                                 &bytes, &local);
    if (result == -REWARM_E_NOT_FOUND)
        return rewarm_error_set(err, REWARM_E_NOT_FOUND, 0,
                                "there is no snapshot \"%s\" in the store %s", name, store->path);
    if (result < 0)
        return rewarm_error_set(err, (enum rewarm_code)local.code, 0,
                                "cannot read snapshots/%s of the store %s: %s", file, store->path,
                                local.message);
    return rewarm_manifest_decode(text, bytes, name, ret_manifest, err);
}

static int load_map(struct rewarm_store *store, const struct rewarm_manifest *manifest,
                    struct rewarm_memmap *ret_map, struct rewarm_pack_ref **ret_packs,
                    size_t *ret_pack_count, struct rewarm_error *err)
{
    char name[REWARM_MAP_NAME];
    rewarm_manifest_map_name(manifest->map_sha256, name);
    rewarm_auto_free char *what = rewarm_str_format("maps/%s", name);
    rewarm_auto_free char *data = NULL;
    size_t bytes;
    struct rewarm_error local = REWARM_ERROR_INIT;
    int result = rewarm_fs_read_file(store->maps_fd, name, MAP_LIMIT_BYTES, &data, &bytes, &local);
    if (result == -REWARM_E_NOT_FOUND)
        return rewarm_error_set(err, REWARM_E_CORRUPT, 0, "%s is missing", what);
    if (result < 0)
        return rewarm_error_set(err, (enum rewarm_code)local.code, 0, "cannot read %s: %s", what,
                                local.message);
    uint8_t digest[REWARM_DIGEST_BYTES];
    if (bytes != manifest->map_bytes)
        return rewarm_error_set(err, REWARM_E_CORRUPT, 0,
                                "%s is damaged: %zu bytes where the manifest says %llu", what,
                                bytes, (unsigned long long)manifest->map_bytes);
    result = rewarm_store_sha256(data, bytes, digest, err);
    if (result < 0)
        return result;
    if (memcmp(digest, manifest->map_sha256, sizeof(digest)) != 0)
        return rewarm_error_set(err, REWARM_E_CORRUPT, 0, "%s is damaged: its digest differs",
                                what);
    return rewarm_map_decode((const uint8_t *)data, bytes, what, ret_map, ret_packs, ret_pack_count,
                             err);
}

/* What the manifest promises against what the map has. */
static int compare(const struct rewarm_manifest *manifest, const struct rewarm_memmap *map,
                   const struct rewarm_pack_ref *packs, size_t pack_count, const char *name,
                   struct rewarm_error *err)
{
    struct rewarm_contents found = rewarm_contents_of(map);
    if (memcmp(&found, &manifest->contents, sizeof(found)) != 0)
        return rewarm_error_set(err, REWARM_E_CORRUPT, 0,
                                "snapshot %s is damaged: its map has not the contents that its "
                                "manifest lists",
                                name);
    bool same = pack_count == manifest->pack_count;
    for (size_t i = 0; same && i < pack_count; i++)
        same = packs[i].bytes == manifest->packs[i].bytes &&
               memcmp(packs[i].id, manifest->packs[i].id, REWARM_PACK_ID_BYTES) == 0;
    if (!same)
        return rewarm_error_set(err, REWARM_E_CORRUPT, 0,
                                "snapshot %s is damaged: its map has not the packs that its "
                                "manifest lists",
                                name);
    for (size_t i = 0; i < map->chunk_count; i++)
        if (map->chunks[i].codec != REWARM_CODEC_RAW)
            return rewarm_error_set(err, REWARM_E_MISFIT, 0,
                                    "snapshot %s needs a newer rewarm, one that knows codec %u",
                                    name, map->chunks[i].codec);
    return 0;
}

int rewarm_store_load(struct rewarm_store *store, const char *name,
                      struct rewarm_loaded *ret_loaded, struct rewarm_error *err)
{
    struct rewarm_loaded loaded = {0};
    rewarm_auto_free struct rewarm_pack_ref *packs = NULL;
    size_t pack_count = 0;
    int result = rewarm_store_load_manifest(store, name, &loaded.manifest, err);
    if (result == 0)
        result = load_map(store, &loaded.manifest, &loaded.map, &packs, &pack_count, err);
    if (result == 0)
        result = compare(&loaded.manifest, &loaded.map, packs, pack_count, name, err);
    if (result < 0) {
        rewarm_loaded_fini(&loaded);
        return result;
    }
    *ret_loaded = loaded;
    return 0;
}

void rewarm_loaded_fini(struct rewarm_loaded *loaded)
{
    rewarm_manifest_fini(&loaded->manifest);
    rewarm_memmap_fini(&loaded->map);
}

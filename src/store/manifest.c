/* The manifest.
 *
 * The file begins with exactly {"sha256":"<64 hex digits>" and the digest is that of every byte
 * after these digits. So it is one JSON document, readable by any tool, and yet no bit of it can
 * change unnoticed, with no canonical form of JSON needed. What a reader needs to find the bytes is
 * checked here; whether map and packs agree with it is load.c's business. */
#include "store/manifest.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clean.h"
#include "base/str.h"
#include "store/digest.h"

#define FORMAT     "rewarm-snapshot"
#define VERSION    1
#define PREFIX     "{\"sha256\":\""
#define PREFIX_LEN (sizeof(PREFIX) - 1)
#define DIGITS     (2 * REWARM_DIGEST_BYTES)

static const struct {
    const char *key;
    size_t offset;
} contents_fields[] = {
    {"processes", offsetof(struct rewarm_contents, processes)},
    {"windows", offsetof(struct rewarm_contents, windows)},
    {"runs", offsetof(struct rewarm_contents, runs)},
    {"chunks", offsetof(struct rewarm_contents, chunks)},
    {"blobs", offsetof(struct rewarm_contents, blobs)},
    {"lazy_pages", offsetof(struct rewarm_contents, lazy_pages)},
};
#define CONTENTS_FIELDS (sizeof(contents_fields) / sizeof(contents_fields[0]))

struct rewarm_contents rewarm_contents_of(const struct rewarm_memmap *map)
{
    struct rewarm_contents contents = {
        .processes = map->space_count,
        .windows = map->window_count,
        .runs = map->run_count,
        .chunks = map->chunk_count,
        .blobs = map->blob_count,
    };
    for (size_t i = 0; i < map->space_count; i++)
        contents.lazy_pages += map->spaces[i].lazy_pages;
    return contents;
}

json_t *rewarm_contents_encode(const struct rewarm_contents *contents)
{
    json_t *object = json_object();
    for (size_t i = 0; i < CONTENTS_FIELDS; i++) {
        uint64_t value;
        memcpy(&value, (const char *)contents + contents_fields[i].offset, sizeof(value));
        json_object_set_new(object, contents_fields[i].key, json_integer((json_int_t)value));
    }
    return object;
}

char *rewarm_manifest_map_name(const uint8_t sha256[REWARM_DIGEST_BYTES], char out[REWARM_MAP_NAME])
{
    rewarm_str_hex(sha256, REWARM_DIGEST_BYTES, out);
    strcat(out, ".map");
    return out;
}

int rewarm_manifest_encode(const json_t *document, char **ret_text, size_t *ret_bytes,
                           struct rewarm_error *err)
{
    rewarm_auto_free char *body = json_dumps(document, JSON_INDENT(2));
    if (body == NULL || body[0] != '{')
        return rewarm_error_set(err, REWARM_E_USAGE, 0,
                                "the manifest can't be written: something in it is not JSON");
    /* body is {REST; the file is {"sha256":"DIGITS",REST and a newline. */
    rewarm_auto_free char *tail = rewarm_str_format("\",%s\n", body + 1);
    uint8_t digest[REWARM_DIGEST_BYTES];
    char hex[DIGITS + 1];
    int result = rewarm_store_sha256(tail, strlen(tail), digest, err);
    if (result < 0)
        return result;
    rewarm_str_hex(digest, sizeof(digest), hex);
    *ret_text = rewarm_str_format("%s%s%s", PREFIX, hex, tail);
    *ret_bytes = strlen(*ret_text);
    return 0;
}

static int corrupt(struct rewarm_error *err, const char *name, const char *problem)
{
    return rewarm_error_set(err, REWARM_E_CORRUPT, 0, "snapshots/%s.json is damaged: %s", name,
                            problem);
}

static int check_digest(const char *text, size_t bytes, const char *name, struct rewarm_error *err)
{
    if (bytes < PREFIX_LEN + DIGITS || memcmp(text, PREFIX, PREFIX_LEN) != 0)
        return corrupt(err, name, "it is not a manifest");
    char wanted[DIGITS + 1], found[DIGITS + 1];
    memcpy(wanted, text + PREFIX_LEN, DIGITS);
    wanted[DIGITS] = '\0';
    uint8_t digest[REWARM_DIGEST_BYTES];
    int result =
        rewarm_store_sha256(text + PREFIX_LEN + DIGITS, bytes - PREFIX_LEN - DIGITS, digest, err);
    if (result < 0)
        return result;
    rewarm_str_hex(digest, sizeof(digest), found);
    if (strcmp(wanted, found) != 0)
        return corrupt(err, name, "its digest differs");
    return 0;
}

static bool get_u64(const json_t *object, const char *key, uint64_t *ret_value)
{
    const json_t *value = json_object_get(object, key);
    if (!json_is_integer(value) || json_integer_value(value) < 0)
        return false;
    *ret_value = (uint64_t)json_integer_value(value);
    return true;
}

static bool get_hex(const json_t *object, const char *key, void *data, size_t bytes)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text != NULL && strlen(text) == 2 * bytes && rewarm_str_unhex(text, data, bytes);
}

/* "format" and "version" first, so that a newer manifest is not called damaged. */
static int check_version(const json_t *document, const char *name, struct rewarm_error *err)
{
    const char *format = json_string_value(json_object_get(document, "format"));
    uint64_t version;
    if (format == NULL || strcmp(format, FORMAT) != 0 || !get_u64(document, "version", &version))
        return corrupt(err, name, "it has no format or version");
    if (version != VERSION)
        return rewarm_error_set(err, REWARM_E_MISFIT, 0,
                                "snapshots/%s.json was written by a newer rewarm (version %" PRIu64
                                "; this one reads %d)",
                                name, version, VERSION);
    const json_t *features = json_object_get(document, "requires");
    if (features != NULL && !json_is_array(features))
        return corrupt(err, name, "\"requires\" is not a list");
    if (json_array_size(features) != 0) {
        const char *first = json_string_value(json_array_get(features, 0));
        return rewarm_error_set(err, REWARM_E_MISFIT, 0,
                                "snapshots/%s.json needs a newer rewarm, one that knows \"%s\"",
                                name, first != NULL ? first : "?");
    }
    return 0;
}

static const char *decode_map(const json_t *document, struct rewarm_manifest *manifest)
{
    const json_t *map = json_object_get(document, "map");
    const char *file = json_string_value(json_object_get(map, "file"));
    char name[REWARM_MAP_NAME];
    if (!get_hex(map, "sha256", manifest->map_sha256, REWARM_DIGEST_BYTES) ||
        !get_u64(map, "bytes", &manifest->map_bytes) || file == NULL)
        return "\"map\" is not complete";
    if (strcmp(file, rewarm_manifest_map_name(manifest->map_sha256, name)) != 0)
        return "\"map\" names a file that is not its digest's";
    return NULL;
}

static const char *decode_packs(const json_t *document, struct rewarm_manifest *manifest)
{
    const json_t *packs = json_object_get(document, "packs");
    if (!json_is_array(packs))
        return "\"packs\" is not a list";
    size_t count = json_array_size(packs);
    manifest->packs = rewarm_mem_new(count, sizeof(*manifest->packs));
    manifest->pack_count = count;
    for (size_t i = 0; i < count; i++) {
        const json_t *pack = json_array_get(packs, i);
        if (!get_hex(pack, "id", manifest->packs[i].id, REWARM_PACK_ID_BYTES) ||
            !get_u64(pack, "bytes", &manifest->packs[i].bytes))
            return "\"packs\" has an incomplete entry";
    }
    return NULL;
}

static const char *decode_contents(const json_t *document, struct rewarm_manifest *manifest)
{
    const json_t *object = json_object_get(document, "contents");
    for (size_t i = 0; i < CONTENTS_FIELDS; i++) {
        uint64_t value;
        if (!get_u64(object, contents_fields[i].key, &value))
            return "\"contents\" is not complete";
        memcpy((char *)&manifest->contents + contents_fields[i].offset, &value, sizeof(value));
    }
    return NULL;
}

int rewarm_manifest_decode(const void *text, size_t bytes, const char *name,
                           struct rewarm_manifest *ret_manifest, struct rewarm_error *err)
{
    int result = check_digest(text, bytes, name, err);
    if (result < 0)
        return result;
    json_error_t json_error;
    struct rewarm_manifest manifest = {
        .document = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &json_error)};
    if (!json_is_object(manifest.document)) {
        json_decref(manifest.document);
        return corrupt(err, name, "it is not a JSON object");
    }
    result = check_version(manifest.document, name, err);
    const char *problem = NULL;
    if (result == 0) {
        const char *own = json_string_value(json_object_get(manifest.document, "name"));
        if (own == NULL || strcmp(own, name) != 0)
            problem = "it is the manifest of another name";
        else if (!json_is_string(json_object_get(manifest.document, "id")) ||
                 !json_is_string(json_object_get(manifest.document, "created")) ||
                 !json_is_object(json_object_get(manifest.document, "totals")) ||
                 !json_is_object(json_object_get(manifest.document, "snapshot")))
            problem = "something that every manifest has is missing";
    }
    if (result == 0 && problem == NULL)
        problem = decode_map(manifest.document, &manifest);
    if (result == 0 && problem == NULL)
        problem = decode_packs(manifest.document, &manifest);
    if (result == 0 && problem == NULL)
        problem = decode_contents(manifest.document, &manifest);
    if (problem != NULL)
        result = corrupt(err, name, problem);
    if (result < 0) {
        rewarm_manifest_fini(&manifest);
        return result;
    }
    *ret_manifest = manifest;
    return 0;
}

void rewarm_manifest_fini(struct rewarm_manifest *manifest)
{
    json_decref(manifest->document);
    free(manifest->packs);
    memset(manifest, 0, sizeof(*manifest));
}

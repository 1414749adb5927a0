/* Golden files: a store that every later version must read, and files that every version must
 * refuse.
 *
 *   store_test_golden              checks tests/data/golden
 *   store_test_golden --make DIR   writes DIR/v1 and DIR/malformed anew (only for a new format
 * version: the files of a released one never change)
 *
 * The malformed files carry right checksums: each is what a program with an error, or an attacker,
 * would write. The name says what to expect: map-, idx- and manifest- files are REWARM_E_CORRUPT,
 * newer- files REWARM_E_MISFIT. */
#include "store_test.h"

#include "store/digest.h"
#include "store/idx.h"
#include "store/map.h"
#include "store/wire.h"

#define SEED 4242

/* --- making
 * --------------------------------------------------------------------------------------------- */

static void make_snapshot(struct fixture *fixture, const char *name, uint64_t seed)
{
    struct rewarm_store_writer *writer;
    must(rewarm_store_writer_open(fixture->store, name, &writer, &err));
    put_process(writer, 7, 3, 2, seed);
    put_process(writer, 12, 2, 3, SEED + 10); /* the same in both snapshots */
    struct rewarm_space zeros = {.pid = 13, .lazy_pages = 100};
    must(rewarm_store_writer_put_space(writer, &zeros, NULL, 0, NULL, 0, &err));
    write_source(fixture, "core-7.img", 3000, seed + 20);
    write_source(fixture, "empty.img", 0, 0);
    must(rewarm_store_writer_put_blob(writer, fixture->source_fd, "core-7.img", &err));
    must(rewarm_store_writer_put_blob(writer, fixture->source_fd, "empty.img", &err));
    json_t *details =
        json_pack("{s:s, s:[s, s]}", "kernel", "6.12.0", "command", "llama-server", "--port");
    must(rewarm_store_writer_publish(writer, details, NULL, &err));
    json_decref(details);
    rewarm_store_writer_close(writer);
}

static void save(const char *folder, const char *name, const void *data, size_t bytes)
{
    rewarm_auto_free char *path = rewarm_str_format("%s/%s", folder, name);
    must(rewarm_fs_write_durable(AT_FDCWD, path, 0600, data, bytes, &err));
}

/* One field of a map: header (section 0), section table entry (section + 100) or record of a
 * section. */
struct patch {
    const char *name;
    unsigned section, record, field, width;
    uint64_t value;
};
enum { HEAD = 0, SPACES = 1, WINDOWS, RUNS, CHUNKS, BLOBS, NAMES, PACKS, ENTRY = 100 };

static const struct patch map_patches[] = {
    {"map-magic", HEAD, 0, 0, 1, 'x'},
    {"map-length", HEAD, 0, 16, 8, 1},
    {"map-many-sections", HEAD, 0, 12, 4, 0xffffffff},
    {"map-some-sections", HEAD, 0, 12, 4, 64},
    {"map-no-sections", HEAD, 0, 12, 4, 0},
    {"newer-map-version", HEAD, 0, 8, 4, 2},
    {"newer-map-features", HEAD, 0, 24, 4, 1},
    {"newer-map-page", HEAD, 0, 28, 4, 65536},
    {"map-section-offset", ENTRY + SPACES, 0, 8, 8, 0xfffffffffffffff8},
    {"map-section-early", ENTRY + SPACES, 0, 8, 8, 0},
    {"map-section-odd", ENTRY + RUNS, 0, 8, 8, 0x123},
    {"map-section-length", ENTRY + RUNS, 0, 16, 8, 0xfffffffffffffff0},
    {"map-section-partial", ENTRY + RUNS, 0, 16, 8, 17},
    {"map-section-record", ENTRY + RUNS, 0, 24, 4, 0},
    {"map-section-twice", ENTRY + WINDOWS, 0, 0, 4, SPACES},
    {"newer-map-section", ENTRY + BLOBS, 0, 0, 4, 99},
    {"map-space-pid-zero", SPACES, 0, 0, 4, 0},
    {"map-space-pid-negative", SPACES, 0, 0, 4, 0xffffffff},
    {"map-space-pid-order", SPACES, 0, 0, 4, 12},
    {"map-space-first", SPACES, 1, 8, 8, 0},
    {"map-space-windows", SPACES, 1, 16, 8, 0xffffffffffffffff},
    {"map-space-fewer-windows", SPACES, 1, 16, 8, 1},
    {"map-space-pages", SPACES, 0, 24, 8, 1},
    {"map-space-pages-huge", SPACES, 2, 24, 8, 0xffffffffffffffff},
    {"map-window-unaligned", WINDOWS, 0, 0, 8, 0x10001000},
    {"map-window-top", WINDOWS, 2, 0, 8, 0xfffffffffffc0000},
    {"map-window-order", WINDOWS, 1, 0, 8, 0x10000000},
    {"map-window-first-run", WINDOWS, 1, 8, 4, 0xffffffff},
    {"map-window-shared-runs", WINDOWS, 1, 8, 4, 0},
    {"map-window-no-runs", WINDOWS, 0, 12, 4, 0},
    {"map-window-many-runs", WINDOWS, 0, 12, 4, 0xffffffff},
    {"map-window-chunk", WINDOWS, 0, 16, 4, 0xffffffff},
    {"map-window-other-chunk", WINDOWS, 0, 16, 4, 5},
    {"map-run-unaligned", RUNS, 0, 0, 8, 0x10000001},
    {"map-run-outside", RUNS, 0, 0, 8, 0x10040000},
    {"map-run-before", RUNS, 0, 0, 8, 0},
    {"map-run-order", RUNS, 1, 0, 8, 0x10000000},
    {"map-run-no-pages", RUNS, 0, 8, 4, 0},
    {"map-run-many-pages", RUNS, 0, 8, 4, 0xffffffff},
    {"map-run-first-page", RUNS, 1, 12, 4, 0},
    {"map-chunk-pack", CHUNKS, 0, 48, 4, 0xffffffff},
    {"map-chunk-unaligned", CHUNKS, 0, 40, 8, 4097},
    {"map-chunk-in-header", CHUNKS, 0, 40, 8, 0},
    {"map-chunk-beyond", CHUNKS, 0, 40, 8, 0xfffffffffffff000},
    {"map-chunk-empty", CHUNKS, 0, 56, 4, 0},
    {"map-chunk-long", CHUNKS, 0, 56, 4, 0xffffffff},
    {"map-chunk-stored", CHUNKS, 0, 52, 4, 1},
    {"map-chunk-codec", CHUNKS, 0, 60, 4, 7},
    {"map-blob-name-offset", BLOBS, 0, 0, 4, 0xffffffff},
    {"map-blob-name-length", BLOBS, 0, 4, 4, 0xffffffff},
    {"map-blob-no-name", BLOBS, 0, 4, 4, 0},
    {"map-blob-length", BLOBS, 0, 8, 8, 0xffffffffffffffff},
    {"map-blob-first-chunk", BLOBS, 0, 16, 8, 0xffffffffffffffff},
    {"map-blob-chunks", BLOBS, 0, 24, 8, 0xffffffffffffffff},
    {"map-blob-order", BLOBS, 1, 0, 4, 0},
    {"map-blob-slash", NAMES, 0, 0, 1, '/'},
    {"map-blob-nul", NAMES, 0, 0, 1, 0},
    {"map-pack-empty", PACKS, 0, 16, 8, 0},
    {"map-pack-huge", PACKS, 0, 16, 8, 0xffffffffffffffff},
};

/* An index: header fields, fan-out and records are at fixed places, so `field` is the place in the
 * file. */
static const struct patch idx_patches[] = {
    {"idx-magic", 0, 0, 0, 1, 'x'},
    {"newer-idx-version", 0, 0, 8, 4, 2},
    {"newer-idx-features", 0, 0, 12, 4, 1},
    {"idx-pack-bytes", 0, 0, 32, 8, 1},
    {"idx-count", 0, 0, 40, 8, 0xffffffffffffffff},
    {"idx-count-less", 0, 0, 40, 8, 1},
    {"idx-fanout-first", 0, 0, 64, 4, 0xffffffff},
    {"idx-fanout-last", 0, 0, 64 + 255 * 4, 4, 0},
    {"idx-fanout-order", 0, 0, 64 + 254 * 4, 4, 0xffff},
    {"idx-record-order", 0, 0, 1088, 8, 0xffffffffffffffff},
    {"idx-chunk-offset", 0, 0, 1088 + 40, 8, 0xfffffffffffff000},
    {"idx-chunk-codec", 0, 0, 1088 + 60, 4, 99},
};

static void put(uint8_t *at, unsigned width, uint64_t value)
{
    value = htole64(value);
    memcpy(at, &value, width);
}

static void sign(uint8_t *data, size_t bytes)
{
    rewarm_wire_put64(data + bytes - 8, rewarm_store_xxh3(data, bytes - 8));
}

static size_t place(const uint8_t *map, const struct patch *patch)
{
    static const unsigned sizes[] = {0, 32, 24, 16, 64, 32, 1, 32};
    if (patch->section == HEAD)
        return patch->field;
    if (patch->section >= ENTRY)
        return 64 + (patch->section - ENTRY - 1) * 32 + patch->field;
    return (size_t)rewarm_wire_get64(map + 64 + (patch->section - 1) * 32 + 8) +
           patch->record * sizes[patch->section] + patch->field;
}

static void make_binaries(struct fixture *fixture, const char *folder)
{
    struct rewarm_manifest manifest;
    char name[REWARM_MAP_NAME];
    char *good;
    size_t bytes;
    must(rewarm_store_load_manifest(fixture->store, "golden", &manifest, &err));
    rewarm_manifest_map_name(manifest.map_sha256, name);
    must(rewarm_fs_read_file(fixture->store->maps_fd, name, (size_t)1 << 20, &good, &bytes, &err));
    rewarm_auto_free uint8_t *bad = rewarm_mem_new(bytes, 1);
    for (size_t i = 0; i < sizeof(map_patches) / sizeof(map_patches[0]); i++) {
        memcpy(bad, good, bytes);
        put(bad + place(bad, &map_patches[i]), map_patches[i].width, map_patches[i].value);
        sign(bad, bytes);
        save(folder, map_patches[i].name, bad, bytes);
    }
    free(good);
    rewarm_auto_free uint8_t *idx = NULL;
    struct rewarm_idx decoded;
    must(rewarm_idx_load(fixture->store->packs_fd, manifest.packs[0].id, &idx, &decoded, &err));
    size_t idx_bytes = 1088 + decoded.count * 64 + 8;
    rewarm_auto_free uint8_t *bad_idx = rewarm_mem_new(idx_bytes, 1);
    for (size_t i = 0; i < sizeof(idx_patches) / sizeof(idx_patches[0]); i++) {
        memcpy(bad_idx, idx, idx_bytes);
        put(bad_idx + idx_patches[i].field, idx_patches[i].width, idx_patches[i].value);
        sign(bad_idx, idx_bytes);
        save(folder, idx_patches[i].name, bad_idx, idx_bytes);
    }
    rewarm_manifest_fini(&manifest);
}

/* The manifest with `path` ("key" or "key.key") set to a JSON value, or removed when it is "". */
static const struct {
    const char *name, *key, *inner, *value;
} manifest_patches[] = {
    {"newer-manifest-version", "version", NULL, "2"},
    {"newer-manifest-requires", "requires", NULL, "[\"encryption\"]"},
    {"manifest-no-format", "format", NULL, ""},
    {"manifest-other-format", "format", NULL, "\"zip\""},
    {"manifest-version-text", "version", NULL, "\"1\""},
    {"manifest-requires-text", "requires", NULL, "\"x\""},
    {"manifest-no-name", "name", NULL, ""},
    {"manifest-other-name", "name", NULL, "\"silver\""},
    {"manifest-no-id", "id", NULL, ""},
    {"manifest-no-snapshot", "snapshot", NULL, "[]"},
    {"manifest-no-totals", "totals", NULL, "0"},
    {"manifest-no-map", "map", NULL, "null"},
    {"manifest-map-path", "map", "file", "\"../../../etc/passwd\""},
    {"manifest-map-digest", "map", "sha256", "\"xyz\""},
    {"manifest-map-length", "map", "bytes", "-1"},
    {"manifest-map-real", "map", "bytes", "1.5"},
    {"manifest-no-packs", "packs", NULL, "{}"},
    {"manifest-pack-type", "packs", NULL, "[1]"},
    {"manifest-pack-id", "packs", NULL, "[{\"id\": \"../x\", \"bytes\": 4096}]"},
    {"manifest-no-contents", "contents", NULL, "[]"},
    {"manifest-contents-negative", "contents", "chunks", "-5"},
};

static void save_signed(const char *folder, const char *name, const char *tail)
{
    uint8_t digest[REWARM_DIGEST_BYTES];
    char hex[2 * REWARM_DIGEST_BYTES + 1];
    must(rewarm_store_sha256(tail, strlen(tail), digest, &err));
    rewarm_str_hex(digest, sizeof(digest), hex);
    rewarm_auto_free char *text = rewarm_str_format("{\"sha256\":\"%s%s", hex, tail);
    save(folder, name, text, strlen(text));
}

static void make_manifests(struct fixture *fixture, const char *folder)
{
    for (size_t i = 0; i < sizeof(manifest_patches) / sizeof(manifest_patches[0]); i++) {
        struct rewarm_manifest manifest;
        rewarm_auto_free char *text = NULL;
        size_t bytes;
        must(rewarm_store_load_manifest(fixture->store, "golden", &manifest, &err));
        json_object_del(manifest.document, "sha256");
        json_t *object = manifest.document;
        const char *key = manifest_patches[i].key, *value = manifest_patches[i].value;
        if (manifest_patches[i].inner != NULL) {
            object = json_object_get(object, key);
            key = manifest_patches[i].inner;
        }
        if (value[0] == '\0')
            json_object_del(object, key);
        else
            json_object_set_new(object, key, json_loads(value, JSON_DECODE_ANY, NULL));
        must(rewarm_manifest_encode(manifest.document, &text, &bytes, &err));
        save(folder, manifest_patches[i].name, text, bytes);
        rewarm_manifest_fini(&manifest);
    }
    save_signed(folder, "manifest-not-json", "\",");
    save_signed(folder, "manifest-twice", "\",\"version\":1,\"version\":2}");
    save_signed(folder, "manifest-bare", "\"}");
    save(folder, "manifest-empty", "", 0);
    save(folder, "manifest-no-digest", "{}", 2);
}

static int make(const char *root)
{
    struct fixture fixture = {.source_fd = -1};
    snprintf(fixture.source, sizeof(fixture.source), "%s", "/tmp/rewarm-golden-XXXXXX");
    if (mkdtemp(fixture.source) == NULL)
        return 1;
    fixture.source_fd = open(fixture.source, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    rewarm_auto_free char *path = rewarm_str_format("%s/v1", root);
    rewarm_auto_free char *malformed = rewarm_str_format("%s/malformed", root);
    must(rewarm_store_open(path, true, &fixture.store, &err));
    make_snapshot(&fixture, "golden", SEED);
    make_snapshot(&fixture, "golden-2", SEED + 100);
    must(rewarm_fs_make_dirs(malformed, &err));
    make_binaries(&fixture, malformed);
    make_manifests(&fixture, malformed);
    /* What a copy of a store does without. */
    must(rewarm_fs_remove_tree(fixture.store->root_fd, "staging", &err));
    must(rewarm_fs_remove_tree(fixture.store->root_fd, "locks", &err));
    rewarm_store_close(fixture.store);
    close(fixture.source_fd);
    return rewarm_fs_remove_tree(AT_FDCWD, fixture.source, NULL) == 0 ? 0 : 1;
}

/* --- checking
 * ------------------------------------------------------------------------------------------- */

/* A working tree keeps no modes: the store is copied with those that it must have. */
static void copy_tree(const char *from, const char *to)
{
    rewarm_auto_dir DIR *dir = opendir(from);
    if (dir == NULL)
        fail_msg("%s is missing", from);
    must(rewarm_fs_make_dirs(to, &err));
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        if (entry->d_name[0] == '.')
            continue;
        rewarm_auto_free char *source = rewarm_str_format("%s/%s", from, entry->d_name);
        rewarm_auto_free char *target = rewarm_str_format("%s/%s", to, entry->d_name);
        rewarm_auto_free char *data = NULL;
        size_t bytes;
        struct stat st;
        assert_int_equal(stat(source, &st), 0);
        if (S_ISDIR(st.st_mode)) {
            copy_tree(source, target);
            continue;
        }
        must(rewarm_fs_read_file(AT_FDCWD, source, (size_t)1 << 24, &data, &bytes, &err));
        must(rewarm_fs_write_durable(AT_FDCWD, target, 0600, data, bytes, &err));
    }
}

static void check_golden(struct fixture *fixture, const char *name, uint64_t seed)
{
    struct rewarm_store_reader *reader;
    must(rewarm_store_reader_open(fixture->store, name, &reader, &err));
    check_process(reader, 7, 3, 2, seed);
    check_process(reader, 12, 2, 3, SEED + 10);
    const struct rewarm_space *zeros = rewarm_memmap_space(rewarm_store_reader_memmap(reader), 13);
    assert_non_null(zeros);
    assert_int_equal(zeros->lazy_pages, 100);
    check_blob(fixture, reader, 0, 3000, seed + 20);
    check_blob(fixture, reader, 1, 0, 0);
    const json_t *details = json_object_get(rewarm_store_reader_manifest(reader), "snapshot");
    assert_string_equal(json_string_value(json_object_get(details, "kernel")), "6.12.0");
    rewarm_store_reader_close(reader);
    must(rewarm_store_verify(fixture->store, name, NULL, NULL, &err));
}

static void test_v1(void **state)
{
    struct fixture *fixture = *state;
    struct rewarm_store_gc_result result;
    struct rewarm_store_writer *writer;
    struct rewarm_store_totals totals;
    rewarm_store_close(fixture->store);
    snprintf(fixture->path, sizeof(fixture->path), "%s/golden", fixture->root);
    copy_tree(REWARM_TEST_DATA "/golden/v1", fixture->path);
    must(rewarm_store_open(fixture->path, false, &fixture->store, &err));
    check_golden(fixture, "golden", SEED);
    check_golden(fixture, "golden-2", SEED + 100);
    /* Its chunks are shared with, and gc keeps them. */
    must(rewarm_store_writer_open(fixture->store, "today", &writer, &err));
    put_process(writer, 7, 3, 2, SEED);
    must(rewarm_store_writer_publish(writer, NULL, &totals, &err));
    rewarm_store_writer_close(writer);
    assert_int_equal(totals.stored_bytes, 0);
    must(rewarm_store_gc(fixture->store, false, 0, &result, &err));
    assert_int_equal(result.packs_removed + result.maps_removed, 0);
    check_golden(fixture, "golden", SEED);
    check_golden(fixture, "golden-2", SEED + 100);
}

static int decode(const char *name, const void *data, size_t bytes, struct rewarm_error *err)
{
    struct rewarm_manifest manifest;
    struct rewarm_memmap map;
    struct rewarm_idx idx;
    struct rewarm_pack_ref *packs;
    size_t count;
    int result;
    if (strstr(name, "map-") != NULL && strstr(name, "manifest-") == NULL) {
        result = rewarm_map_decode(data, bytes, name, &map, &packs, &count, err);
        if (result == 0) {
            rewarm_memmap_fini(&map);
            free(packs);
        }
    } else if (strstr(name, "idx-") != NULL) {
        result = rewarm_idx_decode(data, bytes, name, &idx, err);
    } else {
        result = rewarm_manifest_decode(data, bytes, "golden", &manifest, err);
        if (result == 0)
            rewarm_manifest_fini(&manifest);
    }
    return result;
}

static void test_malformed(void **state)
{
    (void)state;
    rewarm_auto_dir DIR *dir = opendir(REWARM_TEST_DATA "/golden/malformed");
    unsigned count = 0;
    assert_non_null(dir);
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        if (entry->d_name[0] == '.')
            continue;
        rewarm_auto_free char *text = NULL;
        size_t bytes;
        must(rewarm_fs_read_file(dirfd(dir), entry->d_name, (size_t)1 << 20, &text, &bytes, &err));
        /* Exactly as long as the file: sanitizers see a read past its end. */
        rewarm_auto_free void *data = malloc(bytes != 0 ? bytes : 1);
        memcpy(data, text, bytes);
        if (rewarm_str_starts(entry->d_name, "newer-"))
            must_fail(REWARM_E_MISFIT, "", decode(entry->d_name, data, bytes, &err));
        else if (rewarm_str_starts(entry->d_name, "manifest-"))
            must_fail(REWARM_E_CORRUPT, "snapshots/golden.json",
                      decode(entry->d_name, data, bytes, &err));
        else
            must_fail(REWARM_E_CORRUPT, entry->d_name, decode(entry->d_name, data, bytes, &err));
        count++;
    }
    assert_int_equal(count, sizeof(map_patches) / sizeof(map_patches[0]) +
                                sizeof(idx_patches) / sizeof(idx_patches[0]) +
                                sizeof(manifest_patches) / sizeof(manifest_patches[0]) + 5);
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "--make") == 0)
        return make(argv[2]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_v1, fixture_setup, fixture_teardown),
        cmocka_unit_test(test_malformed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

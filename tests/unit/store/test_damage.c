/* Damage: whatever happens to a file of the store, a reader gets the right bytes or
 * REWARM_E_CORRUPT. */
#include "store_test.h"

#include "store/idx.h"

static char *slurp(const char *path, size_t *bytes)
{
    char *data;
    must(rewarm_fs_read_file(AT_FDCWD, path, (size_t)1 << 30, &data, bytes, &err));
    return data;
}

static void spill(const char *path, const void *data, size_t bytes)
{
    int fd = open(path, O_WRONLY | O_TRUNC);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, data, bytes), (ssize_t)bytes);
    close(fd);
}

static int open_reader(struct fixture *fixture, struct rewarm_error *err)
{
    struct rewarm_store_reader *reader;
    int result = rewarm_store_reader_open(fixture->store, "w", &reader, err);
    if (result == 0)
        rewarm_store_reader_close(reader);
    return result;
}

/* Each bit flipped, each shorter length: never a success, never another error than CORRUPT. */
static void damage_everywhere(struct fixture *fixture, const char *path, const char *named,
                              int (*use)(struct fixture *, struct rewarm_error *))
{
    size_t bytes;
    rewarm_auto_free char *good = slurp(path, &bytes);
    rewarm_auto_free char *bad = rewarm_mem_new(bytes + 1, 1);
    memcpy(bad, good, bytes);
    for (size_t bit = 0; bit < bytes * 8; bit++) {
        bad[bit / 8] = (char)(bad[bit / 8] ^ (1 << (bit % 8)));
        spill(path, bad, bytes);
        must_fail(REWARM_E_CORRUPT, named, use(fixture, &err));
        bad[bit / 8] = good[bit / 8];
    }
    for (size_t length = 0; length < bytes; length++) {
        spill(path, good, length);
        must_fail(REWARM_E_CORRUPT, named, use(fixture, &err));
    }
    spill(path, bad, bytes + 1);
    must_fail(REWARM_E_CORRUPT, named, use(fixture, &err));
    spill(path, good, bytes);
    must(use(fixture, &err));
    unlink(path);
}

static void test_manifest(void **state)
{
    struct fixture *fixture = *state;
    write_snapshot(fixture, "w", 1);
    rewarm_auto_free char *path = only_file(fixture, "snapshots", ".json");
    damage_everywhere(fixture, path, "snapshots/w.json", open_reader);
    must_fail(REWARM_E_NOT_FOUND, "\"w\"", open_reader(fixture, &err));
}

static void test_map(void **state)
{
    struct fixture *fixture = *state;
    write_snapshot(fixture, "w", 1);
    rewarm_auto_free char *path = only_file(fixture, "maps", ".map");
    damage_everywhere(fixture, path, "maps/", open_reader);
    must_fail(REWARM_E_CORRUPT, "is missing", open_reader(fixture, &err));
}

static int load_idx(struct fixture *fixture, struct rewarm_error *err)
{
    rewarm_auto_free char *path = only_file(fixture, "packs", ".idx");
    rewarm_auto_free uint8_t *data = NULL;
    uint8_t id[REWARM_PACK_ID_BYTES];
    struct rewarm_idx idx;
    assert_true(rewarm_pack_parse_name(strrchr(path, '/') + 1, ".idx", id));
    return rewarm_idx_load(fixture->store->packs_fd, id, &data, &idx, err);
}

static void test_idx(void **state)
{
    struct fixture *fixture = *state;
    write_snapshot(fixture, "w", 1);
    rewarm_auto_free char *path = only_file(fixture, "packs", ".idx");
    damage_everywhere(fixture, path, "packs/", load_idx);
    /* Without it: readable, verify says so, nothing is shared, gc writes it again. */
    must(open_reader(fixture, &err));
    must_fail(REWARM_E_CORRUPT, "damaged in 1 place",
              rewarm_store_verify(fixture->store, "w", NULL, NULL, &err));
    must(rewarm_store_gc(fixture->store, false, 0, NULL, &err));
    check_snapshot(fixture, "w", 1);
}

/* Reads everything; what can be read must be right. */
static unsigned read_all(struct fixture *fixture)
{
    struct rewarm_store_reader *reader;
    struct rewarm_error err = REWARM_ERROR_INIT;
    unsigned failures = 0;
    if (rewarm_store_reader_open(fixture->store, "w", &reader, &err) < 0) {
        assert_int_equal(err.code, REWARM_E_CORRUPT);
        assert_non_null(strstr(err.message, "packs/"));
        return 1;
    }
    const struct rewarm_memmap *map = rewarm_store_reader_memmap(reader);
    static uint8_t found[WINDOW], wanted[WINDOW];
    for (uint32_t i = 0; i < map->chunk_count; i++) {
        rewarm_error_clear(&err);
        if (rewarm_store_reader_get(reader, i, found, &err) < 0) {
            assert_int_equal(err.code, REWARM_E_CORRUPT);
            assert_non_null(strstr(err.message, "chunk "));
            assert_non_null(strstr(err.message, ".pack"));
            failures++;
            continue;
        }
        fill(wanted, map->chunks[i].raw_bytes, i < 3 ? 1 + i : 1001);
        assert_memory_equal(found, wanted, map->chunks[i].raw_bytes);
    }
    rewarm_store_reader_close(reader);
    return failures;
}

static void test_pack(void **state)
{
    struct fixture *fixture = *state;
    write_snapshot(fixture, "w", 1);
    assert_int_equal(read_all(fixture), 0);
    rewarm_auto_free char *path = only_file(fixture, "packs", ".pack");
    size_t bytes, detected = 0, harmless = 0;
    rewarm_auto_free char *good = slurp(path, &bytes);
    int fd = open(path, O_RDWR);
    /* Every bit of the header's fields, a spread of all others (a prime apart). */
    for (size_t bit = 0; bit < bytes * 8; bit += bit < 64 * 8 ? 1 : 251) {
        char byte = (char)(good[bit / 8] ^ (1 << (bit % 8)));
        assert_int_equal(pwrite(fd, &byte, 1, (off_t)(bit / 8)), 1);
        if (read_all(fixture) != 0)
            detected++;
        else
            harmless++;
        assert_int_equal(pwrite(fd, &good[bit / 8], 1, (off_t)(bit / 8)), 1);
    }
    assert_true(detected > 64 * 8);
    assert_true(harmless > 0); /* the padding */
    for (size_t length = 0; length < bytes; length += 1009) {
        assert_int_equal(ftruncate(fd, (off_t)length), 0);
        assert_int_equal(read_all(fixture), 1);
    }
    close(fd);
    unlink(path);
    must_fail(REWARM_E_CORRUPT, "is missing", open_reader(fixture, &err));
}

/* A pack that shrinks while a reader has it open. */
static void test_pack_shrinks_under_a_reader(void **state)
{
    struct fixture *fixture = *state;
    struct rewarm_store_reader *reader;
    uint8_t buffer[WINDOW];
    write_snapshot(fixture, "w", 1);
    must(rewarm_store_reader_open(fixture->store, "w", &reader, &err));
    rewarm_auto_free char *path = only_file(fixture, "packs", ".pack");
    assert_int_equal(truncate(path, 2 * PAGE), 0);
    must_fail(REWARM_E_CORRUPT, "cut short", rewarm_store_reader_get(reader, 1, buffer, &err));
    rewarm_store_reader_close(reader);
}

struct reports {
    unsigned damages, progress;
    uint64_t done, total;
    char text[4096];
};

static void report(void *context, const char *damage, uint64_t done, uint64_t total)
{
    struct reports *reports = context;
    if (damage != NULL) {
        reports->damages++;
        strncat(reports->text, damage, sizeof(reports->text) - strlen(reports->text) - 2);
        strcat(reports->text, "\n");
    } else {
        reports->progress++;
    }
    reports->done = done;
    reports->total = total;
}

static void flip(const char *path, off_t offset)
{
    int fd = open(path, O_RDWR);
    char byte;
    assert_int_equal(pread(fd, &byte, 1, offset), 1);
    byte = (char)(byte ^ 4);
    assert_int_equal(pwrite(fd, &byte, 1, offset), 1);
    close(fd);
}

static void test_verify_tells_all(void **state)
{
    struct fixture *fixture = *state;
    struct reports reports = {0};
    write_snapshot(fixture, "w", 1);
    must(rewarm_store_verify(fixture->store, "w", report, &reports, &err));
    assert_int_equal(reports.damages, 0);
    assert_int_equal(reports.progress, 4);
    assert_int_equal(reports.total, 3 * 4 * PAGE + 5000);
    assert_int_equal(reports.done, reports.total);
    rewarm_auto_free char *pack = only_file(fixture, "packs", ".pack");
    rewarm_auto_free char *idx = only_file(fixture, "packs", ".idx");
    flip(pack, PAGE + 10);
    flip(pack, PAGE + 2 * 4 * PAGE + 100);
    flip(idx, 700);
    memset(&reports, 0, sizeof(reports));
    must_fail(REWARM_E_CORRUPT, "3 places",
              rewarm_store_verify(fixture->store, "w", report, &reports, &err));
    assert_int_equal(reports.damages, 3);
    assert_non_null(strstr(reports.text, "offset 4096 of packs/"));
    assert_non_null(strstr(reports.text, "offset 36864 of packs/"));
    assert_non_null(strstr(reports.text, ".idx is damaged"));
    /* A pack cut short: said once, and each chunk that is lost. */
    assert_int_equal(truncate(pack, PAGE + 4 * PAGE), 0);
    memset(&reports, 0, sizeof(reports));
    must_fail(REWARM_E_CORRUPT, "",
              rewarm_store_verify(fixture->store, "w", report, &reports, &err));
    assert_int_equal(reports.damages, 1 + 1 + 4);
    must_fail(REWARM_E_NOT_FOUND, "\"z\"",
              rewarm_store_verify(fixture->store, "z", NULL, NULL, &err));
}

/* Freezing again heals: a damaged chunk is not shared, though the index offers it. */
static void test_nothing_leans_on_damage(void **state)
{
    struct fixture *fixture = *state;
    write_snapshot(fixture, "w", 1);
    rewarm_auto_free char *pack = only_file(fixture, "packs", ".pack");
    flip(pack, PAGE + 10);
    must_fail(REWARM_E_CORRUPT, "", rewarm_store_verify(fixture->store, "w", NULL, NULL, &err));
    write_snapshot(fixture, "w", 1);
    check_snapshot(fixture, "w", 1);
    flip(pack, 3); /* its header */
    write_snapshot(fixture, "v", 1);
    must(rewarm_store_remove(fixture->store, "w", &err));
    check_snapshot(fixture, "v", 1);
}

static void resign(struct fixture *fixture, const char *key, json_t *value)
{
    struct rewarm_manifest manifest;
    rewarm_auto_free char *text = NULL;
    size_t bytes;
    must(rewarm_store_load_manifest(fixture->store, "w", &manifest, &err));
    json_object_del(manifest.document, "sha256");
    json_object_set_new(manifest.document, key, value);
    must(rewarm_manifest_encode(manifest.document, &text, &bytes, &err));
    rewarm_manifest_fini(&manifest);
    rewarm_auto_free char *path = only_file(fixture, "snapshots", ".json");
    spill(path, text, bytes);
}

/* Well made, but not ours to read, or contradicting itself. */
static void test_other_manifests(void **state)
{
    struct fixture *fixture = *state;
    write_snapshot(fixture, "w", 1);
    rewarm_auto_free char *path = only_file(fixture, "snapshots", ".json");
    size_t bytes;
    rewarm_auto_free char *good = slurp(path, &bytes);
    resign(fixture, "version", json_integer(2));
    must_fail(REWARM_E_MISFIT, "newer rewarm", open_reader(fixture, &err));
    spill(path, good, bytes);
    resign(fixture, "requires", json_pack("[s]", "stripes"));
    must_fail(REWARM_E_MISFIT, "\"stripes\"", open_reader(fixture, &err));
    spill(path, good, bytes);
    resign(fixture, "name", json_string("v"));
    must_fail(REWARM_E_CORRUPT, "another name", open_reader(fixture, &err));
    spill(path, good, bytes);
    resign(fixture, "packs", json_array());
    must_fail(REWARM_E_CORRUPT, "packs", open_reader(fixture, &err));
    spill(path, good, bytes);
    resign(fixture, "contents",
           json_pack("{s:i,s:i,s:i,s:i,s:i,s:i}", "processes", 2, "windows", 3, "runs", 6, "chunks",
                     4, "blobs", 1, "lazy_pages", 42));
    must_fail(REWARM_E_CORRUPT, "contents", open_reader(fixture, &err));
    spill(path, good, bytes);
    resign(fixture, "extra", json_true()); /* what is not known is skipped */
    must(open_reader(fixture, &err));
}

static void test_swapped_packs(void **state)
{
    struct fixture *fixture = *state;
    write_snapshot(fixture, "w", 1);
    rewarm_auto_free char *first = only_file(fixture, "packs", ".pack");
    rewarm_auto_free char *aside = rewarm_str_format("%s/aside", fixture->root);
    assert_int_equal(rename(first, aside), 0);
    write_snapshot(fixture, "v", 2);
    rewarm_auto_free char *second = only_file(fixture, "packs", ".pack");
    assert_int_equal(rename(second, first), 0);
    assert_int_equal(rename(aside, second), 0);
    must_fail(REWARM_E_CORRUPT, "holds another pack", open_reader(fixture, &err));
}

static void test_vanished_store(void **state)
{
    struct fixture *fixture = *state;
    struct rewarm_store_writer *writer;
    write_snapshot(fixture, "w", 1);
    must(rewarm_store_writer_open(fixture->store, "v", &writer, &err));
    put_process(writer, 1, 1, 4, 9);
    must(rewarm_fs_remove_tree(AT_FDCWD, fixture->path, &err));
    must_fail(REWARM_E_NOT_FOUND, "", rewarm_store_writer_publish(writer, NULL, NULL, &err));
    rewarm_store_writer_close(writer);
    struct rewarm_store_reader *reader;
    must_fail(REWARM_E_NOT_FOUND, "", rewarm_store_reader_open(fixture->store, "w", &reader, &err));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_manifest, fixture_setup, fixture_teardown),
        cmocka_unit_test_setup_teardown(test_map, fixture_setup, fixture_teardown),
        cmocka_unit_test_setup_teardown(test_idx, fixture_setup, fixture_teardown),
        cmocka_unit_test_setup_teardown(test_pack, fixture_setup, fixture_teardown),
        cmocka_unit_test_setup_teardown(test_pack_shrinks_under_a_reader, fixture_setup,
                                        fixture_teardown),
        cmocka_unit_test_setup_teardown(test_verify_tells_all, fixture_setup, fixture_teardown),
        cmocka_unit_test_setup_teardown(test_nothing_leans_on_damage, fixture_setup,
                                        fixture_teardown),
        cmocka_unit_test_setup_teardown(test_other_manifests, fixture_setup, fixture_teardown),
        cmocka_unit_test_setup_teardown(test_swapped_packs, fixture_setup, fixture_teardown),
        cmocka_unit_test_setup_teardown(test_vanished_store, fixture_setup, fixture_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

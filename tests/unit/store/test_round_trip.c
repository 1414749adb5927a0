/* Writing and reading: what was put in comes out, once, shared where it can be. */
#include "store_test.h"

static void test_round_trip(void **state)
{
    struct fixture *fixture = *state;
    struct rewarm_store_writer *writer;
    struct rewarm_store_totals totals;
    must(rewarm_store_writer_open(fixture->store, "worker-1", &writer, &err));
    assert_true(rewarm_str_starts(rewarm_store_writer_staging(writer), fixture->path));
    assert_int_equal(access(rewarm_store_writer_staging(writer), W_OK), 0);
    put_process(writer, 200, 5, 64, 1);
    put_process(writer, 100, 2, 3, 50);
    write_source(fixture, "pages.img", 2 * WINDOW + 77, 1000);
    write_source(fixture, "core.img", 500, 2000);
    write_source(fixture, "empty.img", 0, 0);
    must(rewarm_store_writer_put_blob(writer, fixture->source_fd, "pages.img", &err));
    must(rewarm_store_writer_put_blob(writer, fixture->source_fd, "empty.img", &err));
    must(rewarm_store_writer_put_blob(writer, fixture->source_fd, "core.img", &err));
    json_t *details = json_pack("{s:s}", "kernel", "6.12");
    must(rewarm_store_writer_publish(writer, details, &totals, &err));
    json_decref(details);
    rewarm_auto_free char *staging = rewarm_str_dup(rewarm_store_writer_staging(writer));
    rewarm_store_writer_close(writer);
    assert_int_equal(access(staging, F_OK), -1);

    uint64_t blobs = 2 * WINDOW + 77 + 500;
    assert_int_equal(totals.logical_bytes, (5 * 74 + 2 * 13) * PAGE + blobs);
    assert_int_equal(totals.zero_bytes, 7 * 10 * PAGE);
    assert_int_equal(totals.stored_bytes, (5 * 64 + 2 * 3) * PAGE + blobs);
    assert_int_equal(totals.shared_bytes, 0);
    assert_int_equal(totals.chunks, 5 + 2 + 3 + 1);
    assert_int_equal(totals.chunks_shared, 0);

    struct rewarm_store_reader *reader;
    must(rewarm_store_reader_open(fixture->store, "worker-1", &reader, &err));
    const json_t *manifest = rewarm_store_reader_manifest(reader);
    assert_string_equal(json_string_value(json_object_get(manifest, "name")), "worker-1");
    assert_string_equal(
        json_string_value(json_object_get(json_object_get(manifest, "snapshot"), "kernel")),
        "6.12");
    assert_int_equal(
        json_integer_value(json_object_get(json_object_get(manifest, "totals"), "zero_bytes")),
        totals.zero_bytes);
    const struct rewarm_memmap *map = rewarm_store_reader_memmap(reader);
    assert_int_equal(map->space_count, 2);
    assert_int_equal(map->spaces[0].pid, 100); /* sorted */
    check_process(reader, 200, 5, 64, 1);
    check_process(reader, 100, 2, 3, 50);
    assert_int_equal(map->blob_count, 3);
    assert_string_equal(map->blobs[1].name, "empty.img");
    check_blob(fixture, reader, 0, 500, 2000);
    check_blob(fixture, reader, 1, 0, 0);
    check_blob(fixture, reader, 2, 2 * WINDOW + 77, 1000);
    uint8_t buffer[8];
    must_fail(REWARM_E_USAGE, "no chunk",
              rewarm_store_reader_get(reader, (uint32_t)map->chunk_count, buffer, &err));
    must_fail(REWARM_E_USAGE, "no blob", rewarm_store_reader_extract(reader, 3, AT_FDCWD, &err));
    rewarm_store_reader_close(reader);
    must(rewarm_store_verify(fixture->store, "worker-1", NULL, NULL, &err));
}

static void test_small_chunks_take_little(void **state)
{
    struct fixture *fixture = *state;
    struct rewarm_store_writer *writer;
    must(rewarm_store_writer_open(fixture->store, "small", &writer, &err));
    put_process(writer, 1, 20, 1 + 1, 1);
    must(rewarm_store_writer_publish(writer, NULL, NULL, &err));
    rewarm_store_writer_close(writer);
    rewarm_auto_free char *pack = only_file(fixture, "packs", ".pack");
    struct stat st;
    assert_int_equal(stat(pack, &st), 0);
    assert_int_equal(st.st_size, PAGE + 20 * 2 * PAGE);
}

static void test_nothing_in_it(void **state)
{
    struct fixture *fixture = *state;
    struct rewarm_store_writer *writer;
    must(rewarm_store_writer_open(fixture->store, "empty", &writer, &err));
    struct rewarm_space space = {.pid = 5, .lazy_pages = 12};
    must(rewarm_store_writer_put_space(writer, &space, NULL, 0, NULL, 0, &err));
    must(rewarm_store_writer_publish(writer, NULL, NULL, &err));
    must_fail(REWARM_E_USAGE, "published already",
              rewarm_store_writer_publish(writer, NULL, NULL, &err));
    rewarm_store_writer_close(writer);
    assert_int_equal(count_files(fixture, "packs", ""), 0); /* nothing stored: no pack */
    struct rewarm_store_reader *reader;
    must(rewarm_store_reader_open(fixture->store, "empty", &reader, &err));
    const struct rewarm_memmap *map = rewarm_store_reader_memmap(reader);
    assert_int_equal(map->space_count, 1);
    assert_int_equal(map->spaces[0].lazy_pages, 12);
    assert_null(rewarm_memmap_window(map, &map->spaces[0], 0x1000));
    rewarm_store_reader_close(reader);
    must(rewarm_store_verify(fixture->store, "empty", NULL, NULL, &err));
}

static void test_dedup(void **state)
{
    struct fixture *fixture = *state;
    struct rewarm_store_writer *writer;
    struct rewarm_store_totals totals;
    uint8_t *data = rewarm_mem_new(WINDOW, 1);
    uint32_t first, second, third;

    must(rewarm_store_writer_open(fixture->store, "a", &writer, &err));
    fill(data, WINDOW, 1);
    must(rewarm_store_writer_put(writer, data, WINDOW, &first, &err));
    must(rewarm_store_writer_put(writer, data, WINDOW, &second, &err));
    must(rewarm_store_writer_put(writer, data, WINDOW - 1, &third, &err));
    assert_int_equal(first, second);
    assert_int_not_equal(first, third);
    must(rewarm_store_writer_publish(writer, NULL, &totals, &err));
    rewarm_store_writer_close(writer);
    assert_int_equal(totals.stored_bytes, 2 * WINDOW - 1);
    assert_int_equal(totals.shared_bytes, WINDOW);
    assert_int_equal(totals.chunks, 3);
    assert_int_equal(totals.chunks_shared, 1);

    /* Another snapshot: the first chunk is there, another is not. */
    must(rewarm_store_writer_open(fixture->store, "b", &writer, &err));
    must(rewarm_store_writer_put(writer, data, WINDOW, &first, &err));
    fill(data, WINDOW, 2);
    must(rewarm_store_writer_put(writer, data, WINDOW, &second, &err));
    must(rewarm_store_writer_publish(writer, NULL, &totals, &err));
    rewarm_store_writer_close(writer);
    assert_int_equal(totals.stored_bytes, WINDOW);
    assert_int_equal(totals.shared_bytes, WINDOW);

    struct rewarm_store_reader *reader;
    uint8_t *found = rewarm_mem_new(WINDOW, 1);
    must(rewarm_store_reader_open(fixture->store, "b", &reader, &err));
    must(rewarm_store_reader_get(reader, second, found, &err));
    assert_memory_equal(found, data, WINDOW);
    fill(data, WINDOW, 1);
    must(rewarm_store_reader_get(reader, first, found, &err));
    assert_memory_equal(found, data, WINDOW);
    assert_int_equal(
        json_array_size(json_object_get(rewarm_store_reader_manifest(reader), "packs")), 2);
    rewarm_store_reader_close(reader);

    /* All of it is there: no third pack. */
    must(rewarm_store_writer_open(fixture->store, "c", &writer, &err));
    must(rewarm_store_writer_put(writer, data, WINDOW, &first, &err));
    must(rewarm_store_writer_publish(writer, NULL, &totals, &err));
    rewarm_store_writer_close(writer);
    assert_int_equal(totals.stored_bytes, 0);
    assert_int_equal(count_files(fixture, "packs", ".pack"), 2);
    must(rewarm_store_verify(fixture->store, "c", NULL, NULL, &err));
    free(data);
    free(found);
}

/* Shared memory makes large blobs: those are written by several threads, each chunk at its place.
 */
static void test_large_blob(void **state)
{
    struct fixture *fixture = *state;
    struct rewarm_store_writer *writer;
    struct rewarm_store_reader *reader;
    size_t bytes = 80 * WINDOW + 4321;
    write_source(fixture, "pages-2.img", bytes, 4000);
    must(rewarm_store_writer_open(fixture->store, "large", &writer, &err));
    must(rewarm_store_writer_put_blob(writer, fixture->source_fd, "pages-2.img", &err));
    must(rewarm_store_writer_publish(writer, NULL, NULL, &err));
    rewarm_store_writer_close(writer);
    must(rewarm_store_reader_open(fixture->store, "large", &reader, &err));
    check_blob(fixture, reader, 0, bytes, 4000);
    rewarm_store_reader_close(reader);
}

/* A blob whose chunks are shared out of order: the chunk table needs copies of their records. */
static void test_blob_of_shared_chunks(void **state)
{
    struct fixture *fixture = *state;
    struct rewarm_store_writer *writer;
    uint8_t *data = rewarm_mem_new(3, WINDOW);
    uint32_t chunk;
    must(rewarm_store_writer_open(fixture->store, "a", &writer, &err));
    fill(data, WINDOW, 3);
    must(rewarm_store_writer_put(writer, data, WINDOW, &chunk, &err));
    fill(data + WINDOW, WINDOW, 4);
    must(rewarm_store_writer_put(writer, data + WINDOW, WINDOW, &chunk, &err));
    memcpy(data + 2 * WINDOW, data, WINDOW); /* 3 4 3 */
    must(rewarm_fs_write_durable(fixture->source_fd, "x", 0600, data, 3 * WINDOW, &err));
    must(rewarm_store_writer_put_blob(writer, fixture->source_fd, "x", &err));
    must(rewarm_store_writer_publish(writer, NULL, NULL, &err));
    rewarm_store_writer_close(writer);
    struct rewarm_store_reader *reader;
    must(rewarm_store_reader_open(fixture->store, "a", &reader, &err));
    must(rewarm_store_reader_extract(reader, 0, fixture->source_fd, &err));
    rewarm_auto_free char *found = NULL;
    size_t bytes;
    must(rewarm_fs_read_file(fixture->source_fd, "x", 4 * WINDOW, &found, &bytes, &err));
    assert_int_equal(bytes, 3 * WINDOW);
    assert_memory_equal(found, data, bytes);
    rewarm_store_reader_close(reader);
    free(data);
}

static void test_replace(void **state)
{
    struct fixture *fixture = *state;
    struct rewarm_store_reader *old;
    write_snapshot(fixture, "w", 1);
    must(rewarm_store_reader_open(fixture->store, "w", &old, &err));
    write_snapshot(fixture, "w", 20);
    check_snapshot(fixture, "w", 20);
    check_process(old, 7, 3, 4, 1); /* who had it open reads on */
    rewarm_store_reader_close(old);
    assert_int_equal(count_files(fixture, "snapshots", ""), 1);
}

static void test_wrong_use(void **state)
{
    struct fixture *fixture = *state;
    struct rewarm_store_writer *writer;
    uint8_t data[PAGE] = {1};
    uint32_t chunk;
    must_fail(REWARM_E_USAGE, "", rewarm_store_writer_open(fixture->store, "../x", &writer, &err));
    must(rewarm_store_writer_open(fixture->store, "w", &writer, &err));
    must(rewarm_store_writer_put(writer, data, PAGE, &chunk, &err));
    struct rewarm_space space = {.pid = 3, .lazy_pages = 2};
    struct rewarm_window window = {.vaddr = WINDOW, .runs = 1, .chunk = chunk};
    struct rewarm_run run = {.vaddr = WINDOW, .pages = 2};
    must_fail(REWARM_E_USAGE, "length of its pages",
              rewarm_store_writer_put_space(writer, &space, &window, 1, &run, 1, &err));
    /* The failure sticks: a snapshot without this process must not come to be. */
    must_fail(REWARM_E_USAGE, "length of its pages",
              rewarm_store_writer_publish(writer, NULL, NULL, &err));
    rewarm_store_writer_close(writer);
    must(rewarm_store_writer_open(fixture->store, "w", &writer, &err));
    must_fail(REWARM_E_USAGE, "not possible",
              rewarm_store_writer_put(writer, data, 0, &chunk, &err));
    rewarm_store_writer_close(writer);
    must(rewarm_store_writer_open(fixture->store, "w", &writer, &err));
    must_fail(REWARM_E_NOT_FOUND, "nowhere",
              rewarm_store_writer_put_blob(writer, fixture->source_fd, "nowhere", &err));
    must_fail(REWARM_E_NOT_FOUND, "nowhere",
              rewarm_store_writer_put(writer, data, PAGE, &chunk, &err));
    rewarm_store_writer_close(writer);
    must(rewarm_store_writer_open(fixture->store, "w", &writer, &err));
    write_source(fixture, "twice", 10, 1);
    must(rewarm_store_writer_put_blob(writer, fixture->source_fd, "twice", &err));
    must(rewarm_store_writer_put_blob(writer, fixture->source_fd, "twice", &err));
    must_fail(REWARM_E_USAGE, "twice", rewarm_store_writer_publish(writer, NULL, NULL, &err));
    rewarm_store_writer_close(writer);
    struct rewarm_store_reader *reader;
    must_fail(REWARM_E_NOT_FOUND, "no snapshot \"w\"",
              rewarm_store_reader_open(fixture->store, "w", &reader, &err));
    assert_int_equal(count_files(fixture, "staging", ""), 0);
    assert_int_equal(count_files(fixture, "packs", ""), 0);
}

static void test_two_writers(void **state)
{
    struct fixture *fixture = *state;
    struct rewarm_store_writer *one, *two, *other;
    must(rewarm_store_writer_open(fixture->store, "w", &one, &err));
    rewarm_auto_free char *pid = rewarm_str_format("process %d", (int)getpid());
    must_fail(REWARM_E_BUSY, pid, rewarm_store_writer_open(fixture->store, "w", &two, &err));
    must(rewarm_store_writer_open(fixture->store, "other", &other, &err));
    must_fail(REWARM_E_BUSY, pid, rewarm_store_remove(fixture->store, "w", &err));
    must_fail(REWARM_E_BUSY, "in use", rewarm_store_gc(fixture->store, false, 0, NULL, &err));
    rewarm_store_writer_close(one);
    must(rewarm_store_writer_open(fixture->store, "w", &two, &err));
    rewarm_store_writer_close(two);
    rewarm_store_writer_close(other);
    must(rewarm_store_gc(fixture->store, false, 0, NULL, &err));
}

struct putter {
    struct rewarm_store_writer *writer;
    unsigned index;
    uint32_t chunks[64];
};

static void *put_some(void *pointer)
{
    struct putter *putter = pointer;
    uint8_t *data = rewarm_mem_new(WINDOW, 1);
    for (unsigned i = 0; i < 64; i++) {
        /* 48 chunks of its own, 16 that all threads have: put at about the same time. */
        uint64_t seed = i % 4 == 0 ? 1000 + i : 2000 + putter->index * 100 + i;
        fill(data, WINDOW, seed);
        struct rewarm_error err = REWARM_ERROR_INIT;
        if (rewarm_store_writer_put(putter->writer, data, WINDOW, &putter->chunks[i], &err) < 0)
            break;
    }
    free(data);
    return NULL;
}

static void test_threads(void **state)
{
    struct fixture *fixture = *state;
    struct putter putters[4];
    pthread_t threads[4];
    struct rewarm_store_writer *writer;
    struct rewarm_store_totals totals;
    must(rewarm_store_writer_open(fixture->store, "w", &writer, &err));
    for (unsigned i = 0; i < 4; i++) {
        putters[i] = (struct putter){.writer = writer, .index = i};
        assert_int_equal(pthread_create(&threads[i], NULL, put_some, &putters[i]), 0);
    }
    for (unsigned i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    must(rewarm_store_writer_publish(writer, NULL, &totals, &err));
    rewarm_store_writer_close(writer);
    assert_int_equal(totals.chunks, 4 * 64);
    assert_int_equal(totals.chunks_shared, 3 * 16);
    assert_int_equal(totals.stored_bytes, (4 * 48 + 16) * (uint64_t)WINDOW);
    struct rewarm_store_reader *reader;
    uint8_t *wanted = rewarm_mem_new(WINDOW, 1), *found = rewarm_mem_new(WINDOW, 1);
    must(rewarm_store_reader_open(fixture->store, "w", &reader, &err));
    for (unsigned t = 0; t < 4; t++)
        for (unsigned i = 0; i < 64; i++) {
            fill(wanted, WINDOW, i % 4 == 0 ? 1000 + i : 2000 + t * 100 + i);
            must(rewarm_store_reader_get(reader, putters[t].chunks[i], found, &err));
            assert_memory_equal(wanted, found, WINDOW);
        }
    rewarm_store_reader_close(reader);
    must(rewarm_store_verify(fixture->store, "w", NULL, NULL, &err));
    free(wanted);
    free(found);
}

static void test_list_and_remove(void **state)
{
    struct fixture *fixture = *state;
    struct rewarm_store_entry *entries;
    size_t count;
    must(rewarm_store_list(fixture->store, &entries, &count, &err));
    assert_int_equal(count, 0);
    rewarm_store_entries_free(entries, count);
    write_snapshot(fixture, "b", 1);
    write_snapshot(fixture, "a", 2);
    rewarm_auto_free char *broken = rewarm_str_format("%s/snapshots/c.json", fixture->path);
    must(rewarm_fs_write_durable(AT_FDCWD, broken, 0600, "{}", 2, &err));
    must(rewarm_store_list(fixture->store, &entries, &count, &err));
    assert_int_equal(count, 3);
    assert_string_equal(entries[0].name, "a");
    assert_non_null(entries[0].manifest);
    assert_null(entries[0].problem);
    assert_string_equal(entries[1].name, "b");
    assert_string_equal(entries[2].name, "c");
    assert_null(entries[2].manifest);
    assert_non_null(strstr(entries[2].problem, "snapshots/c.json"));
    rewarm_store_entries_free(entries, count);
    must_fail(REWARM_E_NOT_FOUND, "\"z\"", rewarm_store_remove(fixture->store, "z", &err));
    must(rewarm_store_remove(fixture->store, "b", &err));
    must(rewarm_store_remove(fixture->store, "c", &err)); /* damaged ones can be given up */
    struct rewarm_store_reader *reader;
    must_fail(REWARM_E_NOT_FOUND, "", rewarm_store_reader_open(fixture->store, "b", &reader, &err));
    check_snapshot(fixture, "a", 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_round_trip, fixture_setup, fixture_teardown),
        cmocka_unit_test_setup_teardown(test_small_chunks_take_little, fixture_setup,
                                        fixture_teardown),
        cmocka_unit_test_setup_teardown(test_nothing_in_it, fixture_setup, fixture_teardown),
        cmocka_unit_test_setup_teardown(test_dedup, fixture_setup, fixture_teardown),
        cmocka_unit_test_setup_teardown(test_large_blob, fixture_setup, fixture_teardown),
        cmocka_unit_test_setup_teardown(test_blob_of_shared_chunks, fixture_setup,
                                        fixture_teardown),
        cmocka_unit_test_setup_teardown(test_replace, fixture_setup, fixture_teardown),
        cmocka_unit_test_setup_teardown(test_wrong_use, fixture_setup, fixture_teardown),
        cmocka_unit_test_setup_teardown(test_two_writers, fixture_setup, fixture_teardown),
        cmocka_unit_test_setup_teardown(test_threads, fixture_setup, fixture_teardown),
        cmocka_unit_test_setup_teardown(test_list_and_remove, fixture_setup, fixture_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

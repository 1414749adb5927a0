/* gc takes what nobody needs, all of it, and nothing else. */
#include "store_test.h"

static void put_seeds(struct fixture *fixture, const char *name, unsigned first, unsigned count,
                      struct rewarm_store_totals *totals)
{
    struct rewarm_store_writer *writer;
    static uint8_t data[WINDOW];
    uint32_t chunk;
    must(rewarm_store_writer_open(fixture->store, name, &writer, &err));
    for (unsigned i = 0; i < count; i++) {
        fill(data, WINDOW, first + i);
        must(rewarm_store_writer_put(writer, data, WINDOW, &chunk, &err));
    }
    must(rewarm_store_writer_publish(writer, NULL, totals, &err));
    rewarm_store_writer_close(writer);
}

static void test_removes_what_is_dead(void **state)
{
    struct fixture *fixture = *state;
    struct rewarm_store_gc_result result;
    write_snapshot(fixture, "a", 1);
    write_snapshot(fixture, "b", 100);
    must(rewarm_store_gc(fixture->store, false, 0, &result, &err));
    assert_int_equal(result.freed_bytes, 0);
    assert_int_equal(result.packs_removed + result.maps_removed + result.stagings_removed, 0);
    assert_int_equal(result.live_bytes, 2 * (3 * 4 + 2) * PAGE);
    must(rewarm_store_remove(fixture->store, "a", &err));
    must(rewarm_store_gc(fixture->store, true, 0, &result, &err));
    assert_int_equal(result.packs_removed, 1);
    assert_int_equal(count_files(fixture, "packs", ".pack"), 2); /* it was a dry run */
    uint64_t promised = result.freed_bytes;
    assert_true(promised >= (3 * 4 + 2) * PAGE);
    must(rewarm_store_gc(fixture->store, false, 0, &result, &err));
    assert_int_equal(result.freed_bytes, promised);
    assert_int_equal(result.packs_removed, 1);
    assert_int_equal(result.maps_removed, 1);
    assert_int_equal(count_files(fixture, "packs", ".pack"), 1);
    assert_int_equal(count_files(fixture, "packs", ".idx"), 1);
    assert_int_equal(count_files(fixture, "maps", ""), 1);
    assert_int_equal(count_files(fixture, "locks", ".lock"), 0);
    check_snapshot(fixture, "b", 100);
}

static void test_punches_holes(void **state)
{
    struct fixture *fixture = *state;
    struct rewarm_store_gc_result result;
    struct rewarm_store_totals totals;
    put_seeds(fixture, "a", 0, 8, NULL);
    rewarm_auto_free char *pack = only_file(fixture, "packs", ".pack");
    put_seeds(fixture, "b", 2, 3, &totals); /* 2, 3, 4: all shared */
    assert_int_equal(totals.stored_bytes, 0);
    uint64_t before = disk_usage(pack);
    must(rewarm_store_remove(fixture->store, "a", &err));
    must(rewarm_store_gc(fixture->store, true, 0, &result, &err));
    assert_int_equal(result.live_bytes, 3 * WINDOW);
    assert_int_equal(disk_usage(pack), before);
    must(rewarm_store_gc(fixture->store, false, 0, &result, &err));
    assert_int_equal(result.packs_removed, 0);
    must(rewarm_store_verify(fixture->store, "b", NULL, NULL, &err));
    if (disk_usage(pack) == before) {
        print_message("the file system of %s punches no holes\n", fixture->path);
        skip();
    }
    assert_true(result.freed_bytes >= 5 * WINDOW);
    assert_true(disk_usage(pack) <= before - 5 * WINDOW);
    must(rewarm_store_gc(fixture->store, false, 0, &result, &err));
    assert_int_equal(result.freed_bytes, 0); /* a second one finds nothing */
    /* The holes are not offered: 0, 1, 5, 6, 7 are stored again, 2 to 4 shared. */
    put_seeds(fixture, "c", 0, 8, &totals);
    assert_int_equal(totals.stored_bytes, 5 * WINDOW);
    assert_int_equal(totals.shared_bytes, 3 * WINDOW);
    must(rewarm_store_verify(fixture->store, "b", NULL, NULL, &err));
    must(rewarm_store_verify(fixture->store, "c", NULL, NULL, &err));
}

static void test_reader_is_safe(void **state)
{
    struct fixture *fixture = *state;
    struct rewarm_store_reader *reader;
    write_snapshot(fixture, "w", 1);
    must(rewarm_store_reader_open(fixture->store, "w", &reader, &err));
    must(rewarm_store_remove(fixture->store, "w", &err));
    must_fail(REWARM_E_BUSY, "in use", rewarm_store_gc(fixture->store, false, 0, NULL, &err));
    uint64_t start = rewarm_time_now_ns();
    must_fail(REWARM_E_BUSY, "in use",
              rewarm_store_gc(fixture->store, false, start + 20 * REWARM_NS_PER_MS, NULL, &err));
    assert_true(rewarm_time_now_ns() - start >= 20 * REWARM_NS_PER_MS);
    check_process(reader, 7, 3, 4, 1);
    rewarm_store_reader_close(reader);
    must(rewarm_store_gc(fixture->store, false, 0, NULL, &err));
    assert_int_equal(count_files(fixture, "packs", ""), 0);
}

static void *close_later(void *reader)
{
    usleep(30000);
    rewarm_store_reader_close(reader);
    return NULL;
}

static void test_waits(void **state)
{
    struct fixture *fixture = *state;
    struct rewarm_store_reader *reader;
    pthread_t thread;
    write_snapshot(fixture, "w", 1);
    must(rewarm_store_reader_open(fixture->store, "w", &reader, &err));
    assert_int_equal(pthread_create(&thread, NULL, close_later, reader), 0);
    uint64_t deadline = rewarm_time_now_ns() + 10 * REWARM_NS_PER_S;
    must(rewarm_store_gc(fixture->store, false, deadline, NULL, &err));
    assert_true(rewarm_time_now_ns() < deadline);
    pthread_join(thread, NULL);
    /* The lock is free again after both a success and a failure. */
    check_snapshot(fixture, "w", 1);
    must(rewarm_store_gc(fixture->store, false, 0, NULL, &err));
}

/* In a child: opens a writer, puts something, says so, and waits for its end. */
static pid_t start_writer(const struct fixture *fixture, const char *name)
{
    int ends[2];
    char byte;
    assert_int_equal(pipe(ends), 0);
    pid_t pid = fork();
    if (pid == 0) {
        struct rewarm_store *store;
        struct rewarm_store_writer *writer;
        static uint8_t data[WINDOW];
        uint32_t chunk;
        fill(data, WINDOW, 77);
        if (rewarm_store_open(fixture->path, false, &store, NULL) < 0 ||
            rewarm_store_writer_open(store, name, &writer, NULL) < 0 ||
            rewarm_store_writer_put(writer, data, WINDOW, &chunk, NULL) < 0 ||
            write(ends[1], "x", 1) != 1)
            _exit(1);
        for (;;)
            pause();
    }
    close(ends[1]);
    assert_int_equal(read(ends[0], &byte, 1), 1);
    close(ends[0]);
    return pid;
}

static void test_dead_writer(void **state)
{
    struct fixture *fixture = *state;
    struct rewarm_store_gc_result result;
    struct rewarm_store_writer *writer;
    write_snapshot(fixture, "w", 1);
    pid_t pid = start_writer(fixture, "w");
    rewarm_auto_free char *text = rewarm_str_format("process %d:", (int)pid);
    must_fail(REWARM_E_BUSY, text, rewarm_store_writer_open(fixture->store, "w", &writer, &err));
    must_fail(REWARM_E_BUSY, "", rewarm_store_gc(fixture->store, false, 0, NULL, &err));
    assert_int_equal(kill(pid, SIGKILL), 0);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    assert_int_equal(count_files(fixture, "staging", ""), 1);
    check_snapshot(fixture, "w", 1);
    must(rewarm_store_gc(fixture->store, false, 0, &result, &err));
    assert_int_equal(result.stagings_removed, 1);
    assert_true(result.freed_bytes >= WINDOW);
    assert_int_equal(count_files(fixture, "staging", ""), 0);
    check_snapshot(fixture, "w", 1);
    write_snapshot(fixture, "w", 2); /* the name is free */
}

/* What a writer killed between moving its pack and its manifest leaves, and what gc killed in an
 * index does. */
static void test_orphans(void **state)
{
    struct fixture *fixture = *state;
    struct rewarm_store_gc_result result;
    write_snapshot(fixture, "w", 1);
    rewarm_auto_free char *manifest = only_file(fixture, "snapshots", ".json");
    assert_int_equal(unlink(manifest), 0);
    rewarm_auto_free char *idx = only_file(fixture, "packs", ".idx");
    rewarm_auto_free char *temporary = rewarm_str_format("%s.tmp-1", idx);
    rewarm_auto_free char *foreign = rewarm_str_format("%s/packs/README", fixture->path);
    must(rewarm_fs_write_durable(AT_FDCWD, temporary, 0600, "x", 1, &err));
    must(rewarm_fs_write_durable(AT_FDCWD, foreign, 0600, "x", 1, &err));
    must(rewarm_store_gc(fixture->store, false, 0, &result, &err));
    assert_int_equal(result.packs_removed, 1);
    assert_int_equal(result.maps_removed, 1);
    assert_int_equal(count_files(fixture, "packs", ""), 1); /* not ours, not touched */
}

static void test_unreadable_snapshot(void **state)
{
    struct fixture *fixture = *state;
    write_snapshot(fixture, "w", 1);
    write_snapshot(fixture, "v", 50);
    must(rewarm_store_remove(fixture->store, "v", &err));
    rewarm_auto_free char *manifest = only_file(fixture, "snapshots", ".json");
    assert_int_equal(truncate(manifest, 100), 0);
    must_fail(REWARM_E_CORRUPT, "rewarm rm w",
              rewarm_store_gc(fixture->store, false, 0, NULL, &err));
    assert_int_equal(count_files(fixture, "packs", ".pack"), 2); /* it may be mended: all is kept */
    must(rewarm_store_remove(fixture->store, "w", &err));
    must(rewarm_store_gc(fixture->store, false, 0, NULL, &err));
    assert_int_equal(count_files(fixture, "packs", ""), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_removes_what_is_dead, fixture_setup, fixture_teardown),
        cmocka_unit_test_setup_teardown(test_punches_holes, fixture_setup, fixture_teardown),
        cmocka_unit_test_setup_teardown(test_reader_is_safe, fixture_setup, fixture_teardown),
        cmocka_unit_test_setup_teardown(test_waits, fixture_setup, fixture_teardown),
        cmocka_unit_test_setup_teardown(test_dead_writer, fixture_setup, fixture_teardown),
        cmocka_unit_test_setup_teardown(test_orphans, fixture_setup, fixture_teardown),
        cmocka_unit_test_setup_teardown(test_unreadable_snapshot, fixture_setup, fixture_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* kill -9 of a writer at random moments, a full disk, and who may open a store. */
#include "store_test.h"

#include <sched.h>
#include <sys/mount.h>

/* One freeze of "w". No cmocka here: in a child it belongs to the parent. */
static bool write_once(struct rewarm_store *store, uint64_t seed)
{
    struct rewarm_store_writer *writer;
    static uint8_t data[WINDOW];
    uint32_t chunk;
    if (rewarm_store_writer_open(store, "w", &writer, NULL) < 0)
        return false;
    bool ok = true;
    for (uint64_t i = 0; i < 4 && ok; i++) {
        fill(data, WINDOW, seed + i);
        ok = rewarm_store_writer_put(writer, data, WINDOW, &chunk, NULL) == 0;
    }
    ok = ok && rewarm_store_writer_publish(writer, NULL, NULL, NULL) == 0;
    rewarm_store_writer_close(writer);
    return ok;
}

/* In a child. */
static void write_for_ever(const char *path, uint64_t round)
{
    struct rewarm_store *store;
    if (rewarm_store_open(path, false, &store, NULL) < 0)
        _exit(1);
    for (uint64_t turn = 0;; turn++)
        if (!write_once(store, round * 1000 + turn * 10))
            _exit(2);
}

static void test_killed_writers(void **state)
{
    struct fixture *fixture = *state;
    unsigned replaced = 0;
    json_int_t last_size = 0;
    /* How long one takes here, sanitizers and slow machines included. */
    assert_true(write_once(fixture->store, 0));
    uint64_t start = rewarm_time_now_ns();
    assert_true(write_once(fixture->store, 10));
    unsigned once_us = (unsigned)((rewarm_time_now_ns() - start) / 1000);
    rewarm_auto_free char *last = rewarm_str_dup("");
    srand(1);
    for (uint64_t round = 1; round <= 50; round++) {
        pid_t pid = fork();
        if (pid == 0)
            write_for_ever(fixture->path, round);
        usleep(500 + (unsigned)rand() % (3 * once_us + 1000));
        assert_int_equal(kill(pid, SIGKILL), 0);
        int status;
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFSIGNALED(status)); /* it had not failed */
        must(rewarm_store_verify(fixture->store, "w", NULL, NULL, &err));
        struct rewarm_store_reader *reader;
        must(rewarm_store_reader_open(fixture->store, "w", &reader, &err));
        const json_t *manifest = rewarm_store_reader_manifest(reader);
        const char *id = json_string_value(json_object_get(manifest, "id"));
        if (strcmp(id, last) != 0)
            replaced++;
        free(last);
        last = rewarm_str_dup(id);
        last_size =
            json_integer_value(json_object_get(json_object_get(manifest, "contents"), "chunks"));
        rewarm_store_reader_close(reader);
        if (round % 10 == 0) {
            must(rewarm_store_gc(fixture->store, false, 0, NULL, &err));
            must(rewarm_store_verify(fixture->store, "w", NULL, NULL, &err));
        }
    }
    print_message("the snapshot was replaced in %u of 50 rounds\n", replaced);
    assert_true(replaced > 5); /* the moments were spread over publications too */
    assert_int_equal(last_size, 4);
    must(rewarm_store_gc(fixture->store, false, 0, NULL, &err));
    assert_int_equal(count_files(fixture, "packs", ".pack"), 1);
    assert_int_equal(count_files(fixture, "maps", ""), 1);
    assert_int_equal(count_files(fixture, "staging", ""), 0);
}

/* The rest of the free space, less `leave_bytes`. */
static void fill_disk(const char *path, uint64_t leave_bytes)
{
    static char data[PAGE];
    int fd = open(path, O_WRONLY | O_CREAT, 0600);
    assert_true(fd >= 0);
    off_t size = 0;
    while (write(fd, data, sizeof(data)) == (ssize_t)sizeof(data))
        size += (off_t)sizeof(data);
    assert_int_equal(ftruncate(fd, size - (off_t)leave_bytes), 0);
    close(fd);
}

static void test_full_disk(void **state)
{
    struct fixture *fixture = *state;
    /* A mount namespace of our own: nothing is left, however the test ends. */
    if (unshare(CLONE_NEWNS) != 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0) {
        print_message("mounting a small tmpfs needs root\n");
        skip();
    }
    rewarm_auto_free char *mounted = rewarm_str_format("%s/small", fixture->root);
    rewarm_auto_free char *path = rewarm_str_format("%s/store", mounted);
    rewarm_auto_free char *filler = rewarm_str_format("%s/filler", mounted);
    assert_int_equal(mkdir(mounted, 0700), 0);
    assert_int_equal(mount("tmpfs", mounted, "tmpfs", 0, "size=4m,mode=0700"), 0);
    rewarm_store_close(fixture->store);
    snprintf(fixture->path, sizeof(fixture->path), "%s", path);
    must(rewarm_store_open(path, true, &fixture->store, &err));
    write_snapshot(fixture, "w", 1);

    /* In the middle of the chunks. */
    struct rewarm_store_writer *writer;
    uint8_t *data = rewarm_mem_new(WINDOW, 1);
    uint32_t chunk;
    struct rewarm_error error = REWARM_ERROR_INIT;
    must(rewarm_store_writer_open(fixture->store, "w", &writer, &err));
    for (unsigned i = 0; i < 64 && error.code == 0; i++) {
        fill(data, WINDOW, 100 + i);
        rewarm_store_writer_put(writer, data, WINDOW, &chunk, &error);
    }
    assert_int_equal(error.code, REWARM_E_NO_SPACE);
    assert_non_null(strstr(error.message, "rewarm gc"));
    assert_non_null(strstr(error.message, "No space left"));
    must_fail(REWARM_E_NO_SPACE, "cannot publish snapshot w",
              rewarm_store_writer_publish(writer, NULL, NULL, &err));
    rewarm_store_writer_close(writer);
    must(rewarm_store_verify(fixture->store, "w", NULL, NULL, &err));

    /* While publishing, with less and less room: each of its files fails once. */
    unsigned failures = 0, successes = 0;
    for (uint64_t leave = 0; leave <= 8; leave++) {
        must(rewarm_store_writer_open(fixture->store, "w", &writer, &err));
        put_process(writer, 7, 40, 4, 1000 * (leave + 1));
        fill_disk(filler, leave * PAGE);
        rewarm_error_clear(&error);
        if (rewarm_store_writer_publish(writer, NULL, NULL, &error) < 0) {
            assert_int_equal(error.code, REWARM_E_NO_SPACE);
            failures++;
        } else {
            successes++;
        }
        rewarm_store_writer_close(writer);
        unlink(filler);
        must(rewarm_store_verify(fixture->store, "w", NULL, NULL, &err));
        must(rewarm_store_gc(fixture->store, false, 0, NULL, &err));
        assert_int_equal(count_files(fixture, "snapshots", ""), 1);
    }
    print_message("%u publications failed, %u fitted\n", failures, successes);
    assert_true(failures >= 3);
    assert_true(successes >= 1);
    free(data);
}

static int full_disk_teardown(void **state)
{
    struct fixture *fixture = *state;
    rewarm_auto_free char *mounted = rewarm_str_format("%s/small", fixture->root);
    umount2(mounted, MNT_DETACH); /* not there if the test was skipped */
    return fixture_teardown(state);
}

static void test_permissions(void **state)
{
    struct fixture *fixture = *state;
    struct rewarm_store *store;
    struct stat st;
    write_snapshot(fixture, "w", 1);
    static const char *const folders[] = {"", "snapshots", "maps", "packs", "staging", "locks"};
    for (size_t i = 0; i < sizeof(folders) / sizeof(folders[0]); i++) {
        rewarm_auto_free char *path = rewarm_str_format("%s/%s", fixture->path, folders[i]);
        assert_int_equal(stat(path, &st), 0);
        assert_int_equal(st.st_mode & 07777, 0700);
        rewarm_auto_dir DIR *dir = opendir(path);
        for (struct dirent *entry; (entry = readdir(dir)) != NULL;)
            if (fstatat(dirfd(dir), entry->d_name, &st, 0) == 0 && S_ISREG(st.st_mode))
                assert_int_equal(st.st_mode & 07777, 0600);
    }
    for (unsigned mode = 01; mode <= 040; mode <<= 1) {
        assert_int_equal(chmod(fixture->path, 0700 | mode), 0);
        must_fail(REWARM_E_PERMISSION, "chmod 700",
                  rewarm_store_open(fixture->path, false, &store, &err));
    }
    assert_int_equal(chmod(fixture->path, 0700), 0);
    if (geteuid() == 0) {
        assert_int_equal(chown(fixture->path, 12345, (gid_t)-1), 0);
        must_fail(REWARM_E_PERMISSION, "12345",
                  rewarm_store_open(fixture->path, false, &store, &err));
        assert_int_equal(chown(fixture->path, 0, (gid_t)-1), 0);
    }
}

static void test_opening(void **state)
{
    struct fixture *fixture = *state;
    struct rewarm_store *store;
    rewarm_auto_free char *missing = rewarm_str_format("%s/no/where", fixture->root);
    rewarm_auto_free char *format = rewarm_str_format("%s/format", fixture->path);
    rewarm_auto_free char *staging = rewarm_str_format("%s/staging", fixture->path);
    must_fail(REWARM_E_NOT_FOUND, "no store", rewarm_store_open(missing, false, &store, &err));
    must(rewarm_store_open(missing, true, &store, &err));
    assert_string_equal(rewarm_store_path(store), missing);
    rewarm_store_close(store);

    /* A folder with other things in it does not become a store. */
    write_source(fixture, "thesis.tex", 10, 1);
    must_fail(REWARM_E_USAGE, "thesis.tex", rewarm_store_open(fixture->source, true, &store, &err));
    must_fail(REWARM_E_NOT_FOUND, "not a store",
              rewarm_store_open(fixture->source, false, &store, &err));

    assert_int_equal(rmdir(staging), 0); /* a copy may have lost its empty folders */
    must(rewarm_store_open(fixture->path, false, &store, &err));
    rewarm_store_close(store);

    must(rewarm_fs_write_durable(AT_FDCWD, format, 0600, "rewarm-store 2\n", 15, &err));
    must_fail(REWARM_E_MISFIT, "rewarm-store 2",
              rewarm_store_open(fixture->path, false, &store, &err));
    must(rewarm_fs_write_durable(AT_FDCWD, format, 0600, "junk", 4, &err));
    must_fail(REWARM_E_CORRUPT, "format", rewarm_store_open(fixture->path, false, &store, &err));
    must(rewarm_fs_write_durable(AT_FDCWD, format, 0600, "rewarm-store 1\n", 15, &err));
    must(rewarm_store_open(fixture->path, false, &store, &err));
    rewarm_store_close(store);
}

static void test_default_path(void **state)
{
    (void)state;
    setenv("REWARM_STORE", "/some/where", 1);
    rewarm_auto_free char *set = rewarm_store_default_path();
    assert_string_equal(set, "/some/where");
    unsetenv("REWARM_STORE");
    rewarm_auto_free char *path = rewarm_store_default_path();
    assert_true(geteuid() == 0 ? strcmp(path, "/var/lib/rewarm") == 0
                               : rewarm_str_ends(path, "/.local/share/rewarm"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_killed_writers, fixture_setup, fixture_teardown),
        cmocka_unit_test_setup_teardown(test_full_disk, fixture_setup, full_disk_teardown),
        cmocka_unit_test_setup_teardown(test_permissions, fixture_setup, fixture_teardown),
        cmocka_unit_test_setup_teardown(test_opening, fixture_setup, fixture_teardown),
        cmocka_unit_test(test_default_path),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

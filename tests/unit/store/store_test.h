/* What the store's tests share: a scratch store, bytes from a seed, and a small snapshot to write
 * and check. */
#ifndef REWARM_TESTS_STORE_TEST_H
#define REWARM_TESTS_STORE_TEST_H

/* cmocka wants these first. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clean.h"
#include "base/fs.h"
#include "base/str.h"
#include "base/time.h"
#include "store/internal.h"
#include "store/store.h"

#define PAGE   REWARM_PAGE_BYTES
#define WINDOW REWARM_WINDOW_BYTES

/* Fails the test with the error's message. */
#define must(call)                                                                                 \
    do {                                                                                           \
        struct rewarm_error err = REWARM_ERROR_INIT;                                               \
        if ((call) < 0)                                                                            \
            fail_msg("%s: %s", #call, err.message);                                                \
    } while (0)

/* The call must fail with `wanted` and say `text`. */
#define must_fail(wanted, text, call)                                                              \
    do {                                                                                           \
        struct rewarm_error err = REWARM_ERROR_INIT;                                               \
        int result_ = (call);                                                                      \
        if (result_ != -(wanted) || err.code != (wanted))                                          \
            fail_msg("%s: %d, not %d (%s)", #call, result_, -(wanted), err.message);               \
        if (strstr(err.message, (text)) == NULL)                                                   \
            fail_msg("%s: \"%s\" does not say \"%s\"", #call, err.message, text);                  \
    } while (0)

struct fixture {
    char root[64];   /* scratch directory; the store is in it */
    char path[80];   /* of the store */
    char source[80]; /* files to be stored as blobs, and extracted ones */
    int source_fd;
    struct rewarm_store *store;
};

static inline int fixture_setup(void **state)
{
    struct fixture *fixture = rewarm_mem_new(1, sizeof(*fixture));
    snprintf(fixture->root, sizeof(fixture->root), "%s/rewarm-store-XXXXXX",
             access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    if (mkdtemp(fixture->root) == NULL)
        return -1;
    snprintf(fixture->path, sizeof(fixture->path), "%s/store", fixture->root);
    snprintf(fixture->source, sizeof(fixture->source), "%s/source", fixture->root);
    if (mkdir(fixture->source, 0700) != 0)
        return -1;
    fixture->source_fd = open(fixture->source, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    *state = fixture;
    return rewarm_store_open(fixture->path, true, &fixture->store, NULL);
}

static inline int fixture_teardown(void **state)
{
    struct fixture *fixture = *state;
    rewarm_store_close(fixture->store);
    close(fixture->source_fd);
    int result = rewarm_fs_remove_tree(AT_FDCWD, fixture->root, NULL);
    free(fixture);
    return result;
}

/* Bytes that depend on the seed alone (xorshift64*). */
static inline void fill(void *buffer, size_t bytes, uint64_t seed)
{
    uint64_t x = seed * 0x9e3779b97f4a7c15u + 1;
    for (size_t i = 0; i < bytes; i++) {
        if (i % 8 == 0) {
            x ^= x >> 12;
            x ^= x << 25;
            x ^= x >> 27;
        }
        ((uint8_t *)buffer)[i] = (uint8_t)((x * 0x2545f4914f6cdd1du) >> (8 * (i % 8)));
    }
}

static inline void write_source(const struct fixture *fixture, const char *name, size_t bytes,
                                uint64_t seed)
{
    rewarm_auto_free char *data = rewarm_mem_new(bytes + 1, 1);
    fill(data, bytes, seed);
    must(rewarm_fs_write_durable(fixture->source_fd, name, 0600, data, bytes, &err));
}

/* One process (`pid`) with `windows` windows, each of `pages` pages in two runs, filled from seed +
 * window. */
static inline void put_process(struct rewarm_store_writer *writer, int32_t pid, size_t windows,
                               uint32_t pages, uint64_t seed)
{
    rewarm_auto_free struct rewarm_window *table = rewarm_mem_new(windows, sizeof(*table));
    rewarm_auto_free struct rewarm_run *runs = rewarm_mem_new(2 * windows, sizeof(*runs));
    rewarm_auto_free uint8_t *data = rewarm_mem_new(WINDOW, 1);
    for (size_t i = 0; i < windows; i++) {
        uint64_t vaddr = 0x10000000u + i * 2 * WINDOW;
        uint32_t first = pages / 2;
        table[i] =
            (struct rewarm_window){.vaddr = vaddr, .first_run = (uint32_t)(2 * i), .runs = 2};
        runs[2 * i] = (struct rewarm_run){.vaddr = vaddr, .pages = first, .first_page = 0};
        runs[2 * i + 1] = (struct rewarm_run){.vaddr = vaddr + WINDOW - (pages - first) * PAGE,
                                              .pages = pages - first,
                                              .first_page = first};
        fill(data, pages * PAGE, seed + i);
        must(rewarm_store_writer_put(writer, data, pages * PAGE, &table[i].chunk, &err));
    }
    struct rewarm_space space = {.pid = pid, .lazy_pages = windows * (pages + 10)};
    must(rewarm_store_writer_put_space(writer, &space, table, windows, runs, 2 * windows, &err));
}

static inline void check_process(struct rewarm_store_reader *reader, int32_t pid, size_t windows,
                                 uint32_t pages, uint64_t seed)
{
    const struct rewarm_memmap *map = rewarm_store_reader_memmap(reader);
    const struct rewarm_space *space = rewarm_memmap_space(map, pid);
    assert_non_null(space);
    assert_int_equal(space->windows, windows);
    assert_int_equal(space->lazy_pages, windows * (pages + 10));
    rewarm_auto_free uint8_t *wanted = rewarm_mem_new(WINDOW, 1);
    rewarm_auto_free uint8_t *found = rewarm_mem_new(WINDOW, 1);
    for (size_t i = 0; i < windows; i++) {
        uint64_t vaddr = 0x10000000u + i * 2 * WINDOW;
        const struct rewarm_window *window = rewarm_memmap_window(map, space, vaddr + 5 * PAGE);
        assert_non_null(window);
        assert_int_equal(window->runs, 2);
        assert_int_equal(map->runs[window->first_run].vaddr, vaddr);
        assert_int_equal(map->runs[window->first_run + 1].first_page, pages / 2);
        fill(wanted, pages * PAGE, seed + i);
        must(rewarm_store_reader_get(reader, window->chunk, found, &err));
        assert_memory_equal(wanted, found, pages * PAGE);
    }
}

/* A snapshot of one process of 3 windows and one blob, all from `seed`. */
static inline void write_snapshot(struct fixture *fixture, const char *name, uint64_t seed)
{
    struct rewarm_store_writer *writer;
    must(rewarm_store_writer_open(fixture->store, name, &writer, &err));
    put_process(writer, 7, 3, 4, seed);
    write_source(fixture, "core-7.img", 5000, seed + 1000);
    must(rewarm_store_writer_put_blob(writer, fixture->source_fd, "core-7.img", &err));
    must(rewarm_store_writer_publish(writer, NULL, NULL, &err));
    rewarm_store_writer_close(writer);
}

static inline void check_blob(struct fixture *fixture, struct rewarm_store_reader *reader,
                              size_t index, size_t bytes, uint64_t seed)
{
    const struct rewarm_blob *blob = &rewarm_store_reader_memmap(reader)->blobs[index];
    assert_int_equal(blob->bytes, bytes);
    must(rewarm_store_reader_extract(reader, index, fixture->source_fd, &err));
    rewarm_auto_free char *found = NULL;
    rewarm_auto_free char *wanted = rewarm_mem_new(bytes + 1, 1);
    size_t found_bytes;
    must(rewarm_fs_read_file(fixture->source_fd, blob->name, (size_t)1 << 30, &found, &found_bytes,
                             &err));
    assert_int_equal(found_bytes, bytes);
    fill(wanted, bytes, seed);
    assert_memory_equal(found, wanted, bytes);
    unlinkat(fixture->source_fd, blob->name, 0);
}

static inline void check_snapshot(struct fixture *fixture, const char *name, uint64_t seed)
{
    struct rewarm_store_reader *reader;
    must(rewarm_store_reader_open(fixture->store, name, &reader, &err));
    check_process(reader, 7, 3, 4, seed);
    assert_int_equal(rewarm_store_reader_memmap(reader)->blob_count, 1);
    check_blob(fixture, reader, 0, 5000, seed + 1000);
    rewarm_store_reader_close(reader);
    must(rewarm_store_verify(fixture->store, name, NULL, NULL, &err));
}

/* How many entries of a folder of the store end with `suffix`. */
static inline unsigned count_files(const struct fixture *fixture, const char *folder,
                                   const char *suffix)
{
    rewarm_auto_free char *path = rewarm_str_format("%s/%s", fixture->path, folder);
    rewarm_auto_dir DIR *dir = opendir(path);
    unsigned count = 0;
    assert_non_null(dir);
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;)
        if (entry->d_name[0] != '.' && rewarm_str_ends(entry->d_name, suffix))
            count++;
    return count;
}

/* The path of the only file of a folder with this suffix. Free it. */
static inline char *only_file(const struct fixture *fixture, const char *folder, const char *suffix)
{
    rewarm_auto_free char *path = rewarm_str_format("%s/%s", fixture->path, folder);
    rewarm_auto_dir DIR *dir = opendir(path);
    char *found = NULL;
    assert_non_null(dir);
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        if (entry->d_name[0] == '.' || !rewarm_str_ends(entry->d_name, suffix))
            continue;
        assert_null(found);
        found = rewarm_str_format("%s/%s", path, entry->d_name);
    }
    assert_non_null(found);
    return found;
}

static inline uint64_t disk_usage(const char *path)
{
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    return (uint64_t)st.st_blocks * 512;
}

#endif

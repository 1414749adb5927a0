/* Reading CRIU's images: real ones (tests/data/criu, made by make.py there) and damaged ones. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <fcntl.h>
#include <string.h>

#include "base/clean.h"
#include "base/fs.h"
#include "base/str.h"
#include "proc/criu_image.h"
#include "proc/criu_image_entry.h"

enum { ROOT = 7337, ZOMBIE = 7338, CHILD = 7339 }; /* of the kept images */

static int open_data(void)
{
    int fd = open(REWARM_TEST_DATA "/criu", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    assert_true(fd >= 0);
    return fd;
}

static void test_pstree(void **state)
{
    (void)state;
    rewarm_auto_fd int dirfd = open_data();
    rewarm_auto_free struct rewarm_image_process *processes = NULL;
    size_t count = 0;
    struct rewarm_error err = REWARM_ERROR_INIT;
    assert_int_equal(rewarm_image_pstree(dirfd, &processes, &count, &err), 0);
    assert_int_equal(count, 3);
    assert_int_equal(processes[0].pid, ROOT);
    assert_int_equal(processes[0].ppid, 0);
    assert_int_equal(processes[0].sid, ROOT);
    assert_int_equal(processes[0].threads, 2);
    assert_string_equal(processes[0].comm, "python3");
    assert_int_equal(processes[1].pid, ZOMBIE);
    assert_int_equal(processes[1].threads, 0);
    assert_int_equal(processes[2].pid, CHILD);
    assert_int_equal(processes[2].ppid, ROOT);
    assert_int_equal(processes[2].threads, 1);
}

static void test_pagemap(void **state)
{
    (void)state;
    rewarm_auto_fd int dirfd = open_data();
    rewarm_auto_free struct rewarm_image_pages *pages = NULL;
    size_t count = 0, lazy = 0;
    struct rewarm_error err = REWARM_ERROR_INIT;
    assert_int_equal(rewarm_image_pagemap(dirfd, ROOT, &pages, &count, &err), 0);
    assert_true(count > 50);
    for (size_t i = 0; i < count; i++) {
        assert_true(pages[i].flags == REWARM_PE_PRESENT ||
                    pages[i].flags == (REWARM_PE_PRESENT | REWARM_PE_LAZY));
        lazy += (pages[i].flags & REWARM_PE_LAZY) != 0;
    }
    assert_true(lazy > 20 && lazy < count);

    /* The same process, dumped with --lazy-pages: the lazy ranges are not present. */
    rewarm_auto_free char *data = NULL;
    rewarm_auto_free struct rewarm_image_pages *second = NULL;
    size_t bytes, second_count = 0, second_lazy = 0;
    assert_int_equal(rewarm_fs_read_file(dirfd, "lazy-pagemap.img", 65536, &data, &bytes, &err), 0);
    assert_int_equal(rewarm_image_parse_pagemap(data, bytes, &second, &second_count, &err), 0);
    for (size_t i = 0; i < second_count; i++) {
        assert_true(second[i].flags == REWARM_PE_PRESENT || second[i].flags == REWARM_PE_LAZY);
        second_lazy += second[i].flags == REWARM_PE_LAZY;
    }
    assert_int_equal(second_lazy, lazy);
}

static void test_mm(void **state)
{
    (void)state;
    rewarm_auto_fd int dirfd = open_data();
    rewarm_auto_free struct rewarm_image_vma *vmas = NULL;
    rewarm_auto_free struct rewarm_image_pages *pages = NULL;
    size_t count = 0, page_count = 0, at = 0;
    struct rewarm_error err = REWARM_ERROR_INIT;
    assert_int_equal(rewarm_image_mm(dirfd, ROOT, &vmas, &count, &err), 0);
    assert_int_equal(rewarm_image_pagemap(dirfd, ROOT, &pages, &page_count, &err), 0);
    assert_true(count > 30);
    for (size_t i = 0; i < page_count; i++) { /* every page is in an area */
        while (at < count && vmas[at].end <= pages[i].vaddr)
            at++;
        assert_true(at < count && vmas[at].start <= pages[i].vaddr);
    }
}

static void test_mapped_files(void **state)
{
    (void)state;
    rewarm_auto_fd int dirfd = open_data();
    char **paths = NULL;
    size_t count = 0;
    bool libc = false;
    struct rewarm_error err = REWARM_ERROR_INIT;
    assert_int_equal(rewarm_image_mapped_files(dirfd, &paths, &count, &err), 0);
    assert_true(count >= 4);
    assert_string_equal(paths[0], "/usr/bin/python3.11");
    for (size_t i = 0; i < count; i++) {
        assert_true(i == 0 || strcmp(paths[i - 1], paths[i]) < 0);
        assert_false(rewarm_str_starts(paths[i], "/tmp/")); /* open, but not mapped */
        libc |= rewarm_str_ends(paths[i], "/libc.so.6");
    }
    assert_true(libc);
    rewarm_image_paths_free(paths, count);
}

static void test_inherit_keys(void **state)
{
    (void)state;
    static const struct {
        int32_t pid;
        int fd;
        const char *key;
    } cases[] = {
        {ROOT, 0, NULL}, /* /dev/null */
        {ROOT, 1, "pipe:[152150]"},
        {ROOT, 2, "tty[8800:1a]"},
        {ROOT, 3, NULL}, /* a listener */
        {ROOT, 18, "tmp/rewarm-sample/log"},
        {ROOT, 23, "pipe:[152154]"},
        {ROOT, 24, "pipe:[152154]"},
        {ROOT, 25, "socket:[152155]"},
        {ROOT, 15, NULL}, /* closed */
        {ROOT, -1, NULL},
        {CHILD, 1, "pipe:[152150]"},
    };
    rewarm_auto_fd int dirfd = open_data();
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct rewarm_error err = REWARM_ERROR_INIT;
        rewarm_auto_free char *key = NULL;
        assert_int_equal(rewarm_image_inherit_key(dirfd, cases[i].pid, cases[i].fd, &key, &err), 0);
        if (cases[i].key == NULL)
            assert_null(key);
        else
            assert_string_equal(key, cases[i].key);
    }
    struct rewarm_error err = REWARM_ERROR_INIT;
    char *key = NULL;
    assert_int_equal(rewarm_image_inherit_key(dirfd, 1, 1, &key, &err), -REWARM_E_CORRUPT);
    assert_non_null(strstr(err.message, "ids-1.img"));
}

static void test_remaps(void **state)
{
    (void)state;
    rewarm_auto_fd int dirfd = open_data();
    rewarm_auto_free uint32_t *ids = NULL;
    size_t count = 0;
    struct rewarm_error err = REWARM_ERROR_INIT;
    assert_int_equal(rewarm_image_remaps(dirfd, &ids, &count, &err), 0);
    assert_int_equal(count, 1);
    assert_true(rewarm_image_has_id(ids, count, 32));
    assert_false(rewarm_image_has_id(ids, count, 31));
    assert_false(rewarm_image_has_id(NULL, 0, 31));
}

/* --- made by hand
 * ------------------------------------------------------------------------------------- */

struct bytes {
    uint8_t *data;
    size_t count, capacity;
};

static void put(struct bytes *out, uint8_t byte)
{
    REWARM_GROW(&out->data, &out->capacity, out->count);
    out->data[out->count++] = byte;
}

static void put_u32(struct bytes *out, uint32_t value)
{
    for (unsigned i = 0; i < 4; i++)
        put(out, (uint8_t)(value >> 8 * i));
}

static void put_varint(struct bytes *out, uint64_t value)
{
    for (; value >= 128; value >>= 7)
        put(out, (uint8_t)(value | 128));
    put(out, (uint8_t)value);
}

static void put_number(struct bytes *out, unsigned field, uint64_t value)
{
    put_varint(out, field << 3);
    put_varint(out, value);
}

static void put_entry(struct bytes *out, const struct bytes *message)
{
    put_u32(out, (uint32_t)message->count);
    for (size_t i = 0; i < message->count; i++)
        put(out, message->data[i]);
}

static struct bytes begin(uint32_t magic)
{
    struct bytes out = {NULL, 0, 0};
    put_u32(&out, 0x54564319);
    put_u32(&out, magic);
    return out;
}

static struct bytes begin_pagemap(void)
{
    struct bytes out = begin(REWARM_MAGIC_PAGEMAP), head = {NULL, 0, 0};
    put_number(&head, 1, 1);
    put_entry(&out, &head);
    free(head.data);
    return out;
}

static void put_range(struct bytes *out, uint64_t vaddr, uint64_t pages, uint64_t flags)
{
    struct bytes entry = {NULL, 0, 0};
    put_number(&entry, 1, vaddr);
    put_number(&entry, 2, 0);
    put_number(&entry, 4, flags);
    put_number(&entry, 5, pages);
    put_entry(out, &entry);
    free(entry.data);
}

static int parse_pagemap(struct bytes *image, struct rewarm_error *err)
{
    struct rewarm_image_pages *pages = NULL;
    size_t count = 0;
    int rc = rewarm_image_parse_pagemap(image->data, image->count, &pages, &count, err);
    free(pages);
    free(image->data);
    return rc;
}

/* The three kinds of CRIU, of which only the first is a link. */
static void test_relinks(void **state)
{
    (void)state;
    struct bytes image = begin(REWARM_MAGIC_REMAP);
    for (uint32_t type = 0; type < 3; type++) {
        struct bytes entry = {NULL, 0, 0};
        put_number(&entry, 1, 30 - type);
        put_number(&entry, 2, 40 + type);
        put_number(&entry, 3, type);
        put_entry(&image, &entry);
        free(entry.data);
    }
    struct rewarm_error err = REWARM_ERROR_INIT;
    rewarm_auto_free struct rewarm_image_relink *relinks = NULL;
    rewarm_auto_free uint32_t *ids = NULL;
    size_t count = 0;
    assert_int_equal(rewarm_image_parse_relinks(image.data, image.count, &relinks, &count, &err),
                     0);
    assert_int_equal(count, 1);
    assert_int_equal(relinks[0].original_id, 30);
    assert_int_equal(relinks[0].link_id, 40);
    assert_int_equal(rewarm_image_parse_remaps(image.data, image.count, &ids, &count, &err), 0);
    assert_int_equal(count, 3);
    assert_int_equal(ids[0], 28);
    free(image.data);
}

static void test_pagemap_many(void **state)
{
    (void)state;
    enum { MANY = 100000 };
    struct bytes image = begin_pagemap();
    for (uint64_t i = 0; i < MANY; i++)
        put_range(&image, 0x7f0000000000 + i * 0x3000, 1 + i % 2, 6);
    rewarm_auto_free struct rewarm_image_pages *pages = NULL;
    size_t count = 0;
    struct rewarm_error err = REWARM_ERROR_INIT;
    assert_int_equal(rewarm_image_parse_pagemap(image.data, image.count, &pages, &count, &err), 0);
    assert_int_equal(count, MANY);
    assert_true(pages[MANY - 1].vaddr == 0x7f0000000000 + (MANY - 1) * 0x3000ull);
    assert_int_equal(pages[MANY - 1].pages, 2);
    free(image.data);
}

static void test_pagemap_old_and_new_fields(void **state)
{
    (void)state;
    /* From before `flags` and `nr_pages`, and with fields of every wire type that we don't know. */
    struct bytes image = begin_pagemap(), old = {NULL, 0, 0}, new = {NULL, 0, 0};
    put_number(&old, 1, 0x1000);
    put_number(&old, 2, 3);
    put_number(&old, 3, 1);
    put_entry(&image, &old);
    put_varint(&new, 6 << 3 | 2);
    put_varint(&new, 2);
    put(&new, 1);
    put(&new, 2);
    put_varint(&new, 7 << 3 | 1);
    for (int i = 0; i < 8; i++)
        put(&new, 0xff);
    put_varint(&new, 8 << 3 | 5);
    put_u32(&new, 1);
    put_number(&new, 9, UINT64_MAX);
    put_number(&new, 1, 0x10000);
    put_number(&new, 5, 1ull << 32);
    put_number(&new, 4, 4);
    put_entry(&image, &new);
    rewarm_auto_free struct rewarm_image_pages *pages = NULL;
    size_t count = 0;
    struct rewarm_error err = REWARM_ERROR_INIT;
    assert_int_equal(rewarm_image_parse_pagemap(image.data, image.count, &pages, &count, &err), 0);
    assert_int_equal(count, 2);
    assert_int_equal(pages[0].pages, 3);
    assert_int_equal(pages[0].flags, REWARM_PE_PARENT);
    assert_true(pages[1].pages == 1ull << 32);
    assert_int_equal(pages[1].flags, REWARM_PE_PRESENT);
    free(image.data);
    free(old.data);
    free(new.data);
}

static void test_pagemap_impossible(void **state)
{
    (void)state;
    static const struct {
        uint64_t vaddr, pages, flags;
    } cases[] = {
        {0x2001, 1, 4},              /* not at a page */
        {0x2000, 0, 4},              /* empty */
        {0x1000, 1, 4},              /* overlaps the one before */
        {0x2000, UINT64_MAX / 2, 4}, /* beyond the address space */
        {0x2000, 1, 1ull << 32},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct rewarm_error err = REWARM_ERROR_INIT;
        struct bytes image = begin_pagemap();
        put_range(&image, 0x1000, 1, 4);
        put_range(&image, cases[i].vaddr, cases[i].pages, cases[i].flags);
        assert_int_equal(parse_pagemap(&image, &err), -REWARM_E_CORRUPT);
    }
    struct rewarm_error err = REWARM_ERROR_INIT;
    struct bytes image = begin(REWARM_MAGIC_PAGEMAP); /* no head */
    assert_int_equal(parse_pagemap(&image, &err), -REWARM_E_CORRUPT);
}

static int parse_pstree(const uint32_t (*pids)[2], size_t count, struct rewarm_error *err)
{
    struct bytes image = begin(REWARM_MAGIC_PSTREE);
    for (size_t i = 0; i < count; i++) {
        struct bytes entry = {NULL, 0, 0};
        put_number(&entry, 1, pids[i][0]);
        put_number(&entry, 2, pids[i][1]);
        put_number(&entry, 3, 1);
        put_number(&entry, 4, 1);
        put_entry(&image, &entry);
        free(entry.data);
    }
    struct rewarm_image_process *processes = NULL;
    size_t ret_count = 0;
    int rc = rewarm_image_parse_pstree(image.data, image.count, &processes, &ret_count, err);
    free(processes);
    free(image.data);
    return rc;
}

static void test_pstree_impossible(void **state)
{
    (void)state;
    static const uint32_t good[][2] = {{10, 0}, {12, 10}, {11, 12}};
    static const uint32_t orphan[][2] = {{10, 0}, {11, 12}, {12, 10}};
    static const uint32_t twice[][2] = {{10, 0}, {10, 0}};
    static const uint32_t zero[][2] = {{0, 0}};
    static const uint32_t huge[][2] = {{1u << 22, 0}};
    struct rewarm_error err = REWARM_ERROR_INIT;
    assert_int_equal(parse_pstree(good, 3, &err), 0);
    assert_int_equal(parse_pstree(orphan, 3, &err), -REWARM_E_CORRUPT);
    assert_int_equal(parse_pstree(twice, 2, &err), -REWARM_E_CORRUPT);
    assert_int_equal(parse_pstree(zero, 1, &err), -REWARM_E_CORRUPT);
    assert_int_equal(parse_pstree(huge, 1, &err), -REWARM_E_CORRUPT);
    assert_int_equal(parse_pstree(good, 0, &err), -REWARM_E_CORRUPT);
}

/* Every image, cut off at every byte: an error or fewer entries, never more than the file holds. */
static void test_truncated(void **state)
{
    (void)state;
    rewarm_auto_fd int dirfd = open_data();
    rewarm_auto_free char *data = NULL;
    size_t bytes;
    struct rewarm_error err = REWARM_ERROR_INIT;
    assert_int_equal(rewarm_fs_read_file(dirfd, "files.img", 65536, &data, &bytes, &err), 0);
    size_t whole = 0;
    for (size_t cut = 0; cut <= bytes; cut++) {
        struct rewarm_image_file *files = NULL;
        size_t count = 0;
        struct rewarm_error cut_err = REWARM_ERROR_INIT;
        rewarm_auto_free char *copy = rewarm_mem_new(cut + 1, 1);
        memcpy(copy, data, cut);
        int rc = rewarm_image_parse_files(copy, cut, &files, &count, &cut_err);
        whole += rc == 0;
        assert_true(rc == 0 || rc == -REWARM_E_CORRUPT);
        rewarm_image_files_free(files, count);
    }
    assert_int_equal(whole, 42); /* after the magic, and after each of the 41 entries */
}

static void test_wrong_kind(void **state)
{
    (void)state;
    rewarm_auto_fd int dirfd = open_data();
    rewarm_auto_free char *data = NULL;
    size_t bytes, count = 0;
    struct rewarm_image_pages *pages = NULL;
    struct rewarm_error err = REWARM_ERROR_INIT;
    assert_int_equal(rewarm_fs_read_file(dirfd, "pstree.img", 65536, &data, &bytes, &err), 0);
    assert_int_equal(rewarm_image_parse_pagemap(data, bytes, &pages, &count, &err),
                     -REWARM_E_CORRUPT);
    assert_null(pages);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pstree),
        cmocka_unit_test(test_pagemap),
        cmocka_unit_test(test_mm),
        cmocka_unit_test(test_mapped_files),
        cmocka_unit_test(test_inherit_keys),
        cmocka_unit_test(test_remaps),
        cmocka_unit_test(test_relinks),
        cmocka_unit_test(test_pagemap_many),
        cmocka_unit_test(test_pagemap_old_and_new_fields),
        cmocka_unit_test(test_pagemap_impossible),
        cmocka_unit_test(test_pstree_impossible),
        cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_wrong_kind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Areas that map a memfd privately, in a kept image in which one file area is made such an area.
 * That CRIU restores what comes out is shown by tests/e2e (memfd). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <criu.pb-c.h>
#include <endian.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clean.h"
#include "base/fs.h"
#include "base/str.h"
#include "proc/criu_image.h"
#include "proc/criu_image_entry.h"

enum { HEAD = 8, PAGE = 4096, PAGES = 16, OFFSET = 7 * PAGE };
enum { REGULAR = 1, FILE_PRIVATE = 0x40, FILE_SHARED = 0x80, ANON_PRIVATE = 0x200 };
enum { MEMFD = 0x4000, OTHER = 0x40000 };

static MmEntry *unpack(const void *image, size_t bytes)
{
    MmEntry *mm = mm_entry__unpack(NULL, bytes - HEAD - 4, (const uint8_t *)image + HEAD + 4);
    assert_non_null(mm);
    return mm;
}

/* An area whose neighbours leave room, so that PAGES pages fit. */
static VmaEntry *pick(MmEntry *mm)
{
    for (size_t i = 0; i + 1 < mm->n_vmas; i++) {
        VmaEntry *area = mm->vmas[i];
        if ((area->status & FILE_PRIVATE) != 0 &&
            mm->vmas[i + 1]->start - area->start >= PAGES * PAGE)
            return area;
    }
    fail_msg("the kept image has no such area");
    return NULL;
}

struct image {
    uint8_t *data;
    size_t bytes;
    uint64_t start;
};

/* The kept image with a private memfd area of PAGES pages, or without one. */
static struct image load(bool with_memfd)
{
    rewarm_auto_free char *kept = NULL;
    size_t kept_bytes;
    struct rewarm_error err = REWARM_ERROR_INIT;
    assert_int_equal(rewarm_fs_read_file(AT_FDCWD, REWARM_TEST_DATA "/criu/mm-7339.img", 1 << 20,
                                         &kept, &kept_bytes, &err),
                     0);
    MmEntry *mm = unpack(kept, kept_bytes);
    VmaEntry *area = pick(mm);
    struct image image = {.start = area->start};
    if (with_memfd) {
        area->end = area->start + PAGES * PAGE;
        area->pgoff = OFFSET;
        area->shmid = 77;
        area->prot = PROT_READ | PROT_WRITE;
        area->flags = MAP_PRIVATE;
        area->status = REGULAR | FILE_PRIVATE | MEMFD | OTHER;
        area->has_fdflags = true;
        area->fdflags = O_RDWR;
    }
    size_t packed = mm_entry__get_packed_size(mm);
    uint32_t length = htole32((uint32_t)packed);
    image.bytes = HEAD + 4 + packed;
    image.data = rewarm_mem_new(image.bytes, 1);
    memcpy(image.data, kept, HEAD);
    memcpy(image.data + HEAD, &length, sizeof(length));
    mm_entry__pack(mm, image.data + HEAD + 4);
    mm_entry__free_unpacked(mm, NULL);
    return image;
}

/* The edited areas in [start, start + PAGES), as one letter a page: m for the memfd, a for
 * anonymous, - for none; a capital begins an area. */
static void edit(const struct rewarm_image_pages *pages, size_t page_count, char ret_map[PAGES + 1])
{
    struct image image = load(true);
    struct rewarm_error err = REWARM_ERROR_INIT;
    uint8_t *out = NULL;
    size_t out_bytes = 0;
    assert_int_equal(rewarm_image_edit_mm("mm", image.data, image.bytes, pages, page_count, &out,
                                          &out_bytes, &err),
                     0);
    assert_non_null(out);
    assert_memory_equal(out, image.data, HEAD);
    uint32_t length;
    memcpy(&length, out + HEAD, sizeof(length));
    assert_int_equal(le32toh(length), out_bytes - HEAD - 4);
    MmEntry *before = unpack(image.data, image.bytes);
    MmEntry *after = unpack(out, out_bytes);
    const VmaEntry *old = pick(before);
    memset(ret_map, '-', PAGES);
    ret_map[PAGES] = '\0';
    size_t others = 0;
    for (size_t i = 0; i < after->n_vmas; i++) {
        const VmaEntry *area = after->vmas[i];
        if (area->start < image.start || area->start >= image.start + PAGES * PAGE) {
            others++;
            continue;
        }
        assert_true(area->end <= image.start + PAGES * PAGE);
        bool own = (area->status & ANON_PRIVATE) != 0;
        assert_int_equal(area->status, own ? REGULAR | ANON_PRIVATE | OTHER
                                           : REGULAR | FILE_SHARED | MEMFD | OTHER);
        assert_int_equal(area->flags, own ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_PRIVATE);
        assert_int_equal(area->prot, PROT_READ | PROT_WRITE);
        assert_int_equal(area->shmid, own ? 0 : 77);
        assert_int_equal(area->pgoff, own ? 0 : OFFSET + area->start - image.start);
        assert_int_equal(area->has_fdflags, !own);
        /* What criu.proto does not name (CRIU's own `fd`, which it insists on) is kept. */
        assert_int_equal(area->base.n_unknown_fields, old->base.n_unknown_fields);
        assert_int_equal(area->base.n_unknown_fields, 1);
        for (uint64_t at = area->start; at < area->end; at += PAGE) {
            char letter = own ? 'a' : 'm';
            if (at == area->start)
                letter = own ? 'A' : 'M';
            assert_int_equal(ret_map[(at - image.start) / PAGE], '-');
            ret_map[(at - image.start) / PAGE] = letter;
        }
    }
    assert_int_equal(others, before->n_vmas - 1);
    assert_int_equal(after->exe_file_id, before->exe_file_id);
    assert_int_equal(after->base.n_unknown_fields, before->base.n_unknown_fields);
    mm_entry__free_unpacked(before, NULL);
    mm_entry__free_unpacked(after, NULL);

    /* Once is enough. */
    uint8_t *again = NULL;
    size_t again_bytes;
    assert_int_equal(
        rewarm_image_edit_mm("mm", out, out_bytes, pages, page_count, &again, &again_bytes, &err),
        0);
    assert_null(again);
    free(out);
    free(image.data);
}

static void test_own_pages_become_anonymous(void **state)
{
    (void)state;
    struct image image = load(true);
    uint64_t s = image.start;
    free(image.data);
    char map[PAGES + 1];
    const struct rewarm_image_pages none[] = {{s - PAGE, 1, 4}, {s + PAGES * PAGE, 3, 4}};
    edit(none, 0, map);
    assert_string_equal(map, "Mmmmmmmmmmmmmmmm");
    edit(none, 2, map);
    assert_string_equal(map, "Mmmmmmmmmmmmmmmm");
    const struct rewarm_image_pages middle[] = {{s + 3 * PAGE, 2, 4}, {s + 9 * PAGE, 1, 4}};
    edit(middle, 2, map);
    assert_string_equal(map, "MmmAaMmmmAMmmmmm");
    const struct rewarm_image_pages ends[] = {{s, 1, 4}, {s + 15 * PAGE, 1, 6}};
    edit(ends, 2, map);
    assert_string_equal(map, "AMmmmmmmmmmmmmmA");
    const struct rewarm_image_pages all[] = {{s, PAGES, 4}};
    edit(all, 1, map);
    assert_string_equal(map, "Aaaaaaaaaaaaaaaa");
}

static void test_ranges_reach_over_the_ends(void **state)
{
    (void)state;
    struct image image = load(true);
    uint64_t s = image.start;
    free(image.data);
    char map[PAGES + 1];
    const struct rewarm_image_pages over[] = {{s - 5 * PAGE, 7, 4}, {s + 14 * PAGE, 9, 4}};
    edit(over, 2, map);
    assert_string_equal(map, "AaMmmmmmmmmmmmAa");
    const struct rewarm_image_pages joined[] = {
        {s - 5 * PAGE, 6, 4}, {s + PAGE, 2, 6}, {s + 3 * PAGE, 1, 4}, {s + 12 * PAGE, 90, 4}};
    edit(joined, 4, map);
    assert_string_equal(map, "AaaaMmmmmmmmAaaa");
}

static void test_other_areas_are_left_alone(void **state)
{
    (void)state;
    struct image image = load(false);
    struct rewarm_error err = REWARM_ERROR_INIT;
    uint8_t *out = image.data;
    size_t out_bytes = 1;
    const struct rewarm_image_pages pages[] = {{image.start, PAGES, 4}};
    assert_int_equal(
        rewarm_image_edit_mm("mm", image.data, image.bytes, pages, 1, &out, &out_bytes, &err), 0);
    assert_null(out);
    assert_int_equal(
        rewarm_image_edit_mm("mm", image.data, image.bytes - 1, pages, 1, &out, &out_bytes, &err),
        -REWARM_E_CORRUPT);
    free(image.data);
}

static int copy_to(int dirfd, const char *name, const void *data, size_t bytes)
{
    struct rewarm_error err = REWARM_ERROR_INIT;
    return rewarm_fs_write_durable(dirfd, name, 0600, data, bytes, &err);
}

/* A folder of images: nothing is read without memfd.img, and the page map only where it matters. */
static void test_folder(void **state)
{
    (void)state;
    struct rewarm_error err = REWARM_ERROR_INIT;
    char path[] = "/tmp/rewarm-shmem-XXXXXX";
    assert_non_null(mkdtemp(path));
    rewarm_auto_fd int dirfd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    struct image image = load(true);
    assert_int_equal(copy_to(dirfd, "mm-7339.img", image.data, image.bytes), 0);
    assert_int_equal(rewarm_image_edit_shmem(dirfd, &err), 0);
    assert_int_equal(copy_to(dirfd, "memfd.img", "", 0), 0);
    assert_int_equal(rewarm_image_edit_shmem(dirfd, &err), -REWARM_E_CORRUPT); /* no page map */

    rewarm_auto_free char *pagemap = NULL;
    rewarm_auto_free char *edited = NULL;
    size_t pagemap_bytes, edited_bytes;
    err = (struct rewarm_error)REWARM_ERROR_INIT;
    assert_int_equal(rewarm_fs_read_file(AT_FDCWD, REWARM_TEST_DATA "/criu/pagemap-7339.img",
                                         1 << 20, &pagemap, &pagemap_bytes, &err),
                     0);
    assert_int_equal(copy_to(dirfd, "pagemap-7339.img", pagemap, pagemap_bytes), 0);
    assert_int_equal(rewarm_image_edit_shmem(dirfd, &err), 0);
    assert_int_equal(
        rewarm_fs_read_file(dirfd, "mm-7339.img", 1 << 20, &edited, &edited_bytes, &err), 0);
    MmEntry *mm = unpack(edited, edited_bytes);
    for (size_t i = 0; i < mm->n_vmas; i++)
        assert_int_not_equal(mm->vmas[i]->status & (MEMFD | FILE_PRIVATE), MEMFD | FILE_PRIVATE);
    mm_entry__free_unpacked(mm, NULL);

    static const char *const names[] = {"mm-7339.img", "memfd.img", "pagemap-7339.img"};
    for (size_t i = 0; i < 3; i++)
        unlinkat(dirfd, names[i], 0);
    assert_int_equal(rmdir(path), 0);
    free(image.data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_own_pages_become_anonymous),
        cmocka_unit_test(test_ranges_reach_over_the_ends),
        cmocka_unit_test(test_other_areas_are_left_alone),
        cmocka_unit_test(test_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

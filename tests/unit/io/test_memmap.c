#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/str.h"
#include "io/memmap.h"

#define W ((uint64_t)REWARM_WINDOW_BYTES)

static void test_look_up(void **state)
{
    (void)state;
    struct rewarm_space spaces[] = {
        {.pid = 9, .first_window = 0, .windows = 3},
        {.pid = 4, .first_window = 3, .windows = 2},
        {.pid = 5, .first_window = 5, .windows = 0},
    };
    struct rewarm_window windows[] = {
        {.vaddr = W}, {.vaddr = 2 * W}, {.vaddr = 7 * W}, {.vaddr = 3 * W}, {.vaddr = 8 * W}};
    struct rewarm_memmap map = {
        .spaces = spaces, .space_count = 3, .windows = windows, .window_count = 5};

    assert_ptr_equal(rewarm_memmap_space(&map, 9), &spaces[0]);
    assert_ptr_equal(rewarm_memmap_space(&map, 4), &spaces[1]);
    assert_null(rewarm_memmap_space(&map, 1));

    assert_ptr_equal(rewarm_memmap_window(&map, &spaces[0], W), &windows[0]);
    assert_ptr_equal(rewarm_memmap_window(&map, &spaces[0], 2 * W - 1), &windows[0]);
    assert_ptr_equal(rewarm_memmap_window(&map, &spaces[0], 2 * W), &windows[1]);
    assert_ptr_equal(rewarm_memmap_window(&map, &spaces[0], 7 * W + 4096), &windows[2]);
    assert_null(rewarm_memmap_window(&map, &spaces[0], 0));
    assert_null(rewarm_memmap_window(&map, &spaces[0], 3 * W)); /* the other process's */
    assert_null(rewarm_memmap_window(&map, &spaces[0], 8 * W));
    assert_null(rewarm_memmap_window(&map, &spaces[0], UINT64_MAX));
    assert_ptr_equal(rewarm_memmap_window(&map, &spaces[1], 3 * W), &windows[3]);
    assert_ptr_equal(rewarm_memmap_window(&map, &spaces[1], 8 * W + 1), &windows[4]);
    assert_null(rewarm_memmap_window(&map, &spaces[1], 7 * W));
    assert_null(rewarm_memmap_window(&map, &spaces[2], W));
}

static void test_fini(void **state)
{
    (void)state;
    struct rewarm_memmap map = {
        .spaces = rewarm_mem_new(1, sizeof(*map.spaces)),
        .space_count = 1,
        .windows = rewarm_mem_new(1, sizeof(*map.windows)),
        .runs = rewarm_mem_new(1, sizeof(*map.runs)),
        .chunks = rewarm_mem_new(1, sizeof(*map.chunks)),
        .blobs = rewarm_mem_new(1, sizeof(*map.blobs)),
        .blob_count = 1,
    };
    map.blobs[0].name = rewarm_str_dup("core.img");
    rewarm_memmap_fini(&map);
    assert_null(map.spaces);
    assert_int_equal(map.blob_count, 0);
    rewarm_memmap_fini(&map); /* once more is harmless */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_look_up),
        cmocka_unit_test(test_fini),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "proc/lazy_ranges.h"

#define PAGE  ((uint64_t)4096)
#define PAGES ((uint64_t)96)
#define GONE  UINT64_MAX

/* The model: where each page's content came from, page by page. */
struct model {
    uint64_t original[PAGES];
};

static void assert_equals_model(const struct rewarm_lazy_ranges *ranges, const struct model *model)
{
    for (uint64_t page = 0; page < PAGES; page++) {
        struct rewarm_lazy_range range;
        bool here = rewarm_lazy_ranges_at(ranges, page * PAGE, &range);
        assert_int_equal(here, model->original[page] != GONE);
        assert_int_equal(range.current, page * PAGE);
        assert_true(range.bytes >= PAGE);
        for (uint64_t at = page; at < PAGES && at < page + range.bytes / PAGE; at++) {
            if (here)
                assert_int_equal(model->original[at] * PAGE, range.original + (at - page) * PAGE);
            else
                assert_int_equal(model->original[at], GONE);
        }
    }
    /* The other way round: every original page is found once, where the model has it. */
    uint64_t at = 0;
    struct rewarm_lazy_range range;
    uint64_t found[PAGES];
    memset(found, 0xff, sizeof(found));
    while (rewarm_lazy_ranges_first(ranges, at, PAGES * PAGE, &range)) {
        assert_true(range.original >= at && range.bytes >= PAGE);
        for (uint64_t i = 0; i < range.bytes / PAGE; i++)
            found[range.original / PAGE + i] = range.current / PAGE + i;
        at = range.original + range.bytes;
    }
    uint64_t expected[PAGES];
    memset(expected, 0xff, sizeof(expected));
    for (uint64_t page = 0; page < PAGES; page++) {
        if (model->original[page] != GONE)
            expected[model->original[page]] = page;
    }
    assert_memory_equal(found, expected, sizeof(found));
}

static void drop_model(struct model *model, uint64_t start, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        model->original[start + i] = GONE;
}

static uint64_t next_random(uint64_t *seed)
{
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return *seed >> 33;
}

static void behaves_like_the_model(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 300; seed++) {
        uint64_t random = seed;
        struct model model;
        for (uint64_t i = 0; i < PAGES; i++)
            model.original[i] = i;
        struct rewarm_lazy_ranges ranges;
        rewarm_lazy_ranges_init(&ranges);
        for (int step = 0; step < 40; step++) {
            uint64_t count = 1 + next_random(&random) % 12;
            uint64_t from = next_random(&random) % (PAGES - count);
            uint64_t to = next_random(&random) % (PAGES - count);
            uint64_t kind = next_random(&random) % 4;
            if (kind == 0) {
                rewarm_lazy_ranges_drop(&ranges, from * PAGE, (from + count) * PAGE);
                drop_model(&model, from, count);
            } else if (kind == 1) {
                rewarm_lazy_ranges_forget(&ranges, from * PAGE, (from + count) * PAGE);
                for (uint64_t i = 0; i < PAGES; i++) {
                    if (model.original[i] >= from && model.original[i] < from + count)
                        model.original[i] = GONE;
                }
            } else if (from + count <= to || to + count <= from) { /* mremap never overlaps */
                rewarm_lazy_ranges_move(&ranges, from * PAGE, to * PAGE, count * PAGE);
                memcpy(&model.original[to], &model.original[from], count * sizeof(uint64_t));
                drop_model(&model, from, count);
            }
        }
        assert_equals_model(&ranges, &model);
        struct rewarm_lazy_ranges copy;
        rewarm_lazy_ranges_copy(&copy, &ranges);
        rewarm_lazy_ranges_drop(&ranges, 0, UINT64_MAX);
        assert_int_equal(ranges.home_count + ranges.moved_count, 0);
        assert_equals_model(&copy, &model);
        rewarm_lazy_ranges_fini(&ranges);
        rewarm_lazy_ranges_fini(&copy);
    }
}

static void starts_whole_and_knows_its_gaps(void **state)
{
    (void)state;
    struct rewarm_lazy_ranges ranges;
    struct rewarm_lazy_range range;
    rewarm_lazy_ranges_init(&ranges);
    assert_true(rewarm_lazy_ranges_at(&ranges, 0x7ffffffff000, &range));
    assert_int_equal(range.original, 0x7ffffffff000);

    rewarm_lazy_ranges_drop(&ranges, 8 * PAGE, 24 * PAGE);
    assert_false(rewarm_lazy_ranges_at(&ranges, 9 * PAGE, &range));
    assert_int_equal(range.bytes, 15 * PAGE);
    rewarm_lazy_ranges_move(&ranges, 2 * PAGE, 12 * PAGE, PAGE);
    assert_false(rewarm_lazy_ranges_at(&ranges, 9 * PAGE, &range));
    assert_int_equal(range.bytes, 3 * PAGE); /* a moved page ends the gap too */

    /* Moved back home it is as if nothing had been. */
    rewarm_lazy_ranges_move(&ranges, 12 * PAGE, 2 * PAGE, PAGE);
    assert_int_equal(ranges.moved_count, 0);
    assert_true(rewarm_lazy_ranges_at(&ranges, 2 * PAGE, &range));
    assert_int_equal(range.original, 2 * PAGE);
    rewarm_lazy_ranges_drop(&ranges, 5 * PAGE, 5 * PAGE);
    rewarm_lazy_ranges_move(&ranges, 5 * PAGE, 5 * PAGE, PAGE);
    assert_true(rewarm_lazy_ranges_at(&ranges, 5 * PAGE, &range));
    rewarm_lazy_ranges_fini(&ranges);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(behaves_like_the_model),
        cmocka_unit_test(starts_whole_and_knows_its_gaps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

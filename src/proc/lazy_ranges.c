/* Two sorted arrays. Almost everything stays at home, so that array alone answers nearly every
 * question with a binary search; the moved ranges are few and are scanned where they are asked for
 * by current address. Cutting is the one primitive: moving is cutting here and adding there. */
#include "proc/lazy_ranges.h"

#include <stdlib.h>
#include <string.h>

#include "base/clean.h"
#include "base/str.h"
#include "io/memmap.h"

static uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static uint64_t max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* Index of the first element whose original end is beyond `original`. */
static size_t find(const struct rewarm_lazy_range *array, size_t count, uint64_t original)
{
    size_t low = 0, high = count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (array[middle].original + array[middle].bytes <= original)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void insert(struct rewarm_lazy_range **array, size_t *count, size_t *capacity,
                   struct rewarm_lazy_range range)
{
    REWARM_GROW(array, capacity, *count);
    size_t at = find(*array, *count, range.original);
    struct rewarm_lazy_range *slot = *array + at;
    memmove(slot + 1, slot, (*count - at) * sizeof(*slot));
    *slot = range;
    (*count)++;
}

static void add(struct rewarm_lazy_ranges *ranges, struct rewarm_lazy_range range)
{
    if (range.current == range.original)
        insert(&ranges->home, &ranges->home_count, &ranges->home_capacity, range);
    else
        insert(&ranges->moved, &ranges->moved_count, &ranges->moved_capacity, range);
}

void rewarm_lazy_ranges_init(struct rewarm_lazy_ranges *ranges)
{
    *ranges = (struct rewarm_lazy_ranges){0};
    add(ranges, (struct rewarm_lazy_range){.bytes = UINT64_MAX - (REWARM_PAGE_BYTES - 1)});
}

void rewarm_lazy_ranges_copy(struct rewarm_lazy_ranges *ranges,
                             const struct rewarm_lazy_ranges *from)
{
    *ranges = (struct rewarm_lazy_ranges){0};
    for (size_t i = 0; i < from->home_count; i++)
        add(ranges, from->home[i]);
    for (size_t i = 0; i < from->moved_count; i++)
        add(ranges, from->moved[i]);
}

void rewarm_lazy_ranges_fini(struct rewarm_lazy_ranges *ranges)
{
    free(ranges->home);
    free(ranges->moved);
    *ranges = (struct rewarm_lazy_ranges){0};
}

/* Takes `bytes` bytes from `offset` on out of array[index]: shortens, splits or removes it. */
static void cut_one(struct rewarm_lazy_range **array, size_t *count, size_t *capacity, size_t index,
                    uint64_t offset, uint64_t bytes)
{
    struct rewarm_lazy_range whole = (*array)[index];
    struct rewarm_lazy_range rest = {
        .current = whole.current + offset + bytes,
        .original = whole.original + offset + bytes,
        .bytes = whole.bytes - offset - bytes,
    };
    if (offset != 0) {
        (*array)[index].bytes = offset;
        if (rest.bytes != 0)
            insert(array, count, capacity, rest);
    } else if (rest.bytes != 0) {
        (*array)[index] = rest;
    } else {
        memmove(*array + index, *array + index + 1, (*count - index - 1) * sizeof(**array));
        (*count)--;
    }
}

static void forget_in(struct rewarm_lazy_range **array, size_t *count, size_t *capacity,
                      uint64_t start, uint64_t end)
{
    for (;;) {
        size_t index = find(*array, *count, start);
        if (index == *count || (*array)[index].original >= end)
            return;
        const struct rewarm_lazy_range *range = *array + index;
        uint64_t from = max_u64(start, range->original);
        uint64_t to = min_u64(end, range->original + range->bytes);
        cut_one(array, count, capacity, index, from - range->original, to - from);
    }
}

void rewarm_lazy_ranges_forget(struct rewarm_lazy_ranges *ranges, uint64_t start, uint64_t end)
{
    if (start >= end)
        return;
    forget_in(&ranges->home, &ranges->home_count, &ranges->home_capacity, start, end);
    forget_in(&ranges->moved, &ranges->moved_count, &ranges->moved_capacity, start, end);
}

/* The next moved range with a page in the current addresses [start, end), or NULL. */
static const struct rewarm_lazy_range *find_moved(const struct rewarm_lazy_ranges *ranges,
                                                  uint64_t start, uint64_t end)
{
    for (size_t i = 0; i < ranges->moved_count; i++) {
        const struct rewarm_lazy_range *range = &ranges->moved[i];
        if (range->current < end && start < range->current + range->bytes)
            return range;
    }
    return NULL;
}

void rewarm_lazy_ranges_drop(struct rewarm_lazy_ranges *ranges, uint64_t start, uint64_t end)
{
    if (start >= end)
        return;
    forget_in(&ranges->home, &ranges->home_count, &ranges->home_capacity, start, end);
    const struct rewarm_lazy_range *range;
    while ((range = find_moved(ranges, start, end)) != NULL) {
        uint64_t from = max_u64(start, range->current);
        uint64_t to = min_u64(end, range->current + range->bytes);
        cut_one(&ranges->moved, &ranges->moved_count, &ranges->moved_capacity,
                (size_t)(range - ranges->moved), from - range->current, to - from);
    }
}

/* Copies what of `range` lies in the current addresses [start, end) to the end of the array. */
static void collect(struct rewarm_lazy_range range, uint64_t start, uint64_t end,
                    struct rewarm_lazy_range **array, size_t *count, size_t *capacity)
{
    uint64_t from = max_u64(start, range.current);
    uint64_t to = min_u64(end, range.current + range.bytes);
    if (from >= to)
        return;
    REWARM_GROW(array, capacity, *count);
    (*array)[(*count)++] = (struct rewarm_lazy_range){
        .current = from,
        .original = range.original + (from - range.current),
        .bytes = to - from,
    };
}

void rewarm_lazy_ranges_move(struct rewarm_lazy_ranges *ranges, uint64_t from, uint64_t to,
                             uint64_t bytes)
{
    if (from == to || bytes == 0)
        return;
    rewarm_auto_free struct rewarm_lazy_range *parts = NULL;
    size_t count = 0, capacity = 0;
    for (size_t i = find(ranges->home, ranges->home_count, from); i < ranges->home_count; i++) {
        if (ranges->home[i].current >= from + bytes)
            break;
        collect(ranges->home[i], from, from + bytes, &parts, &count, &capacity);
    }
    for (size_t i = 0; i < ranges->moved_count; i++)
        collect(ranges->moved[i], from, from + bytes, &parts, &count, &capacity);
    rewarm_lazy_ranges_drop(ranges, from, from + bytes);
    rewarm_lazy_ranges_drop(ranges, to, to + bytes);
    for (size_t i = 0; i < count; i++) {
        parts[i].current = to + (parts[i].current - from);
        add(ranges, parts[i]);
    }
}

bool rewarm_lazy_ranges_at(const struct rewarm_lazy_ranges *ranges, uint64_t current,
                           struct rewarm_lazy_range *ret_range)
{
    uint64_t next = UINT64_MAX;
    size_t index = find(ranges->home, ranges->home_count, current);
    if (index < ranges->home_count)
        next = ranges->home[index].current;
    const struct rewarm_lazy_range *found =
        next <= current ? &ranges->home[index] : find_moved(ranges, current, current + 1);
    if (found == NULL) {
        for (size_t i = 0; i < ranges->moved_count; i++) {
            if (ranges->moved[i].current > current)
                next = min_u64(next, ranges->moved[i].current);
        }
        *ret_range = (struct rewarm_lazy_range){.current = current, .bytes = next - current};
        return false;
    }
    uint64_t offset = current - found->current;
    *ret_range = (struct rewarm_lazy_range){
        .current = current,
        .original = found->original + offset,
        .bytes = found->bytes - offset,
    };
    return true;
}

bool rewarm_lazy_ranges_first(const struct rewarm_lazy_ranges *ranges, uint64_t start, uint64_t end,
                              struct rewarm_lazy_range *ret_range)
{
    const struct rewarm_lazy_range *found = NULL;
    size_t home = find(ranges->home, ranges->home_count, start);
    if (home < ranges->home_count)
        found = &ranges->home[home];
    size_t moved = find(ranges->moved, ranges->moved_count, start);
    if (moved < ranges->moved_count &&
        (found == NULL || ranges->moved[moved].original < found->original))
        found = &ranges->moved[moved];
    if (found == NULL || found->original >= end || start >= end)
        return false;
    uint64_t from = max_u64(start, found->original);
    *ret_range = (struct rewarm_lazy_range){
        .current = found->current + (from - found->original),
        .original = from,
        .bytes = min_u64(end, found->original + found->bytes) - from,
    };
    return true;
}

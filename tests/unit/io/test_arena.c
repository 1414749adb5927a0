#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "io/arena.h"

#define SLOT  ((size_t)64 * 1024)
#define SLOTS ((size_t)48)

static struct rewarm_arena *new_arena(size_t slots)
{
    struct rewarm_arena *arena = NULL;
    struct rewarm_error err = REWARM_ERROR_INIT;
    assert_int_equal(rewarm_arena_new(slots, SLOT, 2, &arena, &err), 0);
    assert_int_equal(rewarm_arena_slot_bytes(arena), SLOT);
    return arena;
}

static int by_address(const void *left, const void *right)
{
    uintptr_t a = (uintptr_t) * (void *const *)left, b = (uintptr_t) * (void *const *)right;
    return (a > b) - (a < b);
}

static void slots_are_populated_and_apart(void **state)
{
    (void)state;
    struct rewarm_arena *arena = new_arena(SLOTS);
    void *slots[SLOTS];
    unsigned char present[SLOT / 4096];
    for (size_t i = 0; i < SLOTS; i++) {
        slots[i] = rewarm_arena_get(arena);
        assert_non_null(slots[i]);
        assert_int_equal((uintptr_t)slots[i] % 4096, 0);
        assert_int_equal(mincore(slots[i], SLOT, present), 0);
        for (size_t page = 0; page < sizeof(present); page++)
            assert_int_equal(present[page] & 1, 1);
    }
    qsort(slots, SLOTS, sizeof(slots[0]), by_address);
    for (size_t i = 1; i < SLOTS; i++)
        assert_true((char *)slots[i] - (char *)slots[i - 1] >= (ptrdiff_t)SLOT);
    for (size_t i = 0; i < SLOTS; i++) {
        memset(slots[i], (int)i, SLOT);
        rewarm_arena_put(arena, slots[i]);
    }
    rewarm_arena_put(arena, NULL);
    rewarm_arena_free(arena);
}

/* VmFlags "dd" in smaps: what MADV_DONTDUMP sets. */
static void is_kept_out_of_core_files(void **state)
{
    (void)state;
    struct rewarm_arena *arena = new_arena(SLOTS);
    uintptr_t slot = (uintptr_t)rewarm_arena_get(arena);
    FILE *smaps = fopen("/proc/self/smaps", "re");
    assert_non_null(smaps);
    char line[512];
    bool inside = false, found = false;
    while (fgets(line, sizeof(line), smaps) != NULL) {
        unsigned long start, end;
        if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
            inside = slot >= start && slot < end;
        else if (inside && strncmp(line, "VmFlags:", 8) == 0)
            found = strstr(line, " dd") != NULL;
    }
    fclose(smaps);
    assert_true(found);
    rewarm_arena_free(arena);
}

struct waiter {
    struct rewarm_arena *arena;
    void *got;
    int finished;
};

static void *wait_for_slot(void *argument)
{
    struct waiter *waiter = argument;
    waiter->got = rewarm_arena_get(waiter->arena);
    __atomic_store_n(&waiter->finished, 1, __ATOMIC_RELEASE);
    return NULL;
}

static void get_waits_for_put_and_ends_with_stop(void **state)
{
    (void)state;
    struct rewarm_arena *arena = new_arena(1);
    void *slot = rewarm_arena_get(arena);
    struct waiter waiter = {.arena = arena};
    pthread_t thread;
    struct timespec pause = {.tv_nsec = 20000000};
    assert_int_equal(pthread_create(&thread, NULL, wait_for_slot, &waiter), 0);
    nanosleep(&pause, NULL);
    assert_int_equal(__atomic_load_n(&waiter.finished, __ATOMIC_ACQUIRE), 0);
    rewarm_arena_put(arena, slot);
    pthread_join(thread, NULL);
    assert_ptr_equal(waiter.got, slot);

    waiter = (struct waiter){.arena = arena};
    assert_int_equal(pthread_create(&thread, NULL, wait_for_slot, &waiter), 0);
    nanosleep(&pause, NULL);
    rewarm_arena_stop(arena);
    pthread_join(thread, NULL);
    assert_null(waiter.got);
    rewarm_arena_put(arena, slot);
    assert_null(rewarm_arena_get(arena)); /* stopped for good, a free slot or not */
    rewarm_arena_free(arena);
}

static void *borrow(void *argument)
{
    struct rewarm_arena *arena = argument;
    for (int round = 0; round < 2000; round++) {
        uint64_t *slot = rewarm_arena_get(arena);
        uint64_t mine = (uint64_t)(uintptr_t)&round;
        *slot = mine;
        if (*slot != mine)
            return argument; /* somebody else has the same slot */
        rewarm_arena_put(arena, slot);
    }
    return NULL;
}

static void threads_share_few_slots(void **state)
{
    (void)state;
    struct rewarm_arena *arena = new_arena(2);
    pthread_t threads[6];
    for (size_t i = 0; i < 6; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, borrow, arena), 0);
    for (size_t i = 0; i < 6; i++) {
        void *problem;
        pthread_join(threads[i], &problem);
        assert_null(problem);
    }
    rewarm_arena_free(arena);
}

static void refuses_nonsense(void **state)
{
    (void)state;
    struct rewarm_arena *arena = NULL;
    struct rewarm_error err = REWARM_ERROR_INIT;
    assert_int_equal(rewarm_arena_new(0, SLOT, 1, &arena, &err), -REWARM_E_USAGE);
    assert_int_equal(rewarm_arena_new(1, 4095, 1, &arena, NULL), -REWARM_E_USAGE);
    assert_int_equal(rewarm_arena_new(SIZE_MAX / 2, SLOT, 1, &arena, NULL), -REWARM_E_USAGE);
    rewarm_error_clear(&err);
    assert_int_equal(rewarm_arena_new(1, (size_t)1 << 56, 1, &arena, &err), -REWARM_E_NO_SPACE);
    assert_null(arena);
    rewarm_arena_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(slots_are_populated_and_apart),
        cmocka_unit_test(is_kept_out_of_core_files),
        cmocka_unit_test(get_waits_for_put_and_ends_with_stop),
        cmocka_unit_test(threads_share_few_slots),
        cmocka_unit_test(refuses_nonsense),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* The lazy-pages peer: memory whose layout changes while it is being supplied. A server that
 * answers from the snapshot alone, or that lets a copy overtake an event, fails these tests. */
#include "lazy_scene.h"

#include <sched.h>

#define PID    4242
#define BYTES  (16ull << 20)
#define ROUNDS 12

static void start_and_finish(struct scene *scene, void (*body)(void), unsigned delay_us)
{
    scene_init(scene);
    scene->source_delay_us = delay_us;
    scene_add_space(scene, PID, BASE, BYTES);
    scene_spawn(scene, PID, BASE, BYTES, NULL, body);
    scene_run(scene);
    scene_expect_success(scene);
}

/* The window that is being supplied right now, or a random one when it lies behind. */
static uint64_t hot_window(uint64_t *seed)
{
    uint32_t chunk = __atomic_load_n(&scene_now->shared->at_chunk, __ATOMIC_ACQUIRE);
    uint64_t windows = BYTES / WINDOW;
    uint64_t index = chunk == NOBODY ? 0 : chunk + scene_random(seed) % 2;
    return BASE + (index < windows ? index : scene_random(seed) % windows) * WINDOW;
}

static bool is_filling(void)
{
    uint32_t chunk = __atomic_load_n(&scene_now->shared->at_chunk, __ATOMIC_ACQUIRE);
    return !__atomic_load_n(&scene_now->shared->served, __ATOMIC_ACQUIRE) &&
           (chunk == NOBODY || chunk < BYTES / WINDOW - 2);
}

static void count_round(void)
{
    __atomic_fetch_add(&scene_now->shared->rounds, 1, __ATOMIC_RELAXED);
}

/* --- MADV_DONTNEED: zeros from then on */

static void discard_and_read(void)
{
    uint64_t seed = (uint64_t)getpid();
    static unsigned char gone[BYTES / PAGE];
    while (is_filling()) {
        uint64_t first = scene_random(&seed) % 48, pages = 1 + scene_random(&seed) % 16;
        uint64_t at = hot_window(&seed) + first * PAGE;
        CHECK(madvise(scene_at(at), pages * PAGE, MADV_DONTNEED) == 0);
        CHECK_ZERO(at, pages * PAGE);
        memset(&gone[(at - BASE) / PAGE], 1, pages);
        count_round();
    }
    for (uint64_t i = 0; i < BYTES / PAGE; i++) {
        uint64_t at = BASE + i * PAGE;
        if (gone[i])
            CHECK_ZERO(at, PAGE);
        else
            CHECK_SNAPSHOT(PID, at, at, PAGE);
    }
}

static void discarded_pages_read_as_zero(void **state)
{
    (void)state;
    uint64_t rounds = 0;
    for (int round = 0; round < ROUNDS; round++) {
        static struct scene scene;
        start_and_finish(&scene, discard_and_read, round % 2 == 0 ? 0 : 100);
        rounds += scene.shared->rounds;
        scene_fini(&scene);
        assert_int_equal(scene_count_fds(), scene.fds_before);
    }
    print_message("%llu rounds of discarding\n", (unsigned long long)rounds);
    assert_true(rounds > 300);
}

/* The same with the discarding on one thread and readers on others. */
static void *read_for_ever(void *argument)
{
    uint64_t seed = (uint64_t)(uintptr_t)argument;
    while (is_filling()) {
        uint64_t at = hot_window(&seed) + scene_random(&seed) % 64 * PAGE;
        CHECK_VALUE(scene_page_is(PID, scene_at(at), at) || scene_page_is_zero(scene_at(at)), at);
    }
    return NULL;
}

static void discard_among_readers(void)
{
    pthread_t threads[2];
    for (uintptr_t i = 0; i < 2; i++)
        CHECK(pthread_create(&threads[i], NULL, read_for_ever, (void *)(i + 1)) == 0);
    discard_and_read();
    for (int i = 0; i < 2; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
}

static void discarding_among_readers(void **state)
{
    (void)state;
    for (int round = 0; round < ROUNDS; round++) {
        static struct scene scene;
        start_and_finish(&scene, discard_among_readers, 100);
        scene_fini(&scene);
    }
}

/* --- munmap, and another mapping in its place */

static void unmap_and_map(void)
{
    uint64_t seed = (uint64_t)getpid();
    static unsigned char state_of[BYTES / WINDOW]; /* 1: unmapped, 2: mapped afresh */
    while (is_filling()) {
        uint64_t at = hot_window(&seed);
        CHECK(munmap(scene_at(at), WINDOW) == 0);
        state_of[(at - BASE) / WINDOW] = 1;
        if (scene_random(&seed) % 2 == 0) {
            scene_map(at, WINDOW);
            CHECK_ZERO(at, WINDOW);
            memset(scene_at(at), 0x5a, WINDOW);
            state_of[(at - BASE) / WINDOW] = 2;
        }
        count_round();
    }
    for (uint64_t i = 0; i < BYTES / WINDOW; i++) {
        uint64_t at = BASE + i * WINDOW;
        unsigned char present[WINDOW / PAGE];
        if (state_of[i] == 0)
            CHECK_SNAPSHOT(PID, at, at, WINDOW);
        else if (state_of[i] == 1)
            CHECK(mincore(scene_at(at), WINDOW, present) == -1 && errno == ENOMEM);
        for (uint64_t offset = 0; state_of[i] == 2 && offset < WINDOW; offset++)
            CHECK_VALUE(scene_at(at)[offset] == 0x5a, at + offset);
    }
}

static void unmapped_memory_stays_away(void **state)
{
    (void)state;
    uint64_t dropped_bytes = 0;
    for (int round = 0; round < ROUNDS; round++) {
        static struct scene scene;
        start_and_finish(&scene, unmap_and_map, round % 2 == 0 ? 0 : 100);
        dropped_bytes += scene.stats.dropped_bytes;
        scene_fini(&scene);
    }
    assert_true(dropped_bytes > 0);
}

/* --- mremap: to another place and back, growing, shrinking */

static void move_around(void)
{
    uint64_t seed = (uint64_t)getpid();
    uint64_t at[BYTES / WINDOW]; /* where the windows are */
    for (uint64_t i = 0; i < BYTES / WINDOW; i++)
        at[i] = BASE + i * WINDOW;
    while (is_filling()) {
        uint64_t i = (hot_window(&seed) - BASE) / WINDOW;
        uint64_t to = at[i] < ELSEWHERE ? ELSEWHERE + i * 4 * WINDOW : BASE + i * WINDOW;
        CHECK(mremap(scene_at(at[i]), WINDOW, WINDOW, MREMAP_MAYMOVE | MREMAP_FIXED,
                     scene_at(to)) == scene_at(to));
        at[i] = to;
        uint64_t page = scene_random(&seed) % 64 * PAGE;
        CHECK_SNAPSHOT(PID, to + page, BASE + i * WINDOW + page, PAGE);
        count_round();
    }
    for (uint64_t i = 0; i < BYTES / WINDOW; i++)
        CHECK_SNAPSHOT(PID, at[i], BASE + i * WINDOW, WINDOW);
}

static void moved_memory_is_found(void **state)
{
    (void)state;
    uint64_t events = 0;
    for (int round = 0; round < 3 * ROUNDS; round++) {
        static struct scene scene;
        start_and_finish(&scene, move_around, round % 2 == 0 ? 0 : 100);
        events += scene.stats.events;
        assert_int_equal(scene.stats.supplied_bytes, scene_stored_bytes(&scene));
        assert_int_equal(scene.stats.dropped_bytes, 0);
        scene_fini(&scene);
    }
    assert_true(events > 0);
}

/* Half of the region moves elsewhere and grows; the grown part is zero. Then it shrinks, and grows
 * again: what was cut off is zero, not snapshot. A part moves over another part. */
static void grow_and_shrink(void)
{
    uint64_t half = BYTES / 2, quarter = BYTES / 4;
    CHECK(mremap(scene_at(BASE + half), half, BYTES, MREMAP_MAYMOVE | MREMAP_FIXED,
                 scene_at(ELSEWHERE)) == scene_at(ELSEWHERE));
    CHECK_SNAPSHOT(PID, ELSEWHERE + half - PAGE, BASE + BYTES - PAGE, PAGE);
    CHECK_ZERO(ELSEWHERE + half, 4 * PAGE);
    CHECK(mremap(scene_at(ELSEWHERE), BYTES, quarter, 0) == scene_at(ELSEWHERE));
    CHECK(mremap(scene_at(ELSEWHERE), quarter, BYTES, 0) == scene_at(ELSEWHERE));
    CHECK_ZERO(ELSEWHERE + quarter, BYTES - quarter);
    CHECK_SNAPSHOT(PID, ELSEWHERE, BASE + half, quarter);
    /* Over a part that is still to come. */
    CHECK(mremap(scene_at(BASE), quarter, quarter, MREMAP_MAYMOVE | MREMAP_FIXED,
                 scene_at(BASE + quarter)) == scene_at(BASE + quarter));
    CHECK_SNAPSHOT(PID, BASE + quarter, BASE, quarter);
    /* The old place stays mapped, empty. */
    CHECK(mremap(scene_at(BASE + quarter), quarter, quarter,
                 MREMAP_MAYMOVE | MREMAP_DONTUNMAP | MREMAP_FIXED,
                 scene_at(BASE)) == scene_at(BASE));
    CHECK_ZERO(BASE + quarter, quarter);
    CHECK_SNAPSHOT(PID, BASE, BASE, quarter);
}

static void resized_memory_is_zero_beyond(void **state)
{
    (void)state;
    for (unsigned delay_us = 0; delay_us <= 2000; delay_us += 500) {
        static struct scene scene;
        start_and_finish(&scene, grow_and_shrink, delay_us);
        scene_fini(&scene);
    }
}

/* --- fork */

static void check_all(void)
{
    CHECK_SNAPSHOT(PID, BASE, BASE, BYTES);
}

static void check_backwards(void)
{
    for (uint64_t offset = BYTES; offset > 0; offset -= PAGE)
        CHECK_SNAPSHOT(PID, BASE + offset - PAGE, BASE + offset - PAGE, PAGE);
}

static void fork_again(void)
{
    pid_t child = scene_fork(check_backwards);
    CHECK_SNAPSHOT(PID, BASE + BYTES / 2, BASE + BYTES / 2, WINDOW);
    scene_reap(child);
    check_all();
}

static void fork_a_tree(void)
{
    CHECK_SNAPSHOT(PID, BASE, BASE, 2 * WINDOW);
    pid_t first = scene_fork(fork_again);
    pid_t second = scene_fork(check_all);
    check_backwards();
    scene_reap(first);
    scene_reap(second);
}

static void forked_children_are_whole(void **state)
{
    (void)state;
    for (unsigned round = 0; round < ROUNDS; round++) {
        static struct scene scene;
        start_and_finish(&scene, fork_a_tree, round * 100);
        scene_fini(&scene);
        assert_int_equal(scene_count_fds(), scene.fds_before);
    }
}

/* What the parent had written, discarded and moved before the fork holds for the child, too; what
 * it does after it does not. */
static void check_changed(void)
{
    for (uint64_t i = 0; i < 16; i++) {
        uint64_t at = BASE + i * WINDOW;
        CHECK(scene_at(at)[100] == 0x11);
        CHECK_ZERO(at + 8 * PAGE, 8 * PAGE);
        CHECK_SNAPSHOT(PID, ELSEWHERE + i * WINDOW, at + 32 * PAGE, 16 * PAGE);
        CHECK_SNAPSHOT(PID, at + 48 * PAGE, at + 48 * PAGE, 16 * PAGE);
    }
    CHECK_SNAPSHOT(PID, BASE + BYTES / 2, BASE + BYTES / 2, BYTES / 2);
}

static void change_and_fork(void)
{
    for (uint64_t i = 0; i < 16; i++) {
        uint64_t at = BASE + i * WINDOW;
        scene_at(at)[100] = 0x11;
        CHECK(madvise(scene_at(at + 8 * PAGE), 8 * PAGE, MADV_DONTNEED) == 0);
        uint64_t to = ELSEWHERE + i * WINDOW;
        CHECK(mremap(scene_at(at + 32 * PAGE), 16 * PAGE, 16 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
                     scene_at(to)) == scene_at(to));
    }
    pid_t child = scene_fork(check_changed);
    CHECK(madvise(scene_at(BASE + BYTES / 2), BYTES / 2, MADV_DONTNEED) == 0);
    CHECK_ZERO(BASE + BYTES / 2, BYTES / 2);
    scene_reap(child);
}

static void children_inherit_the_layout(void **state)
{
    (void)state;
    for (unsigned delay_us = 0; delay_us <= 1000; delay_us += 250) {
        static struct scene scene;
        start_and_finish(&scene, change_and_fork, delay_us);
        assert_true(scene.stats.forks <= 1);
        scene_fini(&scene);
    }
}

/* Short-lived children all the time, up to and across the moment when the parent is whole and its
 * descriptor is closed. */
static void check_some(void)
{
    uint64_t seed = (uint64_t)getpid();
    for (int i = 0; i < 40; i++) {
        uint64_t at = BASE + scene_random(&seed) % (BYTES / PAGE) * PAGE;
        CHECK_SNAPSHOT(PID, at, at, PAGE);
    }
}

static void fork_all_the_time(void)
{
    pid_t children[4] = {0};
    unsigned after = 0;
    for (unsigned i = 0; i < 400 && after < 8; i++) {
        if (children[i % 4] != 0)
            scene_reap(children[i % 4]);
        children[i % 4] = scene_fork(check_some);
        after += __atomic_load_n(&scene_now->shared->served, __ATOMIC_ACQUIRE);
    }
    for (unsigned i = 0; i < 4; i++)
        scene_reap(children[i]);
    check_all();
}

static void forks_across_the_end_are_whole(void **state)
{
    (void)state;
    for (unsigned delay_us = 0; delay_us <= 400; delay_us += 200) {
        static struct scene scene;
        start_and_finish(&scene, fork_all_the_time, delay_us);
        scene_fini(&scene);
        assert_int_equal(scene_count_fds(), scene.fds_before);
    }
}

/* MADV_WIPEONFORK, as restored by CRIU: zeros in the child and its children, the snapshot in the
 * parent. */
#define WIPED       (BASE + 3 * WINDOW + 5 * PAGE)
#define WIPED_BYTES (2 * WINDOW)

static void check_wiped_child(void)
{
    CHECK_ZERO(WIPED, WIPED_BYTES);
    CHECK_SNAPSHOT(PID, BASE, BASE, WIPED - BASE);
    CHECK_SNAPSHOT(PID, WIPED + WIPED_BYTES, WIPED + WIPED_BYTES,
                   BASE + BYTES - WIPED - WIPED_BYTES);
}

static void check_wiped_tree(void)
{
    pid_t child = scene_fork(check_wiped_child);
    check_wiped_child();
    scene_reap(child);
}

static void wipe_and_fork(void)
{
    CHECK(madvise(scene_at(WIPED), WIPED_BYTES, MADV_WIPEONFORK) == 0);
    pid_t child = scene_fork(check_wiped_tree);
    check_all();
    scene_reap(child);
}

static void wiped_ranges_are_zero_in_children(void **state)
{
    (void)state;
    const struct rewarm_lazy_wipe wipes[] = {
        {.pid = PID - 1, .start = BASE, .end = BASE + BYTES}, /* somebody else's */
        {.pid = PID, .start = WIPED, .end = WIPED + WIPED_BYTES},
    };
    for (unsigned delay_us = 0; delay_us <= 1000; delay_us += 250) {
        static struct scene scene;
        scene_init(&scene);
        scene.source_delay_us = delay_us;
        scene.options.wipes = wipes;
        scene.options.wipe_count = 2;
        scene_add_space(&scene, PID, BASE, BYTES);
        scene_spawn(&scene, PID, BASE, BYTES, NULL, wipe_and_fork);
        scene_run(&scene);
        scene_expect_success(&scene);
        scene_fini(&scene);
    }
}

/* --- everything at once, each on its own quarter, with children that are killed at some point */

static void *quarter_of_discards(void *unused)
{
    uint64_t seed = 1;
    static unsigned char gone[BYTES / 4 / PAGE];
    for (int i = 0; i < 300; i++) {
        uint64_t page = scene_random(&seed) % (BYTES / 4 / PAGE);
        CHECK(madvise(scene_at(BASE + page * PAGE), PAGE, MADV_DONTNEED) == 0);
        CHECK_ZERO(BASE + page * PAGE, PAGE);
        gone[page] = 1;
    }
    for (uint64_t page = 0; page < BYTES / 4 / PAGE; page++) {
        uint64_t at = BASE + page * PAGE;
        CHECK_VALUE(gone[page] ? scene_page_is_zero(scene_at(at))
                               : scene_page_is(PID, scene_at(at), at),
                    at);
    }
    return unused;
}

static void *quarter_of_moves(void *unused)
{
    uint64_t home = BASE + BYTES / 4, at = home;
    for (int i = 0; i < 100; i++) {
        uint64_t to = i % 2 == 0 ? ELSEWHERE : home;
        CHECK(mremap(scene_at(at), BYTES / 4, BYTES / 4, MREMAP_MAYMOVE | MREMAP_FIXED,
                     scene_at(to)) == scene_at(to));
        at = to;
        uint64_t page = (uint64_t)i * 7 % (BYTES / 4 / PAGE) * PAGE;
        CHECK_SNAPSHOT(PID, at + page, home + page, PAGE);
    }
    CHECK_SNAPSHOT(PID, at, home, BYTES / 4);
    return unused;
}

static void check_third_quarter(void)
{
    CHECK_SNAPSHOT(PID, BASE + BYTES / 2, BASE + BYTES / 2, BYTES / 4);
}

static void do_everything(void)
{
    pthread_t threads[2];
    CHECK(pthread_create(&threads[0], NULL, quarter_of_discards, NULL) == 0);
    CHECK(pthread_create(&threads[1], NULL, quarter_of_moves, NULL) == 0);
    for (int i = 0; i < 20; i++) {
        pid_t child = scene_fork(check_third_quarter);
        if (i % 2 == 0) {
            scene_reap(child);
            continue;
        }
        sched_yield();
        CHECK(kill(child, SIGKILL) == 0);
        CHECK(waitpid(child, NULL, 0) == child);
    }
    uint64_t last = BASE + BYTES / 4 * 3;
    CHECK(munmap(scene_at(last), BYTES / 8) == 0);
    CHECK_SNAPSHOT(PID, last + BYTES / 8, last + BYTES / 8, BYTES / 8);
    check_third_quarter();
    for (int i = 0; i < 2; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
}

static void everything_at_once(void **state)
{
    (void)state;
    for (unsigned round = 0; round < ROUNDS; round++) {
        static struct scene scene;
        start_and_finish(&scene, do_everything, round % 3 * 200);
        scene_fini(&scene);
        assert_int_equal(scene_count_fds(), scene.fds_before);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SCENE_TEST(discarded_pages_read_as_zero),      SCENE_TEST(discarding_among_readers),
        SCENE_TEST(unmapped_memory_stays_away),        SCENE_TEST(moved_memory_is_found),
        SCENE_TEST(resized_memory_is_zero_beyond),     SCENE_TEST(forked_children_are_whole),
        SCENE_TEST(children_inherit_the_layout),       SCENE_TEST(forks_across_the_end_are_whole),
        SCENE_TEST(wiped_ranges_are_zero_in_children), SCENE_TEST(everything_at_once),
    };
    if (!scene_possible())
        return 0;
    return cmocka_run_group_tests(tests, NULL, NULL);
}

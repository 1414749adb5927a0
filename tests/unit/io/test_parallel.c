#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>

#include "io/parallel.h"

struct roll {
    pthread_barrier_t all_here;
    unsigned seen[8];
    pthread_t caller;
    unsigned on_caller, unblocked;
    unsigned failing; /* index that fails, and fails first */
    unsigned failed;
};

static int answer(void *context, unsigned index, struct rewarm_error *err)
{
    struct roll *roll = context;
    (void)err;
    __atomic_fetch_add(&roll->seen[index], 1, __ATOMIC_RELAXED);
    if (pthread_equal(pthread_self(), roll->caller))
        __atomic_fetch_add(&roll->on_caller, index + 1, __ATOMIC_RELAXED);
    sigset_t mask;
    pthread_sigmask(SIG_SETMASK, NULL, &mask);
    if (!sigismember(&mask, SIGTERM))
        __atomic_fetch_add(&roll->unblocked, 1, __ATOMIC_RELAXED);
    /* Passes only if every member runs at the same time, on its own thread. */
    pthread_barrier_wait(&roll->all_here);
    return 0;
}

static void runs_every_index_at_once(void **state)
{
    (void)state;
    struct roll roll = {.caller = pthread_self()};
    pthread_barrier_init(&roll.all_here, NULL, 8);
    struct rewarm_error err = REWARM_ERROR_INIT;
    assert_int_equal(rewarm_parallel_run(8, answer, &roll, &err), 0);
    assert_int_equal(err.code, 0);
    for (unsigned i = 0; i < 8; i++)
        assert_int_equal(roll.seen[i], 1);
    assert_int_equal(roll.on_caller, 1); /* index 0 and no other */
    assert_int_equal(roll.unblocked, 1); /* signals go to the caller's thread */
    pthread_barrier_destroy(&roll.all_here);
}

static int fail_twice(void *context, unsigned index, struct rewarm_error *err)
{
    struct roll *roll = context;
    if (index != roll->failing) {
        while (!__atomic_load_n(&roll->failed, __ATOMIC_ACQUIRE))
            sched_yield();
        if (index == 0)
            return rewarm_error_set(err, REWARM_E_TIMEOUT, 0, "later failure of %u", index);
        return 0;
    }
    int result = rewarm_error_set(err, REWARM_E_CORRUPT, 0, "first failure of %u", index);
    /* Recorded after return; the others are let go only by a thread that is sure to come later. */
    return result;
}

static void *let_go(void *argument)
{
    struct roll *roll = argument;
    struct timespec pause = {.tv_nsec = 100000000};
    nanosleep(&pause, NULL);
    __atomic_store_n(&roll->failed, 1, __ATOMIC_RELEASE);
    return NULL;
}

static void keeps_the_first_failure(void **state)
{
    (void)state;
    struct roll roll = {.failing = 2};
    pthread_t helper;
    assert_int_equal(pthread_create(&helper, NULL, let_go, &roll), 0);
    struct rewarm_error err = REWARM_ERROR_INIT;
    assert_int_equal(rewarm_parallel_run(4, fail_twice, &roll, &err), -REWARM_E_CORRUPT);
    assert_int_equal(err.code, REWARM_E_CORRUPT);
    assert_string_equal(err.message, "first failure of 2");
    pthread_join(helper, NULL);

    /* Without a place for the error the code still comes back. */
    roll.failed = 1;
    roll.failing = 0;
    assert_int_equal(rewarm_parallel_run(1, fail_twice, &roll, NULL), -REWARM_E_CORRUPT);
}

static void refuses_no_threads(void **state)
{
    (void)state;
    struct rewarm_error err = REWARM_ERROR_INIT;
    assert_int_equal(rewarm_parallel_run(0, answer, NULL, &err), -REWARM_E_USAGE);
}

static void width_follows_the_affinity_mask(void **state)
{
    (void)state;
    cpu_set_t before, one;
    assert_int_equal(sched_getaffinity(0, sizeof(before), &before), 0);
    assert_in_range(rewarm_parallel_width(), 1, 16);
    CPU_ZERO(&one);
    for (size_t cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (CPU_ISSET(cpu, &before)) {
            CPU_SET(cpu, &one);
            break;
        }
    }
    assert_int_equal(sched_setaffinity(0, sizeof(one), &one), 0);
    unsigned width = rewarm_parallel_width();
    assert_int_equal(sched_setaffinity(0, sizeof(before), &before), 0);
    assert_int_equal(width, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(runs_every_index_at_once),
        cmocka_unit_test(keeps_the_first_failure),
        cmocka_unit_test(refuses_no_threads),
        cmocka_unit_test(width_follows_the_affinity_mask),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

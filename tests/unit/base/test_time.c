#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/time.h"

static void test_now(void **state)
{
    (void)state;
    uint64_t a = rewarm_time_now_ns();
    uint64_t b = rewarm_time_now_ns();
    assert_true(a > 0 && b >= a);
    assert_true(rewarm_time_wall_ns() > 1700000000 * REWARM_NS_PER_S); /* after November 2023 */
}

static void test_poll(void **state)
{
    (void)state;
    assert_int_equal(rewarm_time_poll_ms(REWARM_NEVER_NS), -1);
    assert_int_equal(rewarm_time_poll_ms(0), 0);
    uint64_t now = rewarm_time_now_ns();
    assert_int_equal(rewarm_time_poll_ms(now), 0);
    int ms = rewarm_time_poll_ms(now + 10 * REWARM_NS_PER_S);
    assert_true(ms > 5000 && ms <= 10000);
    /* Rounded up: a poll(2) of 0 would spin until the deadline. */
    ms = rewarm_time_poll_ms(rewarm_time_now_ns() + REWARM_NS_PER_S + 1);
    assert_true(ms > 500 && ms <= 1001);
    /* Far away: no overflow, and not "never". */
    ms = rewarm_time_poll_ms(REWARM_NEVER_NS - 1);
    assert_true(ms > 1000000);
}

static void test_iso(void **state)
{
    (void)state;
    char out[32];
    assert_string_equal(rewarm_time_iso(0, out), "1970-01-01T00:00:00Z");
    assert_string_equal(rewarm_time_iso(1795505085 * REWARM_NS_PER_S + 999999999, out),
                        "2026-11-24T07:24:45Z");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_now),
        cmocka_unit_test(test_poll),
        cmocka_unit_test(test_iso),
    };
    return cmocka_run_group_tests_name("time", tests, NULL, NULL);
}

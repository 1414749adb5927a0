#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/error.h"

static void test_first_error_wins(void **state)
{
    (void)state;
    struct rewarm_error err = REWARM_ERROR_INIT;
    assert_int_equal(rewarm_error_set(&err, REWARM_E_CORRUPT, 0, "chunk %d", 7), -REWARM_E_CORRUPT);
    assert_int_equal(rewarm_error_set(&err, REWARM_E_USAGE, EINVAL, "later"), -REWARM_E_CORRUPT);
    errno = ENOENT;
    assert_int_equal(rewarm_error_errno(&err, "even later"), -REWARM_E_CORRUPT);
    assert_int_equal(err.code, REWARM_E_CORRUPT);
    assert_int_equal(err.native, 0);
    assert_string_equal(err.message, "chunk 7");
}

static void test_null_error(void **state)
{
    (void)state;
    assert_int_equal(rewarm_error_set(NULL, REWARM_E_BUSY, 0, "x"), -REWARM_E_BUSY);
    assert_int_equal(rewarm_error_wrap(NULL, "x"), -REWARM_E_SYSTEM);
    errno = EACCES;
    assert_int_equal(rewarm_error_errno(NULL, "x"), -REWARM_E_PERMISSION);
    rewarm_error_clear(NULL);
}

static void test_native_text(void **state)
{
    (void)state;
    struct rewarm_error err = REWARM_ERROR_INIT;
    rewarm_error_set(&err, REWARM_E_SYSTEM, EIO, "reading %s", "a");
    char want[128];
    snprintf(want, sizeof(want), "reading a: %s", strerror(EIO));
    assert_string_equal(err.message, want);
    assert_int_equal(err.native, EIO);
}

static void test_errno_codes(void **state)
{
    (void)state;
    static const struct {
        int native, code;
    } cases[] = {
        {ENOENT, REWARM_E_NOT_FOUND}, {EPERM, REWARM_E_PERMISSION}, {EACCES, REWARM_E_PERMISSION},
        {ENOSPC, REWARM_E_NO_SPACE},  {EDQUOT, REWARM_E_NO_SPACE},  {ENOMEM, REWARM_E_NO_SPACE},
        {EIO, REWARM_E_SYSTEM},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct rewarm_error err = REWARM_ERROR_INIT;
        errno = cases[i].native;
        assert_int_equal(rewarm_error_errno(&err, "doing"), -cases[i].code);
        assert_int_equal(err.native, cases[i].native);
    }
}

static void test_wrap(void **state)
{
    (void)state;
    struct rewarm_error err = REWARM_ERROR_INIT;
    assert_int_equal(rewarm_error_wrap(&err, "freezing %d", 1), -REWARM_E_SYSTEM);
    rewarm_error_clear(&err);
    rewarm_error_set(&err, REWARM_E_REFUSED, 0, "descriptor 5 is a ring");
    assert_int_equal(rewarm_error_wrap(&err, "freezing PID %d", 42), -REWARM_E_REFUSED);
    assert_string_equal(err.message, "freezing PID 42: descriptor 5 is a ring");
}

/* Where prefix and cause do not fit together, the cause stays. */
static void test_wrap_keeps_the_cause(void **state)
{
    (void)state;
    char cause[600];
    char prefix[900];
    memset(cause, 'c', sizeof(cause) - 1);
    memset(prefix, 'p', sizeof(prefix) - 1);
    cause[sizeof(cause) - 1] = prefix[sizeof(prefix) - 1] = '\0';
    struct rewarm_error err = REWARM_ERROR_INIT;
    rewarm_error_set(&err, REWARM_E_SYSTEM, 0, "%s", cause);
    rewarm_error_wrap(&err, "%s", prefix);
    size_t length = strlen(err.message);
    assert_true(length < sizeof(err.message));
    assert_string_equal(err.message + length - strlen(cause), cause);
    assert_int_equal(err.message[0], 'p');
}

static void test_too_long(void **state)
{
    (void)state;
    char text[3000];
    memset(text, 'x', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    struct rewarm_error err = REWARM_ERROR_INIT;
    rewarm_error_set(&err, REWARM_E_SYSTEM, EIO, "%s", text);
    assert_int_equal(strlen(err.message), sizeof(err.message) - 1);
    rewarm_error_wrap(&err, "%s", text);
    assert_int_equal(strlen(err.message), sizeof(err.message) - 1);
}

/* The numbers are the exit codes of the command, and the names are in --json: both are pinned. */
static void test_codes_are_pinned(void **state)
{
    (void)state;
    static const char *const names[] = {"ok",     "system",  "usage",      "not-found", "refused",
                                        "misfit", "corrupt", "permission", "no-space",  "busy",
                                        "criu",   "timeout", "lost",       "cancelled"};
    for (int code = 0; code <= REWARM_E_CANCELLED; code++) {
        assert_string_equal(rewarm_code_name(code), names[code]);
        assert_string_equal(rewarm_code_name(-code), names[code]);
    }
    assert_int_equal(REWARM_E_CANCELLED, 13);
    assert_string_equal(rewarm_code_name(REWARM_E_CANCELLED + 1), "unknown");
    assert_string_equal(rewarm_code_name(-1000), "unknown");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_first_error_wins),
        cmocka_unit_test(test_null_error),
        cmocka_unit_test(test_native_text),
        cmocka_unit_test(test_errno_codes),
        cmocka_unit_test(test_wrap),
        cmocka_unit_test(test_wrap_keeps_the_cause),
        cmocka_unit_test(test_too_long),
        cmocka_unit_test(test_codes_are_pinned),
    };
    return cmocka_run_group_tests_name("error", tests, NULL, NULL);
}

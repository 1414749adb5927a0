#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/clean.h"
#include "snapshot/identity.h"
#include "snapshot/ready.h"

static char sh[] = "sh", dash_c[] = "-c", yes[] = "true", no[] = "false";
static char nowhere[] = "no-such-program-anywhere";
static char *const command[] = {sh, dash_c, yes, NULL};
static char *const other[] = {sh, dash_c, no, NULL};

static json_t *identity(char *const *argv, const char *const *ignore, const json_t *like)
{
    json_t *result = NULL;
    struct rewarm_error err = REWARM_ERROR_INIT;
    if (rewarm_identity_of_command(argv, ignore, like, &result, &err) != 0)
        fail_msg("%s", err.message);
    return result;
}

static void test_same_command_fits(void **state)
{
    (void)state;
    json_t *then = identity(command, NULL, NULL);
    json_t *now = identity(command, NULL, then);
    assert_int_equal(rewarm_identity_check(then, now, NULL), 0);
    json_decref(then);
    json_decref(now);
}

static void expect_misfit(const json_t *then, json_t *now, const char *word)
{
    struct rewarm_error err = REWARM_ERROR_INIT;
    assert_int_equal(rewarm_identity_check(then, now, &err), -REWARM_E_MISFIT);
    assert_non_null(strstr(err.message, word));
    json_decref(now);
}

static void test_differences_are_named(void **state)
{
    (void)state;
    setenv("MODEL", "a", 1);
    json_t *then = identity(command, NULL, NULL);
    expect_misfit(then, identity(other, NULL, then), "command line");
    setenv("MODEL", "b", 1);
    expect_misfit(then, identity(command, NULL, then), "MODEL has changed");
    unsetenv("MODEL");
    expect_misfit(then, identity(command, NULL, then), "MODEL was removed");
    setenv("MODEL", "a", 1);
    setenv("NEW_ONE", "1", 1);
    expect_misfit(then, identity(command, NULL, then), "NEW_ONE was added");
    unsetenv("NEW_ONE");
    json_decref(then);
    unsetenv("MODEL");
}

static void test_ignored_and_volatile_variables(void **state)
{
    (void)state;
    const char *const ignore[] = {"JOB_*", NULL};
    setenv("JOB_ID", "1", 1);
    setenv("SSH_CLIENT", "a", 1);
    json_t *then = identity(command, ignore, NULL);
    setenv("JOB_ID", "2", 1);
    setenv("SSH_CLIENT", "b", 1);
    json_t *now = identity(command, ignore, then);
    assert_int_equal(rewarm_identity_check(then, now, NULL), 0);
    json_decref(now);
    json_decref(then);
    unsetenv("JOB_ID");
    unsetenv("SSH_CLIENT");
}

/* The values of variables are secrets: no record may hold them. */
static void test_values_are_not_stored(void **state)
{
    (void)state;
    setenv("API_TOKEN", "hunter2-hunter2", 1);
    json_t *then = identity(command, NULL, NULL);
    rewarm_auto_free char *text = json_dumps(then, 0);
    assert_null(strstr(text, "hunter2"));
    assert_non_null(strstr(text, "API_TOKEN"));
    json_decref(then);
    unsetenv("API_TOKEN");
}

static void test_missing_program(void **state)
{
    (void)state;
    char *const missing[] = {nowhere, NULL};
    json_t *result = NULL;
    assert_int_equal(rewarm_identity_of_command(missing, NULL, NULL, &result, NULL),
                     -REWARM_E_NOT_FOUND);
    assert_null(rewarm_identity_find_program("/etc/passwd")); /* not executable */
}

static void test_snapshot_of_a_pid_has_no_identity(void **state)
{
    (void)state;
    json_t *now = identity(command, NULL, NULL);
    json_t *null = json_null();
    expect_misfit(null, now, "rewarm restore");
}

static void test_ready_options(void **state)
{
    (void)state;
    static const char *const good[] = {"http://127.0.0.1:8000/health", "http://localhost",
                                       "http://[::1]:80/x?y=1", "http://h:1"};
    static const char *const bad[] = {"https://127.0.0.1/", "127.0.0.1:8000", "http://",
                                      "http://:80/",        "http://h:0/",    "http://h:70000/",
                                      "http://[::1:80/",    "http://h:8x/"};
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
        assert_int_equal(rewarm_ready_check(&(struct rewarm_ready){.http = good[i]}, NULL), 0);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_int_equal(rewarm_ready_check(&(struct rewarm_ready){.http = bad[i]}, NULL),
                         -REWARM_E_USAGE);
    assert_int_equal(rewarm_ready_check(&(struct rewarm_ready){.tcp = "localhost:80"}, NULL), 0);
    assert_int_equal(rewarm_ready_check(&(struct rewarm_ready){.tcp = "localhost"}, NULL),
                     -REWARM_E_USAGE);
    assert_int_equal(
        rewarm_ready_check(&(struct rewarm_ready){.tcp = "localhost:80", .file = "/x"}, NULL),
        -REWARM_E_USAGE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_command_fits),
        cmocka_unit_test(test_differences_are_named),
        cmocka_unit_test(test_ignored_and_volatile_variables),
        cmocka_unit_test(test_values_are_not_stored),
        cmocka_unit_test(test_missing_program),
        cmocka_unit_test(test_snapshot_of_a_pid_has_no_identity),
        cmocka_unit_test(test_ready_options),
    };
    return cmocka_run_group_tests_name("identity", tests, NULL, NULL);
}

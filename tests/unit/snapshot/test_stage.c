#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "run_folder.h"
#include "snapshot/session.h"
#include "snapshot/stage.h"

/* Each run and undo leaves a letter: upper case ran, lower case was undone. */
struct record {
    char letters[32];
    size_t count;
    char fail_at;
};

static void leave(struct record *record, char letter)
{
    record->letters[record->count++] = letter;
}

static int run(struct record *record, char letter, struct rewarm_error *err)
{
    leave(record, letter);
    if (letter == record->fail_at)
        return rewarm_error_set(err, REWARM_E_NO_SPACE, 0, "stage %c", letter);
    return 0;
}

#define STAGE(lower, upper)                                                                        \
    static int run_##lower(void *context, struct rewarm_error *err)                                \
    {                                                                                              \
        return run(context, upper, err);                                                           \
    }                                                                                              \
    static void undo_##lower(void *context)                                                        \
    {                                                                                              \
        leave(context, #lower[0]);                                                                 \
    }

STAGE(a, 'A')
STAGE(b, 'B')
STAGE(c, 'C')

static const struct rewarm_stage stages[] = {
    {"a", run_a, undo_a}, {"b", run_b, NULL}, {"c", run_c, undo_c}};

static int run_all(struct record *record, struct rewarm_stage_times *times,
                   struct rewarm_error *err)
{
    struct rewarm_session none = {0};
    return rewarm_stages_run("test", stages, 3, &none, record, times, err);
}

static void test_success(void **state)
{
    (void)state;
    struct record record = {0};
    struct rewarm_stage_times times = {0};
    assert_int_equal(run_all(&record, &times, NULL), 0);
    assert_string_equal(record.letters, "ABC");
    assert_int_equal(times.count, 3);
    assert_string_equal(times.stages[2].name, "c");
    assert_true(times.stages[2].start_ns >= times.stages[1].end_ns);
    (void)undo_b;
}

/* The failed stage is undone too: it may have done half its work. */
static void test_undo_in_reverse(void **state)
{
    (void)state;
    struct rewarm_error err = REWARM_ERROR_INIT;
    struct record record = {.fail_at = 'C'};
    assert_int_equal(run_all(&record, NULL, &err), -REWARM_E_NO_SPACE);
    assert_string_equal(record.letters, "ABCca");
    assert_string_equal(err.message, "stage C");

    record = (struct record){.fail_at = 'A'};
    assert_int_equal(run_all(&record, NULL, NULL), -REWARM_E_NO_SPACE);
    assert_string_equal(record.letters, "Aa");
}

static void test_fault_fail(void **state)
{
    (void)state;
    struct record record = {0};
    setenv("REWARM_FAULT", "test/b/fail", 1);
    assert_int_equal(run_all(&record, NULL, NULL), -REWARM_E_SYSTEM);
    unsetenv("REWARM_FAULT");
    assert_string_equal(record.letters, "ABa");
}

/* Killed at a stage, the journal says which. */
static void test_fault_kill(void **state)
{
    (void)state;
    pid_t pid = fork();
    if (pid == 0) {
        struct rewarm_session session;
        struct record record = {0};
        setenv("REWARM_FAULT", "test/b", 1);
        if (rewarm_session_open("test", "x", &session, NULL) == 0)
            rewarm_stages_run("test", stages, 3, &session, &record, NULL, NULL);
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_success),
        cmocka_unit_test(test_undo_in_reverse),
        cmocka_unit_test(test_fault_fail),
        cmocka_unit_test(test_fault_kill),
    };
    return cmocka_run_group_tests_name("stage", tests, run_folder_set_up, run_folder_tear_down);
}

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clean.h"
#include "base/fs.h"
#include "base/str.h"
#include "base/trace.h"

static void test_parse(void **state)
{
    (void)state;
    static const char text[] =
        "{\"lane\":\"fill\",\"name\":\"chunks\",\"t0\":200,\"t1\":300,\"bytes\":4096}\n"
        "not json\n"
        "{\"lane\":\"fill\",\"name\":\"no end\",\"t0\":200}\n"
        "{\"lane\":5,\"name\":\"wrong type\",\"t0\":200,\"t1\":300,\"bytes\":0}\n"
        "{\"lane\":\"fill\",\"name\":\"backwards\",\"t0\":300,\"t1\":200,\"bytes\":0}\n"
        "\n"
        "{\"lane\":\"criu\",\"name\":\"skeleton\",\"t0\":100,\"t1\":150,\"bytes\":0}\n"
        "{\"lane\":\"criu\",\"name\":\"cut of"; /* where a crash ended it */
    struct rewarm_span *spans = NULL;
    size_t count = 0;
    assert_int_equal(rewarm_trace_parse(text, sizeof(text) - 1, &spans, &count, NULL), 0);
    assert_int_equal(count, 2);
    assert_string_equal(spans[0].lane, "criu"); /* sorted by start */
    assert_string_equal(spans[0].name, "skeleton");
    assert_int_equal(spans[0].start_ns, 100);
    assert_int_equal(spans[0].end_ns, 150);
    assert_string_equal(spans[1].name, "chunks");
    assert_int_equal(spans[1].bytes, 4096);
    free(spans);
}

static void test_parse_nothing(void **state)
{
    (void)state;
    struct rewarm_span *spans = NULL;
    size_t count = 5;
    assert_int_equal(rewarm_trace_parse("", 0, &spans, &count, NULL), 0);
    assert_int_equal(count, 0);
    free(spans);
}

/* Names that do not fit are cut, and nothing is read past the end of the text. */
static void test_parse_long_names(void **state)
{
    (void)state;
    char name[200];
    memset(name, 'n', sizeof(name) - 1);
    name[sizeof(name) - 1] = '\0';
    rewarm_auto_free char *line = rewarm_str_format(
        "{\"lane\":\"%s\",\"name\":\"%s\",\"t0\":1,\"t1\":2,\"bytes\":0}", name, name);
    /* On the heap without its NUL: the sanitizer sees a read too far. */
    size_t bytes = strlen(line);
    rewarm_auto_free char *exact = rewarm_mem_new(bytes, 1);
    memcpy(exact, line, bytes);
    struct rewarm_span *spans = NULL;
    size_t count = 0;
    assert_int_equal(rewarm_trace_parse(exact, bytes, &spans, &count, NULL), 0);
    assert_int_equal(count, 1);
    assert_int_equal(strlen(spans[0].lane), sizeof(spans[0].lane) - 1);
    assert_int_equal(strlen(spans[0].name), sizeof(spans[0].name) - 1);
    free(spans);
}

/* Two processes append to one file, as a freeze does; nothing is lost and no lines mix. */
static void test_two_writers(void **state)
{
    (void)state;
    enum { each = 500 };
    const char *base = getenv("TMPDIR");
    rewarm_auto_free char *path =
        rewarm_str_format("%s/rewarm-test-trace-XXXXXX", base != NULL ? base : "/tmp");
    rewarm_auto_fd int fd = mkstemp(path);
    assert_true(fd >= 0);
    struct rewarm_error err = REWARM_ERROR_INIT;
    assert_int_equal(rewarm_trace_open(AT_FDCWD, path, &err), 0);
    pid_t child = fork();
    for (unsigned i = 0; i < each; i++)
        rewarm_trace_span(child == 0 ? "child" : "parent", "span", 1000 + i, 2000 + i, i);
    if (child == 0)
        _exit(0);
    int status = 1;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    rewarm_trace_close();
    rewarm_trace_span("late", "after the close: dropped", 1, 2, 0);

    rewarm_auto_free char *text = NULL;
    size_t bytes = 0;
    assert_int_equal(rewarm_fs_read_file(AT_FDCWD, path, 1 << 20, &text, &bytes, &err), 0);
    unlink(path);
    struct rewarm_span *spans = NULL;
    size_t count = 0;
    assert_int_equal(rewarm_trace_parse(text, bytes, &spans, &count, &err), 0);
    assert_int_equal(count, 2 * each);
    size_t parents = 0;
    for (size_t i = 0; i < count; i++) {
        assert_int_equal(spans[i].end_ns - spans[i].start_ns, 1000);
        assert_int_equal(spans[i].bytes, spans[i].start_ns - 1000);
        parents += strcmp(spans[i].lane, "parent") == 0;
    }
    assert_int_equal(parents, each);
    free(spans);
}

static void test_open_fails(void **state)
{
    (void)state;
    struct rewarm_error err = REWARM_ERROR_INIT;
    assert_int_equal(rewarm_trace_open(AT_FDCWD, "/nowhere/trace", &err), -REWARM_E_NOT_FOUND);
    rewarm_trace_span("lane", "no file is open: dropped", 1, 2, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parse),
        cmocka_unit_test(test_parse_nothing),
        cmocka_unit_test(test_parse_long_names),
        cmocka_unit_test(test_two_writers),
        cmocka_unit_test(test_open_fails),
    };
    return cmocka_run_group_tests_name("trace", tests, NULL, NULL);
}

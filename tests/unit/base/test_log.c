#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clean.h"
#include "base/log.h"

/* Puts a memory file in the place of stderr while a test logs; `text` gets what was written. */
struct capture {
    int saved, file;
    char text[8192];
};

static void capture_begin(struct capture *capture)
{
    capture->file = memfd_create("log", MFD_CLOEXEC);
    capture->saved = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 10);
    assert_true(capture->file >= 0 && capture->saved >= 0);
    assert_int_equal(dup2(capture->file, STDERR_FILENO), STDERR_FILENO);
}

static void capture_end(struct capture *capture)
{
    dup2(capture->saved, STDERR_FILENO);
    close(capture->saved);
    ssize_t bytes = pread(capture->file, capture->text, sizeof(capture->text) - 1, 0);
    close(capture->file);
    assert_true(bytes >= 0);
    capture->text[bytes] = '\0';
}

static void test_levels(void **state)
{
    (void)state;
    struct capture capture;
    assert_int_equal(rewarm_log_level(), REWARM_LOG_NOTE); /* the default */
    capture_begin(&capture);
    rewarm_verbose("hidden %d", 1);
    rewarm_note("shown %d", 2);
    rewarm_log_set_level(REWARM_LOG_DEBUG);
    rewarm_debug("shown %d", 3);
    rewarm_log_set_level(REWARM_LOG_ERROR);
    rewarm_warn("hidden %d", 4);
    rewarm_log(REWARM_LOG_ERROR, "shown %d", 5);
    rewarm_log_set_level(REWARM_LOG_NOTE);
    capture_end(&capture);
    assert_string_equal(capture.text,
                        "rewarm: shown 2\nrewarm: debug: shown 3\nrewarm: error: shown 5\n");
}

/* A line that is too long is cut, and is one line still. */
static void test_long_line(void **state)
{
    (void)state;
    char text[5000];
    memset(text, 'x', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    struct capture capture;
    capture_begin(&capture);
    rewarm_note("%s", text);
    capture_end(&capture);
    size_t length = strlen(capture.text);
    assert_true(length > 1000 && length < sizeof(text));
    assert_ptr_equal(strchr(capture.text, '\n'), capture.text + length - 1);
}

static void test_keeps_errno(void **state)
{
    (void)state;
    struct capture capture;
    capture_begin(&capture);
    close(STDERR_FILENO); /* so that write(2) fails */
    errno = ENOTTY;
    rewarm_note("lost");
    int kept = errno;
    capture_end(&capture);
    assert_int_equal(kept, ENOTTY);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_levels),
        cmocka_unit_test(test_long_line),
        cmocka_unit_test(test_keeps_errno),
    };
    return cmocka_run_group_tests_name("log", tests, NULL, NULL);
}

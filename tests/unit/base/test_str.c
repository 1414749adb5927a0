#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/clean.h"
#include "base/str.h"

static void test_bytes(void **state)
{
    (void)state;
    static const struct {
        uint64_t bytes;
        const char *text;
    } cases[] = {
        {0, "0 B"},
        {1023, "1023 B"},
        {1024, "1.0 KiB"},
        {1536, "1.5 KiB"},
        {100 << 20, "100 MiB"},
        {(uint64_t)5 << 30, "5.0 GiB"},
        {UINT64_MAX, "16.0 EiB"},
    };
    char out[REWARM_STR_HUMAN];
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        assert_string_equal(rewarm_str_bytes(cases[i].bytes, out), cases[i].text);
}

static void test_seconds(void **state)
{
    (void)state;
    char out[REWARM_STR_HUMAN];
    assert_string_equal(rewarm_str_seconds(0, out), "0.000 s");
    assert_string_equal(rewarm_str_seconds(43000000, out), "0.043 s");
    assert_string_equal(rewarm_str_seconds(12340000000, out), "12.3 s");
    rewarm_str_seconds(UINT64_MAX, out);
    assert_true(rewarm_str_ends(out, " s"));
}

static void test_names(void **state)
{
    (void)state;
    static const char *const good[] = {"a", "llama", "A-1_b.c", "9", "_x"};
    static const char *const bad[] = {"",    ".",   "..",          ".hidden", "-rf", "a/b",
                                      "a b", "a\n", "caf\303\251", "a*",      "../x"};
    struct rewarm_error err = REWARM_ERROR_INIT;
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
        assert_int_equal(rewarm_str_check_name(good[i], &err), 0);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        rewarm_error_clear(&err);
        assert_int_equal(rewarm_str_check_name(bad[i], &err), -REWARM_E_USAGE);
        assert_int_equal(err.code, REWARM_E_USAGE);
    }
    char name[130];
    memset(name, 'n', sizeof(name) - 1);
    name[128] = '\0';
    rewarm_error_clear(&err);
    assert_int_equal(rewarm_str_check_name(name, &err), 0);
    name[128] = 'n';
    name[129] = '\0';
    assert_int_equal(rewarm_str_check_name(name, &err), -REWARM_E_USAGE);
}

static void test_u64(void **state)
{
    (void)state;
    uint64_t value = 77;
    static const char *const bad[] = {
        "", "-1", "+1", " 1", "1 ", "x", "1x", "0x1", "18446744073709551616"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_false(rewarm_str_to_u64(bad[i], &value));
    assert_int_equal(value, 77); /* outputs are not written on failure */
    assert_true(rewarm_str_to_u64("18446744073709551615", &value));
    assert_true(value == UINT64_MAX);
    assert_true(rewarm_str_to_u64("007", &value)); /* decimal, whatever leads */
    assert_int_equal(value, 7);
}

static void test_hex(void **state)
{
    (void)state;
    static const unsigned char data[] = {0x00, 0x7f, 0x80, 0xff};
    char text[2 * sizeof(data) + 1];
    rewarm_str_hex(data, sizeof(data), text);
    assert_string_equal(text, "007f80ff");
    unsigned char back[sizeof(data)];
    assert_true(rewarm_str_unhex(text, back, sizeof(back)));
    assert_memory_equal(back, data, sizeof(data));
    assert_false(rewarm_str_unhex("007f80f", back, sizeof(back)));
    assert_false(rewarm_str_unhex("007f80ff0", back, sizeof(back)));
    assert_false(rewarm_str_unhex("007f80fg", back, sizeof(back)));
    assert_false(rewarm_str_unhex("007F80FF", back, sizeof(back))); /* one spelling of a digest */
    rewarm_str_hex(data, 0, text);
    assert_string_equal(text, "");
}

static void test_starts_and_ends(void **state)
{
    (void)state;
    assert_true(rewarm_str_starts("pages-1.img", "pages-"));
    assert_false(rewarm_str_starts("page", "pages-"));
    assert_true(rewarm_str_ends("pages-1.img", ".img"));
    assert_false(rewarm_str_ends("img", ".img"));
    assert_true(rewarm_str_ends("x", ""));
}

static void test_grow(void **state)
{
    (void)state;
    int *array = NULL;
    size_t capacity = 0;
    for (size_t count = 0; count < 1000; count++) {
        REWARM_GROW(&array, &capacity, count);
        assert_true(capacity > count);
        array[count] = (int)count;
    }
    for (size_t i = 0; i < 1000; i++)
        assert_int_equal(array[i], i);
    free(array);
}

static void test_allocation(void **state)
{
    (void)state;
    rewarm_auto_free char *text = rewarm_str_format("%s-%d", "a", 5);
    assert_string_equal(text, "a-5");
    rewarm_auto_free char *copy = rewarm_str_dup(text);
    assert_string_equal(copy, text);
    assert_ptr_not_equal(copy, text);
    rewarm_auto_free unsigned char *zeros = rewarm_mem_new(100, 3);
    for (size_t i = 0; i < 300; i++)
        assert_int_equal(zeros[i], 0);
    rewarm_auto_free void *none = rewarm_mem_new(0, 8);
    assert_non_null(none); /* NULL would read as a failure */
}

static void test_steal(void **state)
{
    (void)state;
    char *kept = NULL;
    {
        rewarm_auto_free char *text = rewarm_str_dup("mine");
        kept = rewarm_steal_ptr(&text);
        assert_null(text);
    }
    assert_string_equal(kept, "mine");
    free(kept);
    int fd = 5;
    assert_int_equal(rewarm_steal_fd(&fd), 5);
    assert_int_equal(fd, -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bytes), cmocka_unit_test(test_seconds),
        cmocka_unit_test(test_names), cmocka_unit_test(test_u64),
        cmocka_unit_test(test_hex),   cmocka_unit_test(test_starts_and_ends),
        cmocka_unit_test(test_grow),  cmocka_unit_test(test_allocation),
        cmocka_unit_test(test_steal),
    };
    return cmocka_run_group_tests_name("str", tests, NULL, NULL);
}

#include "base/str.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Nothing sensible can be done without a few bytes, and going on half-way would be worse: the undo
 * of whatever was under way is in the journal. */
static void *checked(void *pointer)
{
    if (pointer == NULL)
        abort();
    return pointer;
}

char *rewarm_str_format(const char *format, ...)
{
    char *text = NULL;
    va_list args;
    va_start(args, format);
    int length = vasprintf(&text, format, args);
    va_end(args);
    return checked(length < 0 ? NULL : text);
}

char *rewarm_str_dup(const char *text)
{
    return checked(strdup(text));
}

void *rewarm_mem_new(size_t count, size_t bytes)
{
    return checked(calloc(count != 0 ? count : 1, bytes));
}

void *rewarm_mem_resize(void *old, size_t count, size_t bytes)
{
    return checked(reallocarray(old, count != 0 ? count : 1, bytes));
}

bool rewarm_str_starts(const char *text, const char *prefix)
{
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

bool rewarm_str_ends(const char *text, const char *suffix)
{
    size_t length = strlen(text);
    size_t tail = strlen(suffix);
    return length >= tail && strcmp(text + length - tail, suffix) == 0;
}

char *rewarm_str_bytes(uint64_t bytes, char out[REWARM_STR_HUMAN])
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    unsigned unit = 0;
    double value = (double)bytes;
    while (value >= 1024.0 && unit < 6) {
        value /= 1024.0;
        unit++;
    }
    int digits = unit == 0 || value >= 100.0 ? 0 : 1;
    snprintf(out, REWARM_STR_HUMAN, "%.*f %s", digits, value, units[unit]);
    return out;
}

char *rewarm_str_seconds(uint64_t ns, char out[REWARM_STR_HUMAN])
{
    double s = (double)ns / 1e9;
    snprintf(out, REWARM_STR_HUMAN, s < 10.0 ? "%.3f s" : "%.1f s", s);
    return out;
}

int rewarm_str_check_name(const char *name, struct rewarm_error *err)
{
    static const char allowed[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    size_t length = strlen(name);
    if (length == 0 || length > 128 || name[0] == '.' || name[0] == '-' ||
        strspn(name, allowed) != length)
        return rewarm_error_set(
            err, REWARM_E_USAGE, 0,
            "'%.140s' is no name: use 1 to 128 letters, digits, '.', '_' and '-', "
            "not starting with '.' or '-'",
            name);
    return 0;
}

bool rewarm_str_to_u64(const char *text, uint64_t *ret_value)
{
    if (text[0] < '0' || text[0] > '9')
        return false;
    char *end = NULL;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno != 0 || *end != '\0')
        return false;
    *ret_value = value;
    return true;
}

void rewarm_str_hex(const void *data, size_t bytes, char *out)
{
    static const char digits[] = "0123456789abcdef";
    const unsigned char *in = data;
    for (size_t i = 0; i < bytes; i++) {
        out[2 * i] = digits[in[i] >> 4];
        out[2 * i + 1] = digits[in[i] & 15];
    }
    out[2 * bytes] = '\0';
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return -1;
}

bool rewarm_str_unhex(const char *text, void *data, size_t bytes)
{
    unsigned char *out = data;
    if (strlen(text) != 2 * bytes)
        return false;
    for (size_t i = 0; i < bytes; i++) {
        int high = hex_digit(text[2 * i]);
        int low = hex_digit(text[2 * i + 1]);
        if (high < 0 || low < 0)
            return false;
        out[i] = (unsigned char)(high << 4 | low);
    }
    return true;
}

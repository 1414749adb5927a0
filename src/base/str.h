/* Strings: formatted allocation, human-readable sizes and times, names that are safe as file names.
 */
#ifndef REWARM_BASE_STR_H
#define REWARM_BASE_STR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

/* asprintf that aborts on an exhausted heap, as every small allocation here does. Free the result.
 */
char *rewarm_str_format(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* strdup, calloc and reallocarray that abort on an exhausted heap. */
char *rewarm_str_dup(const char *text);
void *rewarm_mem_new(size_t count, size_t bytes);
void *rewarm_mem_resize(void *old, size_t count, size_t bytes);

/* Grows `*array` so that element `count` exists; doubles. `*capacity` is in elements. */
#define REWARM_GROW(array, capacity, count)                                                        \
    do {                                                                                           \
        if ((count) >= *(capacity)) {                                                              \
            *(capacity) = *(capacity) != 0 ? *(capacity) * 2 : 16;                                 \
            *(array) = rewarm_mem_resize(*(array), *(capacity), sizeof(**(array)));                \
        }                                                                                          \
    } while (0)

bool rewarm_str_starts(const char *text, const char *prefix);
bool rewarm_str_ends(const char *text, const char *suffix);

/* "1.5 GiB", "0.043 s" into a buffer of at least REWARM_STR_HUMAN bytes; returns it. */
#define REWARM_STR_HUMAN 32
char *rewarm_str_bytes(uint64_t bytes, char out[REWARM_STR_HUMAN]);
char *rewarm_str_seconds(uint64_t ns, char out[REWARM_STR_HUMAN]);

/* Names of snapshots and workers: 1 to 128 of [A-Za-z0-9._-], not starting with '.' or '-'. */
int rewarm_str_check_name(const char *name, struct rewarm_error *err);

/* Whole-string numbers; false on anything else, overflow included. */
bool rewarm_str_to_u64(const char *text, uint64_t *ret_value);

/* Lower-case hex of `bytes` bytes into `out` (2 * bytes + 1), and back; false on a bad digit. */
void rewarm_str_hex(const void *data, size_t bytes, char *out);
bool rewarm_str_unhex(const char *text, void *data, size_t bytes);

#endif

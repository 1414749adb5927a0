/* Tables are kept as text cells until all of them are there, then printed with the widths they
 * need; the last column is never padded. JSON is written by jansson into stdout's buffer. Write
 * errors are looked at once, at the end: stdio remembers them. */
#include "output.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clean.h"
#include "base/str.h"
#include "base/time.h"

struct rewarm_table {
    size_t columns;
    char **cells; /* the headings are the first row */
    size_t count, capacity;
    bool *right;
};

static void add_cell(struct rewarm_table *table, char *text)
{
    REWARM_GROW(&table->cells, &table->capacity, table->count);
    table->cells[table->count++] = rewarm_output_clean(text);
}

struct rewarm_table *rewarm_table_new(const char *const *heads)
{
    struct rewarm_table *table = rewarm_mem_new(1, sizeof(*table));
    while (heads[table->columns] != NULL)
        table->columns++;
    table->right = rewarm_mem_new(table->columns, sizeof(*table->right));
    for (size_t i = 0; i < table->columns; i++) {
        table->right[i] = heads[i][0] == '>';
        add_cell(table, rewarm_str_dup(heads[i] + (table->right[i] ? 1 : 0)));
    }
    return table;
}

void rewarm_table_free(struct rewarm_table *table)
{
    if (table == NULL)
        return;
    for (size_t i = 0; i < table->count; i++)
        free(table->cells[i]);
    free(table->cells);
    free(table->right);
    free(table);
}

void rewarm_table_cell(struct rewarm_table *table, const char *format, ...)
{
    char *text;
    va_list args;
    va_start(args, format);
    int length = vasprintf(&text, format, args);
    va_end(args);
    add_cell(table, length >= 0 ? text : rewarm_str_dup("?"));
}

void rewarm_table_bytes(struct rewarm_table *table, uint64_t bytes)
{
    char text[REWARM_STR_HUMAN];
    rewarm_table_cell(table, "%s", rewarm_str_bytes(bytes, text));
}

void rewarm_table_seconds(struct rewarm_table *table, uint64_t ns)
{
    char text[REWARM_STR_HUMAN];
    rewarm_table_cell(table, "%s", rewarm_str_seconds(ns, text));
}

/* Characters, not bytes, so that names in UTF-8 line up. */
static size_t text_width(const char *text)
{
    size_t width = 0;
    for (; *text != '\0'; text++)
        width += ((unsigned char)*text & 0xc0) != 0x80 ? 1 : 0;
    return width;
}

void rewarm_table_print(const struct rewarm_table *table)
{
    rewarm_auto_free size_t *widths = rewarm_mem_new(table->columns, sizeof(*widths));
    for (size_t i = 0; i < table->count; i++) {
        size_t width = text_width(table->cells[i]);
        if (width > widths[i % table->columns])
            widths[i % table->columns] = width;
    }
    for (size_t i = 0; i < table->count; i++) {
        size_t column = i % table->columns;
        bool last = column + 1 == table->columns;
        int padding = (int)(widths[column] - text_width(table->cells[i]));
        if (table->right[column])
            printf("%*s%s", padding, "", table->cells[i]);
        else
            printf("%s%*s", table->cells[i], last ? 0 : padding, "");
        fputs(last ? "\n" : "  ", stdout);
    }
}

char *rewarm_output_clean(char *text)
{
    for (char *at = text; *at != '\0'; at++) {
        if ((unsigned char)*at < 0x20 || *at == 0x7f)
            *at = '?';
    }
    return text;
}

char *rewarm_output_age(uint64_t ns, char out[32])
{
    static const struct {
        uint64_t seconds;
        const char *unit;
    } units[] = {{86400, "d"}, {3600, "h"}, {60, "min"}, {1, "s"}};
    uint64_t seconds = ns / REWARM_NS_PER_S;
    size_t i = 0;
    while (i < 3 && seconds < 2 * units[i].seconds)
        i++;
    snprintf(out, 32, "%llu %s", (unsigned long long)(seconds / units[i].seconds), units[i].unit);
    return out;
}

void rewarm_output_json(struct rewarm_cli *cli, json_t *value)
{
    json_dumpf(value, stdout, JSON_INDENT(2) | JSON_ENCODE_ANY | JSON_REAL_PRECISION(12));
    fputc('\n', stdout);
    json_decref(value);
    cli->answered = true;
}

int rewarm_output_end(struct rewarm_error *err)
{
    errno = 0;
    bool failed = fflush(stdout) != 0;
    if (!failed && !ferror(stdout))
        return 0;
    /* An earlier write's errno is lost; with EPIPE the flush fails again, as it keeps what is
     * unwritten. */
    if (errno == EPIPE || errno == 0)
        return 0;
    return rewarm_error_errno(err, "writing to standard output");
}

const char *rewarm_json_text(const json_t *object, const char *key, const char *fallback)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text != NULL ? text : fallback;
}

uint64_t rewarm_json_u64(const json_t *object, const char *key)
{
    json_int_t value = json_integer_value(json_object_get(object, key));
    return value > 0 ? (uint64_t)value : 0;
}

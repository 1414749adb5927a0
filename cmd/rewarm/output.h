/* Answers on stdout: tables for people, JSON for programs. */
#ifndef REWARM_CMD_OUTPUT_H
#define REWARM_CMD_OUTPUT_H

#include <jansson.h>
#include <stdint.h>

#include "options.h"

/* A table is filled cell by cell, row after row, and printed once its columns' widths are known. */
struct rewarm_table;

/* `heads` has one heading a column, NULL-terminated; one that starts with '>' is for a column of
 * numbers and set to the right. */
struct rewarm_table *rewarm_table_new(const char *const *heads);
void rewarm_table_free(struct rewarm_table *table);

/* The next cell. Control characters become '?': names and commands may come from other people's
 * files. */
void rewarm_table_cell(struct rewarm_table *table, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
void rewarm_table_bytes(struct rewarm_table *table, uint64_t bytes);
void rewarm_table_seconds(struct rewarm_table *table, uint64_t ns);
void rewarm_table_print(const struct rewarm_table *table);

/* Replaces control characters in place; returns `text`. */
char *rewarm_output_clean(char *text);

/* "12 s", "3 min", "5 h", "9 d". */
char *rewarm_output_age(uint64_t ns, char out[32]);

/* Prints a JSON document, takes the reference, and notes that the answer is out. */
void rewarm_output_json(struct rewarm_cli *cli, json_t *value);

/* Flushes stdout. Returns 0, also when the reader has gone (it has had what it wanted), or
 * REWARM_E_SYSTEM / REWARM_E_NO_SPACE with err set. */
int rewarm_output_end(struct rewarm_error *err);

/* A manifest's values; the default where one is missing, as in a manifest that a newer rewarm
 * wrote. */
const char *rewarm_json_text(const json_t *object, const char *key, const char *fallback);
uint64_t rewarm_json_u64(const json_t *object, const char *key);

#endif

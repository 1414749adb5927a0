/* `rewarm ls`: the snapshots of the store and what they take. */
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "commands.h"
#include "output.h"

static const json_t *totals_of(const struct rewarm_store_entry *entry)
{
    return json_object_get(entry->manifest, "totals");
}

static size_t processes_of(const struct rewarm_store_entry *entry)
{
    return json_array_size(json_object_get(json_object_get(entry->manifest, "snapshot"), "tree"));
}

static json_t *entry_json(const struct rewarm_store_entry *entry)
{
    if (entry->manifest == NULL)
        return json_pack("{s:s, s:s}", "name", entry->name, "problem", entry->problem);
    const json_t *totals = totals_of(entry);
    return json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:i, s:n}", "name", entry->name, "created",
                     rewarm_json_text(entry->manifest, "created", ""), "logical_bytes",
                     (json_int_t)rewarm_json_u64(totals, "logical_bytes"), "zero_bytes",
                     (json_int_t)rewarm_json_u64(totals, "zero_bytes"), "stored_bytes",
                     (json_int_t)rewarm_json_u64(totals, "stored_bytes"), "shared_bytes",
                     (json_int_t)rewarm_json_u64(totals, "shared_bytes"), "processes",
                     (int)processes_of(entry), "problem");
}

static void print_table(const struct rewarm_store_entry *entries, size_t count)
{
    static const char *const heads[] = {"NAME",    "CREATED",    ">LOGICAL", ">STORED",
                                        ">SHARED", ">PROCESSES", "STATE",    NULL};
    struct rewarm_table *table = rewarm_table_new(heads);
    for (size_t i = 0; i < count; i++) {
        const struct rewarm_store_entry *entry = &entries[i];
        rewarm_table_cell(table, "%s", entry->name);
        if (entry->manifest == NULL) {
            for (int column = 1; column <= 5; column++)
                rewarm_table_cell(table, "-");
            rewarm_table_cell(table, "%s", entry->problem);
            continue;
        }
        const json_t *totals = totals_of(entry);
        rewarm_table_cell(table, "%s", rewarm_json_text(entry->manifest, "created", "-"));
        rewarm_table_bytes(table, rewarm_json_u64(totals, "logical_bytes"));
        rewarm_table_bytes(table, rewarm_json_u64(totals, "stored_bytes"));
        rewarm_table_bytes(table, rewarm_json_u64(totals, "shared_bytes"));
        rewarm_table_cell(table, "%zu", processes_of(entry));
        rewarm_table_cell(table, "ok");
    }
    rewarm_table_print(table);
    rewarm_table_free(table);
}

static void print_entries(struct rewarm_cli *cli, const struct rewarm_store_entry *entries,
                          size_t count)
{
    if (cli->json) {
        json_t *array = json_array();
        for (size_t i = 0; i < count; i++)
            json_array_append_new(array, entry_json(&entries[i]));
        rewarm_output_json(cli, array);
    } else if (cli->quiet) {
        for (size_t i = 0; i < count; i++)
            puts(entries[i].name);
    } else {
        print_table(entries, count);
    }
}

static int ls_run(struct rewarm_cli *cli, const void *values, char **operands, size_t count)
{
    (void)values, (void)operands, (void)count;
    struct rewarm_error err = REWARM_ERROR_INIT;
    struct rewarm_store_entry *entries;
    size_t entry_count;
    rewarm_auto_store struct rewarm_store *store = NULL;
    int rc = rewarm_cli_open_store(cli, false, &store, &err);
    if (rc == -REWARM_E_NOT_FOUND) { /* nothing was frozen yet */
        rewarm_verbose("%s", err.message);
        print_entries(cli, NULL, 0);
        return 0;
    }
    if (rc == 0)
        rc = rewarm_store_list(store, &entries, &entry_count, &err);
    if (rc < 0)
        return rewarm_cli_fail(cli, &err);
    print_entries(cli, entries, entry_count);
    rewarm_store_entries_free(entries, entry_count);
    return 0;
}

const struct rewarm_cli_command rewarm_command_ls = {
    .name = "ls",
    .operands = "",
    .summary = "List the snapshots and their sizes",
    .details =
        "LOGICAL is all memory and images, STORED what this snapshot added to the store, SHARED "
        "what was there already. STATE is ok, or what is wrong; rewarm verify reads the bytes.",
    .json = true,
    .run = ls_run,
};

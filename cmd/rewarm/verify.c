/* `rewarm verify`: reads every chunk of snapshots and checks both of its checksums. */
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/str.h"
#include "base/time.h"
#include "commands.h"
#include "output.h"
#include "progress.h"

struct verify_values {
    bool all;
};

static const struct rewarm_cli_option verify_options[] = {
    {.name = "all",
     .help = "Every snapshot of the store",
     .kind = REWARM_CLI_FLAG,
     .offset = offsetof(struct verify_values, all)},
    {0},
};

/* One snapshot's check. */
struct checking {
    struct rewarm_cli_progress *progress;
    json_t *damages;
    uint64_t done_bytes;
};

static void report(void *context, const char *damage, uint64_t done_bytes, uint64_t total_bytes)
{
    struct checking *checking = context;
    checking->done_bytes = done_bytes;
    if (damage != NULL)
        json_array_append_new(checking->damages, json_string(damage));
    else
        rewarm_cli_progress_update(checking->progress, "reading", done_bytes, total_bytes);
}

/* Returns the exit status for this snapshot; adds its object to `array` (NULL: prints). */
static int verify_one(struct rewarm_cli *cli, struct rewarm_store *store, const char *name,
                      json_t *array)
{
    struct rewarm_error err = REWARM_ERROR_INIT;
    struct checking checking = {.damages = json_array()};
    checking.progress = rewarm_cli_progress_new(cli, name, false);
    uint64_t start_ns = rewarm_time_now_ns();
    int rc = rewarm_store_verify(store, name, report, &checking, &err);
    uint64_t took_ns = rewarm_time_now_ns() - start_ns;
    rewarm_cli_progress_free(checking.progress);

    size_t damaged = json_array_size(checking.damages);
    if (array == NULL) {
        char bytes[REWARM_STR_HUMAN], seconds[REWARM_STR_HUMAN];
        for (size_t i = 0; i < damaged; i++)
            printf("%s: damaged: %s\n", name,
                   json_string_value(json_array_get(checking.damages, i)));
        if (rc == 0)
            printf("%s: ok (%s in %s)\n", name, rewarm_str_bytes(checking.done_bytes, bytes),
                   rewarm_str_seconds(took_ns, seconds));
        else if (damaged == 0)
            printf("%s: %s\n", name, err.message);
        json_decref(checking.damages);
    } else {
        json_t *object = json_pack("{s:s, s:b, s:I, s:I, s:o}", "name", name, "ok", rc == 0,
                                   "bytes", (json_int_t)checking.done_bytes, "took_ns",
                                   (json_int_t)took_ns, "damages", checking.damages);
        if (rc < 0) {
            json_object_set_new(object, "error", json_string(rewarm_code_name(rc)));
            json_object_set_new(object, "message", json_string(err.message));
        }
        json_array_append_new(array, object);
    }
    return rc < 0 ? -rc : 0;
}

static int verify_all(struct rewarm_cli *cli, struct rewarm_store *store, json_t *array,
                      int *status)
{
    struct rewarm_error err = REWARM_ERROR_INIT;
    struct rewarm_store_entry *entries;
    size_t count;
    if (rewarm_store_list(store, &entries, &count, &err) < 0)
        return rewarm_cli_fail(cli, &err);
    for (size_t i = 0; i < count; i++) {
        int one = verify_one(cli, store, entries[i].name, array);
        *status = *status != 0 ? *status : one;
    }
    rewarm_store_entries_free(entries, count);
    return 0;
}

static int verify_run(struct rewarm_cli *cli, const void *values, char **operands, size_t count)
{
    const struct verify_values *verify = values;
    struct rewarm_error err = REWARM_ERROR_INIT;
    if (verify->all == (count > 0)) {
        rewarm_error_set(&err, REWARM_E_USAGE, 0, "verify: %s",
                         verify->all ? "give names or --all, not both"
                                     : "name a snapshot, or --all");
        return rewarm_cli_fail(cli, &err);
    }
    rewarm_auto_store struct rewarm_store *store = NULL;
    int rc = rewarm_cli_open_store(cli, false, &store, &err);
    if (rc < 0 && !(verify->all && rc == -REWARM_E_NOT_FOUND))
        return rewarm_cli_fail(cli, &err);

    json_t *array = cli->json ? json_array() : NULL;
    int status = 0, failed = 0;
    if (verify->all && store != NULL)
        failed = verify_all(cli, store, array, &status);
    for (size_t i = 0; i < count; i++) {
        int one = verify_one(cli, store, operands[i], array);
        status = status != 0 ? status : one;
    }
    if (failed != 0)
        json_decref(array);
    else if (array != NULL)
        rewarm_output_json(cli, array);
    return failed != 0 ? failed : status;
}

const struct rewarm_cli_command rewarm_command_verify = {
    .name = "verify",
    .operands = "[NAME...]",
    .summary = "Read snapshots whole and check every checksum",
    .options = verify_options,
    .values_bytes = sizeof(struct verify_values),
    .operands_max = SIZE_MAX,
    .word = REWARM_WORD_SNAPSHOT,
    .json = true,
    .run = verify_run,
};

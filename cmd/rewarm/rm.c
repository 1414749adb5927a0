/* `rewarm rm` and `rewarm gc`: unpublish snapshots, and take back the space that nothing refers to.
 */
#include <stdio.h>

#include "base/log.h"
#include "base/str.h"
#include "base/time.h"
#include "commands.h"
#include "output.h"

static int rm_run(struct rewarm_cli *cli, const void *values, char **operands, size_t count)
{
    (void)values;
    struct rewarm_error err = REWARM_ERROR_INIT;
    rewarm_auto_store struct rewarm_store *store = NULL;
    if (rewarm_cli_open_store(cli, false, &store, &err) < 0)
        return rewarm_cli_fail(cli, &err);
    int status = 0;
    size_t removed = 0;
    for (size_t i = 0; i < count; i++) { /* the others too when one can't be removed */
        struct rewarm_error one = REWARM_ERROR_INIT;
        if (rewarm_store_remove(store, operands[i], &one) == 0) {
            removed++;
            continue;
        }
        int code = rewarm_cli_fail(cli, &one);
        status = status != 0 ? status : code;
    }
    if (removed > 0)
        rewarm_note("removed %zu %s; rewarm gc gives the space back", removed,
                    removed == 1 ? "snapshot" : "snapshots");
    return status;
}

const struct rewarm_cli_command rewarm_command_rm = {
    .name = "rm",
    .operands = "NAME...",
    .summary = "Delete snapshots",
    .details =
        "Running workers do not need their snapshot any more once all of their memory is in. "
        "The bytes stay in the store, for other snapshots to share, until rewarm gc.",
    .operands_min = 1,
    .operands_max = SIZE_MAX,
    .word = REWARM_WORD_SNAPSHOT,
    .run = rm_run,
};

struct gc_values {
    bool dry_run;
    uint64_t wait_ns;
};

static const struct rewarm_cli_option gc_options[] = {
    {.name = "dry-run",
     .help = "Only say what would be freed",
     .kind = REWARM_CLI_FLAG,
     .offset = offsetof(struct gc_values, dry_run)},
    {.name = "wait",
     .argument = "SECONDS",
     .help = "Wait this long for readers and writers to finish (default: not at all)",
     .kind = REWARM_CLI_SECONDS,
     .offset = offsetof(struct gc_values, wait_ns)},
    {0},
};

static void print_gc(struct rewarm_cli *cli, bool dry_run,
                     const struct rewarm_store_gc_result *result)
{
    if (cli->json) {
        rewarm_output_json(cli, json_pack("{s:b, s:I, s:I, s:i, s:i, s:i}", "dry_run", (int)dry_run,
                                          "freed_bytes", (json_int_t)result->freed_bytes,
                                          "live_bytes", (json_int_t)result->live_bytes,
                                          "packs_removed", (int)result->packs_removed,
                                          "maps_removed", (int)result->maps_removed,
                                          "stagings_removed", (int)result->stagings_removed));
        return;
    }
    char freed[REWARM_STR_HUMAN], live[REWARM_STR_HUMAN];
    printf("%s %s (packs %u, maps %u, unfinished freezes %u); %s in use\n",
           dry_run ? "would free" : "freed", rewarm_str_bytes(result->freed_bytes, freed),
           result->packs_removed, result->maps_removed, result->stagings_removed,
           rewarm_str_bytes(result->live_bytes, live));
}

static int gc_run(struct rewarm_cli *cli, const void *values, char **operands, size_t count)
{
    (void)operands, (void)count;
    const struct gc_values *gc = values;
    struct rewarm_error err = REWARM_ERROR_INIT;
    struct rewarm_store_gc_result result = {0};
    rewarm_auto_store struct rewarm_store *store = NULL;
    int rc = rewarm_cli_open_store(cli, false, &store, &err);
    if (rc == -REWARM_E_NOT_FOUND) { /* no store yet: nothing to free */
        print_gc(cli, gc->dry_run, &result);
        return 0;
    }
    if (rc < 0)
        return rewarm_cli_fail(cli, &err);
    if (!gc->dry_run)
        rewarm_cli_repair(store);
    uint64_t deadline_ns = gc->wait_ns > 0 ? rewarm_time_now_ns() + gc->wait_ns : 0;
    if (rewarm_store_gc(store, gc->dry_run, deadline_ns, &result, &err) < 0)
        return rewarm_cli_fail(cli, &err);
    print_gc(cli, gc->dry_run, &result);
    return 0;
}

const struct rewarm_cli_command rewarm_command_gc = {
    .name = "gc",
    .operands = "",
    .summary = "Give back the space that no snapshot uses",
    .details = "Never runs beside a reader or a writer: with a freeze or a restore under way it "
               "says who is busy, or waits with --wait.",
    .options = gc_options,
    .values_bytes = sizeof(struct gc_values),
    .json = true,
    .run = gc_run,
};

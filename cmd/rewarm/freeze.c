/* `rewarm freeze`: a snapshot of a tree that runs, by PID or by the name `rewarm ps` shows.
 *
 * The work is rewarm_freeze(). Here the word on the command line becomes the root of a tree and the
 * name of a snapshot; for a worker how it was started is carried over from the snapshot it belongs
 * to. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "commands.h"
#include "output.h"
#include "proc/procfs.h"
#include "progress.h"
#include "snapshot/snapshot.h"

struct freeze_values {
    const char *as;
    bool kill;
};

static const struct rewarm_cli_option freeze_options[] = {
    {.name = "as",
     .argument = "NAME",
     .help = "The snapshot's name (default: the worker's); needed with a PID",
     .kind = REWARM_CLI_TEXT,
     .word = REWARM_WORD_SNAPSHOT,
     .offset = offsetof(struct freeze_values, as)},
    {.name = "kill",
     .help = "End the worker once the snapshot is safe on disk, instead of letting it go on",
     .kind = REWARM_CLI_FLAG,
     .offset = offsetof(struct freeze_values, kill)},
    {0},
};

/* What is to be frozen. */
struct target {
    pid_t root;
    const char *name; /* of the snapshot; borrowed */
    json_t *launch;   /* how the worker was started, or NULL */
};

static int find_worker(const char *name, struct target *target, struct rewarm_error *err)
{
    struct rewarm_worker *workers;
    size_t count;
    int rc = rewarm_workers_list(&workers, &count, err);
    if (rc < 0)
        return rc;
    for (size_t i = 0; i < count && target->root == 0; i++) {
        if (strcmp(workers[i].name, name) != 0 ||
            !rewarm_proc_alive(workers[i].pid, workers[i].starttime))
            continue;
        target->root = workers[i].pid;
        /* The new snapshot needs it too, or `rewarm run` could not tell that it fits its command.
         */
        target->launch = json_incref(workers[i].launch);
    }
    rewarm_workers_free(workers, count);
    if (target->root == 0)
        return rewarm_error_set(err, REWARM_E_NOT_FOUND, 0,
                                "no worker '%s' is running; rewarm ps lists them", name);
    return 0;
}

/* PID|NAME and --as become the root of the tree and the snapshot's name. */
static int find_target(const char *word, const struct freeze_values *freeze, struct target *target,
                       struct rewarm_error *err)
{
    uint64_t pid;
    int rc = 0;
    if (rewarm_str_to_u64(word, &pid)) {
        if (freeze->as == NULL)
            return rewarm_error_set(err, REWARM_E_USAGE, 0,
                                    "freeze: a PID needs --as NAME, the snapshot's name");
        if (pid < 2 || pid > INT32_MAX)
            return rewarm_error_set(err, REWARM_E_USAGE, 0,
                                    "freeze: %s is no process that can be frozen", word);
        target->root = (pid_t)pid;
    } else {
        rc = find_worker(word, target, err);
    }
    target->name = freeze->as != NULL ? freeze->as : word;
    return rc == 0 ? rewarm_str_check_name(target->name, err) : rc;
}

static void print_result(struct rewarm_cli *cli, const char *name,
                         const struct rewarm_freeze_result *result)
{
    const struct rewarm_store_totals *totals = &result->totals;
    if (cli->json) {
        rewarm_output_json(cli, json_pack("{s:s, s:I, s:I, s:i, s:{s:I, s:I, s:I, s:I}}", "name",
                                          name, "total_ns", (json_int_t)result->total_ns,
                                          "pause_ns", (json_int_t)result->pause_ns, "processes",
                                          (int)result->processes, "totals", "logical_bytes",
                                          (json_int_t)totals->logical_bytes, "zero_bytes",
                                          (json_int_t)totals->zero_bytes, "stored_bytes",
                                          (json_int_t)totals->stored_bytes, "shared_bytes",
                                          (json_int_t)totals->shared_bytes));
        return;
    }
    if (cli->quiet)
        return;
    char total[REWARM_STR_HUMAN], pause[REWARM_STR_HUMAN], logical[REWARM_STR_HUMAN],
        stored[REWARM_STR_HUMAN], shared[REWARM_STR_HUMAN], zero[REWARM_STR_HUMAN];
    printf("%s: frozen in %s, paused for %s; %u %s, %s (%s stored, %s shared, %s zero)\n", name,
           rewarm_str_seconds(result->total_ns, total), rewarm_str_seconds(result->pause_ns, pause),
           result->processes, result->processes == 1 ? "process" : "processes",
           rewarm_str_bytes(totals->logical_bytes, logical),
           rewarm_str_bytes(totals->stored_bytes, stored),
           rewarm_str_bytes(totals->shared_bytes, shared),
           rewarm_str_bytes(totals->zero_bytes, zero));
}

static int freeze_run(struct rewarm_cli *cli, const void *values, char **operands, size_t count)
{
    (void)count;
    const struct freeze_values *freeze = values;
    struct rewarm_error err = REWARM_ERROR_INIT;
    struct target target = {0};
    struct rewarm_freeze_result result;
    rewarm_auto_store struct rewarm_store *store = NULL;
    int rc = find_target(operands[0], freeze, &target, &err);
    if (rc == 0)
        rc = rewarm_cli_open_store(cli, true, &store, &err);
    if (rc == 0) {
        rewarm_cli_repair(store);
        struct rewarm_cli_progress *progress = rewarm_cli_progress_new(cli, target.name, false);
        struct rewarm_freeze_options options = {
            .root = target.root,
            .name = target.name,
            .kill = freeze->kill,
            .launch = target.launch,
            .progress = rewarm_cli_progress_hook(progress),
        };
        rc = rewarm_freeze(store, &options, &result, &err);
        rewarm_cli_progress_free(progress);
    }
    json_decref(target.launch);
    if (rc < 0)
        return rewarm_cli_fail(cli, &err);
    print_result(cli, target.name, &result);
    return 0;
}

const struct rewarm_cli_command rewarm_command_freeze = {
    .name = "freeze",
    .operands = "PID|NAME",
    .summary = "Make a snapshot of a running tree of processes",
    .details =
        "PID is the root of the tree; NAME is a worker of rewarm ps. It goes on running unless "
        "--kill is given. When anything fails the worker serves on as before and an older "
        "snapshot of that name stays.",
    .options = freeze_options,
    .values_bytes = sizeof(struct freeze_values),
    .operands_min = 1,
    .operands_max = 1,
    .word = REWARM_WORD_WORKER,
    .json = true,
    .run = freeze_run,
};

/* `rewarm freeze`: a snapshot of a tree that runs, by PID or by the name `rewarm ps` shows. */
#include <stdio.h>
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

static int find_worker(const char *name, pid_t *ret_root, struct rewarm_error *err)
{
    struct rewarm_worker *workers;
    size_t count;
    int rc = rewarm_workers_list(&workers, &count, err);
    if (rc < 0)
        return rc;
    pid_t root = 0;
    for (size_t i = 0; i < count && root == 0; i++) {
        if (strcmp(workers[i].name, name) == 0 &&
            rewarm_proc_alive(workers[i].pid, workers[i].starttime))
            root = workers[i].pid;
    }
    rewarm_workers_free(workers, count);
    if (root == 0)
        return rewarm_error_set(err, REWARM_E_NOT_FOUND, 0,
                                "no worker '%s' is running; rewarm ps lists them", name);
    *ret_root = root;
    return 0;
}

/* PID|NAME and --as become the root of the tree and the snapshot's name. */
static int find_target(const char *target, const struct freeze_values *freeze, pid_t *ret_root,
                       const char **ret_name, struct rewarm_error *err)
{
    uint64_t pid;
    const char *name = freeze->as;
    int rc;
    if (rewarm_str_to_u64(target, &pid)) {
        if (name == NULL)
            return rewarm_error_set(err, REWARM_E_USAGE, 0,
                                    "freeze: a PID needs --as NAME, the snapshot's name");
        if (pid < 2 || pid > INT32_MAX)
            return rewarm_error_set(err, REWARM_E_USAGE, 0,
                                    "freeze: %s is no process that can be "
                                    "frozen",
                                    target);
        *ret_root = (pid_t)pid;
        rc = 0;
    } else {
        rc = find_worker(target, ret_root, err);
        name = name != NULL ? name : target;
    }
    if (rc == 0)
        rc = rewarm_str_check_name(name, err);
    if (rc == 0)
        *ret_name = name;
    return rc;
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
    struct rewarm_freeze_options options = {.kill = freeze->kill};
    if (find_target(operands[0], freeze, &options.root, &options.name, &err) < 0)
        return rewarm_cli_fail(cli, &err);
    rewarm_auto_store struct rewarm_store *store = NULL;
    if (rewarm_cli_open_store(cli, true, &store, &err) < 0)
        return rewarm_cli_fail(cli, &err);
    rewarm_cli_repair(store);

    struct rewarm_cli_progress *progress = rewarm_cli_progress_new(cli, options.name, false);
    options.progress = rewarm_cli_progress_hook(progress);
    struct rewarm_freeze_result result;
    int rc = rewarm_freeze(store, &options, &result, &err);
    rewarm_cli_progress_free(progress);
    if (rc < 0)
        return rewarm_cli_fail(cli, &err);
    print_result(cli, options.name, &result);
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

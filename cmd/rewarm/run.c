/* `rewarm run`: restore the snapshot if there is one that fits, else start the command cold, wait
 * until it is ready and freeze it. Everything happens in snapshot/run.h; here are the options. */
#include "snapshot/run.h"

#include <string.h>

#include "base/log.h"
#include "base/str.h"
#include "base/time.h"
#include "commands.h"
#include "progress.h"

enum { OWN_FAILURE = 125 }; /* as in env(1): the command's own statuses stay recognisable */

struct run_values {
    struct rewarm_ready ready;
    struct rewarm_cli_list ignore_env;
    bool no_save, refresh, detach, allow_io_uring, any_kernel;
};

static const struct run_values run_defaults = {.ready.timeout_ns = 600 * REWARM_NS_PER_S};

static const struct rewarm_cli_option run_options[] = {
    {.name = "ready-http",
     .argument = "URL",
     .help = "Ready when a GET of URL answers 2xx",
     .kind = REWARM_CLI_TEXT,
     .offset = offsetof(struct run_values, ready.http)},
    {.name = "ready-tcp",
     .argument = "HOST:PORT",
     .help = "Ready when HOST:PORT accepts a connection",
     .kind = REWARM_CLI_TEXT,
     .offset = offsetof(struct run_values, ready.tcp)},
    {.name = "ready-file",
     .argument = "PATH",
     .help = "Ready when PATH exists",
     .kind = REWARM_CLI_TEXT,
     .word = REWARM_WORD_FILE,
     .offset = offsetof(struct run_values, ready.file)},
    {.name = "ready-exec",
     .argument = "CMD",
     .help = "Ready when the shell command CMD exits with 0",
     .kind = REWARM_CLI_TEXT,
     .offset = offsetof(struct run_values, ready.exec)},
    {.name = "ready-log",
     .argument = "REGEX",
     .help = "Ready when a line of its stdout or stderr matches this extended regular expression",
     .kind = REWARM_CLI_TEXT,
     .offset = offsetof(struct run_values, ready.log)},
    {.name = "ready-timeout",
     .argument = "SECONDS",
     .help = "Give up waiting after this long (default 600): no snapshot, the worker goes on",
     .kind = REWARM_CLI_SECONDS,
     .offset = offsetof(struct run_values, ready.timeout_ns)},
    {.name = "no-save",
     .help = "Never freeze; only restore what is there",
     .kind = REWARM_CLI_FLAG,
     .offset = offsetof(struct run_values, no_save)},
    {.name = "refresh",
     .help = "Ignore the snapshot that is there: start cold and freeze anew",
     .kind = REWARM_CLI_FLAG,
     .offset = offsetof(struct run_values, refresh)},
    {.name = "detach",
     .help = "Return once the worker is ready and leave it to a supervisor in the background",
     .kind = REWARM_CLI_FLAG,
     .offset = offsetof(struct run_values, detach)},
    {.name = "allow-io-uring",
     .help = "Let the worker use io_uring; it can't be frozen while a ring is open",
     .kind = REWARM_CLI_FLAG,
     .offset = offsetof(struct run_values, allow_io_uring)},
    {.name = "ignore-env",
     .argument = "GLOB",
     .help = "Variables of the environment that may differ from the snapshot's; repeatable",
     .kind = REWARM_CLI_LIST,
     .offset = offsetof(struct run_values, ignore_env)},
    {.name = "any-kernel",
     .help = "Restore although the snapshot was made on another kernel or CPU",
     .kind = REWARM_CLI_FLAG,
     .offset = offsetof(struct run_values, any_kernel)},
    {0},
};

static int check_values(const struct run_values *run, const char *name, struct rewarm_error *err)
{
    const struct rewarm_ready *ready = &run->ready;
    int given = (ready->http != NULL) + (ready->tcp != NULL) + (ready->file != NULL) +
                (ready->exec != NULL) + (ready->log != NULL);
    if (given > 1)
        return rewarm_error_set(err, REWARM_E_USAGE, 0, "run: give one --ready option, not %d",
                                given);
    if (run->no_save && run->refresh)
        return rewarm_error_set(err, REWARM_E_USAGE, 0,
                                "run: --refresh makes a snapshot, --no-save forbids it");
    return rewarm_str_check_name(name, err);
}

static int run_run(struct rewarm_cli *cli, const void *values, char **operands, size_t count)
{
    (void)count;
    const struct run_values *run = values;
    struct rewarm_error err = REWARM_ERROR_INIT;
    rewarm_auto_store struct rewarm_store *store = NULL;
    if (check_values(run, operands[0], &err) < 0) {
        rewarm_cli_fail(cli, &err);
        return OWN_FAILURE;
    }
    /* The worst case of `run` is a cold start, never an outage. */
    if (rewarm_cli_open_store(cli, true, &store, &err) < 0) {
        rewarm_warn("%s: starting cold, and saving nothing", err.message);
        rewarm_error_clear(&err);
    }
    rewarm_cli_repair(store);

    rewarm_auto_progress struct rewarm_cli_progress *progress =
        rewarm_cli_progress_new(cli, operands[0], true);
    struct rewarm_run_options options = {
        .name = operands[0],
        .command = operands + 1,
        .ready = run->ready,
        .no_save = run->no_save,
        .refresh = run->refresh,
        .detach = run->detach,
        .allow_io_uring = run->allow_io_uring,
        .any_kernel = run->any_kernel,
        .ignore_env = run->ignore_env.items,
        .progress = rewarm_cli_progress_hook(progress),
    };
    int status = OWN_FAILURE;
    if (rewarm_run(store, &options, &status, &err) < 0)
        rewarm_cli_fail(cli, &err);
    return status;
}

const struct rewarm_cli_command rewarm_command_run = {
    .name = "run",
    .operands = "NAME [--] CMD [ARG...]",
    .summary = "Put in front of a command: restore its snapshot, or start it cold and make one",
    .details = "If a snapshot NAME exists and fits (command, environment, files, kernel, CPU), the "
               "worker is restored from it. Else CMD is started and, once it is ready, frozen and "
               "left running. Standard input and output, signals and the exit status pass through. "
               "With no --ready option the worker counts as ready after a second.",
    .options = run_options,
    .values_bytes = sizeof(struct run_values),
    .defaults = &run_defaults,
    .operands_min = 2,
    .operands_max = SIZE_MAX,
    .word = REWARM_WORD_SNAPSHOT,
    .program_follows = true,
    .usage_status = OWN_FAILURE,
    .run = run_run,
};

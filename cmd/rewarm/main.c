/* The command: global options, then one of the commands, each in a file of its own over the
 * libraries. Words for people go to stderr, answers to stdout. The exit status is the command's own
 * or, where rewarm itself fails, the number of enum rewarm_code. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clean.h"
#include "base/log.h"
#include "base/str.h"
#include "bench.h"
#include "commands.h"
#include "output.h"
#include "snapshot/snapshot.h"

const struct rewarm_cli_command *const rewarm_commands[] = {
    &rewarm_command_run,        &rewarm_command_freeze,
    &rewarm_command_restore,    &rewarm_command_ps,
    &rewarm_command_ls,         &rewarm_command_inspect,
    &rewarm_command_verify,     &rewarm_command_rm,
    &rewarm_command_gc,         &rewarm_command_doctor,
    &rewarm_command_bench,      &rewarm_command_trace,
    &rewarm_command_completion, &rewarm_command_help,
    &rewarm_command_version,    NULL,
};

const struct rewarm_cli_command *rewarm_command_find(const char *name)
{
    for (size_t i = 0; rewarm_commands[i] != NULL; i++) {
        if (strcmp(rewarm_commands[i]->name, name) == 0)
            return rewarm_commands[i];
    }
    return NULL;
}

int rewarm_command_unknown(const char *name, struct rewarm_error *err)
{
    const char *names[sizeof(rewarm_commands) / sizeof(rewarm_commands[0])] = {NULL};
    for (size_t i = 0; rewarm_commands[i] != NULL; i++)
        names[i] = rewarm_commands[i]->name;
    const char *near = rewarm_cli_nearest(name, names);
    if (near != NULL)
        return rewarm_error_set(err, REWARM_E_USAGE, 0,
                                "there is no command '%s'; did you mean '%s'?", name, near);
    return rewarm_error_set(err, REWARM_E_USAGE, 0, "there is no command '%s'; see rewarm help",
                            name);
}

int rewarm_cli_fail(struct rewarm_cli *cli, const struct rewarm_error *err)
{
    int code = err->code != 0 ? err->code : REWARM_E_SYSTEM;
    const char *message = err->message[0] != '\0' ? err->message : "failed for an unknown reason";
    rewarm_log(REWARM_LOG_ERROR, "%s", message);
    if (cli->json && !cli->answered)
        rewarm_output_json(
            cli, json_pack("{s:s, s:s}", "error", rewarm_code_name(code), "message", message));
    return code;
}

char *rewarm_cli_store_path(const struct rewarm_cli *cli)
{
    return cli->store_path != NULL ? rewarm_str_dup(cli->store_path) : rewarm_store_default_path();
}

int rewarm_cli_open_store(const struct rewarm_cli *cli, bool create,
                          struct rewarm_store **ret_store, struct rewarm_error *err)
{
    rewarm_auto_free char *path = rewarm_cli_store_path(cli);
    return rewarm_store_open(path, create, ret_store, err);
}

void rewarm_cli_repair(struct rewarm_store *store)
{
    struct rewarm_error err = REWARM_ERROR_INIT;
    int repaired = rewarm_repair(store, &err);
    if (repaired < 0)
        rewarm_warn("repairing what an interrupted rewarm left behind: %s", err.message);
    else if (repaired > 0)
        rewarm_note("repaired what %d interrupted %s of rewarm left behind", repaired,
                    repaired == 1 ? "run" : "runs");
}

/* Writing to a pipe that nobody reads must be an error, not the end: a worker may be stopped at
 * that moment. A handler rather than SIG_IGN, because exec() would hand SIG_IGN on to the worker.
 */
static void on_sigpipe(int signal_number)
{
    (void)signal_number;
}

static int prepare_process(struct rewarm_error *err)
{
    struct sigaction action = {.sa_handler = on_sigpipe, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    if (sigaction(SIGPIPE, &action, NULL) < 0)
        return rewarm_error_errno(err, "setting up SIGPIPE");
    return 0;
}

static void apply_globals(const struct rewarm_cli *cli)
{
    if (cli->verbose >= 2)
        rewarm_log_set_level(REWARM_LOG_DEBUG);
    else if (cli->verbose == 1)
        rewarm_log_set_level(REWARM_LOG_VERBOSE);
    else if (cli->quiet)
        rewarm_log_set_level(REWARM_LOG_WARN);
}

static int run_command(struct rewarm_cli *cli, const char *name, int argc, char **argv)
{
    struct rewarm_error err = REWARM_ERROR_INIT;
    const struct rewarm_cli_command *command = rewarm_command_find(name);
    if (command == NULL) {
        rewarm_command_unknown(name, &err);
        return rewarm_cli_fail(cli, &err);
    }
    struct rewarm_cli_parsed parsed;
    if (rewarm_cli_parse(cli, command, argc, argv, &parsed, &err) < 0) {
        int code = rewarm_cli_fail(cli, &err);
        return command->usage_status != 0 ? command->usage_status : code;
    }
    int status = 0;
    apply_globals(cli);
    if (cli->help)
        rewarm_cli_help(stdout, command);
    else if (cli->version)
        status = rewarm_command_version.run(cli, NULL, NULL, 0);
    else
        status = command->run(cli, parsed.values, parsed.operands, parsed.count);
    rewarm_cli_parsed_fini(&parsed);
    return status;
}

int main(int argc, char **argv)
{
    /* The synthetic worker of `rewarm bench`: no command for a person. */
    if (argc > 1 && strcmp(argv[1], "bench-worker") == 0)
        return rewarm_bench_worker_main(argc - 2, argv + 2);
    struct rewarm_cli cli = {0};
    struct rewarm_error err = REWARM_ERROR_INIT;
    struct rewarm_cli_parsed parsed;
    if (prepare_process(&err) < 0 || rewarm_cli_parse(&cli, NULL, argc, argv, &parsed, &err) < 0)
        return rewarm_cli_fail(&cli, &err);

    int status = 0;
    if (cli.help && parsed.count == 0) {
        rewarm_commands_help(stdout);
    } else if (cli.version && parsed.count == 0) {
        status = rewarm_command_version.run(&cli, NULL, NULL, 0);
    } else if (parsed.count == 0) {
        rewarm_commands_help(stderr);
        status = REWARM_E_USAGE;
    } else {
        int at = argc - (int)parsed.count;
        status = run_command(&cli, argv[at], argc - at, argv + at);
    }
    rewarm_cli_parsed_fini(&parsed);
    if (rewarm_output_end(&err) < 0 && status == 0)
        status = rewarm_cli_fail(&cli, &err);
    return status;
}

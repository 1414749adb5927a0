/* `rewarm doctor`: what this machine lacks, line by line. */
#include <stdio.h>

#include "base/clean.h"
#include "commands.h"
#include "output.h"
#include "proc/host.h"

static const char *state_name(enum rewarm_doctor_state state)
{
    switch (state) {
    case REWARM_DOCTOR_OK:
        return "ok";
    case REWARM_DOCTOR_WARN:
        return "warn";
    case REWARM_DOCTOR_BAD:
        return "bad";
    }
    return "bad";
}

static void print_lines(struct rewarm_cli *cli, const struct rewarm_doctor_line *lines,
                        size_t count)
{
    json_t *array = cli->json ? json_array() : NULL;
    for (size_t i = 0; i < count; i++) {
        const char *state = state_name(lines[i].state);
        if (array != NULL) {
            json_array_append_new(array, json_pack("{s:s, s:s, s:s, s:s}", "check", lines[i].check,
                                                   "state", state, "detail", lines[i].detail,
                                                   "advice", lines[i].advice));
            continue;
        }
        printf("%-4s  %-14s %s\n", state, lines[i].check, lines[i].detail);
        if (lines[i].advice[0] != '\0')
            printf("%22s-> %s\n", "", lines[i].advice);
    }
    if (array != NULL)
        rewarm_output_json(cli, array);
}

static int doctor_run(struct rewarm_cli *cli, const void *values, char **operands, size_t count)
{
    (void)values, (void)operands, (void)count;
    struct rewarm_error err = REWARM_ERROR_INIT;
    rewarm_auto_free char *store_path = rewarm_cli_store_path(cli);
    rewarm_auto_free struct rewarm_doctor_line *lines = NULL;
    size_t line_count;
    if (rewarm_host_doctor(store_path, &lines, &line_count, &err) < 0)
        return rewarm_cli_fail(cli, &err);
    print_lines(cli, lines, line_count);
    for (size_t i = 0; i < line_count; i++) {
        if (lines[i].state == REWARM_DOCTOR_BAD)
            return 1;
    }
    return 0;
}

const struct rewarm_cli_command rewarm_command_doctor = {
    .name = "doctor",
    .operands = "",
    .summary = "Check this machine: kernel, privileges, CRIU, userfaultfd, limits, store",
    .details =
        "Each line is ok, warn (works, with a limit) or bad (does not work), with what to do "
        "about it. The exit status is 1 when any line is bad.",
    .json = true,
    .run = doctor_run,
};

/* `rewarm help [COMMAND]` and `rewarm version`. */
#include <stdio.h>
#include <string.h>

#include "commands.h"
#include "output.h"
#include "proc/criu.h"

void rewarm_commands_help(FILE *out)
{
    fputs("usage: rewarm [--store DIR] [-v | -q] COMMAND [options] ...\n\n"
          "rewarm freezes a warm worker once and brings copies of it back in milliseconds.\n\n"
          "commands:\n",
          out);
    for (size_t i = 0; rewarm_commands[i] != NULL; i++)
        fprintf(out, "  %-12s%s\n", rewarm_commands[i]->name, rewarm_commands[i]->summary);
    fputs("\nrewarm help COMMAND or rewarm COMMAND --help: the options of one command\n"
          "man rewarm: the manual, with files, environment and exit status\n",
          out);
}

static int help_run(struct rewarm_cli *cli, const void *values, char **operands, size_t count)
{
    (void)values;
    if (count == 0) {
        rewarm_commands_help(stdout);
        return 0;
    }
    const struct rewarm_cli_command *command = rewarm_command_find(operands[0]);
    if (command == NULL) {
        struct rewarm_error err = REWARM_ERROR_INIT;
        rewarm_command_unknown(operands[0], &err);
        return rewarm_cli_fail(cli, &err);
    }
    rewarm_cli_help(stdout, command);
    return 0;
}

const struct rewarm_cli_command rewarm_command_help = {
    .name = "help",
    .operands = "[COMMAND]",
    .summary = "Print the commands, or the options of one",
    .operands_max = 1,
    .word = REWARM_WORD_COMMAND,
    .run = help_run,
};

static int version_run(struct rewarm_cli *cli, const void *values, char **operands, size_t count)
{
    (void)values, (void)operands, (void)count;
    const struct rewarm_criu *criu = NULL;
    bool found = rewarm_criu_find(&criu, NULL) == 0;
    if (cli->json) {
        json_t *answer = json_pack("{s:s, s:n}", "rewarm", REWARM_VERSION, "criu");
        if (found)
            json_object_set_new(
                answer, "criu",
                json_pack("{s:s, s:s}", "version", criu->version_text, "path", criu->path));
        rewarm_output_json(cli, answer);
        return 0;
    }
    printf("rewarm %s\n", REWARM_VERSION);
    if (found)
        printf("criu %s (%s)\n", criu->version_text, criu->path);
    else
        puts("criu not found; rewarm doctor says what to do");
    return 0;
}

const struct rewarm_cli_command rewarm_command_version = {
    .name = "version",
    .operands = "",
    .summary = "Print the versions of rewarm and of the CRIU it uses",
    .json = true,
    .run = version_run,
};

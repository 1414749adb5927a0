/* The commands of rewarm, and what all of them share. */
#ifndef REWARM_CMD_COMMANDS_H
#define REWARM_CMD_COMMANDS_H

#include "options.h"
#include "store/store.h"

/* In the order of --help; ends with NULL. */
extern const struct rewarm_cli_command *const rewarm_commands[];

extern const struct rewarm_cli_command rewarm_command_run;
extern const struct rewarm_cli_command rewarm_command_freeze;
extern const struct rewarm_cli_command rewarm_command_restore;
extern const struct rewarm_cli_command rewarm_command_ps;
extern const struct rewarm_cli_command rewarm_command_ls;
extern const struct rewarm_cli_command rewarm_command_inspect;
extern const struct rewarm_cli_command rewarm_command_verify;
extern const struct rewarm_cli_command rewarm_command_rm;
extern const struct rewarm_cli_command rewarm_command_gc;
extern const struct rewarm_cli_command rewarm_command_doctor;
extern const struct rewarm_cli_command rewarm_command_bench;
extern const struct rewarm_cli_command rewarm_command_trace;
extern const struct rewarm_cli_command rewarm_command_completion;
extern const struct rewarm_cli_command rewarm_command_help;
extern const struct rewarm_cli_command rewarm_command_version;

const struct rewarm_cli_command *rewarm_command_find(const char *name);

/* Fills err (REWARM_E_USAGE) for a command that does not exist, with the nearest one. */
int rewarm_command_unknown(const char *name, struct rewarm_error *err);

/* The list of commands, as `rewarm help` prints it. */
void rewarm_commands_help(FILE *out);

/* Reports a failure on stderr (and, with --json, as {"error","message"} on stdout unless the answer
 * is there already); returns the exit status. */
int rewarm_cli_fail(struct rewarm_cli *cli, const struct rewarm_error *err);

/* The store's path: --store, $REWARM_STORE, or the default. Free the result. */
char *rewarm_cli_store_path(const struct rewarm_cli *cli);

/* Opens the store. */
int rewarm_cli_open_store(const struct rewarm_cli *cli, bool create,
                          struct rewarm_store **ret_store, struct rewarm_error *err);

static inline void rewarm_clean_store(struct rewarm_store **store)
{
    if (*store != NULL)
        rewarm_store_close(*store);
}
#define rewarm_auto_store __attribute__((cleanup(rewarm_clean_store)))

/* rewarm_repair(), saying what was done. A failure to repair is a warning: it must not keep anybody
 * from working on other snapshots. */
void rewarm_cli_repair(struct rewarm_store *store);

#endif

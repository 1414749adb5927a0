/* What a command is: recorded when `rewarm run` starts it, compared before it is restored instead.
 */
#ifndef REWARM_SNAPSHOT_IDENTITY_H
#define REWARM_SNAPSHOT_IDENTITY_H

#include <jansson.h>

#include "base/error.h"

/* {"argv":[..],"cwd":..,"uid":..,"gid":..,"exe":{file identity},"env":{NAME: digest of the value}}.
 * Values are digested with a salt ("salt"), never stored. Left out: what differs from login to
 * login (PWD, TERM, SSH_*, ..., docs in rewarm-run.1) and names that match one of `ignore_env`
 * (globs, NULL-terminated, or NULL). With `like`, an earlier record, its salt is used, so that the
 * two can be compared. REWARM_E_NOT_FOUND when the program is not there. */
int rewarm_identity_of_command(char *const *argv, const char *const *ignore_env, const json_t *like,
                               json_t **ret_identity, struct rewarm_error *err);

/* REWARM_E_MISFIT naming the first thing that differs. */
int rewarm_identity_check(const json_t *then, const json_t *now, struct rewarm_error *err);

/* The program that execvp() would start; free the result, NULL when there is none. */
char *rewarm_identity_find_program(const char *name);

#endif

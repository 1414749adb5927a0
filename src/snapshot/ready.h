/* Is a cold worker ready? Each look is a short-lived child process, so that a check that hangs
 * blocks nobody. */
#ifndef REWARM_SNAPSHOT_READY_H
#define REWARM_SNAPSHOT_READY_H

#include <sys/types.h>

#include "base/error.h"
#include "snapshot/run.h"

/* Usage errors of the options: more than one, a URL that is not http://HOST[:PORT]/..., ... */
int rewarm_ready_check(const struct rewarm_ready *ready, struct rewarm_error *err);

/* Starts one look; the child ends with 0 when ready. Not for `log`, which the pump watches. */
int rewarm_ready_look(const struct rewarm_ready *ready, pid_t *ret_child, struct rewarm_error *err);

/* "http://127.0.0.1:8000/health" and so on, for messages. */
const char *rewarm_ready_words(const struct rewarm_ready *ready);

#endif

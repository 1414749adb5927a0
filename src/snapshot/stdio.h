/* The worker's 0, 1 and 2.
 *
 * A file, pipe or socket of the caller's is handed on as it is, so that the worker does not depend
 * on us. A terminal can't be frozen, and /dev/null can't be exchanged at the next restore: for
 * those the worker gets pipes, and a small *pump* process of ours copies between them and the
 * terminal. The pump outlives a killed supervisor, so that the worker's next line is no broken
 * pipe. Detached, 1 and 2 are a log file. */
#ifndef REWARM_SNAPSHOT_STDIO_H
#define REWARM_SNAPSHOT_STDIO_H

#include <stdbool.h>
#include <sys/types.h>

#include "base/error.h"

struct rewarm_stdio {
    int fds[3];   /* for the worker; close-on-exec, numbers above 9 */
    pid_t pump;   /* 0: none */
    int match_fd; /* readable once a line matched `regex`; -1 without one */
    char *log;    /* detached: path of the log file */
};
#define REWARM_STDIO_INIT {.fds = {-1, -1, -1}, .match_fd = -1}

/* `log_name`: detached, RUN/logs/LOG_NAME.log; NULL: this process's own stdio. `regex`: POSIX
 * extended, looked for in lines of 1 and 2, or NULL. */
int rewarm_stdio_open(struct rewarm_stdio *stdio, const char *log_name, const char *regex,
                      struct rewarm_error *err);

/* The worker has them: our copies go, so that the pump sees the worker's end. */
void rewarm_stdio_release(struct rewarm_stdio *stdio);

/* The worker has ended: gives the pump a moment to write what is left, and frees. */
void rewarm_stdio_close(struct rewarm_stdio *stdio);

#endif

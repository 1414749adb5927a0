/* CRIU as a program: finding it, knowing what it can do, running it, and its last error in words.
 */
#ifndef REWARM_PROC_CRIU_H
#define REWARM_PROC_CRIU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

/* Which CRIU: $REWARM_CRIU (a bundle folder or a program), else the bundle of the build or
 * installation (PREFIX/libexec/rewarm/criu), else `criu` in PATH. Probed once a process. */
struct rewarm_criu {
    char *path;       /* what a person would call it */
    char *argv0[8];   /* how it is started: loader, --library-path, ... ; NULL-terminated */
    char *libdir;     /* its plugin folder: one without plugins */
    unsigned version; /* 40300 for 4.3 */
    char version_text[32];
};
int rewarm_criu_find(const struct rewarm_criu **ret_criu, struct rewarm_error *err);

/* A running CRIU. */
struct rewarm_criu_child {
    pid_t pid;
    int pidfd;
    int log_dirfd;     /* borrowed: where the log is */
    char log_name[64]; /* a fresh name each attempt */
    const char *verb;
};

/* Starts `criu VERB ARGS...` in a session of its own, with stdin from /dev/null and no default
 * configuration file. Descriptors listed in `keep` stay open in it under the same numbers, all
 * others are closed. `log_dirfd` gets the log (-v2, -o, --libdir and, for a user who
 * is not root, --unprivileged are added here; -D, -W and the rest are the caller's). Cheap however
 * much memory the caller has mapped. Any thread. */
int rewarm_criu_start(const struct rewarm_criu *criu, const char *verb, const char *const *args,
                      const int *keep, size_t keep_count, int log_dirfd,
                      struct rewarm_criu_child *ret_child, struct rewarm_error *err);

/* Waits for its end (or `deadline_ns`: then it is killed; close your end of its sockets first,
 * which lets a dump end by itself). A non-zero exit becomes REWARM_E_CRIU, REWARM_E_REFUSED,
 * REWARM_E_MISFIT, REWARM_E_PERMISSION, REWARM_E_NO_SPACE or REWARM_E_BUSY with its last error line
 * in words and advice. Closes child->pidfd; the log stays. */
int rewarm_criu_wait(struct rewarm_criu_child *child, uint64_t deadline_ns,
                     struct rewarm_error *err);

/* Runs `criu ARGS...` to its end (10 s at most) and gathers what it prints, cut at `size` - 1
 * bytes. For short questions: --version, check. */
int rewarm_criu_query(const struct rewarm_criu *criu, const char *const *args, char *output,
                      size_t size, int *ret_exit_code, struct rewarm_error *err);

/* The log's last `Error` line turned into words; a table in criu_advice.c. Parses text: fuzzed. */
int rewarm_criu_explain(const char *verb, const char *log, size_t bytes, struct rewarm_error *err);

#endif

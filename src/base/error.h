/* Errors are values that the caller owns.
 *
 * A fallible function takes `struct rewarm_error *err` last and returns 0 or a negative
 * `enum rewarm_code`. `err` may be NULL. The first error wins: a second rewarm_error_set() on the
 * same value changes nothing, so that clean-up code cannot hide the cause. A message says what was
 * attempted, on what, and what to do about it. Not thread-safe: one error value a thread. */
#ifndef REWARM_BASE_ERROR_H
#define REWARM_BASE_ERROR_H

#include <stdarg.h>
#include <stdbool.h>

/* The numbers are also the exit codes of the command (docs/man/rewarm.1, "EXIT STATUS"): pinned. */
enum rewarm_code {
    REWARM_OK = 0,
    REWARM_E_SYSTEM = 1,     /* a system call or library failed; `native` has errno */
    REWARM_E_USAGE = 2,      /* the caller asked for something that makes no sense */
    REWARM_E_NOT_FOUND = 3,  /* no such snapshot, worker or file */
    REWARM_E_REFUSED = 4,    /* the target can't be frozen or restored; nothing was changed */
    REWARM_E_MISFIT = 5,     /* the snapshot does not fit this command, host or kernel */
    REWARM_E_CORRUPT = 6,    /* stored bytes are damaged or missing */
    REWARM_E_PERMISSION = 7, /* privileges are missing; the message names them */
    REWARM_E_NO_SPACE = 8,   /* disk, quota or memory is short */
    REWARM_E_BUSY = 9,       /* somebody else holds the name, the store or the PID */
    REWARM_E_CRIU = 10,      /* CRIU failed; the message has its last error in words */
    REWARM_E_TIMEOUT = 11,   /* a deadline passed */
    REWARM_E_LOST = 12,      /* the worker ended, or was ended, before it was whole */
    REWARM_E_CANCELLED = 13, /* a signal or the caller asked to stop */
};

struct rewarm_error {
    int code;           /* enum rewarm_code, positive; 0 = no error */
    int native;         /* errno of the cause, or 0 */
    char message[1024]; /* one line, no trailing newline */
};

#define REWARM_ERROR_INIT {0}

/* Fills `err` unless it holds an error already. Returns -code. `native` (an errno value, or 0) is
 * appended to the message as text. */
int rewarm_error_set(struct rewarm_error *err, enum rewarm_code code, int native,
                     const char *format, ...) __attribute__((format(printf, 4, 5)));

/* Puts "WHAT: " in front of the message of an error that is set. Returns -code of `err` (or
 * -REWARM_E_SYSTEM when `err` is NULL or empty: wrapping never turns failure into success). */
int rewarm_error_wrap(struct rewarm_error *err, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Sets err from errno, choosing the code by it: ENOENT is NOT_FOUND, EPERM and EACCES PERMISSION,
 * ENOSPC, EDQUOT and ENOMEM NO_SPACE, everything else SYSTEM. Returns -code. */
int rewarm_error_errno(struct rewarm_error *err, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Forgets the error. */
void rewarm_error_clear(struct rewarm_error *err);

/* "not-found" and so on, for --json and metrics; never NULL. */
const char *rewarm_code_name(int code);

#endif

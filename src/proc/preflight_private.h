/* Shared by the files of preflight; nobody else includes it. */
#ifndef REWARM_PROC_PREFLIGHT_PRIVATE_H
#define REWARM_PROC_PREFLIGHT_PRIVATE_H

#include "proc/preflight.h"
#include "proc/procfs.h"

/* The tree under examination. */
struct rewarm_preflight {
    const struct rewarm_proc_stat *members;
    size_t count;
    /* Pseudo-terminals whose master side is held inside the tree. */
    unsigned *pty_indexes;
    size_t pty_count, pty_capacity;
};

bool rewarm_preflight_has(const struct rewarm_preflight *preflight, pid_t pid);

/* The number after "NAME:" in /proc/PID/fdinfo/FD; -1 when there is none. */
long rewarm_preflight_fdinfo(pid_t pid, int fd, const char *name);

/* Checks one descriptor of `member`: REWARM_E_REFUSED naming both, or 0. */
int rewarm_preflight_fd(const struct rewarm_preflight *preflight,
                        const struct rewarm_proc_stat *member, const struct rewarm_proc_fd *fd,
                        struct rewarm_error *err);

/* The same for a socket, which is borrowed for a moment (pidfd_getfd) to ask what it is. */
int rewarm_preflight_socket(const struct rewarm_preflight *preflight,
                            const struct rewarm_proc_stat *member, const struct rewarm_proc_fd *fd,
                            struct rewarm_error *err);

/* REWARM_E_BUSY while memory of `member` waits to be filled in by somebody (userfaultfd), or 0.
 * Reads smaps: 17 ms for each GiB of 4 KiB pages. */
int rewarm_preflight_memory(const struct rewarm_proc_stat *member, struct rewarm_error *err);

/* True for a line of smaps that lists the flag of such memory. */
bool rewarm_preflight_is_missing(const char *line, size_t bytes);

/* "process 12 (python3), descriptor 7 (TARGET): WHY; WHAT TO DO". */
int rewarm_preflight_refuse_fd(const struct rewarm_proc_stat *member,
                               const struct rewarm_proc_fd *fd, const char *why, const char *advice,
                               struct rewarm_error *err);

#endif

/* /proc: processes, their trees, maps and descriptors. Parsers take text, so that they can be
 * fuzzed. */
#ifndef REWARM_PROC_PROCFS_H
#define REWARM_PROC_PROCFS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

struct rewarm_proc_stat {
    pid_t pid, ppid, pgrp, session;
    char state; /* R S D T t Z X I */
    char comm[64];
    unsigned threads;
    uint32_t tty;       /* device of the controlling terminal; 0: none */
    uint32_t flags;     /* PF_* of the kernel */
    uint64_t starttime; /* clock ticks since boot: with pid, names a process for ever */
};
int rewarm_proc_parse_stat(const char *text, size_t bytes, struct rewarm_proc_stat *ret_stat,
                           struct rewarm_error *err);
int rewarm_proc_stat(pid_t pid, struct rewarm_proc_stat *ret_stat, struct rewarm_error *err);

/* True while the process with this PID *and* start time exists and is not a zombie. */
bool rewarm_proc_alive(pid_t pid, uint64_t starttime);

/* One line of /proc/PID/maps, or of smaps with its fields. */
struct rewarm_proc_vma {
    uint64_t start, end, offset_bytes;
    char perms[5]; /* "rw-p" */
    unsigned dev_major, dev_minor;
    uint64_t inode;
    char *path; /* "" when anonymous */
};
int rewarm_proc_parse_maps(const char *text, size_t bytes, struct rewarm_proc_vma **ret_vmas,
                           size_t *ret_count, struct rewarm_error *err);
int rewarm_proc_maps(pid_t pid, struct rewarm_proc_vma **ret_vmas, size_t *ret_count,
                     struct rewarm_error *err);
void rewarm_proc_vmas_free(struct rewarm_proc_vma *vmas, size_t count);

/* A process and all its descendants, children of any thread, parents before children. Zombies are
 * in. Free with free(). Racy while the tree forks: callers repeat or stop it. */
int rewarm_proc_tree(pid_t root, struct rewarm_proc_stat **ret_stats, size_t *ret_count,
                     struct rewarm_error *err);

/* Resident anonymous memory (RssAnon of status) of a process, bytes. */
int rewarm_proc_rss_anon(pid_t pid, uint64_t *ret_bytes, struct rewarm_error *err);

/* An open descriptor. */
struct rewarm_proc_fd {
    int fd;
    unsigned mode;                   /* st_mode of what it refers to */
    unsigned flags;                  /* open flags, from fdinfo */
    unsigned rdev_major, rdev_minor; /* devices */
    uint64_t inode, size_bytes, pos;
    char *target; /* readlink: a path, "pipe:[N]", "socket:[N]", "anon_inode:[io_uring]" */
};
int rewarm_proc_fds(pid_t pid, struct rewarm_proc_fd **ret_fds, size_t *ret_count,
                    struct rewarm_error *err);
void rewarm_proc_fds_free(struct rewarm_proc_fd *fds, size_t count);

/* NUL-separated /proc/PID/cmdline and /proc/PID/environ as vectors (NULL-terminated; free with
 * rewarm_proc_vector_free). */
int rewarm_proc_vector(pid_t pid, const char *file, char ***ret_vector, struct rewarm_error *err);
void rewarm_proc_vector_free(char **vector);

/* Ends a whole tree with SIGKILL: the root and every descendant, again until none is left, until
 * `deadline_ns`. Only processes whose start time was seen are signalled (no PID re-use). Does not
 * reap. */
int rewarm_proc_kill_tree(pid_t root, uint64_t starttime, uint64_t deadline_ns,
                          struct rewarm_error *err);

#endif

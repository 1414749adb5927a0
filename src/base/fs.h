/* Files and descriptors: whole reads and writes, durable small files, removal of our own trees.
 * Every function may block on the file system. Paths are relative to `dirfd` (AT_FDCWD too). */
#ifndef REWARM_BASE_FS_H
#define REWARM_BASE_FS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

/* Reads or writes exactly `bytes`, going on after short transfers and EINTR. Return 0, or a
 * negative code; an early end of file is REWARM_E_CORRUPT. `what` names the file in the message. */
int rewarm_fs_read_full(int fd, void *buffer, size_t bytes, const char *what,
                        struct rewarm_error *err);
int rewarm_fs_write_full(int fd, const void *buffer, size_t bytes, const char *what,
                         struct rewarm_error *err);
int rewarm_fs_pread_full(int fd, void *buffer, size_t bytes, uint64_t offset_bytes,
                         const char *what, struct rewarm_error *err);
int rewarm_fs_pwrite_full(int fd, const void *buffer, size_t bytes, uint64_t offset_bytes,
                          const char *what, struct rewarm_error *err);

/* Reads a whole file of at most `limit_bytes` (REWARM_E_CORRUPT beyond). Works on /proc files,
 * whose size is unknown. `*ret_text` is NUL-terminated, to be freed; `ret_bytes` may be NULL. */
int rewarm_fs_read_file(int dirfd, const char *path, size_t limit_bytes, char **ret_text,
                        size_t *ret_bytes, struct rewarm_error *err);

/* Writes PATH.tmp-PID (mode), fsyncs it, renames it over PATH and fsyncs the directory: after
 * success the new content survives a power cut, after failure the old one is untouched. */
int rewarm_fs_write_durable(int dirfd, const char *path, mode_t mode, const void *data,
                            size_t bytes, struct rewarm_error *err);

/* Opens `path` below `dirfd` as a directory, creating it (mode 0700) when missing. */
int rewarm_fs_open_dir(int dirfd, const char *path, bool create, int *ret_fd,
                       struct rewarm_error *err);

/* mkdir -p, mode 0700 for what is created. */
int rewarm_fs_make_dirs(const char *path, struct rewarm_error *err);

/* Removes `path` below `dirfd` and everything in it, without following links or crossing into
 * another file system. A missing path is success. */
int rewarm_fs_remove_tree(int dirfd, const char *path, struct rewarm_error *err);

/* Sets or clears FD_CLOEXEC. */
int rewarm_fs_set_cloexec(int fd, bool on, struct rewarm_error *err);

/* In a forked child: closes every descriptor above 2 that is not in `keep` (sorted here; -1 is
 * skipped). */
void rewarm_fs_close_all_but(int *keep, size_t count);

#endif

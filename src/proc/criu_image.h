/* The few of CRIU's image files that rewarm reads (and, in the copy made for one restore, edits).
 *
 * An image is one or two magic words, then entries of a 4-byte little-endian length and a protobuf
 * message (src/proc/criu.proto has our own definitions of the few that matter; unknown fields are
 * kept when an entry is written back). Every parser takes bytes, checks every length, and is
 * fuzzed. */
#ifndef REWARM_PROC_CRIU_IMAGE_H
#define REWARM_PROC_CRIU_IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

/* pagemap-PID.img. */
enum { REWARM_PE_PARENT = 1, REWARM_PE_LAZY = 2, REWARM_PE_PRESENT = 4 };
struct rewarm_image_pages {
    uint64_t vaddr, pages;
    uint32_t flags;
};
int rewarm_image_parse_pagemap(const void *data, size_t bytes,
                               struct rewarm_image_pages **ret_pages, size_t *ret_count,
                               struct rewarm_error *err);
int rewarm_image_pagemap(int dirfd, int32_t pid, struct rewarm_image_pages **ret_pages,
                         size_t *ret_count, struct rewarm_error *err);

/* pstree.img, parents before children. */
struct rewarm_image_process {
    int32_t pid, ppid, pgid, sid;
    uint32_t threads; /* 0: a zombie */
    char comm[32];    /* from core-PID.img */
};
int rewarm_image_pstree(int dirfd, struct rewarm_image_process **ret_processes, size_t *ret_count,
                        struct rewarm_error *err);

/* mm-PID.img: the areas, with what a restore wants to know of them. */
struct rewarm_image_vma {
    uint64_t start, end, offset_bytes;
    uint64_t shmid;               /* file mappings: the file's id in files.img */
    uint32_t status, flags, prot; /* CRIU's VMA_* bits, mmap flags and protection */
    uint64_t madv;                /* 1 << MADV_* */
};
int rewarm_image_mm(int dirfd, int32_t pid, struct rewarm_image_vma **ret_vmas, size_t *ret_count,
                    struct rewarm_error *err);

/* The mapped regular files of all processes: unique absolute paths. Free with
 * rewarm_image_paths_free. */
int rewarm_image_mapped_files(int dirfd, char ***ret_paths, size_t *ret_count,
                              struct rewarm_error *err);
void rewarm_image_paths_free(char **paths, size_t count);

/* What descriptor `fd` of process `pid` is, as the key that `criu restore --inherit-fd fd[N]:KEY`
 * wants: "pipe:[ID]", "path/without/leading/slash" (regular files and FIFOs), "socket:[INODE]"
 * (unix sockets), "tty[rdev:dev]". NULL when the descriptor is closed or of a kind that CRIU does
 * not inherit (internet sockets, /dev/null and other devices: CRIU re-opens those).
 *
 * Every descriptor of the tree that has the same key is replaced: two that opened one path, both
 * ends of one pipe. What stands in may be of any kind, except that a terminal wants a terminal, and
 * that a pipe's key must have been given to rewarm_image_edit_for_restore() first. */
int rewarm_image_inherit_key(int dirfd, int32_t pid, int fd, char **ret_key,
                             struct rewarm_error *err);

/* Files that were deleted under the name by which they had been opened, but have another name, as
 * the semaphores of sem_open() do. CRIU links such a file to a name of its own beside the old one
 * ("link_remap.N"), which it deletes again before its dump ends, and wants it there at restore,
 * where it deletes it too. Files that have no name at all are not among these: CRIU's images hold
 * their content. */
struct rewarm_image_link {
    char *path;     /* CRIU's name for it, absolute */
    char *original; /* the name by which it had been opened, absolute */
    int32_t pid;    /* a process that holds it, or 0 if it is only on its way through a socket */
    char comm[32];
    char *holder; /* where that process has it, as "/proc/PID/fd/5"; NULL without one */
};
int rewarm_image_linked_files(int dirfd, struct rewarm_image_link **ret_links, size_t *ret_count,
                              struct rewarm_error *err);
void rewarm_image_links_free(struct rewarm_image_link *links, size_t count);

/* Edits for one restore, on the extracted copy of the images in `dirfd`, for
 * `criu restore --tcp-established --network-lock skip` (dumped with the same options):
 * - a TCP connection whose other end is in the image too is kept, every other one becomes a closed
 *   socket: reads give ENOTCONN, writes EPIPE, poll POLLHUP, as after --tcp-close;
 * - regular files that are written at their end (logs) go on at the end that they have now, whether
 *   they have grown or were truncated or replaced, and readers of such a file keep their place. One
 *   that has gone is created again, empty, with its old permissions. It does no harm when a log is
 *   written to between this and the restore;
 * - any other regular file that has gone or changed its size is REWARM_E_MISFIT with the path;
 * - what will be inherited (its key is one of `skip_keys`) is not looked at. Pipes among it are
 *   recorded as regular files of the same key: CRIU opens what stands in for a pipe a second time,
 *   which fails for a socket and loses a file's O_APPEND and position, but it takes what stands in
 *   for a regular file as it is;
 * - with `fresh_ports` (for a copy that shares its network namespace with the source, other copies
 *   or what they left) the client end of each kept connection gets a free local port, of which its
 *   other end is told, so that the pair clashes neither with one that lives nor with one that the
 *   kernel remembers (TIME_WAIT); and what the kernel remembers of the listeners' ports is
 * forgotten where it would keep them from being bound (see tcp_port.h);
 * - with `link_suffix` the names of rewarm_image_linked_files() get it at their end, so that no two
 *   restores share one.
 * And private mappings of memfds are described so that CRIU can restore them lazily
 * (criu_image_shmem.c).
 * Paths are looked up as the calling process sees them. Images are replaced atomically (0600), and
 * left alone when nothing had to change. Counts what was done into *ret_report (may be NULL). */
struct rewarm_image_edit_options {
    char *const *skip_keys;
    size_t skip_count;
    bool fresh_ports;
    const char *link_suffix; /* NULL: none */
};
struct rewarm_image_edits {
    unsigned tcp_kept, tcp_closed, listeners;   /* sockets, not pairs */
    unsigned tcp_moved;                         /* pairs */
    unsigned files_moved_to_end, files_created; /* open files, paths */
    unsigned pipes_inherited;                   /* open files */
};
int rewarm_image_edit_for_restore(int dirfd, const struct rewarm_image_edit_options *options,
                                  struct rewarm_image_edits *ret_report, struct rewarm_error *err);

#endif

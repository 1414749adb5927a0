/* Inside src/proc/criu_image*.c (and its tests and fuzz targets): the framing of CRIU's images, and
 * the parsers and the editor as functions of bytes. */
#ifndef REWARM_PROC_CRIU_IMAGE_ENTRY_H
#define REWARM_PROC_CRIU_IMAGE_ENTRY_H

#include <sys/socket.h>
#include <sys/stat.h>

#include "proc/criu_image.h"

/* The word that names an image's kind (CRIU's own values). */
enum {
    REWARM_MAGIC_PSTREE = 0x50273030,
    REWARM_MAGIC_FDINFO = 0x56213732,
    REWARM_MAGIC_PAGEMAP = 0x56084025,
    REWARM_MAGIC_CORE = 0x55053847,
    REWARM_MAGIC_IDS = 0x54432030,
    REWARM_MAGIC_MM = 0x57492820,
    REWARM_MAGIC_FILES = 0x56303138,
    REWARM_MAGIC_REMAP = 0x59133954,
    REWARM_MAGIC_TTY_INFO = 0x59453036,
};

/* Kinds of fdinfo_entry and file_entry (CRIU's fd_types). */
enum {
    REWARM_FD_REG = 1,
    REWARM_FD_PIPE = 2,
    REWARM_FD_FIFO = 3,
    REWARM_FD_INET = 4,
    REWARM_FD_UNIX = 5,
    REWARM_FD_TTY = 11,
};

/* A position in an image's bytes (borrowed). `name` is for messages. */
struct rewarm_image_cursor {
    const char *name;
    const uint8_t *data;
    size_t bytes, at;
};

/* Checks the magic words and stands before the first entry. */
int rewarm_image_begin(const char *name, const void *data, size_t bytes, uint32_t magic,
                       struct rewarm_image_cursor *ret_cursor, struct rewarm_error *err);

/* 1 with the next entry's message, 0 at the end, or a negative code. */
int rewarm_image_next(struct rewarm_image_cursor *cursor, const uint8_t **ret_message,
                      size_t *ret_bytes, struct rewarm_error *err);

/* Reads a whole image of `dirfd`; free *ret_data. REWARM_E_CORRUPT when it is missing: every image
 * that is asked for belongs to the snapshot. */
int rewarm_image_read(int dirfd, const char *name, char **ret_data, size_t *ret_bytes,
                      struct rewarm_error *err);

/* REWARM_E_CORRUPT: "NAME: not as CRIU writes it (WHAT)". */
int rewarm_image_damaged(const char *name, const char *what, struct rewarm_error *err);

int rewarm_image_parse_pstree(const void *data, size_t bytes,
                              struct rewarm_image_process **ret_processes, size_t *ret_count,
                              struct rewarm_error *err);

/* `comm` and whether the process is dead, of a core image. */
int rewarm_image_parse_core(const char *name, const void *data, size_t bytes, char ret_comm[32],
                            bool *ret_dead, struct rewarm_error *err);

int rewarm_image_parse_mm(const char *name, const void *data, size_t bytes,
                          struct rewarm_image_vma **ret_vmas, size_t *ret_count,
                          uint32_t *ret_exe_id, struct rewarm_error *err);

/* The sorted file ids of remap-fpath.img: files that CRIU brings back itself. */
int rewarm_image_parse_remaps(const void *data, size_t bytes, uint32_t **ret_ids, size_t *ret_count,
                              struct rewarm_error *err);
int rewarm_image_remaps(int dirfd, uint32_t **ret_ids, size_t *ret_count, struct rewarm_error *err);

/* Of the same image: deleted files that have another name. */
struct rewarm_image_relink {
    uint32_t original_id, link_id; /* of files.img */
};
int rewarm_image_parse_relinks(const void *data, size_t bytes,
                               struct rewarm_image_relink **ret_relinks, size_t *ret_count,
                               struct rewarm_error *err);
int rewarm_image_relinks(int dirfd, struct rewarm_image_relink **ret_relinks, size_t *ret_count,
                         struct rewarm_error *err);
int rewarm_image_compare_ids(const void *a, const void *b);
bool rewarm_image_has_id(const uint32_t *ids, size_t count, uint32_t id);

/* An entry of files.img as far as rewarm wants to know it. */
struct rewarm_image_file {
    uint32_t id, type; /* REWARM_FD_* or another of CRIU's */
    uint32_t number;   /* pipe id, socket inode, tty info id, or a FIFO's regular-file id */
    uint32_t mode;     /* of regular files; 0 if not recorded */
    char *path;        /* of regular files (and directories, devices), else NULL */
};
int rewarm_image_parse_files(const void *data, size_t bytes, struct rewarm_image_file **ret_files,
                             size_t *ret_count, struct rewarm_error *err);
void rewarm_image_files_free(struct rewarm_image_file *files, size_t count);

/* The file system as the editor sees it: real, or a test's. Both return 0 or a negative errno. */
struct rewarm_image_disk {
    int (*look)(void *context, const char *path, struct stat *ret_stat);
    int (*create)(void *context, const char *path, mode_t mode); /* an empty regular file */
    void *context;
};

/* TCP ports as the editor sees them: the host's, or a test's. `address` is one of this host. */
struct rewarm_image_ports {
    /* A port that is free at this moment: 0 or a negative errno. */
    int (*pick)(void *context, const struct sockaddr *address, uint16_t *ret_port);
    /* A listener is going to be bound to `address`: forget what would prevent that needlessly. */
    void (*forget)(void *context, const struct sockaddr *address);
    void *context;
};

struct rewarm_image_edit {
    const uint32_t *remaps; /* as above */
    size_t remap_count;
    const uint32_t *links; /* file ids of CRIU's names for deleted files, sorted */
    size_t link_count;
    const char *link_suffix;
    const struct rewarm_image_ports *ports; /* NULL: connections keep their ports */
    char *const *skip_keys;
    size_t skip_count;
    const struct rewarm_image_disk *disk;
};

/* The edited files.img; `data` is NULL when nothing had to be changed. Free `data` and `pipe_ids`.
 */
struct rewarm_image_edited {
    uint8_t *data;
    size_t bytes;
    uint32_t *pipe_ids; /* sorted: open files that were pipes and are recorded as regular files */
    size_t pipe_count;
    struct rewarm_image_edits report;
};
int rewarm_image_edit_files(const void *data, size_t bytes, const struct rewarm_image_edit *edit,
                            struct rewarm_image_edited *ret_edited, struct rewarm_error *err);

/* The same change in a descriptor table: *ret_data as above. */
int rewarm_image_edit_fdinfo(const char *name, const void *data, size_t bytes,
                             const uint32_t *pipe_ids, size_t pipe_count, uint8_t **ret_data,
                             size_t *ret_bytes, struct rewarm_error *err);

/* An edited memory image, in which areas that map a memfd privately are such as CRIU can restore
 * lazily (see criu_image_shmem.c); `pages` is the process's page map. *ret_data as above. */
int rewarm_image_edit_mm(const char *name, const void *data, size_t bytes,
                         const struct rewarm_image_pages *pages, size_t page_count,
                         uint8_t **ret_data, size_t *ret_bytes, struct rewarm_error *err);

/* The same for every process of the image: a part of rewarm_image_edit_for_restore(). */
int rewarm_image_edit_shmem(int dirfd, struct rewarm_error *err);

#endif

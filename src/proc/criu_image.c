/* CRIU's images: framing, and what freeze and restore want to know of processes and their memory.
 *
 * rewarm_image_begin() checks the magic words and rewarm_image_next() hands out one message after
 * the other, each length checked against the file's. The parsers below unpack them with protobuf-c
 * into plain structures; files.img is in criu_image_files.c, page maps in criu_image_pagemap.c. */
#include "proc/criu_image.h"

#include <criu.pb-c.h>
#include <endian.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "base/clean.h"
#include "base/fs.h"
#include "base/str.h"
#include "proc/criu_image_entry.h"

#define MAGIC_COMMON      0x54564319u /* stands first in images of format 1.2 */
#define IMAGE_LIMIT_BYTES (256u << 20)
#define PID_LIMIT         (1u << 22) /* the kernel's own limit */
#define PAGE_MASK         4095u

/* Bits of vma_entry.status. */
enum { VMA_FILE_PRIVATE = 1 << 6, VMA_FILE_SHARED = 1 << 7 };

/* task_core_entry.task_state */
enum { TASK_DEAD = 2, TASK_ZOMBIE = 6 };

int rewarm_image_damaged(const char *name, const char *what, struct rewarm_error *err)
{
    return rewarm_error_set(err, REWARM_E_CORRUPT, 0, "%s: not as CRIU writes it (%s)", name, what);
}

static uint32_t read_u32(const uint8_t *at)
{
    uint32_t value;
    memcpy(&value, at, sizeof(value));
    return le32toh(value);
}

int rewarm_image_begin(const char *name, const void *data, size_t bytes, uint32_t magic,
                       struct rewarm_image_cursor *ret_cursor, struct rewarm_error *err)
{
    const uint8_t *at = data;
    size_t start = 0;
    if (bytes >= 8 && read_u32(at) == MAGIC_COMMON)
        start = 4;
    if (bytes < start + 4 || read_u32(at + start) != magic)
        return rewarm_image_damaged(name, "its first bytes are another kind's", err);
    *ret_cursor = (struct rewarm_image_cursor){name, at, bytes, start + 4};
    return 0;
}

int rewarm_image_next(struct rewarm_image_cursor *cursor, const uint8_t **ret_message,
                      size_t *ret_bytes, struct rewarm_error *err)
{
    size_t left = cursor->bytes - cursor->at;
    if (left == 0)
        return 0;
    if (left < 4)
        return rewarm_image_damaged(cursor->name, "it ends within a length", err);
    uint32_t bytes = read_u32(cursor->data + cursor->at);
    if (bytes > left - 4)
        return rewarm_image_damaged(cursor->name, "it ends within an entry", err);
    *ret_message = cursor->data + cursor->at + 4;
    *ret_bytes = bytes;
    cursor->at += 4 + (size_t)bytes;
    return 1;
}

int rewarm_image_read(int dirfd, const char *name, char **ret_data, size_t *ret_bytes,
                      struct rewarm_error *err)
{
    if (faccessat(dirfd, name, F_OK, 0) != 0 && errno == ENOENT)
        return rewarm_error_set(err, REWARM_E_CORRUPT, 0, "the snapshot lacks CRIU's image %s",
                                name);
    return rewarm_fs_read_file(dirfd, name, IMAGE_LIMIT_BYTES, ret_data, ret_bytes, err);
}

/* --- processes
 * ---------------------------------------------------------------------------------------- */

int rewarm_image_parse_core(const char *name, const void *data, size_t bytes, char ret_comm[32],
                            bool *ret_dead, struct rewarm_error *err)
{
    struct rewarm_image_cursor cursor;
    int rc = rewarm_image_begin(name, data, bytes, REWARM_MAGIC_CORE, &cursor, err);
    if (rc != 0)
        return rc;
    const uint8_t *message;
    size_t message_bytes;
    rc = rewarm_image_next(&cursor, &message, &message_bytes, err);
    if (rc < 0)
        return rc;
    CoreEntry *core = rc > 0 ? core_entry__unpack(NULL, message_bytes, message) : NULL;
    if (core == NULL)
        return rewarm_image_damaged(name, "no core entry", err);
    if (core->tc == NULL) {
        core_entry__free_unpacked(core, NULL);
        return rewarm_image_damaged(name, "a thread's, not a process's", err);
    }
    snprintf(ret_comm, 32, "%.31s", core->tc->comm);
    *ret_dead = core->tc->task_state == TASK_DEAD || core->tc->task_state == TASK_ZOMBIE;
    core_entry__free_unpacked(core, NULL);
    return 0;
}

/* Appends one entry of pstree.img; `seen` is a bitmap of the PIDs before it. */
static const char *add_process(const PstreeEntry *entry, uint8_t *seen,
                               struct rewarm_image_process *ret)
{
    if (entry->pid == 0 || entry->pid >= PID_LIMIT || entry->ppid >= PID_LIMIT ||
        entry->pgid >= PID_LIMIT || entry->sid >= PID_LIMIT)
        return "a PID is out of range";
    if (entry->n_threads > PID_LIMIT)
        return "too many threads";
    if ((seen[entry->pid / 8] & 1u << entry->pid % 8) != 0)
        return "a PID is there twice";
    if (entry->ppid != 0 && (seen[entry->ppid / 8] & 1u << entry->ppid % 8) == 0)
        return "a child comes before its parent";
    seen[entry->pid / 8] |= (uint8_t)(1u << entry->pid % 8);
    *ret = (struct rewarm_image_process){
        .pid = (int32_t)entry->pid,
        .ppid = (int32_t)entry->ppid,
        .pgid = (int32_t)entry->pgid,
        .sid = (int32_t)entry->sid,
        .threads = (uint32_t)entry->n_threads,
    };
    return NULL;
}

int rewarm_image_parse_pstree(const void *data, size_t bytes,
                              struct rewarm_image_process **ret_processes, size_t *ret_count,
                              struct rewarm_error *err)
{
    static const char name[] = "pstree.img";
    struct rewarm_image_cursor cursor;
    int rc = rewarm_image_begin(name, data, bytes, REWARM_MAGIC_PSTREE, &cursor, err);
    if (rc != 0)
        return rc;
    rewarm_auto_free uint8_t *seen = rewarm_mem_new(PID_LIMIT / 8, 1);
    rewarm_auto_free struct rewarm_image_process *processes = NULL;
    size_t count = 0, capacity = 0;
    const uint8_t *message;
    size_t message_bytes;
    while ((rc = rewarm_image_next(&cursor, &message, &message_bytes, err)) > 0) {
        PstreeEntry *entry = pstree_entry__unpack(NULL, message_bytes, message);
        if (entry == NULL)
            return rewarm_image_damaged(name, "an entry can't be read", err);
        REWARM_GROW(&processes, &capacity, count);
        const char *wrong = add_process(entry, seen, &processes[count++]);
        pstree_entry__free_unpacked(entry, NULL);
        if (wrong != NULL)
            return rewarm_image_damaged(name, wrong, err);
    }
    if (rc < 0)
        return rc;
    if (count == 0)
        return rewarm_image_damaged(name, "no process", err);
    *ret_processes = rewarm_steal_ptr(&processes);
    *ret_count = count;
    return 0;
}

int rewarm_image_pstree(int dirfd, struct rewarm_image_process **ret_processes, size_t *ret_count,
                        struct rewarm_error *err)
{
    rewarm_auto_free char *data = NULL;
    size_t bytes, count;
    rewarm_auto_free struct rewarm_image_process *processes = NULL;
    int rc = rewarm_image_read(dirfd, "pstree.img", &data, &bytes, err);
    if (rc == 0)
        rc = rewarm_image_parse_pstree(data, bytes, &processes, &count, err);
    if (rc != 0)
        return rc;
    for (size_t i = 0; i < count; i++) {
        char name[32];
        snprintf(name, sizeof(name), "core-%d.img", processes[i].pid);
        rewarm_auto_free char *core = NULL;
        size_t core_bytes;
        bool dead;
        rc = rewarm_image_read(dirfd, name, &core, &core_bytes, err);
        if (rc == 0)
            rc = rewarm_image_parse_core(name, core, core_bytes, processes[i].comm, &dead, err);
        if (rc != 0)
            return rc;
        if (dead)
            processes[i].threads = 0;
    }
    *ret_processes = rewarm_steal_ptr(&processes);
    *ret_count = count;
    return 0;
}

/* --- memory
 * ------------------------------------------------------------------------------------------- */

/* CRIU's VMA_AREA_GUARD: guard pages (MADV_GUARD_INSTALL, which glibc 2.42 uses for thread stacks).
 * They lie inside areas that are listed already, and come after all of those. */
#define AREA_GUARD (1u << 16)

/* NULL, or what is wrong with the areas. */
static const char *copy_vmas(const MmEntry *mm, struct rewarm_image_vma *vmas, size_t *ret_count)
{
    uint64_t end = 0;
    size_t count = 0;
    for (size_t i = 0; i < mm->n_vmas; i++) {
        const VmaEntry *vma = mm->vmas[i];
        if ((vma->status & AREA_GUARD) != 0)
            continue;
        if (vma->start < end || vma->end <= vma->start ||
            ((vma->start | vma->end) & PAGE_MASK) != 0)
            return "areas overlap or are not in order";
        end = vma->end;
        vmas[count++] = (struct rewarm_image_vma){
            .start = vma->start,
            .end = vma->end,
            .offset_bytes = vma->pgoff,
            .shmid = vma->shmid,
            .status = vma->status,
            .flags = vma->flags,
            .prot = vma->prot,
            .madv = vma->has_madv ? vma->madv : 0,
        };
    }
    *ret_count = count;
    return NULL;
}

int rewarm_image_parse_mm(const char *name, const void *data, size_t bytes,
                          struct rewarm_image_vma **ret_vmas, size_t *ret_count,
                          uint32_t *ret_exe_id, struct rewarm_error *err)
{
    struct rewarm_image_cursor cursor;
    int rc = rewarm_image_begin(name, data, bytes, REWARM_MAGIC_MM, &cursor, err);
    if (rc != 0)
        return rc;
    const uint8_t *message;
    size_t message_bytes;
    rc = rewarm_image_next(&cursor, &message, &message_bytes, err);
    if (rc < 0)
        return rc;
    MmEntry *mm = rc > 0 ? mm_entry__unpack(NULL, message_bytes, message) : NULL;
    if (mm == NULL)
        return rewarm_image_damaged(name, "no memory entry", err);
    size_t count = mm->n_vmas;
    uint32_t exe_id = mm->exe_file_id;
    rewarm_auto_free struct rewarm_image_vma *vmas =
        rewarm_mem_new(count != 0 ? count : 1, sizeof(*vmas));
    const char *wrong = copy_vmas(mm, vmas, &count);
    mm_entry__free_unpacked(mm, NULL);
    if (wrong != NULL)
        return rewarm_image_damaged(name, wrong, err);
    *ret_vmas = rewarm_steal_ptr(&vmas);
    *ret_count = count;
    *ret_exe_id = exe_id;
    return 0;
}

static int read_mm(int dirfd, int32_t pid, struct rewarm_image_vma **ret_vmas, size_t *ret_count,
                   uint32_t *ret_exe_id, struct rewarm_error *err)
{
    char name[32];
    snprintf(name, sizeof(name), "mm-%d.img", pid);
    rewarm_auto_free char *data = NULL;
    size_t bytes;
    int rc = rewarm_image_read(dirfd, name, &data, &bytes, err);
    if (rc != 0)
        return rc;
    return rewarm_image_parse_mm(name, data, bytes, ret_vmas, ret_count, ret_exe_id, err);
}

int rewarm_image_mm(int dirfd, int32_t pid, struct rewarm_image_vma **ret_vmas, size_t *ret_count,
                    struct rewarm_error *err)
{
    uint32_t exe_id;
    return read_mm(dirfd, pid, ret_vmas, ret_count, &exe_id, err);
}

/* --- mapped files
 * ------------------------------------------------------------------------------------- */

struct id_list {
    uint32_t *ids;
    size_t count, capacity;
};

static void add_id(struct id_list *list, uint32_t id)
{
    REWARM_GROW(&list->ids, &list->capacity, list->count);
    list->ids[list->count++] = id;
}

static int compare_paths(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* The ids of all files that any process maps or executes, sorted. */
static int mapped_ids(int dirfd, struct id_list *list, struct rewarm_error *err)
{
    rewarm_auto_free struct rewarm_image_process *processes = NULL;
    size_t count;
    int rc = rewarm_image_pstree(dirfd, &processes, &count, err);
    if (rc != 0)
        return rc;
    for (size_t i = 0; i < count; i++) {
        if (processes[i].threads == 0)
            continue; /* a zombie has no memory */
        rewarm_auto_free struct rewarm_image_vma *vmas = NULL;
        size_t vma_count;
        uint32_t exe_id;
        rc = read_mm(dirfd, processes[i].pid, &vmas, &vma_count, &exe_id, err);
        if (rc != 0)
            return rc;
        add_id(list, exe_id);
        for (size_t j = 0; j < vma_count; j++) {
            /* What a process may write through a shared mapping is data, not a part of the program.
             */
            bool data = (vmas[j].status & VMA_FILE_SHARED) != 0 && (vmas[j].prot & PROT_WRITE) != 0;
            if ((vmas[j].status & (VMA_FILE_PRIVATE | VMA_FILE_SHARED)) != 0 && !data)
                add_id(list, (uint32_t)vmas[j].shmid);
        }
    }
    if (list->count > 1)
        qsort(list->ids, list->count, sizeof(*list->ids), rewarm_image_compare_ids);
    return 0;
}

int rewarm_image_mapped_files(int dirfd, char ***ret_paths, size_t *ret_count,
                              struct rewarm_error *err)
{
    struct id_list mapped = {NULL, 0, 0};
    int rc = mapped_ids(dirfd, &mapped, err);
    rewarm_auto_free uint32_t *ids = mapped.ids;
    rewarm_auto_free uint32_t *remaps = NULL;
    rewarm_auto_free char *data = NULL;
    size_t remap_count = 0, bytes, file_count = 0;
    struct rewarm_image_file *files = NULL;
    if (rc == 0)
        rc = rewarm_image_remaps(dirfd, &remaps, &remap_count, err);
    if (rc == 0)
        rc = rewarm_image_read(dirfd, "files.img", &data, &bytes, err);
    if (rc == 0)
        rc = rewarm_image_parse_files(data, bytes, &files, &file_count, err);
    if (rc != 0)
        return rc;
    char **paths = rewarm_mem_new(file_count + 1, sizeof(*paths));
    size_t count = 0;
    for (size_t i = 0; i < file_count; i++) {
        const struct rewarm_image_file *file = &files[i];
        if (file->type == REWARM_FD_REG && S_ISREG(file->mode) &&
            rewarm_image_has_id(ids, mapped.count, file->id) &&
            !rewarm_image_has_id(remaps, remap_count, file->id))
            paths[count++] = rewarm_str_dup(file->path);
    }
    rewarm_image_files_free(files, file_count);
    qsort(paths, count, sizeof(*paths), compare_paths);
    size_t unique = 0;
    for (size_t i = 0; i < count; i++) {
        if (unique != 0 && strcmp(paths[unique - 1], paths[i]) == 0)
            free(paths[i]);
        else
            paths[unique++] = paths[i];
    }
    *ret_paths = paths;
    *ret_count = unique;
    return 0;
}

void rewarm_image_paths_free(char **paths, size_t count)
{
    for (size_t i = 0; i < count; i++)
        free(paths[i]);
    free(paths);
}

/* files.img and what leads to it: which open file a descriptor is, and how CRIU names it.
 *
 * A process's descriptor table has an id (ids-PID.img), the table is fdinfo-ID.img, and its entries
 * name open files of files.img by id. */
#include "proc/criu_image.h"

#include <criu.pb-c.h>
#include <stdio.h>
#include <string.h>

#include "base/clean.h"
#include "base/str.h"
#include "proc/criu_image_entry.h"

/* What rewarm keeps of one entry, or false when its body is missing. */
static bool copy_file(const FileEntry *entry, struct rewarm_image_file *ret_file)
{
    struct rewarm_image_file file = {.id = entry->id, .type = entry->type};
    bool body = true;
    switch (entry->type) {
    case REWARM_FD_REG:
        body = entry->reg != NULL && entry->reg->name[0] == '/';
        if (body) {
            file.mode = entry->reg->has_mode ? entry->reg->mode : 0;
            file.path = rewarm_str_dup(entry->reg->name);
        }
        break;
    case REWARM_FD_PIPE:
        body = entry->pipe != NULL;
        file.number = body ? entry->pipe->pipe_id : 0;
        break;
    case REWARM_FD_FIFO:
        body = entry->fifo != NULL;
        file.number = body ? entry->fifo->regf_id : 0;
        break;
    case REWARM_FD_INET:
        body = entry->isk != NULL;
        file.number = body ? entry->isk->ino : 0;
        break;
    case REWARM_FD_UNIX:
        body = entry->usk != NULL;
        file.number = body ? entry->usk->ino : 0;
        break;
    case REWARM_FD_TTY:
        body = entry->tty != NULL;
        file.number = body ? entry->tty->tty_info_id : 0;
        break;
    default:
        break; /* eventfd, epoll, ...: nothing of them is wanted */
    }
    if (body)
        *ret_file = file;
    return body;
}

int rewarm_image_parse_files(const void *data, size_t bytes, struct rewarm_image_file **ret_files,
                             size_t *ret_count, struct rewarm_error *err)
{
    static const char name[] = "files.img";
    struct rewarm_image_cursor cursor;
    int rc = rewarm_image_begin(name, data, bytes, REWARM_MAGIC_FILES, &cursor, err);
    if (rc != 0)
        return rc;
    struct rewarm_image_file *files = NULL;
    size_t count = 0, capacity = 0;
    const uint8_t *message;
    size_t message_bytes;
    while ((rc = rewarm_image_next(&cursor, &message, &message_bytes, err)) > 0) {
        FileEntry *entry = file_entry__unpack(NULL, message_bytes, message);
        REWARM_GROW(&files, &capacity, count);
        bool good = entry != NULL && copy_file(entry, &files[count]);
        if (entry != NULL)
            file_entry__free_unpacked(entry, NULL);
        if (!good) {
            rc = rewarm_image_damaged(name, "an entry can't be read", err);
            break;
        }
        count++;
    }
    if (rc < 0) {
        rewarm_image_files_free(files, count);
        return rc;
    }
    *ret_files = files;
    *ret_count = count;
    return 0;
}

void rewarm_image_files_free(struct rewarm_image_file *files, size_t count)
{
    for (size_t i = 0; i < count; i++)
        free(files[i].path);
    free(files);
}

/* --- remap-fpath.img
 * ---------------------------------------------------------------------------------- */

int rewarm_image_compare_ids(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

bool rewarm_image_has_id(const uint32_t *ids, size_t count, uint32_t id)
{
    return count != 0 && bsearch(&id, ids, count, sizeof(*ids), rewarm_image_compare_ids) != NULL;
}

/* CRIU's remap_type; it writes the field always, and one without it is of an ancient version. */
enum { REMAP_LINKED = 0 };

/* CRIU's VMA_FILE_PRIVATE and VMA_FILE_SHARED. */
enum { VMA_OF_FILE = 0xc0 };

struct remap {
    uint32_t original_id, id, type;
};

static int parse_remaps(const void *data, size_t bytes, struct remap **ret_remaps,
                        size_t *ret_count, struct rewarm_error *err)
{
    static const char name[] = "remap-fpath.img";
    struct rewarm_image_cursor cursor;
    int rc = rewarm_image_begin(name, data, bytes, REWARM_MAGIC_REMAP, &cursor, err);
    if (rc != 0)
        return rc;
    rewarm_auto_free struct remap *remaps = NULL;
    size_t count = 0, capacity = 0;
    const uint8_t *message;
    size_t message_bytes;
    while ((rc = rewarm_image_next(&cursor, &message, &message_bytes, err)) > 0) {
        RemapFilePathEntry *entry = remap_file_path_entry__unpack(NULL, message_bytes, message);
        if (entry == NULL)
            return rewarm_image_damaged(name, "an entry can't be read", err);
        REWARM_GROW(&remaps, &capacity, count);
        remaps[count++] = (struct remap){entry->orig_id, entry->remap_id,
                                         entry->has_remap_type ? entry->remap_type : UINT32_MAX};
        remap_file_path_entry__free_unpacked(entry, NULL);
    }
    if (rc < 0)
        return rc;
    *ret_remaps = rewarm_steal_ptr(&remaps);
    *ret_count = count;
    return 0;
}

int rewarm_image_parse_remaps(const void *data, size_t bytes, uint32_t **ret_ids, size_t *ret_count,
                              struct rewarm_error *err)
{
    rewarm_auto_free struct remap *remaps = NULL;
    size_t count = 0;
    int rc = parse_remaps(data, bytes, &remaps, &count, err);
    if (rc != 0)
        return rc;
    uint32_t *ids = rewarm_mem_new(count != 0 ? count : 1, sizeof(*ids));
    for (size_t i = 0; i < count; i++)
        ids[i] = remaps[i].original_id;
    qsort(ids, count, sizeof(*ids), rewarm_image_compare_ids);
    *ret_ids = ids;
    *ret_count = count;
    return 0;
}

int rewarm_image_parse_relinks(const void *data, size_t bytes,
                               struct rewarm_image_relink **ret_relinks, size_t *ret_count,
                               struct rewarm_error *err)
{
    rewarm_auto_free struct remap *remaps = NULL;
    size_t count = 0, links = 0;
    int rc = parse_remaps(data, bytes, &remaps, &count, err);
    if (rc != 0)
        return rc;
    struct rewarm_image_relink *relinks = rewarm_mem_new(count != 0 ? count : 1, sizeof(*relinks));
    for (size_t i = 0; i < count; i++) {
        if (remaps[i].type == REMAP_LINKED)
            relinks[links++] = (struct rewarm_image_relink){remaps[i].original_id, remaps[i].id};
    }
    *ret_relinks = relinks;
    *ret_count = links;
    return 0;
}

/* No bytes when there is no such image: CRIU writes it only when there is something to say. */
static int read_remaps(int dirfd, char **ret_data, size_t *ret_bytes, struct rewarm_error *err)
{
    if (faccessat(dirfd, "remap-fpath.img", F_OK, 0) != 0 && errno == ENOENT) {
        *ret_data = NULL;
        *ret_bytes = 0;
        return 0;
    }
    return rewarm_image_read(dirfd, "remap-fpath.img", ret_data, ret_bytes, err);
}

int rewarm_image_remaps(int dirfd, uint32_t **ret_ids, size_t *ret_count, struct rewarm_error *err)
{
    rewarm_auto_free char *data = NULL;
    size_t bytes = 0;
    int rc = read_remaps(dirfd, &data, &bytes, err);
    if (rc == 0 && data != NULL)
        return rewarm_image_parse_remaps(data, bytes, ret_ids, ret_count, err);
    if (rc == 0) {
        *ret_ids = NULL;
        *ret_count = 0;
    }
    return rc;
}

int rewarm_image_relinks(int dirfd, struct rewarm_image_relink **ret_relinks, size_t *ret_count,
                         struct rewarm_error *err)
{
    rewarm_auto_free char *data = NULL;
    size_t bytes = 0;
    int rc = read_remaps(dirfd, &data, &bytes, err);
    if (rc == 0 && data != NULL)
        return rewarm_image_parse_relinks(data, bytes, ret_relinks, ret_count, err);
    if (rc == 0) {
        *ret_relinks = NULL;
        *ret_count = 0;
    }
    return rc;
}

/* --- from a descriptor to CRIU's name for it
 * ---------------------------------------------------------- */

static int files_id_of(int dirfd, int32_t pid, uint32_t *ret_id, struct rewarm_error *err)
{
    char name[32];
    snprintf(name, sizeof(name), "ids-%d.img", pid);
    rewarm_auto_free char *data = NULL;
    size_t bytes, message_bytes = 0;
    const uint8_t *message = NULL;
    struct rewarm_image_cursor cursor;
    int rc = rewarm_image_read(dirfd, name, &data, &bytes, err);
    if (rc == 0)
        rc = rewarm_image_begin(name, data, bytes, REWARM_MAGIC_IDS, &cursor, err);
    if (rc == 0)
        rc = rewarm_image_next(&cursor, &message, &message_bytes, err);
    if (rc < 0)
        return rc;
    TaskKobjIdsEntry *entry =
        rc > 0 ? task_kobj_ids_entry__unpack(NULL, message_bytes, message) : NULL;
    if (entry == NULL)
        return rewarm_image_damaged(name, "no ids", err);
    *ret_id = entry->files_id;
    task_kobj_ids_entry__free_unpacked(entry, NULL);
    return 0;
}

/* 1 with the kind and id of the open file behind `fd`, 0 when it is closed, or a negative code. */
static int find_descriptor(int dirfd, int32_t pid, int fd, uint32_t *ret_type, uint32_t *ret_id,
                           struct rewarm_error *err)
{
    uint32_t files_id = 0;
    int rc = files_id_of(dirfd, pid, &files_id, err);
    if (rc != 0)
        return rc;
    char name[32];
    snprintf(name, sizeof(name), "fdinfo-%u.img", files_id);
    rewarm_auto_free char *data = NULL;
    size_t bytes, message_bytes;
    const uint8_t *message;
    struct rewarm_image_cursor cursor;
    rc = rewarm_image_read(dirfd, name, &data, &bytes, err);
    if (rc == 0)
        rc = rewarm_image_begin(name, data, bytes, REWARM_MAGIC_FDINFO, &cursor, err);
    if (rc != 0)
        return rc;
    while ((rc = rewarm_image_next(&cursor, &message, &message_bytes, err)) > 0) {
        FdinfoEntry *entry = fdinfo_entry__unpack(NULL, message_bytes, message);
        if (entry == NULL)
            return rewarm_image_damaged(name, "an entry can't be read", err);
        bool found = fd >= 0 && entry->fd == (uint32_t)fd;
        if (found) {
            *ret_type = entry->type;
            *ret_id = entry->id;
        }
        fdinfo_entry__free_unpacked(entry, NULL);
        if (found)
            return 1;
    }
    return rc;
}

static const struct rewarm_image_file *find_file(const struct rewarm_image_file *files,
                                                 size_t count, uint32_t type, uint32_t id)
{
    for (size_t i = 0; i < count; i++)
        if (files[i].type == type && files[i].id == id)
            return &files[i];
    return NULL;
}

/* CRIU's name for a terminal: device numbers of what it is and of where its node is. */
static int tty_key(int dirfd, uint32_t info_id, char **ret_key, struct rewarm_error *err)
{
    static const char name[] = "tty-info.img";
    rewarm_auto_free char *data = NULL;
    rewarm_auto_free char *key = NULL;
    size_t bytes, message_bytes;
    const uint8_t *message;
    struct rewarm_image_cursor cursor;
    int rc = rewarm_image_read(dirfd, name, &data, &bytes, err);
    if (rc == 0)
        rc = rewarm_image_begin(name, data, bytes, REWARM_MAGIC_TTY_INFO, &cursor, err);
    if (rc != 0)
        return rc;
    while (key == NULL && (rc = rewarm_image_next(&cursor, &message, &message_bytes, err)) > 0) {
        TtyInfoEntry *entry = tty_info_entry__unpack(NULL, message_bytes, message);
        if (entry == NULL)
            return rewarm_image_damaged(name, "an entry can't be read", err);
        if (entry->id == info_id)
            key = rewarm_str_format("tty[%x:%x]", entry->rdev, entry->has_dev ? entry->dev : 0);
        tty_info_entry__free_unpacked(entry, NULL);
    }
    if (rc < 0)
        return rc;
    *ret_key = rewarm_steal_ptr(&key);
    return 0;
}

static int key_of(int dirfd, const struct rewarm_image_file *files, size_t count,
                  const struct rewarm_image_file *file, char **ret_key, struct rewarm_error *err)
{
    const struct rewarm_image_file *node;
    *ret_key = NULL;
    switch (file->type) {
    case REWARM_FD_REG:
        if (S_ISREG(file->mode))
            *ret_key = rewarm_str_dup(file->path + 1);
        break;
    case REWARM_FD_PIPE:
        *ret_key = rewarm_str_format("pipe:[%u]", file->number);
        break;
    case REWARM_FD_FIFO:
        node = find_file(files, count, REWARM_FD_REG, file->number);
        if (node != NULL)
            *ret_key = rewarm_str_dup(node->path + 1);
        break;
    case REWARM_FD_UNIX:
        *ret_key = rewarm_str_format("socket:[%u]", file->number);
        break;
    case REWARM_FD_TTY:
        return tty_key(dirfd, file->number, ret_key, err);
    default:
        break;
    }
    return 0;
}

int rewarm_image_inherit_key(int dirfd, int32_t pid, int fd, char **ret_key,
                             struct rewarm_error *err)
{
    uint32_t type = 0, id = 0;
    int rc = find_descriptor(dirfd, pid, fd, &type, &id, err);
    if (rc < 0)
        return rc;
    if (rc == 0) {
        *ret_key = NULL;
        return 0;
    }
    rewarm_auto_free char *data = NULL;
    size_t bytes, count = 0;
    struct rewarm_image_file *files = NULL;
    char *key = NULL;
    rc = rewarm_image_read(dirfd, "files.img", &data, &bytes, err);
    if (rc == 0)
        rc = rewarm_image_parse_files(data, bytes, &files, &count, err);
    if (rc != 0)
        return rc;
    const struct rewarm_image_file *file = find_file(files, count, type, id);
    rc = file != NULL ? key_of(dirfd, files, count, file, &key, err)
                      : rewarm_image_damaged("files.img", "an open file is missing", err);
    rewarm_image_files_free(files, count);
    if (rc == 0)
        *ret_key = key;
    return rc;
}

/* --- deleted files with another name
 * ----------------------------------------------------------------------------------------------
 */

/* The first descriptor of the table `data` that is the regular file `id`; -1 when there is none. */
static int find_descriptor_of(const char *name, const void *data, size_t bytes, uint32_t id,
                              int *ret_fd, struct rewarm_error *err)
{
    struct rewarm_image_cursor cursor;
    const uint8_t *message;
    size_t message_bytes;
    int found = -1;
    int rc = rewarm_image_begin(name, data, bytes, REWARM_MAGIC_FDINFO, &cursor, err);
    if (rc != 0)
        return rc;
    while (found < 0 && (rc = rewarm_image_next(&cursor, &message, &message_bytes, err)) > 0) {
        FdinfoEntry *entry = fdinfo_entry__unpack(NULL, message_bytes, message);
        if (entry == NULL)
            return rewarm_image_damaged(name, "an entry can't be read", err);
        if (entry->type == REWARM_FD_REG && entry->id == id && entry->fd <= INT32_MAX)
            found = (int)entry->fd;
        fdinfo_entry__free_unpacked(entry, NULL);
    }
    if (rc < 0)
        return rc;
    *ret_fd = found;
    return 0;
}

static int find_mapping_of(int dirfd, int32_t pid, uint32_t id, char **ret_holder,
                           struct rewarm_error *err)
{
    rewarm_auto_free struct rewarm_image_vma *vmas = NULL;
    size_t count = 0;
    int rc = rewarm_image_mm(dirfd, pid, &vmas, &count, err);
    *ret_holder = NULL;
    for (size_t i = 0; rc == 0 && *ret_holder == NULL && i < count; i++) {
        if ((vmas[i].status & VMA_OF_FILE) != 0 && vmas[i].shmid == id)
            *ret_holder = rewarm_str_format("/proc/%d/map_files/%llx-%llx", pid,
                                            (unsigned long long)vmas[i].start,
                                            (unsigned long long)vmas[i].end);
    }
    return rc;
}

/* Where a process has the open file `id`; NULL if it has not. */
static int find_holder(int dirfd, int32_t pid, uint32_t id, char **ret_holder,
                       struct rewarm_error *err)
{
    uint32_t files_id = 0;
    rewarm_auto_free char *data = NULL;
    size_t bytes = 0;
    int fd = -1;
    int rc = files_id_of(dirfd, pid, &files_id, err);
    if (rc != 0)
        return rc;
    rewarm_auto_free char *name = rewarm_str_format("fdinfo-%u.img", files_id);
    rc = rewarm_image_read(dirfd, name, &data, &bytes, err);
    if (rc == 0)
        rc = find_descriptor_of(name, data, bytes, id, &fd, err);
    if (rc != 0)
        return rc;
    if (fd < 0)
        return find_mapping_of(dirfd, pid, id, ret_holder, err);
    *ret_holder = rewarm_str_format("/proc/%d/fd/%d", pid, fd);
    return 0;
}

static int add_holder(int dirfd, const struct rewarm_image_process *processes, size_t count,
                      uint32_t id, struct rewarm_image_link *link, struct rewarm_error *err)
{
    for (size_t i = 0; i < count; i++) {
        if (processes[i].threads == 0)
            continue;
        int rc = find_holder(dirfd, processes[i].pid, id, &link->holder, err);
        if (rc != 0)
            return rc;
        if (link->holder == NULL)
            continue;
        link->pid = processes[i].pid;
        memcpy(link->comm, processes[i].comm, sizeof(link->comm));
        break;
    }
    return 0;
}

static int fill_links(int dirfd, const struct rewarm_image_relink *relinks, size_t count,
                      struct rewarm_image_link *links, struct rewarm_error *err)
{
    rewarm_auto_free char *data = NULL;
    rewarm_auto_free struct rewarm_image_process *processes = NULL;
    struct rewarm_image_file *files = NULL;
    size_t bytes = 0, file_count = 0, process_count = 0;
    int rc = rewarm_image_pstree(dirfd, &processes, &process_count, err);
    if (rc == 0)
        rc = rewarm_image_read(dirfd, "files.img", &data, &bytes, err);
    if (rc == 0)
        rc = rewarm_image_parse_files(data, bytes, &files, &file_count, err);
    if (rc != 0)
        return rc;
    for (size_t i = 0; rc == 0 && i < count; i++) {
        const struct rewarm_image_file *link =
            find_file(files, file_count, REWARM_FD_REG, relinks[i].link_id);
        const struct rewarm_image_file *original =
            find_file(files, file_count, REWARM_FD_REG, relinks[i].original_id);
        if (link == NULL || original == NULL) {
            rc = rewarm_image_damaged("remap-fpath.img", "a file is missing in files.img", err);
            break;
        }
        links[i].path = rewarm_str_dup(link->path);
        links[i].original = rewarm_str_dup(original->path);
        rc = add_holder(dirfd, processes, process_count, original->id, &links[i], err);
    }
    rewarm_image_files_free(files, file_count);
    return rc;
}

int rewarm_image_linked_files(int dirfd, struct rewarm_image_link **ret_links, size_t *ret_count,
                              struct rewarm_error *err)
{
    rewarm_auto_free struct rewarm_image_relink *relinks = NULL;
    size_t count = 0;
    int rc = rewarm_image_relinks(dirfd, &relinks, &count, err);
    if (rc != 0)
        return rc;
    struct rewarm_image_link *links = rewarm_mem_new(count != 0 ? count : 1, sizeof(*links));
    if (count != 0)
        rc = fill_links(dirfd, relinks, count, links, err);
    if (rc != 0) {
        rewarm_image_links_free(links, count);
        return rc;
    }
    *ret_links = links;
    *ret_count = count;
    return 0;
}

void rewarm_image_links_free(struct rewarm_image_link *links, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        free(links[i].path);
        free(links[i].original);
        free(links[i].holder);
    }
    free(links);
}

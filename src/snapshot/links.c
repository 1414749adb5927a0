/* At freeze the file itself is reached through the process that holds it, and its other name is
 * looked for in the folder where CRIU will want its link: an entry with the same device and inode.
 * (CRIU's own link can't be asked: it has gone by the time the memory is read.) At restore the link
 * is made before CRIU runs and removed after it, whether CRIU has deleted it or not; the journal
 * has its path, so that a later command removes it should this one be killed. */
#include "snapshot/links.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clean.h"
#include "base/fs.h"
#include "base/log.h"
#include "base/str.h"
#include "proc/criu_image.h"

static const char criu_prefix[] = "link_remap.";

/* A semaphore has 32 bytes. What is larger is more likely data that belongs to its folder. */
#define CONTENT_LIMIT_BYTES ((size_t)64 << 10)

/* The name part of an absolute path. */
static const char *base_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash != NULL ? slash + 1 : path;
}

static char *folder_of(const char *path)
{
    size_t length = (size_t)(base_of(path) - path);
    return rewarm_str_format("%.*s", (int)(length > 1 ? length - 1 : length), path);
}

/* --- at freeze
 * ----------------------------------------------------------------------------------------------
 */

static int refuse(const struct rewarm_image_link *link, struct rewarm_error *err)
{
    rewarm_auto_free char *folder = folder_of(link->path);
    rewarm_auto_free char *who =
        link->pid != 0 ? rewarm_str_format("process %d (%s)", (int)link->pid, link->comm)
                       : rewarm_str_dup("the worker");
    return rewarm_error_set(
        err, REWARM_E_REFUSED, 0,
        "%s holds %s, which has been deleted but has another name (a hard link), and not one in %s "
        "by which it could be found again at restore: close the file, delete its other names too, "
        "or keep one in that folder",
        who, link->original, folder);
}

/* The first other name in alphabetical order, or NULL. */
static char *find_name(const struct rewarm_image_link *link, const struct stat *file)
{
    rewarm_auto_free char *folder = folder_of(link->path);
    rewarm_auto_free char *best = NULL;
    rewarm_auto_dir DIR *dir = opendir(folder);
    struct stat st;
    for (struct dirent *entry; dir != NULL && (entry = readdir(dir)) != NULL;) {
        const char *name = entry->d_name;
        if (rewarm_str_starts(name, criu_prefix) || (best != NULL && strcmp(name, best) >= 0))
            continue;
        if (fstatat(dirfd(dir), name, &st, AT_SYMLINK_NOFOLLOW) != 0 || st.st_dev != file->st_dev ||
            st.st_ino != file->st_ino)
            continue;
        free(best);
        best = rewarm_str_dup(name);
    }
    if (best == NULL)
        return NULL;
    return rewarm_str_format("%s/%s", strcmp(folder, "/") == 0 ? "" : folder, best);
}

/* JSON null when it is too large. */
static int read_content(const char *path, size_t bytes, json_t **ret_content,
                        struct rewarm_error *err)
{
    if (bytes > CONTENT_LIMIT_BYTES) {
        *ret_content = json_null();
        return 0;
    }
    rewarm_auto_free char *data = rewarm_mem_new(bytes + 1, 1);
    rewarm_auto_free char *hex = rewarm_mem_new(2 * bytes + 1, 1);
    rewarm_auto_fd int fd = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return rewarm_error_errno(err, "opening %s", path);
    int result = rewarm_fs_pread_full(fd, data, bytes, 0, path, err);
    if (result != 0)
        return result;
    rewarm_str_hex(data, bytes, hex);
    *ret_content = json_string(hex);
    return 0;
}

static int record(const struct rewarm_image_link *link, json_t *list, struct rewarm_error *err)
{
    struct stat st;
    if (link->holder == NULL)
        return refuse(link, err);
    if (stat(link->holder, &st) != 0)
        return rewarm_error_errno(err, "looking at the deleted %s of process %d", link->original,
                                  (int)link->pid);
    rewarm_auto_free char *name = find_name(link, &st);
    json_t *name_json = name != NULL && S_ISREG(st.st_mode) ? json_string(name) : NULL;
    json_t *path_json = json_string(link->path); /* NULL: not UTF-8 */
    json_t *content = NULL;
    int result = name_json == NULL || path_json == NULL
                     ? refuse(link, err)
                     : read_content(name, (size_t)st.st_size, &content, err);
    if (result != 0) {
        json_decref(name_json);
        json_decref(path_json);
        return result;
    }
    json_t *entry =
        json_pack("{s:o,s:o,s:I,s:i,s:I,s:I,s:o}", "remap", path_json, "name", name_json, "bytes",
                  (json_int_t)st.st_size, "mode", (int)(st.st_mode & 07777), "uid",
                  (json_int_t)st.st_uid, "gid", (json_int_t)st.st_gid, "content", content);
    json_array_append_new(list, entry);
    return 0;
}

int rewarm_links_record(int images_dirfd, json_t *details, struct rewarm_error *err)
{
    struct rewarm_image_link *links = NULL;
    size_t count = 0;
    int result = rewarm_image_linked_files(images_dirfd, &links, &count, err);
    if (result != 0)
        return result;
    json_t *list = json_array();
    for (size_t i = 0; result == 0 && i < count; i++)
        result = record(&links[i], list, err);
    rewarm_image_links_free(links, count);
    json_object_set_new(details, "links", list);
    return result;
}

/* --- at restore
 * ----------------------------------------------------------------------------------------------
 */

char *rewarm_links_suffix(const struct rewarm_session *session)
{
    return rewarm_str_format(".%s", session->id);
}

/* The link of entry `i`; NULL after the last, or when the entry makes no sense. Free. */
static char *link_path(const json_t *details, size_t i, const struct rewarm_session *session)
{
    const json_t *entry = json_array_get(json_object_get(details, "links"), i);
    const char *remap = json_string_value(json_object_get(entry, "remap"));
    if (remap == NULL || remap[0] != '/' || !rewarm_str_starts(base_of(remap), criu_prefix))
        return NULL;
    rewarm_auto_free char *suffix = rewarm_links_suffix(session);
    return rewarm_str_format("%s%s", remap, suffix);
}

static int write_new(const char *name, const json_t *entry, const void *data, size_t bytes,
                     struct rewarm_error *err)
{
    rewarm_auto_fd int fd = open(name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return rewarm_error_errno(err, "making %s, which has gone since the freeze", name);
    int result = rewarm_fs_write_full(fd, data, bytes, name, err);
    uid_t uid = (uid_t)json_integer_value(json_object_get(entry, "uid"));
    gid_t gid = (gid_t)json_integer_value(json_object_get(entry, "gid"));
    mode_t mode = (mode_t)json_integer_value(json_object_get(entry, "mode")) & 07777;
    if (result == 0 && (fchown(fd, uid, gid) != 0 || fchmod(fd, mode) != 0))
        result = rewarm_error_errno(err, "giving %s its owner and mode", name);
    if (result != 0)
        unlink(name);
    return result;
}

/* The content that was recorded, where the name has gone. */
static int make_name(const char *name, const json_t *entry, struct rewarm_error *err)
{
    const char *content = json_string_value(json_object_get(entry, "content"));
    if (content == NULL)
        return rewarm_error_set(err, REWARM_E_MISFIT, 0,
                                "%s, which the worker had open, has gone since the freeze: put it "
                                "back, or freeze anew",
                                name);
    size_t bytes = strlen(content) / 2;
    rewarm_auto_free char *data = rewarm_mem_new(bytes + 1, 1);
    if (!rewarm_str_unhex(content, data, bytes))
        return rewarm_error_set(err, REWARM_E_CORRUPT, 0,
                                "the manifest's content of %s is no hexadecimal", name);
    return write_new(name, entry, data, bytes, err);
}

static int make(const json_t *entry, const char *path, struct rewarm_session *session,
                struct rewarm_error *err)
{
    const char *name = json_string_value(json_object_get(entry, "name"));
    struct stat st;
    if (name == NULL || name[0] != '/')
        return rewarm_error_set(err, REWARM_E_CORRUPT, 0,
                                "the manifest's \"links\" name no file for %s", path);
    int result = 0;
    if (lstat(name, &st) != 0) {
        if (errno != ENOENT)
            return rewarm_error_errno(err, "looking at %s, which the worker had open", name);
        result = make_name(name, entry, err);
    } else if (!S_ISREG(st.st_mode) ||
               (json_int_t)st.st_size != json_integer_value(json_object_get(entry, "bytes"))) {
        return rewarm_error_set(err, REWARM_E_MISFIT, 0,
                                "%s, which the worker had open, has another size or kind than at "
                                "the freeze: put it back, or freeze anew",
                                name);
    }
    if (result == 0)
        result = rewarm_session_note_path(session, "link", path, err);
    if (result == 0 && linkat(AT_FDCWD, name, AT_FDCWD, path, 0) != 0)
        result = rewarm_error_errno(err, "linking %s to %s for CRIU", name, path);
    return result;
}

int rewarm_links_make(const json_t *details, struct rewarm_session *session,
                      struct rewarm_error *err)
{
    const json_t *list = json_object_get(details, "links");
    int result = 0;
    for (size_t i = 0; result == 0 && i < json_array_size(list); i++) {
        rewarm_auto_free char *path = link_path(details, i, session);
        result = path != NULL ? make(json_array_get(list, i), path, session, err)
                              : rewarm_error_set(err, REWARM_E_CORRUPT, 0,
                                                 "the manifest's \"links\" hold what is no link");
    }
    return result;
}

void rewarm_links_remove(const json_t *details, const struct rewarm_session *session)
{
    size_t count = json_array_size(json_object_get(details, "links"));
    for (size_t i = 0; i < count && session->path != NULL; i++) {
        rewarm_auto_free char *path = link_path(details, i, session);
        if (path != NULL)
            rewarm_links_remove_path(path);
    }
}

void rewarm_links_remove_path(const char *path)
{
    if (!rewarm_str_starts(base_of(path), criu_prefix))
        return;
    if (unlink(path) != 0 && errno != ENOENT)
        rewarm_warn("%s, a link of an unfinished restore, can't be removed: %s", path,
                    strerror(errno));
}

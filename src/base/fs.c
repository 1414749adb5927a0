#include "base/fs.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "base/clean.h"
#include "base/str.h"

int rewarm_fs_read_full(int fd, void *buffer, size_t bytes, const char *what,
                        struct rewarm_error *err)
{
    for (size_t done = 0; done < bytes;) {
        ssize_t n = read(fd, (char *)buffer + done, bytes - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return rewarm_error_errno(err, "reading %s", what);
        if (n == 0)
            return rewarm_error_set(err, REWARM_E_CORRUPT, 0, "%s ends after %zu of %zu bytes",
                                    what, done, bytes);
        done += (size_t)n;
    }
    return 0;
}

int rewarm_fs_write_full(int fd, const void *buffer, size_t bytes, const char *what,
                         struct rewarm_error *err)
{
    for (size_t done = 0; done < bytes;) {
        ssize_t n = write(fd, (const char *)buffer + done, bytes - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return rewarm_error_errno(err, "writing %s", what);
        done += (size_t)n;
    }
    return 0;
}

int rewarm_fs_pread_full(int fd, void *buffer, size_t bytes, uint64_t offset_bytes,
                         const char *what, struct rewarm_error *err)
{
    for (size_t done = 0; done < bytes;) {
        ssize_t n = pread(fd, (char *)buffer + done, bytes - done, (off_t)(offset_bytes + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return rewarm_error_errno(err, "reading %s at byte %llu", what,
                                      (unsigned long long)(offset_bytes + done));
        if (n == 0)
            return rewarm_error_set(err, REWARM_E_CORRUPT, 0,
                                    "%s ends at byte %llu, where %zu more were expected", what,
                                    (unsigned long long)(offset_bytes + done), bytes - done);
        done += (size_t)n;
    }
    return 0;
}

int rewarm_fs_pwrite_full(int fd, const void *buffer, size_t bytes, uint64_t offset_bytes,
                          const char *what, struct rewarm_error *err)
{
    for (size_t done = 0; done < bytes;) {
        ssize_t n =
            pwrite(fd, (const char *)buffer + done, bytes - done, (off_t)(offset_bytes + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return rewarm_error_errno(err, "writing %s at byte %llu", what,
                                      (unsigned long long)(offset_bytes + done));
        done += (size_t)n;
    }
    return 0;
}

int rewarm_fs_read_file(int dirfd, const char *path, size_t limit_bytes, char **ret_text,
                        size_t *ret_bytes, struct rewarm_error *err)
{
    rewarm_auto_fd int fd = openat(dirfd, path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return rewarm_error_errno(err, "opening %s", path);
    struct stat st;
    /* /proc files say 0: start with a page and grow. */
    size_t capacity = fstat(fd, &st) == 0 && st.st_size > 0 ? (size_t)st.st_size + 1 : 4096;
    if (capacity > limit_bytes + 1)
        capacity = limit_bytes + 1;
    rewarm_auto_free char *text = rewarm_mem_new(capacity + 1, 1);
    size_t used = 0;
    for (;;) {
        if (used == capacity) {
            if (capacity > limit_bytes)
                return rewarm_error_set(err, REWARM_E_CORRUPT, 0, "%s is larger than %zu bytes",
                                        path, limit_bytes);
            capacity = capacity * 2 > limit_bytes ? limit_bytes + 1 : capacity * 2;
            text = rewarm_mem_resize(text, capacity + 1, 1);
        }
        ssize_t n = read(fd, text + used, capacity - used);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return rewarm_error_errno(err, "reading %s", path);
        if (n == 0)
            break;
        used += (size_t)n;
    }
    if (used > limit_bytes)
        return rewarm_error_set(err, REWARM_E_CORRUPT, 0, "%s is larger than %zu bytes", path,
                                limit_bytes);
    text[used] = '\0';
    *ret_text = rewarm_steal_ptr(&text);
    if (ret_bytes != NULL)
        *ret_bytes = used;
    return 0;
}

static int sync_parent(int dirfd, const char *path, struct rewarm_error *err)
{
    rewarm_auto_free char *parent = rewarm_str_dup(path);
    char *slash = strrchr(parent, '/');
    if (slash == parent)
        slash[1] = '\0';
    else if (slash != NULL)
        *slash = '\0';
    const char *name = slash == NULL ? "." : parent;
    rewarm_auto_fd int fd = openat(dirfd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) != 0)
        return rewarm_error_errno(err, "syncing the folder of %s", path);
    return 0;
}

int rewarm_fs_write_durable(int dirfd, const char *path, mode_t mode, const void *data,
                            size_t bytes, struct rewarm_error *err)
{
    rewarm_auto_free char *temporary = rewarm_str_format("%s.tmp-%d", path, (int)getpid());
    rewarm_auto_fd int fd =
        openat(dirfd, temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, mode);
    if (fd < 0)
        return rewarm_error_errno(err, "creating %s", temporary);
    int result = rewarm_fs_write_full(fd, data, bytes, path, err);
    if (result == 0 && fsync(fd) != 0)
        result = rewarm_error_errno(err, "syncing %s", temporary);
    if (result == 0 && renameat(dirfd, temporary, dirfd, path) != 0)
        result = rewarm_error_errno(err, "renaming %s to %s", temporary, path);
    if (result != 0) {
        unlinkat(dirfd, temporary, 0);
        return result;
    }
    return sync_parent(dirfd, path, err);
}

int rewarm_fs_open_dir(int dirfd, const char *path, bool create, int *ret_fd,
                       struct rewarm_error *err)
{
    if (create && mkdirat(dirfd, path, 0700) != 0 && errno != EEXIST)
        return rewarm_error_errno(err, "creating folder %s", path);
    int fd = openat(dirfd, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return rewarm_error_errno(err, "opening folder %s", path);
    *ret_fd = fd;
    return 0;
}

int rewarm_fs_make_dirs(const char *path, struct rewarm_error *err)
{
    rewarm_auto_free char *copy = rewarm_str_dup(path);
    for (char *p = copy + 1;; p++) {
        if (*p != '/' && *p != '\0')
            continue;
        char kept = *p;
        *p = '\0';
        if (mkdir(copy, 0700) != 0 && errno != EEXIST)
            return rewarm_error_errno(err, "creating folder %s", copy);
        if (kept == '\0')
            break;
        *p = kept;
    }
    struct stat st;
    if (stat(path, &st) != 0 || !S_ISDIR(st.st_mode))
        return rewarm_error_set(err, REWARM_E_USAGE, 0, "%s is not a folder", path);
    return 0;
}

static int remove_content(int fd, dev_t device, const char *path, struct rewarm_error *err)
{
    rewarm_auto_dir DIR *dir = fdopendir(fd);
    if (dir == NULL) {
        int result = rewarm_error_errno(err, "listing %s", path);
        close(fd);
        return result;
    }
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        struct stat st;
        if (fstatat(fd, entry->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0) {
            if (errno == ENOENT)
                continue;
            return rewarm_error_errno(err, "looking at %s/%s", path, entry->d_name);
        }
        if (st.st_dev != device)
            return rewarm_error_set(err, REWARM_E_REFUSED, 0,
                                    "%s/%s is on another file system (a mount?): left alone", path,
                                    entry->d_name);
        int flags = 0;
        if (S_ISDIR(st.st_mode)) {
            int below = openat(fd, entry->d_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
            if (below < 0)
                return rewarm_error_errno(err, "opening %s/%s", path, entry->d_name);
            int result = remove_content(below, device, entry->d_name, err);
            if (result != 0)
                return result;
            flags = AT_REMOVEDIR;
        }
        if (unlinkat(fd, entry->d_name, flags) != 0 && errno != ENOENT)
            return rewarm_error_errno(err, "removing %s/%s", path, entry->d_name);
    }
    return 0;
}

int rewarm_fs_remove_tree(int dirfd, const char *path, struct rewarm_error *err)
{
    struct stat st;
    if (fstatat(dirfd, path, &st, AT_SYMLINK_NOFOLLOW) != 0) {
        if (errno == ENOENT)
            return 0;
        return rewarm_error_errno(err, "looking at %s", path);
    }
    if (S_ISDIR(st.st_mode)) {
        int fd = openat(dirfd, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
        if (fd < 0)
            return rewarm_error_errno(err, "opening %s", path);
        int result = remove_content(fd, st.st_dev, path, err);
        if (result != 0)
            return result;
    }
    if (unlinkat(dirfd, path, S_ISDIR(st.st_mode) ? AT_REMOVEDIR : 0) != 0 && errno != ENOENT)
        return rewarm_error_errno(err, "removing %s", path);
    return 0;
}

int rewarm_fs_set_cloexec(int fd, bool on, struct rewarm_error *err)
{
    int flags = fcntl(fd, F_GETFD);
    if (flags < 0 || fcntl(fd, F_SETFD, on ? flags | FD_CLOEXEC : flags & ~FD_CLOEXEC) != 0)
        return rewarm_error_errno(err, "setting close-on-exec on descriptor %d", fd);
    return 0;
}

static int compare_ints(const void *a, const void *b)
{
    return *(const int *)a - *(const int *)b;
}

void rewarm_fs_close_all_but(int *keep, size_t count)
{
    qsort(keep, count, sizeof(*keep), compare_ints);
    unsigned from = 3;
    for (size_t i = 0; i < count; i++) {
        if (keep[i] < (int)from)
            continue;
        if (keep[i] > (int)from)
            close_range(from, (unsigned)keep[i] - 1, 0);
        from = (unsigned)keep[i] + 1;
    }
    close_range(from, ~0u, 0);
}

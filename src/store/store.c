/* The store's directory: opening it, its locks, and small things that the other files need.
 *
 * A store is a directory with a `format` file and one folder for each kind of thing
 * (docs/format.md). It is a copy of memory, secrets and all, so a directory that another user could
 * enter, or owns, is refused. */
#include <dirent.h>
#include <fcntl.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/clean.h"
#include "base/fs.h"
#include "base/str.h"
#include "base/time.h"
#include "store/internal.h"
#include "store/lock.h"

#define FORMAT_FILE  "format"
#define FORMAT_TEXT  "rewarm-store 1\n"
#define FORMAT_START "rewarm-store "
#define GC_LOCK      "gc"

static const struct {
    const char *name;
    size_t offset;
} folders[] = {
    {"snapshots", offsetof(struct rewarm_store, snapshots_fd)},
    {"maps", offsetof(struct rewarm_store, maps_fd)},
    {"packs", offsetof(struct rewarm_store, packs_fd)},
    {"staging", offsetof(struct rewarm_store, staging_fd)},
    {"locks", offsetof(struct rewarm_store, locks_fd)},
};
#define FOLDERS (sizeof(folders) / sizeof(folders[0]))

static int *folder_fd(struct rewarm_store *store, size_t index)
{
    return (int *)(void *)((char *)store + folders[index].offset);
}

char *rewarm_store_default_path(void)
{
    const char *path = getenv("REWARM_STORE");
    if (path != NULL && path[0] != '\0')
        return rewarm_str_dup(path);
    if (geteuid() == 0)
        return rewarm_str_dup("/var/lib/rewarm");
    const char *home = getenv("HOME");
    if (home == NULL || home[0] == '\0') {
        const struct passwd *user = getpwuid(geteuid());
        home = user != NULL ? user->pw_dir : "/";
    }
    return rewarm_str_format("%s/.local/share/rewarm", home);
}

/* --- names in a directory
 * ------------------------------------------------------------------------------- */

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

int rewarm_store_names(int dirfd, const char *what, char ***ret_names, size_t *ret_count,
                       struct rewarm_error *err)
{
    /* Opened again: a DIR takes its descriptor and its position over. */
    rewarm_auto_fd int fd = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    rewarm_auto_dir DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
    if (dir == NULL)
        return rewarm_error_errno(err, "cannot list %s", what);
    rewarm_steal_fd(&fd);
    char **names = NULL;
    size_t count = 0, capacity = 0;
    for (;;) {
        errno = 0;
        const struct dirent *entry = readdir(dir);
        if (entry == NULL)
            break;
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        REWARM_GROW(&names, &capacity, count);
        names[count++] = rewarm_str_dup(entry->d_name);
    }
    if (errno != 0) {
        int result = rewarm_error_errno(err, "cannot list %s", what);
        rewarm_store_names_free(names, count);
        return result;
    }
    if (count != 0)
        qsort(names, count, sizeof(*names), compare_names);
    *ret_names = names;
    *ret_count = count;
    return 0;
}

void rewarm_store_names_free(char **names, size_t count)
{
    for (size_t i = 0; i < count; i++)
        free(names[i]);
    free(names);
}

int rewarm_store_snapshot_names(struct rewarm_store *store, char ***ret_names, size_t *ret_count,
                                struct rewarm_error *err)
{
    char **names;
    size_t count, kept = 0;
    int result = rewarm_store_names(store->snapshots_fd, "snapshots", &names, &count, err);
    if (result < 0)
        return result;
    for (size_t i = 0; i < count; i++) {
        char *name = names[i];
        if (rewarm_str_ends(name, ".json")) {
            name[strlen(name) - strlen(".json")] = '\0';
            if (rewarm_str_check_name(name, NULL) == 0) {
                names[kept++] = name;
                continue;
            }
        }
        free(name);
    }
    *ret_names = names;
    *ret_count = kept;
    return 0;
}

int rewarm_store_write_new(int dirfd, const char *name, const void *data, size_t bytes,
                           struct rewarm_error *err)
{
    rewarm_auto_fd int fd =
        openat(dirfd, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return rewarm_error_errno(err, "cannot create %s (%s)", name, REWARM_STORE_NO_SPACE_HINT);
    int result = rewarm_fs_write_full(fd, data, bytes, name, err);
    if (result == 0 && fsync(fd) != 0)
        result = rewarm_error_errno(err, "cannot make %s durable", name);
    return result;
}

/* --- opening
 * -------------------------------------------------------------------------------------------- */

static int check_owner(int fd, const char *path, struct rewarm_error *err)
{
    struct stat st;
    if (fstat(fd, &st) != 0)
        return rewarm_error_errno(err, "cannot examine the store %s", path);
    if (st.st_uid != geteuid())
        return rewarm_error_set(
            err, REWARM_E_PERMISSION, 0,
            "the store %s belongs to user %u, and you are %u: a snapshot runs with your "
            "privileges, so take a store of your own (--store or REWARM_STORE), or run `chown -R "
            "%u %s` if you trust what is in it",
            path, st.st_uid, geteuid(), geteuid(), path);
    if ((st.st_mode & 077) != 0)
        return rewarm_error_set(err, REWARM_E_PERMISSION, 0,
                                "the store %s is open to other users (mode %04o), and snapshots "
                                "are copies of memory, secrets included: run `chmod 700 %s`",
                                path, st.st_mode & 07777, path);
    return 0;
}

/* Whether a folder with no format file may become a store: it holds nothing but what an interrupted
 * creation leaves. */
static int check_empty(int fd, const char *path, struct rewarm_error *err)
{
    char **names;
    size_t count;
    int result = rewarm_store_names(fd, path, &names, &count, err);
    if (result < 0)
        return result;
    for (size_t i = 0; i < count && result == 0; i++) {
        bool ours =
            strcmp(names[i], "lost+found") == 0 || rewarm_str_starts(names[i], FORMAT_FILE ".tmp-");
        for (size_t k = 0; k < FOLDERS; k++)
            ours = ours || strcmp(names[i], folders[k].name) == 0;
        if (!ours)
            result = rewarm_error_set(err, REWARM_E_USAGE, 0,
                                      "%s is not a store and not empty (it has \"%s\"): name "
                                      "another directory",
                                      path, names[i]);
    }
    rewarm_store_names_free(names, count);
    return result;
}

static int check_format(int fd, const char *path, bool create, struct rewarm_error *err)
{
    rewarm_auto_free char *text = NULL;
    struct rewarm_error local = REWARM_ERROR_INIT;
    int result = rewarm_fs_read_file(fd, FORMAT_FILE, 256, &text, NULL, &local);
    if (result == -REWARM_E_NOT_FOUND && create) {
        result = check_empty(fd, path, err);
        if (result == 0)
            result = rewarm_fs_write_durable(fd, FORMAT_FILE, 0600, FORMAT_TEXT,
                                             strlen(FORMAT_TEXT), err);
        return result < 0 ? rewarm_error_wrap(err, "cannot make a store of %s", path) : 0;
    }
    if (result == -REWARM_E_NOT_FOUND)
        return rewarm_error_set(err, REWARM_E_NOT_FOUND, 0,
                                "%s is not a store: it has no format file", path);
    if (result < 0)
        return rewarm_error_set(err, (enum rewarm_code)local.code, 0,
                                "cannot open the store %s: %s", path, local.message);
    if (strcmp(text, FORMAT_TEXT) == 0)
        return 0;
    if (!rewarm_str_starts(text, FORMAT_START))
        return rewarm_error_set(err, REWARM_E_CORRUPT, 0,
                                "%s/" FORMAT_FILE " is damaged, or this is not a store", path);
    text[strcspn(text, "\n")] = '\0';
    return rewarm_error_set(err, REWARM_E_MISFIT, 0,
                            "the store %s has format \"%s\", which this rewarm does not know", path,
                            text);
}

static int open_folders(struct rewarm_store *store, struct rewarm_error *err)
{
    /* Missing ones are made: a copy of a store may have lost its empty folders. */
    for (size_t i = 0; i < FOLDERS; i++) {
        int result =
            rewarm_fs_open_dir(store->root_fd, folders[i].name, true, folder_fd(store, i), err);
        if (result < 0)
            return rewarm_error_wrap(err, "cannot open the store %s", store->path);
    }
    return 0;
}

int rewarm_store_open(const char *path, bool create, struct rewarm_store **ret_store,
                      struct rewarm_error *err)
{
    if (create) {
        int result = rewarm_fs_make_dirs(path, err);
        if (result < 0)
            return rewarm_error_wrap(err, "cannot make the store %s", path);
    }
    struct rewarm_store *store = rewarm_mem_new(1, sizeof(*store));
    store->path = rewarm_str_dup(path);
    for (size_t i = 0; i < FOLDERS; i++)
        *folder_fd(store, i) = -1;
    store->root_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int result = 0;
    if (store->root_fd < 0 && errno == ENOENT)
        result = rewarm_error_set(err, REWARM_E_NOT_FOUND, 0, "there is no store at %s", path);
    else if (store->root_fd < 0)
        result = rewarm_error_errno(err, "cannot open the store %s", path);
    if (result == 0)
        result = check_owner(store->root_fd, path, err);
    if (result == 0)
        result = check_format(store->root_fd, path, create, err);
    if (result == 0)
        result = open_folders(store, err);
    if (result < 0) {
        rewarm_store_close(store);
        return result;
    }
    *ret_store = store;
    return 0;
}

void rewarm_store_close(struct rewarm_store *store)
{
    if (store == NULL)
        return;
    for (size_t i = 0; i < FOLDERS; i++)
        if (*folder_fd(store, i) >= 0)
            close(*folder_fd(store, i));
    if (store->root_fd >= 0)
        close(store->root_fd);
    free(store->path);
    free(store);
}

const char *rewarm_store_path(const struct rewarm_store *store)
{
    return store->path;
}

/* --- locks
 * ---------------------------------------------------------------------------------------------- */

static int open_lock(struct rewarm_store *store, const char *name, bool exclusive, int *ret_fd,
                     struct rewarm_error *err)
{
    /* A shared lock wants reading only, so that a store that can't be written can still be read. */
    int fd = openat(store->locks_fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 || exclusive) {
        rewarm_clean_fd(&fd);
        fd = openat(store->locks_fd, name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    }
    if (fd < 0)
        return rewarm_error_errno(err, "cannot open locks/%s of the store %s", name, store->path);
    *ret_fd = fd;
    return 0;
}

int rewarm_store_lock_shared(struct rewarm_store *store, int *ret_fd, struct rewarm_error *err)
{
    rewarm_auto_fd int fd = -1;
    bool taken = false;
    int result = open_lock(store, GC_LOCK, false, &fd, err);
    if (result == 0)
        result = rewarm_lock_take(fd, false, REWARM_NEVER_NS, &taken, err);
    if (result < 0)
        return result;
    *ret_fd = rewarm_steal_fd(&fd);
    return 0;
}

int rewarm_store_lock_alone(struct rewarm_store *store, uint64_t deadline_ns, int *ret_fd,
                            struct rewarm_error *err)
{
    rewarm_auto_fd int fd = -1;
    bool taken = false;
    int result = open_lock(store, GC_LOCK, true, &fd, err);
    if (result == 0)
        result = rewarm_lock_take(fd, true, deadline_ns, &taken, err);
    if (result == 0 && !taken)
        result = rewarm_error_set(err, REWARM_E_BUSY, 0,
                                  "the store %s is in use: a freeze, a restore or another gc is "
                                  "running; try again when it has ended",
                                  store->path);
    if (result < 0)
        return result;
    *ret_fd = rewarm_steal_fd(&fd);
    return 0;
}

int rewarm_store_lock_name(struct rewarm_store *store, const char *name, int *ret_fd,
                           struct rewarm_error *err)
{
    rewarm_auto_free char *file = rewarm_str_format("%s.lock", name);
    rewarm_auto_fd int fd = -1;
    bool taken = false;
    int result = open_lock(store, file, true, &fd, err);
    if (result == 0)
        result = rewarm_lock_take(fd, true, 0, &taken, err);
    if (result < 0)
        return result;
    char holder[32] = "";
    if (!taken) {
        ssize_t got = pread(fd, holder, sizeof(holder) - 1, 0);
        holder[got > 0 ? got : 0] = '\0';
        holder[strcspn(holder, "\n")] = '\0';
        return rewarm_error_set(err, REWARM_E_BUSY, 0,
                                "snapshot %s is being written by process %s: wait for it, or take "
                                "another name",
                                name, holder[0] != '\0' ? holder : "(unknown)");
    }
    int length = snprintf(holder, sizeof(holder), "%d\n", (int)getpid());
    if (ftruncate(fd, 0) != 0)
        return rewarm_error_errno(err, "cannot write locks/%s of the store %s", file, store->path);
    result = rewarm_fs_pwrite_full(fd, holder, (size_t)length, 0, file, err);
    if (result < 0)
        return result;
    *ret_fd = rewarm_steal_fd(&fd);
    return 0;
}

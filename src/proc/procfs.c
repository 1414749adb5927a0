/* /proc of one process: stat, maps, descriptors, vectors.
 *
 * Text is parsed by functions that take bytes and a length, so that they can be fuzzed; the readers
 * around them add only the file names. A process may end at any moment: that is REWARM_E_NOT_FOUND
 * ("no process 12"), whatever errno the kernel chose for it, and a descriptor or thread that
 * vanishes while a list is read is left out. Trees are in procfs_tree.c. */
#include "proc/procfs.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "base/clean.h"
#include "base/fs.h"
#include "base/str.h"

enum {
    STAT_LIMIT_BYTES = 8192,
    STATUS_LIMIT_BYTES = 64 << 10,
    MAPS_LIMIT_BYTES = 64 << 20,
    VECTOR_LIMIT_BYTES = 16 << 20,
    FDINFO_LIMIT_BYTES = 1 << 20, /* an epoll lists all that it watches */
};

/* --- text
 * ----------------------------------------------------------------------------------------- */

struct cursor {
    const char *at, *end;
};

static bool take_char(struct cursor *cursor, char expected)
{
    if (cursor->at == cursor->end || *cursor->at != expected)
        return false;
    cursor->at++;
    return true;
}

static void skip_blanks(struct cursor *cursor)
{
    while (cursor->at < cursor->end && (*cursor->at == ' ' || *cursor->at == '\t'))
        cursor->at++;
}

static bool take_number(struct cursor *cursor, unsigned base, uint64_t *ret_value)
{
    uint64_t value = 0;
    const char *start = cursor->at;
    for (; cursor->at < cursor->end; cursor->at++) {
        char c = *cursor->at;
        unsigned digit;
        if (c >= '0' && c <= '9')
            digit = (unsigned)(c - '0');
        else if (c >= 'a' && c <= 'f')
            digit = (unsigned)(c - 'a') + 10;
        else
            break;
        if (digit >= base)
            break;
        if (value > (UINT64_MAX - digit) / base)
            return false;
        value = value * base + digit;
    }
    *ret_value = value;
    return cursor->at != start;
}

/* A blank and a signed decimal number, as stat has them. */
static bool take_field(struct cursor *cursor, int64_t *ret_value)
{
    uint64_t value;
    if (!take_char(cursor, ' '))
        return false;
    bool negative = take_char(cursor, '-');
    if (!take_number(cursor, 10, &value) || value > INT64_MAX)
        return false;
    *ret_value = negative ? -(int64_t)value : (int64_t)value;
    return true;
}

static int bad_stat(struct rewarm_error *err)
{
    return rewarm_error_set(err, REWARM_E_CORRUPT, 0, "can't understand a /proc/PID/stat line");
}

int rewarm_proc_parse_stat(const char *text, size_t bytes, struct rewarm_proc_stat *ret_stat,
                           struct rewarm_error *err)
{
    /* The name may hold anything, parentheses too: it ends at the last one. */
    struct cursor cursor = {text, text + bytes};
    struct rewarm_proc_stat stat = {0};
    uint64_t pid;
    if (!take_number(&cursor, 10, &pid) || pid > INT32_MAX || !take_char(&cursor, ' ') ||
        !take_char(&cursor, '('))
        return bad_stat(err);
    const char *close = memrchr(cursor.at, ')', (size_t)(cursor.end - cursor.at));
    if (close == NULL)
        return bad_stat(err);
    size_t length = (size_t)(close - cursor.at);
    if (length >= sizeof(stat.comm))
        length = sizeof(stat.comm) - 1;
    memcpy(stat.comm, cursor.at, length);
    cursor.at = close + 1;
    if (!take_char(&cursor, ' ') || cursor.at == cursor.end)
        return bad_stat(err);
    stat.state = *cursor.at++;

    /* Fields 4 to 22: ppid pgrp session tty tpgid flags ... num_threads(20) itreal starttime(22).
     */
    int64_t field[23];
    for (int i = 4; i <= 22; i++) {
        /* Counters may exceed what is signed; none of those is wanted here. */
        if (!take_field(&cursor, &field[i]))
            return bad_stat(err);
    }
    for (int i = 4; i <= 6; i++)
        if (field[i] < INT32_MIN || field[i] > INT32_MAX)
            return bad_stat(err);
    if (field[20] < 0 || field[20] > INT32_MAX || field[22] < 0 || field[9] < 0)
        return bad_stat(err);
    stat.pid = (pid_t)pid;
    stat.ppid = (pid_t)field[4];
    stat.pgrp = (pid_t)field[5];
    stat.session = (pid_t)field[6];
    stat.tty = (uint32_t)field[7];
    stat.flags = (uint32_t)field[9];
    stat.threads = (unsigned)field[20];
    stat.starttime = (uint64_t)field[22];
    *ret_stat = stat;
    return 0;
}

/* The kernel writes a newline in a path as \012. */
static char *copy_path(const char *text, size_t bytes)
{
    char *path = rewarm_mem_new(bytes + 1, 1);
    size_t used = 0;
    for (size_t i = 0; i < bytes; i++) {
        if (bytes - i >= 4 && memcmp(text + i, "\\012", 4) == 0) {
            path[used++] = '\n';
            i += 3;
        } else {
            path[used++] = text[i];
        }
    }
    return path;
}

static bool parse_vma(struct cursor cursor, struct rewarm_proc_vma *ret_vma)
{
    struct rewarm_proc_vma vma = {0};
    uint64_t major, minor;
    if (!take_number(&cursor, 16, &vma.start) || !take_char(&cursor, '-') ||
        !take_number(&cursor, 16, &vma.end) || !take_char(&cursor, ' ') || vma.start >= vma.end)
        return false;
    if (cursor.end - cursor.at < 5)
        return false;
    for (int i = 0; i < 4; i++) {
        if (strchr("rwxps-", cursor.at[i]) == NULL || cursor.at[i] == '\0')
            return false;
        vma.perms[i] = cursor.at[i];
    }
    cursor.at += 4;
    if (!take_char(&cursor, ' ') || !take_number(&cursor, 16, &vma.offset_bytes) ||
        !take_char(&cursor, ' ') || !take_number(&cursor, 16, &major) || !take_char(&cursor, ':') ||
        !take_number(&cursor, 16, &minor) || !take_char(&cursor, ' ') ||
        !take_number(&cursor, 10, &vma.inode))
        return false;
    if (major > UINT32_MAX || minor > UINT32_MAX)
        return false;
    vma.dev_major = (unsigned)major;
    vma.dev_minor = (unsigned)minor;
    skip_blanks(&cursor);
    vma.path = copy_path(cursor.at, (size_t)(cursor.end - cursor.at));
    *ret_vma = vma;
    return true;
}

int rewarm_proc_parse_maps(const char *text, size_t bytes, struct rewarm_proc_vma **ret_vmas,
                           size_t *ret_count, struct rewarm_error *err)
{
    struct rewarm_proc_vma *vmas = NULL;
    size_t count = 0, capacity = 0;
    const char *end = text + bytes;
    for (const char *line = text; line < end;) {
        const char *newline = memchr(line, '\n', (size_t)(end - line));
        struct cursor cursor = {line, newline != NULL ? newline : end};
        line = newline != NULL ? newline + 1 : end;
        if (cursor.at == cursor.end || (*cursor.at >= 'A' && *cursor.at <= 'Z'))
            continue; /* "Rss: 4 kB": a field of smaps */
        REWARM_GROW(&vmas, &capacity, count);
        if (!parse_vma(cursor, &vmas[count])) {
            rewarm_proc_vmas_free(vmas, count);
            return rewarm_error_set(err, REWARM_E_CORRUPT, 0,
                                    "can't understand line %zu of a /proc/PID/maps", count + 1);
        }
        count++;
    }
    *ret_vmas = vmas;
    *ret_count = count;
    return 0;
}

void rewarm_proc_vmas_free(struct rewarm_proc_vma *vmas, size_t count)
{
    for (size_t i = 0; i < count; i++)
        free(vmas[i].path);
    free(vmas);
}

/* --- files
 * ---------------------------------------------------------------------------------------- */

static int no_process(pid_t pid, struct rewarm_error *err)
{
    return rewarm_error_set(err, REWARM_E_NOT_FOUND, 0, "there is no process %d", (int)pid);
}

/* Reads /proc/PID/FILE whole. */
static int read_proc(pid_t pid, const char *file, size_t limit_bytes, char **ret_text,
                     size_t *ret_bytes, struct rewarm_error *err)
{
    char path[128];
    snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, file);
    struct rewarm_error local = REWARM_ERROR_INIT;
    int result = rewarm_fs_read_file(AT_FDCWD, path, limit_bytes, ret_text, ret_bytes, &local);
    if (result == 0)
        return 0;
    if (local.native == ESRCH || local.native == ENOENT)
        return no_process(pid, err);
    return rewarm_error_set(err, (enum rewarm_code)local.code, 0, "%s", local.message);
}

int rewarm_proc_stat(pid_t pid, struct rewarm_proc_stat *ret_stat, struct rewarm_error *err)
{
    rewarm_auto_free char *text = NULL;
    size_t bytes;
    int result = read_proc(pid, "stat", STAT_LIMIT_BYTES, &text, &bytes, err);
    return result == 0 ? rewarm_proc_parse_stat(text, bytes, ret_stat, err) : result;
}

bool rewarm_proc_alive(pid_t pid, uint64_t starttime)
{
    struct rewarm_proc_stat stat;
    return pid > 0 && rewarm_proc_stat(pid, &stat, NULL) == 0 && stat.starttime == starttime &&
           stat.state != 'Z' && stat.state != 'X';
}

int rewarm_proc_maps(pid_t pid, struct rewarm_proc_vma **ret_vmas, size_t *ret_count,
                     struct rewarm_error *err)
{
    rewarm_auto_free char *text = NULL;
    size_t bytes;
    int result = read_proc(pid, "maps", MAPS_LIMIT_BYTES, &text, &bytes, err);
    return result == 0 ? rewarm_proc_parse_maps(text, bytes, ret_vmas, ret_count, err) : result;
}

/* The text after "NAME:" and blanks, in a file of such lines; NULL if there is no such line. */
static const char *find_field(const char *text, const char *name)
{
    size_t length = strlen(name);
    for (const char *line = text; line != NULL && *line != '\0';) {
        if (strncmp(line, name, length) == 0 && line[length] == ':')
            return line + length + 1 + strspn(line + length + 1, " \t");
        line = strchr(line, '\n');
        if (line != NULL)
            line++;
    }
    return NULL;
}

int rewarm_proc_rss_anon(pid_t pid, uint64_t *ret_bytes, struct rewarm_error *err)
{
    rewarm_auto_free char *text = NULL;
    int result = read_proc(pid, "status", STATUS_LIMIT_BYTES, &text, NULL, err);
    if (result != 0)
        return result;
    const char *value = find_field(text, "RssAnon"); /* a zombie has no memory and no line */
    *ret_bytes = value != NULL ? strtoull(value, NULL, 10) * 1024 : 0;
    return 0;
}

/* Descriptor `name` of `pid`; false when it has gone. */
static bool read_fd(int fd_dirfd, pid_t pid, const char *name, struct rewarm_proc_fd *ret_fd)
{
    struct rewarm_proc_fd fd = {.fd = atoi(name)};
    char target[4096];
    ssize_t length = readlinkat(fd_dirfd, name, target, sizeof(target) - 1);
    struct stat st;
    if (length < 0 || fstatat(fd_dirfd, name, &st, 0) != 0)
        return false;
    target[length] = '\0';
    char file[64];
    snprintf(file, sizeof(file), "fdinfo/%d", fd.fd);
    rewarm_auto_free char *info = NULL;
    if (read_proc(pid, file, FDINFO_LIMIT_BYTES, &info, NULL, NULL) == 0) {
        const char *pos = find_field(info, "pos");
        const char *flags = find_field(info, "flags");
        fd.pos = pos != NULL ? strtoull(pos, NULL, 10) : 0;
        fd.flags = flags != NULL ? (unsigned)strtoul(flags, NULL, 8) : 0;
    }
    fd.mode = st.st_mode;
    fd.rdev_major = major(st.st_rdev);
    fd.rdev_minor = minor(st.st_rdev);
    fd.inode = st.st_ino;
    fd.size_bytes = (uint64_t)st.st_size;
    fd.target = rewarm_str_dup(target);
    *ret_fd = fd;
    return true;
}

static int by_fd(const void *left, const void *right)
{
    const struct rewarm_proc_fd *a = left, *b = right;
    return (a->fd > b->fd) - (a->fd < b->fd);
}

int rewarm_proc_fds(pid_t pid, struct rewarm_proc_fd **ret_fds, size_t *ret_count,
                    struct rewarm_error *err)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
    rewarm_auto_dir DIR *dir = opendir(path);
    if (dir == NULL)
        return errno == ENOENT || errno == ESRCH
                   ? no_process(pid, err)
                   : rewarm_error_errno(err, "can't list the descriptors of process %d", (int)pid);
    struct rewarm_proc_fd *fds = NULL;
    size_t count = 0, capacity = 0;
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        if (entry->d_name[0] == '.')
            continue;
        REWARM_GROW(&fds, &capacity, count);
        if (read_fd(dirfd(dir), pid, entry->d_name, &fds[count]))
            count++;
    }
    if (count != 0)
        qsort(fds, count, sizeof(*fds), by_fd);
    *ret_fds = fds;
    *ret_count = count;
    return 0;
}

void rewarm_proc_fds_free(struct rewarm_proc_fd *fds, size_t count)
{
    for (size_t i = 0; i < count; i++)
        free(fds[i].target);
    free(fds);
}

int rewarm_proc_vector(pid_t pid, const char *file, char ***ret_vector, struct rewarm_error *err)
{
    rewarm_auto_free char *text = NULL;
    size_t bytes;
    int result = read_proc(pid, file, VECTOR_LIMIT_BYTES, &text, &bytes, err);
    if (result != 0)
        return result;
    size_t count = 0;
    for (size_t i = 0; i < bytes; i++)
        count += text[i] == '\0' || i + 1 == bytes;
    char **vector = rewarm_mem_new(count + 1, sizeof(*vector));
    size_t used = 0;
    for (size_t at = 0; at < bytes && used < count; at += strlen(text + at) + 1)
        vector[used++] = rewarm_str_dup(text + at);
    *ret_vector = vector;
    return 0;
}

void rewarm_proc_vector_free(char **vector)
{
    if (vector == NULL)
        return;
    for (char **entry = vector; *entry != NULL; entry++)
        free(*entry);
    free(vector);
}

/* Sessions and their journals.
 *
 * The journal is a file of JSON objects, one a line: {"verb":..,"name":..} first, then
 * {"stage":..},
 * {"process":ROLE,"pid":..,"starttime":..} and {"path":ROLE,"value":..} as things happen. Appends
 * are one write(2) each; no fsync, since after a power cut there are no processes left to repair
 * and the store looks after its own files. The owner holds a flock on it: the lock goes with the
 * last process that has the descriptor (for a restore: supervisor and filler share one descriptor
 * table). */
#include "snapshot/session.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "base/clean.h"
#include "base/fs.h"
#include "base/str.h"
#include "base/time.h"
#include "snapshot/snapshot.h"

char *rewarm_run_path(void)
{
    const char *set = getenv("REWARM_RUN");
    if (set != NULL && *set != '\0')
        return rewarm_str_dup(set);
    if (geteuid() == 0)
        return rewarm_str_dup("/run/rewarm");
    const char *runtime = getenv("XDG_RUNTIME_DIR");
    if (runtime != NULL && *runtime != '\0')
        return rewarm_str_format("%s/rewarm", runtime);
    return rewarm_str_format("/tmp/rewarm-%u", (unsigned)geteuid());
}

int rewarm_run_dir(const char *sub, int *ret_dirfd, struct rewarm_error *err)
{
    rewarm_auto_free char *path = rewarm_run_path();
    int result = rewarm_fs_make_dirs(path, err);
    if (result != 0)
        return result;
    rewarm_auto_fd int top = -1;
    result = rewarm_fs_open_dir(AT_FDCWD, path, false, &top, err);
    if (result != 0)
        return result;
    /* /tmp/rewarm-UID could have been made by somebody else. */
    struct stat st;
    if (fstat(top, &st) != 0 || st.st_uid != geteuid() || (st.st_mode & 077) != 0)
        return rewarm_error_set(
            err, REWARM_E_PERMISSION, 0,
            "the run folder %s must belong to you with mode 0700: remove it, or "
            "set REWARM_RUN to another",
            path);
    if (sub == NULL) {
        *ret_dirfd = rewarm_steal_fd(&top);
        return 0;
    }
    return rewarm_fs_open_dir(top, sub, true, ret_dirfd, err);
}

/* The file is removed with the lock: one that was opened before and locked after that is no lock.
 */
static int lock_file(struct rewarm_run_lock *lock, struct rewarm_error *err)
{
    for (;;) {
        struct stat opened;
        struct stat named;
        lock->fd = openat(lock->dirfd, lock->file, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (lock->fd < 0 || fstat(lock->fd, &opened) != 0)
            return rewarm_error_errno(err, "opening the lock %s", lock->file);
        if (flock(lock->fd, LOCK_EX | LOCK_NB) != 0)
            return rewarm_error_set(err, REWARM_E_BUSY, 0, "%s is locked", lock->file);
        if (fstatat(lock->dirfd, lock->file, &named, 0) == 0 && named.st_ino == opened.st_ino)
            return dprintf(lock->fd, "%d\n", (int)getpid()) > 0
                       ? 0
                       : rewarm_error_errno(err, "writing the lock %s", lock->file);
        close(lock->fd);
    }
}

void rewarm_run_lock_await(const char *name, uint64_t deadline_ns)
{
    rewarm_auto_fd int dirfd = -1;
    rewarm_auto_free char *text = NULL;
    if (rewarm_run_dir("locks", &dirfd, NULL) != 0 ||
        rewarm_fs_read_file(dirfd, name, 64, &text, NULL, NULL) != 0)
        return;
    rewarm_auto_fd int pidfd = (int)syscall(SYS_pidfd_open, atoi(text), 0);
    struct pollfd poll_fd = {.fd = pidfd, .events = POLLIN};
    if (pidfd >= 0)
        poll(&poll_fd, 1, rewarm_time_poll_ms(deadline_ns));
}

int rewarm_run_lock(const char *name, struct rewarm_run_lock *lock, struct rewarm_error *err)
{
    struct rewarm_run_lock own = REWARM_RUN_LOCK_INIT;
    int result = rewarm_run_dir("locks", &own.dirfd, err);
    if (result != 0)
        return result;
    own.file = rewarm_str_dup(name);
    result = lock_file(&own, err);
    if (result != 0) {
        rewarm_clean_fd(&own.fd);
        rewarm_clean_fd(&own.dirfd);
        free(own.file);
        return result;
    }
    *lock = own;
    return 0;
}

void rewarm_run_unlock(struct rewarm_run_lock *lock)
{
    if (lock->file == NULL)
        return;
    unlinkat(lock->dirfd, lock->file, 0);
    close(lock->fd);
    close(lock->dirfd);
    free(lock->file);
    *lock = (struct rewarm_run_lock)REWARM_RUN_LOCK_INIT;
}

static int append(struct rewarm_session *session, json_t *line, struct rewarm_error *err)
{
    rewarm_auto_free char *text = json_dumps(line, JSON_COMPACT);
    json_decref(line);
    rewarm_auto_free char *whole = rewarm_str_format("%s\n", text);
    return rewarm_fs_write_full(session->journal_fd, whole, strlen(whole), "the journal", err);
}

int rewarm_session_open(const char *verb, const char *name, struct rewarm_session *ret_session,
                        struct rewarm_error *err)
{
    struct rewarm_session session = {.dirfd = -1, .journal_fd = -1};
    rewarm_auto_fd int sessions = -1;
    int result = rewarm_run_dir("sessions", &sessions, err);
    if (result != 0)
        return result;
    unsigned char salt[6];
    if (getrandom(salt, sizeof(salt), 0) != (ssize_t)sizeof(salt))
        return rewarm_error_errno(err, "getting random bytes");
    char hex[16];
    rewarm_str_hex(salt, sizeof(salt), hex);
    snprintf(session.id, sizeof(session.id), "%s-%d-%s", verb, (int)getpid(), hex);
    rewarm_auto_free char *run = rewarm_run_path();
    session.path = rewarm_str_format("%s/sessions/%s", run, session.id);
    result = rewarm_fs_open_dir(sessions, session.id, true, &session.dirfd, err);
    if (result == 0) {
        /* Locked before it has its name: a journal that is not locked has no owner. */
        session.journal_fd = openat(session.dirfd, "journal.new",
                                    O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0600);
        if (session.journal_fd < 0 || flock(session.journal_fd, LOCK_EX | LOCK_NB) != 0 ||
            renameat(session.dirfd, "journal.new", session.dirfd, "journal") != 0)
            result = rewarm_error_errno(err, "making the journal in %s", session.path);
    }
    if (result == 0)
        result = append(&session, json_pack("{s:s,s:s}", "verb", verb, "name", name), err);
    if (result != 0) {
        rewarm_session_close(&session);
        return result;
    }
    *ret_session = session;
    return 0;
}

int rewarm_session_note_stage(struct rewarm_session *session, const char *stage,
                              struct rewarm_error *err)
{
    return append(session, json_pack("{s:s}", "stage", stage), err);
}

int rewarm_session_note_process(struct rewarm_session *session, const char *role, pid_t pid,
                                uint64_t starttime, struct rewarm_error *err)
{
    return append(session,
                  json_pack("{s:s,s:I,s:I}", "process", role, "pid", (json_int_t)pid, "starttime",
                            (json_int_t)starttime),
                  err);
}

int rewarm_session_note_path(struct rewarm_session *session, const char *role, const char *path,
                             struct rewarm_error *err)
{
    return append(session, json_pack("{s:s,s:s}", "path", role, "value", path), err);
}

void rewarm_session_close(struct rewarm_session *session)
{
    if (session->path == NULL)
        return;
    struct rewarm_error ignored = REWARM_ERROR_INIT;
    rewarm_fs_remove_tree(AT_FDCWD, session->path, &ignored);
    if (session->journal_fd >= 0)
        close(session->journal_fd);
    if (session->dirfd >= 0)
        close(session->dirfd);
    free(session->path);
    *session = (struct rewarm_session){.dirfd = -1, .journal_fd = -1};
}

static bool copy_string(const json_t *object, const char *key, char *out, size_t size)
{
    const char *text = json_string_value(json_object_get(object, key));
    if (text == NULL || strlen(text) >= size)
        return false;
    memcpy(out, text, strlen(text) + 1);
    return true;
}

static void apply_path(struct rewarm_journal *journal, const char *role, const char *path)
{
    if (role != NULL && strcmp(role, "link") == 0) {
        journal->links =
            rewarm_mem_resize(journal->links, journal->link_count + 1, sizeof(*journal->links));
        journal->links[journal->link_count++] = rewarm_str_dup(path);
    } else {
        free(journal->staging);
        journal->staging = rewarm_str_dup(path);
    }
}

static bool apply_line(struct rewarm_journal *journal, size_t *capacity, const json_t *line)
{
    if (json_object_get(line, "verb") != NULL)
        return copy_string(line, "verb", journal->verb, sizeof(journal->verb)) &&
               copy_string(line, "name", journal->name, sizeof(journal->name));
    if (json_object_get(line, "stage") != NULL)
        return copy_string(line, "stage", journal->stage, sizeof(journal->stage));
    const char *path = json_string_value(json_object_get(line, "value"));
    if (path != NULL) {
        apply_path(journal, json_string_value(json_object_get(line, "path")), path);
        return true;
    }
    struct rewarm_journal_process process = {0};
    json_int_t pid = json_integer_value(json_object_get(line, "pid"));
    json_int_t starttime = json_integer_value(json_object_get(line, "starttime"));
    if (!copy_string(line, "process", process.role, sizeof(process.role)) || pid <= 1 ||
        pid > INT32_MAX || starttime < 0 || journal->process_count >= REWARM_JOURNAL_PROCESSES)
        return false;
    process.pid = (pid_t)pid;
    process.starttime = (uint64_t)starttime;
    REWARM_GROW(&journal->processes, capacity, journal->process_count);
    journal->processes[journal->process_count++] = process;
    return true;
}

int rewarm_journal_parse(const char *text, size_t bytes, struct rewarm_journal *ret_journal,
                         struct rewarm_error *err)
{
    struct rewarm_journal journal = {0};
    size_t capacity = 0;
    for (size_t at = 0; at < bytes;) {
        const char *end = memchr(text + at, '\n', bytes - at);
        if (end == NULL)
            break; /* cut by a crash */
        size_t length = (size_t)(end - (text + at));
        json_t *line = json_loadb(text + at, length, 0, NULL);
        bool good = json_is_object(line) && apply_line(&journal, &capacity, line);
        json_decref(line);
        if (!good)
            break;
        at += length + 1;
    }
    if (journal.verb[0] == '\0') {
        rewarm_journal_fini(&journal);
        return rewarm_error_set(err, REWARM_E_CORRUPT, 0, "the journal has no first line");
    }
    *ret_journal = journal;
    return 0;
}

void rewarm_journal_fini(struct rewarm_journal *journal)
{
    free(journal->staging);
    for (size_t i = 0; i < journal->link_count; i++)
        free(journal->links[i]);
    free(journal->links);
    free(journal->processes);
    *journal = (struct rewarm_journal){0};
}

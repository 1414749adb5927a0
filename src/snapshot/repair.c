/* What a killed rewarm left. A journal whose lock is free has no owner any more: what it says was
 * begun is undone.
 *
 * freeze: CRIU notices that its peer has gone and lets the tree run by itself; it is given time for
 * that, then ended; members that are still stopped are continued, unless --kill had begun to end
 * the source: then that is completed. restore: CRIU and every member of the half-restored tree that
 * started after the journal is killed (usually the filler has done so already). */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>

#include "base/clean.h"
#include "base/fs.h"
#include "base/log.h"
#include "base/str.h"
#include "base/time.h"
#include "proc/procfs.h"
#include "snapshot/limits.h"
#include "snapshot/links.h"
#include "snapshot/session.h"
#include "snapshot/snapshot.h"

#define JOURNAL_LIMIT ((size_t)4 << 20)

/* CRIU's own clean-up after a broken-off dump takes as long as its part of the dump did. */
static const int criu_grace_ms = 30000;

static void end_criu(const struct rewarm_journal_process *process, bool grace)
{
    if (!rewarm_proc_alive(process->pid, process->starttime))
        return;
    rewarm_auto_fd int pidfd = (int)syscall(SYS_pidfd_open, process->pid, 0);
    struct pollfd poll_fd = {.fd = pidfd, .events = POLLIN};
    if (pidfd < 0 || (grace && poll(&poll_fd, 1, criu_grace_ms) > 0))
        return;
    rewarm_proc_kill_tree(process->pid, process->starttime,
                          rewarm_time_now_ns() + 10 * REWARM_NS_PER_S, NULL);
}

/* Members that a dying CRIU left stopped run on. */
static void continue_tree(const struct rewarm_journal_process *target)
{
    struct rewarm_proc_stat *stats = NULL;
    size_t count = 0;
    if (!rewarm_proc_alive(target->pid, target->starttime) ||
        rewarm_proc_tree(target->pid, &stats, &count, NULL) != 0)
        return;
    for (size_t i = 0; i < count; i++) {
        if (stats[i].state == 'T')
            kill(stats[i].pid, SIGCONT);
    }
    free(stats);
}

/* When the journal was made, in clock ticks since boot, as /proc counts start times. */
static uint64_t made_at_ticks(int dirfd)
{
    struct stat st;
    struct timespec boot;
    struct timespec wall;
    /* The folder's birth is the journal's: its first entry. */
    if (fstatat(dirfd, "journal", &st, 0) != 0)
        return UINT64_MAX;
    struct statx sx;
    if (statx(dirfd, "journal", 0, STATX_BTIME, &sx) == 0 && (sx.stx_mask & STATX_BTIME) != 0)
        st.st_mtim = (struct timespec){sx.stx_btime.tv_sec, sx.stx_btime.tv_nsec};
    else
        return UINT64_MAX;
    clock_gettime(CLOCK_BOOTTIME, &boot);
    clock_gettime(CLOCK_REALTIME, &wall);
    double age = (double)(wall.tv_sec - st.st_mtim.tv_sec) +
                 (double)(wall.tv_nsec - st.st_mtim.tv_nsec) / 1e9;
    double at = (double)boot.tv_sec + (double)boot.tv_nsec / 1e9 - age;
    return at > 0 ? (uint64_t)(at * (double)sysconf(_SC_CLK_TCK)) : 0;
}

static void kill_member(const struct rewarm_journal_process *process, uint64_t made_ticks)
{
    struct rewarm_proc_stat stat;
    if (rewarm_proc_stat(process->pid, &stat, NULL) != 0 || stat.starttime < made_ticks)
        return;
    rewarm_proc_kill_tree(stat.pid, stat.starttime, rewarm_time_now_ns() + 10 * REWARM_NS_PER_S,
                          NULL);
}

static void undo(const struct rewarm_journal *journal, int dirfd)
{
    bool freeze = strcmp(journal->verb, "freeze") == 0;
    uint64_t made_ticks = made_at_ticks(dirfd);
    for (size_t i = 0; i < journal->process_count; i++) {
        if (strcmp(journal->processes[i].role, "criu") == 0)
            end_criu(&journal->processes[i], freeze);
    }
    for (size_t i = 0; i < journal->process_count; i++) {
        const struct rewarm_journal_process *process = &journal->processes[i];
        if (freeze && strcmp(process->role, "target") == 0)
            continue_tree(process);
        if (!freeze && strcmp(process->role, "member") == 0)
            kill_member(process, made_ticks);
        if (freeze && strcmp(process->role, "source") == 0 &&
            rewarm_proc_alive(process->pid, process->starttime))
            rewarm_proc_kill_tree(process->pid, process->starttime,
                                  rewarm_time_now_ns() + 10 * REWARM_NS_PER_S, NULL);
    }
    for (size_t i = 0; i < journal->link_count; i++)
        rewarm_links_remove_path(journal->links[i]);
}

/* A folder whose owner, PID in "VERB-PID-SALT", died before it had a journal. One that is just
 * being made is left alone; should the PID be somebody else's by now, age decides. */
static int remove_empty(int sessions, const char *id, int dirfd)
{
    struct stat st;
    int pid = 0;
    if (dirfd < 0 || fstat(dirfd, &st) != 0 || sscanf(id, "%*[a-z]-%d-", &pid) != 1)
        return 0;
    bool dead = pid > 0 && kill(pid, 0) != 0 && errno == ESRCH;
    if (!dead && time(NULL) - st.st_ctim.tv_sec < 60)
        return 0;
    return rewarm_fs_remove_tree(sessions, id, NULL) == 0;
}

/* 1: repaired; 0: it has an owner. */
static int repair_one(int sessions, const char *id, bool *freezes)
{
    rewarm_auto_fd int dirfd = openat(sessions, id, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    rewarm_auto_fd int fd = dirfd >= 0 ? openat(dirfd, "journal", O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0)
        return remove_empty(sessions, id, dirfd);
    if (flock(fd, LOCK_EX | LOCK_NB) != 0)
        return 0;
    rewarm_auto_free char *text = NULL;
    size_t bytes = 0;
    struct rewarm_journal journal = {0};
    if (rewarm_fs_read_file(dirfd, "journal", JOURNAL_LIMIT, &text, &bytes, NULL) == 0 &&
        rewarm_journal_parse(text, bytes, &journal, NULL) == 0) {
        rewarm_note("a %s of %s was killed in stage %s: undoing it", journal.verb, journal.name,
                    journal.stage[0] != '\0' ? journal.stage : "(none)");
        undo(&journal, dirfd);
        *freezes = *freezes || strcmp(journal.verb, "freeze") == 0;
        rewarm_journal_fini(&journal);
    }
    struct rewarm_error err = REWARM_ERROR_INIT;
    if (rewarm_fs_remove_tree(sessions, id, &err) != 0)
        rewarm_warn("%s", err.message);
    return 1;
}

int rewarm_repair(struct rewarm_store *store, struct rewarm_error *err)
{
    int fd = -1;
    int result = rewarm_run_dir("sessions", &fd, err);
    if (result != 0)
        return result;
    rewarm_auto_dir DIR *dir = fdopendir(fd);
    if (dir == NULL) {
        close(fd);
        return rewarm_error_errno(err, "listing the sessions");
    }
    int count = 0;
    bool freezes = false;
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        if (entry->d_name[0] != '.')
            count += repair_one(fd, entry->d_name, &freezes);
    }
    count += rewarm_limits_repair();
    /* Staging and unpublished packs of the killed writer; if others work in the store, the next gc
     * gets them. */
    if (freezes && store != NULL)
        rewarm_store_gc(store, false, 0, NULL, NULL);
    return count;
}

/* Process trees: walking one, and ending one.
 *
 * Children belong to the thread that made them, so a walk reads the `children` file of every
 * thread. A walk over a running tree is a snapshot of something that moves; who needs more stops it
 * first.
 *
 * Ending a tree does just that. When a process dies its children move to the nearest subreaper and
 * can't be found from the root any more, so everything is stopped first, in rounds, until a walk
 * finds nothing new and nothing that runs; then everything is killed through pidfds, which name a
 * process even after its PID was given to another. A process that was stopped can't have forked
 * meanwhile. */
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/pidfd.h>

#include "base/clean.h"
#include "base/fs.h"
#include "base/str.h"
#include "base/time.h"
#include "proc/procfs.h"

enum {
    CHILDREN_LIMIT_BYTES = 8 << 20,
    STOP_ROUNDS = 256, /* a tree that still runs then is killed as it is */
};

struct tree {
    struct rewarm_proc_stat *stats;
    size_t count, capacity;
};

static bool has(const struct tree *tree, pid_t pid)
{
    for (size_t i = 0; i < tree->count; i++)
        if (tree->stats[i].pid == pid)
            return true;
    return false;
}

/* Adds a process unless it is known or has gone. */
static void add(struct tree *tree, pid_t pid)
{
    struct rewarm_proc_stat stat;
    if (has(tree, pid) || rewarm_proc_stat(pid, &stat, NULL) != 0)
        return;
    REWARM_GROW(&tree->stats, &tree->capacity, tree->count);
    tree->stats[tree->count++] = stat;
}

/* Adds the children of all threads of `pid`. False when the kernel has no `children` files. */
static bool add_children(struct tree *tree, pid_t pid)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
    rewarm_auto_dir DIR *dir = opendir(path);
    if (dir == NULL)
        return true; /* it has ended */
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        if (entry->d_name[0] == '.')
            continue;
        char file[300];
        snprintf(file, sizeof(file), "%s/children", entry->d_name);
        rewarm_auto_free char *text = NULL;
        if (rewarm_fs_read_file(dirfd(dir), file, CHILDREN_LIMIT_BYTES, &text, NULL, NULL) != 0) {
            if (faccessat(dirfd(dir), entry->d_name, F_OK, 0) == 0 &&
                faccessat(dirfd(dir), file, F_OK, 0) != 0 &&
                access("/proc/thread-self/children", F_OK) != 0)
                return false;
            continue; /* the thread has ended */
        }
        for (char *at = text, *next; *at != '\0'; at = next) {
            long child = strtol(at, &next, 10);
            if (next == at)
                break;
            add(tree, (pid_t)child);
        }
    }
    return true;
}

/* For kernels without CONFIG_PROC_CHILDREN: everything in /proc whose parent is `pid`. */
static void add_children_by_parent(struct tree *tree, pid_t pid)
{
    rewarm_auto_dir DIR *dir = opendir("/proc");
    if (dir == NULL)
        return;
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        struct rewarm_proc_stat stat;
        uint64_t number;
        if (rewarm_str_to_u64(entry->d_name, &number) &&
            rewarm_proc_stat((pid_t)number, &stat, NULL) == 0 && stat.ppid == pid)
            add(tree, stat.pid);
    }
}

static void walk(struct tree *tree)
{
    for (size_t i = 0; i < tree->count; i++)
        if (!add_children(tree, tree->stats[i].pid))
            add_children_by_parent(tree, tree->stats[i].pid);
}

int rewarm_proc_tree(pid_t root, struct rewarm_proc_stat **ret_stats, size_t *ret_count,
                     struct rewarm_error *err)
{
    struct rewarm_proc_stat stat;
    int result = rewarm_proc_stat(root, &stat, err);
    if (result != 0)
        return result;
    struct tree tree = {0};
    REWARM_GROW(&tree.stats, &tree.capacity, tree.count);
    tree.stats[tree.count++] = stat;
    walk(&tree);
    *ret_stats = tree.stats;
    *ret_count = tree.count;
    return 0;
}

/* --- ending
 * --------------------------------------------------------------------------------------- */

struct victims {
    struct rewarm_proc_stat *stats;
    int *pidfds; /* beside stats */
    size_t count, capacity, pidfd_capacity;
};

static void victims_fini(struct victims *victims)
{
    for (size_t i = 0; i < victims->count; i++)
        if (victims->pidfds[i] >= 0)
            close(victims->pidfds[i]);
    free(victims->pidfds);
    free(victims->stats);
}

/* True when no thread of it can be about to fork: all are stopped, waiting uninterruptibly (a
 * vfork() parent), or dead. */
static bool is_still(pid_t pid)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
    rewarm_auto_dir DIR *dir = opendir(path);
    if (dir == NULL)
        return true;
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        if (entry->d_name[0] == '.')
            continue;
        char file[300];
        snprintf(file, sizeof(file), "%s/stat", entry->d_name);
        rewarm_auto_free char *text = NULL;
        size_t bytes;
        struct rewarm_proc_stat stat;
        if (rewarm_fs_read_file(dirfd(dir), file, 8192, &text, &bytes, NULL) == 0 &&
            rewarm_proc_parse_stat(text, bytes, &stat, NULL) == 0 &&
            strchr("TtZXD", stat.state) == NULL)
            return false;
    }
    return true;
}

/* Stops one process and takes note of it. */
static int add_victim(struct victims *victims, const struct rewarm_proc_stat *stat,
                      struct rewarm_error *err)
{
    rewarm_auto_fd int pidfd = pidfd_open(stat->pid, 0);
    if (pidfd < 0)
        return errno == ESRCH ? 0
                              : rewarm_error_errno(err, "can't watch process %d", (int)stat->pid);
    struct rewarm_proc_stat now;
    if (rewarm_proc_stat(stat->pid, &now, NULL) != 0 || now.starttime != stat->starttime)
        return 0; /* it ended, and the PID may be somebody else's */
    if (pidfd_send_signal(pidfd, SIGSTOP, NULL, 0) != 0 && errno != ESRCH)
        return rewarm_error_errno(err, "can't stop process %d (%s)", (int)stat->pid, stat->comm);
    REWARM_GROW(&victims->stats, &victims->capacity, victims->count);
    REWARM_GROW(&victims->pidfds, &victims->pidfd_capacity, victims->count);
    victims->stats[victims->count] = *stat;
    victims->pidfds[victims->count++] = rewarm_steal_fd(&pidfd);
    return 0;
}

/* One round: finds what is below the known ones and stops it. *ret_settled: nothing new, nothing
 * runs. */
static int stop_round(struct victims *victims, bool *ret_settled, struct rewarm_error *err)
{
    struct tree tree = {0};
    bool settled = true;
    for (size_t i = 0; i < victims->count; i++) {
        add(&tree, victims->stats[i].pid);
        settled = settled && is_still(victims->stats[i].pid);
    }
    walk(&tree);
    int result = 0;
    for (size_t i = 0; i < tree.count && result == 0; i++) {
        bool known = tree.stats[i].pid == getpid(); /* never ourselves */
        for (size_t j = 0; j < victims->count && !known; j++)
            known = victims->stats[j].pid == tree.stats[i].pid;
        if (!known) {
            settled = false;
            result = add_victim(victims, &tree.stats[i], err);
        }
    }
    free(tree.stats);
    *ret_settled = settled;
    return result;
}

static int wait_for_end(struct victims *victims, uint64_t deadline_ns, struct rewarm_error *err)
{
    for (size_t i = 0; i < victims->count; i++) {
        struct pollfd item = {.fd = victims->pidfds[i], .events = POLLIN};
        for (;;) {
            int n = poll(&item, 1, rewarm_time_poll_ms(deadline_ns));
            if (n > 0)
                break;
            if (n < 0 && errno != EINTR)
                return rewarm_error_errno(err, "can't wait for the end of a process");
            if (n == 0)
                return rewarm_error_set(err, REWARM_E_TIMEOUT, 0,
                                        "process %d (%s) was killed but has not ended in time",
                                        (int)victims->stats[i].pid, victims->stats[i].comm);
        }
    }
    return 0;
}

int rewarm_proc_kill_tree(pid_t root, uint64_t starttime, uint64_t deadline_ns,
                          struct rewarm_error *err)
{
    struct rewarm_proc_stat stat;
    if (root == getpid())
        return rewarm_error_set(err, REWARM_E_USAGE, 0, "a process does not end its own tree");
    if (rewarm_proc_stat(root, &stat, NULL) != 0 || stat.starttime != starttime)
        return 0;
    struct victims victims = {0};
    int result = add_victim(&victims, &stat, err);
    bool settled = false;
    for (int round = 0; result == 0 && !settled && round < STOP_ROUNDS; round++) {
        result = stop_round(&victims, &settled, err);
        if (!settled)
            sched_yield(); /* a busy machine must get to stopping them */
    }
    /* Whatever was found is killed, even when more could not be. */
    for (size_t i = 0; i < victims.count; i++)
        if (pidfd_send_signal(victims.pidfds[i], SIGKILL, NULL, 0) != 0 && errno != ESRCH)
            result = rewarm_error_errno(err, "can't kill process %d (%s)",
                                        (int)victims.stats[i].pid, victims.stats[i].comm);
    if (result == 0)
        result = wait_for_end(&victims, deadline_ns, err);
    victims_fini(&victims);
    return result;
}

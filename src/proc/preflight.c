/* What can't be frozen is found before anything is touched.
 *
 * CRIU would find most of it too, but late: after the tree was stopped, with words for experts, and
 * in one case (a terminal of somebody else) only when the snapshot is restored. The rules here are
 * those of CRIU 4.3, each tried; what they don't know is left to CRIU. Order: the tree as a whole,
 * then each process (namespaces, tracers, limits, mappings), then each descriptor (preflight_fd.c),
 * sockets by asking the socket itself (preflight_socket.c), then memory that is still on its way
 * (preflight_memory.c), which takes longest. The tree runs meanwhile, so something may slip
 * through: then the dump fails and the tree goes on, as ever. */
#include "proc/preflight.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "base/clean.h"
#include "base/fs.h"
#include "base/str.h"
#include "proc/preflight_private.h"

enum {
    STATUS_LIMIT_BYTES = 64 << 10,
    FDINFO_LIMIT_BYTES = 1 << 20,
    PF_KERNEL_THREAD = 0x00200000,
    PTMX_MAJOR = 5,
    PTMX_MINOR = 2,
    MEMORY_MAJOR = 1, /* /dev/null, /dev/zero and their like */
};

bool rewarm_preflight_has(const struct rewarm_preflight *preflight, pid_t pid)
{
    for (size_t i = 0; i < preflight->count; i++)
        if (preflight->members[i].pid == pid)
            return true;
    return false;
}

static int refuse(const struct rewarm_proc_stat *member, const char *why, const char *advice,
                  struct rewarm_error *err)
{
    return rewarm_error_set(err, REWARM_E_REFUSED, 0, "process %d (%s): %s; %s", (int)member->pid,
                            member->comm, why, advice);
}

/* The number after "NAME:" in a file of such lines. */
static long find_number(const char *text, const char *name)
{
    size_t length = strlen(name);
    for (const char *line = text; line != NULL && *line != '\0';) {
        if (strncmp(line, name, length) == 0 && line[length] == ':')
            return strtol(line + length + 1, NULL, 10);
        line = strchr(line, '\n');
        if (line != NULL)
            line++;
    }
    return -1;
}

long rewarm_preflight_fdinfo(pid_t pid, int fd, const char *name)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/fdinfo/%d", (int)pid, fd);
    rewarm_auto_free char *text = NULL;
    if (rewarm_fs_read_file(AT_FDCWD, path, FDINFO_LIMIT_BYTES, &text, NULL, NULL) != 0)
        return -1;
    return find_number(text, name);
}

/* --- the tree as a whole
 * -------------------------------------------------------------------------- */

/* rewarm can't stop what it runs in. */
static int check_not_ourselves(const struct rewarm_preflight *preflight, struct rewarm_error *err)
{
    pid_t pid = getpid();
    for (int depth = 0; pid > 0 && depth < 4096; depth++) {
        if (rewarm_preflight_has(preflight, pid))
            return rewarm_error_set(
                err, REWARM_E_REFUSED, 0,
                "process %d is %s: rewarm can't freeze the tree that it runs in; name the worker's "
                "own process, or call rewarm from outside",
                (int)pid, pid == getpid() ? "rewarm itself" : "an ancestor of rewarm");
        struct rewarm_proc_stat stat;
        if (rewarm_proc_stat(pid, &stat, NULL) != 0)
            break;
        pid = stat.ppid;
    }
    return 0;
}

static int check_root(const struct rewarm_proc_stat *root, struct rewarm_error *err)
{
    if (root->flags & PF_KERNEL_THREAD)
        return refuse(root, "a kernel thread", "name a worker's process", err);
    if (root->state == 'Z' || root->state == 'X')
        return rewarm_error_set(err, REWARM_E_NOT_FOUND, 0, "process %d (%s) has ended",
                                (int)root->pid, root->comm);
    return 0;
}

/* --- one process
 * ---------------------------------------------------------------------------------- */

/* 1 when both processes are in the same namespace `name`, 0 when not, -1 when it can't be told. */
static int same_namespace(const char *left, const char *right, const char *name)
{
    char paths[2][64], targets[2][64];
    const char *const who[2] = {left, right};
    for (int i = 0; i < 2; i++) {
        snprintf(paths[i], sizeof(paths[i]), "/proc/%s/ns/%s", who[i], name);
        ssize_t length = readlink(paths[i], targets[i], sizeof(targets[i]) - 1);
        if (length < 0)
            return -1;
        targets[i][length] = '\0';
    }
    return strcmp(targets[0], targets[1]) == 0;
}

static int check_namespaces(const struct rewarm_preflight *preflight,
                            const struct rewarm_proc_stat *member, struct rewarm_error *err)
{
    /* CRIU would have to re-create these; it is run for trees that live in ours. The time namespace
     * is not among them: CRIU puts each tree into one, so that its clocks go on where they were,
     * and what was restored can be frozen again. */
    static const char *const ours[] = {"user", "mnt", "pid", "net"};
    /* CRIU carries these over when the whole tree is in one. */
    static const char *const common[] = {"uts", "ipc", "cgroup"};
    char pid[16], root[16];
    snprintf(pid, sizeof(pid), "%d", (int)member->pid);
    snprintf(root, sizeof(root), "%d", (int)preflight->members[0].pid);
    for (size_t i = 0; i < sizeof(ours) / sizeof(ours[0]); i++)
        if (same_namespace(pid, "self", ours[i]) == 0) {
            char why[64];
            snprintf(why, sizeof(why), "it is in another %s namespace than rewarm", ours[i]);
            return refuse(
                member, why,
                "run rewarm inside the worker's namespaces (nsenter -t PID -a), or freeze "
                "a tree without it",
                err);
        }
    for (size_t i = 0; i < sizeof(common) / sizeof(common[0]); i++)
        if (same_namespace(pid, root, common[i]) == 0) {
            char why[64];
            snprintf(why, sizeof(why), "it has another %s namespace than the rest", common[i]);
            return refuse(member, why, "freeze a tree without it", err);
        }
    return 0;
}

/* True for `criu dump`, which may run through a loader: LOADER [OPTION...] CRIU dump. */
static bool is_freeze(pid_t pid)
{
    char **words = NULL;
    if (rewarm_proc_vector(pid, "cmdline", &words, NULL) != 0)
        return false;
    bool found = false;
    for (size_t i = 0; !found && words[i] != NULL && words[i + 1] != NULL; i++) {
        const char *slash = strrchr(words[i], '/');
        found = strcmp(slash != NULL ? slash + 1 : words[i], "criu") == 0 &&
                strcmp(words[i + 1], "dump") == 0;
    }
    rewarm_proc_vector_free(words);
    return found;
}

static int refuse_tracer(const struct rewarm_proc_stat *member, pid_t tracer,
                         struct rewarm_error *err)
{
    if (is_freeze(tracer))
        return rewarm_error_set(
            err, REWARM_E_BUSY, 0,
            "process %d (%s): another freeze of it is under way (CRIU is process "
            "%d); try again when that has ended",
            (int)member->pid, member->comm, (int)tracer);
    struct rewarm_proc_stat stat;
    char why[128];
    snprintf(why, sizeof(why), "it is being traced by process %d (%s)", (int)tracer,
             rewarm_proc_stat(tracer, &stat, NULL) == 0 ? stat.comm : "?");
    return refuse(member, why, "detach the debugger, strace or profiler", err);
}

/* A tracer of any thread. CRIU must be the only one. */
static int check_tracer(const struct rewarm_proc_stat *member, struct rewarm_error *err)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/task", (int)member->pid);
    rewarm_auto_dir DIR *dir = opendir(path);
    if (dir == NULL)
        return 0; /* it has ended */
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        if (entry->d_name[0] == '.')
            continue;
        char file[300];
        snprintf(file, sizeof(file), "%s/status", entry->d_name);
        rewarm_auto_free char *text = NULL;
        if (rewarm_fs_read_file(dirfd(dir), file, STATUS_LIMIT_BYTES, &text, NULL, NULL) != 0)
            continue;
        long tracer = find_number(text, "TracerPid");
        if (tracer > 0)
            return refuse_tracer(member, (pid_t)tracer, err);
    }
    return 0;
}

/* CRIU reads the limits of each process with prlimit(), which is free only among equals. */
static int check_limits(const struct rewarm_proc_stat *member, struct rewarm_error *err)
{
    struct rlimit limit;
    if (prlimit(member->pid, RLIMIT_NOFILE, NULL, &limit) == 0 || errno != EPERM)
        return 0;
    return rewarm_error_set(
        err, REWARM_E_PERMISSION, 0,
        "process %d (%s): it belongs to another user or group, and reading its "
        "limits takes CAP_SYS_RESOURCE; give rewarm that capability, or run the "
        "worker as the same user and group",
        (int)member->pid, member->comm);
}

static int refuse_mapping(const struct rewarm_proc_stat *member, const struct rewarm_proc_vma *vma,
                          const char *why, const char *advice, struct rewarm_error *err)
{
    return rewarm_error_set(err, REWARM_E_REFUSED, 0, "process %d (%s), mapping %s: %s; %s",
                            (int)member->pid, member->comm, vma->path, why, advice);
}

static int check_mapping(const struct rewarm_proc_stat *member, const struct rewarm_proc_vma *vma,
                         bool own_ipc, struct rewarm_error *err)
{
    const char *path = vma->path;
    if (rewarm_str_starts(path, "anon_inode:[io_uring]"))
        return refuse_mapping(member, vma, "io_uring rings can't be dumped",
                              "start it with `rewarm run`, which turns io_uring off", err);
    if (rewarm_str_starts(path, "anon_inode:"))
        return refuse_mapping(member, vma, "memory of a kernel object can't be dumped",
                              "close it before the freeze", err);
    if (rewarm_str_starts(path, "/secretmem"))
        return refuse_mapping(member, vma, "secret memory can't be read by anybody, nor dumped",
                              "turn that feature of the program off", err);
    if (rewarm_str_starts(path, "/SYSV") && !own_ipc)
        return refuse_mapping(member, vma,
                              "System V shared memory can't be dumped outside an IPC namespace of "
                              "the worker's own",
                              "start the worker with `unshare --ipc`, or use POSIX shared memory",
                              err);
    struct stat st;
    if (rewarm_str_starts(path, "/dev/") && stat(path, &st) == 0 &&
        (S_ISCHR(st.st_mode) || S_ISBLK(st.st_mode)) && major(st.st_rdev) != MEMORY_MAJOR)
        return refuse_mapping(member, vma, "memory of a device can't be dumped",
                              rewarm_str_starts(path, "/dev/nvidia")
                                  ? "workers on a GPU are not supported"
                                  : "close the device before the freeze",
                              err);
    return 0;
}

/* CRIU opens a process's program as a regular file. */
static int check_program(const struct rewarm_proc_stat *member, struct rewarm_error *err)
{
    char path[64], target[128], why[256];
    snprintf(path, sizeof(path), "/proc/%d/exe", (int)member->pid);
    ssize_t length = readlink(path, target, sizeof(target) - 1);
    target[length > 0 ? length : 0] = '\0';
    if (!rewarm_str_starts(target, "/memfd:"))
        return 0;
    snprintf(why, sizeof(why), "its program is a memfd (%s), which can't be brought back", target);
    return refuse(member, why, "run the program from a file", err);
}

static int check_mappings(const struct rewarm_proc_stat *member, struct rewarm_error *err)
{
    struct rewarm_proc_vma *vmas = NULL;
    size_t count = 0;
    char pid[16];
    snprintf(pid, sizeof(pid), "%d", (int)member->pid);
    bool own_ipc = same_namespace(pid, "self", "ipc") == 0;
    int result = rewarm_proc_maps(member->pid, &vmas, &count, err);
    for (size_t i = 0; i < count && result == 0; i++)
        result = check_mapping(member, &vmas[i], own_ipc, err);
    rewarm_proc_vmas_free(vmas, count);
    return result;
}

static int check_descriptors(const struct rewarm_preflight *preflight,
                             const struct rewarm_proc_stat *member, struct rewarm_error *err)
{
    struct rewarm_proc_fd *fds = NULL;
    size_t count = 0;
    int result = rewarm_proc_fds(member->pid, &fds, &count, err);
    for (size_t i = 0; i < count && result == 0; i++)
        result = rewarm_preflight_fd(preflight, member, &fds[i], err);
    rewarm_proc_fds_free(fds, count);
    return result;
}

/* Takes note of the pseudo-terminals that `member` holds the master side of. */
static void collect_masters(struct rewarm_preflight *preflight,
                            const struct rewarm_proc_stat *member)
{
    struct rewarm_proc_fd *fds = NULL;
    size_t count = 0;
    if (rewarm_proc_fds(member->pid, &fds, &count, NULL) != 0)
        return;
    for (size_t i = 0; i < count; i++) {
        if (!S_ISCHR(fds[i].mode) || fds[i].rdev_major != PTMX_MAJOR ||
            fds[i].rdev_minor != PTMX_MINOR)
            continue;
        long index = rewarm_preflight_fdinfo(member->pid, fds[i].fd, "tty-index");
        if (index < 0)
            continue;
        REWARM_GROW(&preflight->pty_indexes, &preflight->pty_capacity, preflight->pty_count);
        preflight->pty_indexes[preflight->pty_count++] = (unsigned)index;
    }
    rewarm_proc_fds_free(fds, count);
}

static int check_member(const struct rewarm_preflight *preflight,
                        const struct rewarm_proc_stat *member, struct rewarm_error *err)
{
    if (member->state == 'Z' || member->state == 'X')
        return member->threads > 1 ? refuse(member, "its main thread has ended while others run",
                                            "freeze a tree without it", err)
                                   : 0;
    int result = check_namespaces(preflight, member, err);
    if (result == 0)
        result = check_tracer(member, err);
    if (result == 0)
        result = check_limits(member, err);
    if (result == 0)
        result = check_program(member, err);
    if (result == 0)
        result = check_mappings(member, err);
    if (result == 0)
        result = check_descriptors(preflight, member, err);
    return result;
}

static int check_memory(const struct rewarm_preflight *preflight,
                        const struct rewarm_proc_stat *member, struct rewarm_error *err)
{
    (void)preflight;
    return rewarm_preflight_memory(member, err);
}

/* A member other than the root that ends while it is examined is nobody's problem. */
static bool has_ended_since(const struct rewarm_proc_stat *member)
{
    return member->state != 'Z' && !rewarm_proc_alive(member->pid, member->starttime);
}

static int check_members(const struct rewarm_preflight *preflight,
                         int (*check)(const struct rewarm_preflight *,
                                      const struct rewarm_proc_stat *, struct rewarm_error *),
                         struct rewarm_error *err)
{
    for (size_t i = 0; i < preflight->count; i++) {
        struct rewarm_error local = REWARM_ERROR_INIT;
        int result = check(preflight, &preflight->members[i], &local);
        if (result != 0 && (i == 0 || !has_ended_since(&preflight->members[i])))
            return rewarm_error_set(err, (enum rewarm_code)local.code, 0, "%s", local.message);
    }
    return 0;
}

int rewarm_preflight_tree(pid_t root, struct rewarm_error *err)
{
    rewarm_auto_free struct rewarm_proc_stat *members = NULL;
    struct rewarm_preflight preflight = {0};
    int result = rewarm_proc_tree(root, &members, &preflight.count, err);
    if (result != 0)
        return result;
    preflight.members = members;
    result = check_root(&members[0], err);
    if (result == 0)
        result = check_not_ourselves(&preflight, err);
    for (size_t i = 0; i < preflight.count && result == 0; i++)
        collect_masters(&preflight, &members[i]);
    if (result == 0)
        result = check_members(&preflight, check_member, err);
    /* A userfaultfd that a member holds itself has been refused by now, with other words. */
    if (result == 0)
        result = check_members(&preflight, check_memory, err);
    free(preflight.pty_indexes);
    return result;
}

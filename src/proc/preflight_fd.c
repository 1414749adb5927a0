/* Which descriptors can be frozen: a table for kernel objects (anon_inode), rules for devices,
 * pipes and the few odd file systems. */
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "base/str.h"
#include "proc/preflight_private.h"

enum {
    MEMORY_MAJOR = 1,
    VT_MAJOR = 4,
    TTY_MAJOR = 5,
    TTY_MINOR = 0,
    PTS_FIRST_MAJOR = 136,
    PTS_LAST_MAJOR = 143,
    NVIDIA_MAJOR = 195,
    MINORS_PER_PTS_MAJOR = 256,
};

#ifndef SECRETMEM_MAGIC
#define SECRETMEM_MAGIC 0x5345434d
#endif
#define MQUEUE_MAGIC 0x19800202

struct kernel_object {
    const char *name; /* what follows "anon_inode:", without brackets; a prefix */
    const char *why;  /* NULL: it can be frozen */
    const char *advice;
};

#define FEATURE_OFF "turn that feature of the program off"

static const struct kernel_object kernel_objects[] = {
    {"eventpoll", NULL, NULL},
    {"timerfd", NULL, NULL},
    {"signalfd", NULL, NULL},
    {"inotify", NULL, NULL},
    {"fanotify", NULL, NULL},
    {"io_uring", "io_uring rings can't be dumped",
     "start it with `rewarm run`, which turns io_uring off (UV_USE_IO_URING=0 is not enough)"},
    {"userfaultfd", "a process that answers its own page faults can't be dumped", FEATURE_OFF},
    {"perf_event", "perf events can't be dumped", "stop profiling before the freeze"},
    {"bpf", "BPF objects can't be dumped", FEATURE_OFF},
    {"seccomp notify", "a seccomp listener can't be dumped", "freeze what it supervises instead"},
    {"landlock", "an unfinished Landlock ruleset can't be dumped", "close it once it is in force"},
    {"kvm", "virtual machines can't be dumped", "use the hypervisor's own snapshots"},
    {"dmabuf", "device buffers can't be dumped", "close them before the freeze"},
    {"sync_file", "device fences can't be dumped", "close them before the freeze"},
    {"fscontext", "an unfinished mount can't be dumped", "try again"},
};

int rewarm_preflight_refuse_fd(const struct rewarm_proc_stat *member,
                               const struct rewarm_proc_fd *fd, const char *why, const char *advice,
                               struct rewarm_error *err)
{
    return rewarm_error_set(err, REWARM_E_REFUSED, 0, "process %d (%s), descriptor %d (%s): %s; %s",
                            (int)member->pid, member->comm, fd->fd, fd->target, why, advice);
}

/* CRIU re-opens a pidfd by PID, or re-creates one of a dead process, but knows only its own tree.
 */
static int check_pidfd(const struct rewarm_preflight *preflight,
                       const struct rewarm_proc_stat *member, const struct rewarm_proc_fd *fd,
                       struct rewarm_error *err)
{
    long pid = rewarm_preflight_fdinfo(member->pid, fd->fd, "Pid");
    if (pid <= 0 || rewarm_preflight_has(preflight, (pid_t)pid))
        return 0;
    char why[96];
    snprintf(why, sizeof(why), "a pidfd of process %ld, which is outside the tree", pid);
    return rewarm_preflight_refuse_fd(
        member, fd, why, "close it before the freeze, or freeze from their common parent", err);
}

/* CRIU restores the counter, but as an ordinary one: a read would then take all of it, not one. */
static int check_eventfd(const struct rewarm_proc_stat *member, const struct rewarm_proc_fd *fd,
                         struct rewarm_error *err)
{
    if (rewarm_preflight_fdinfo(member->pid, fd->fd, "eventfd-semaphore") <= 0)
        return 0;
    return rewarm_preflight_refuse_fd(
        member, fd, "a semaphore eventfd (EFD_SEMAPHORE) would come back as a plain counter",
        "use a plain eventfd or a POSIX semaphore, or close it before the freeze", err);
}

static int check_kernel_object(const struct rewarm_preflight *preflight,
                               const struct rewarm_proc_stat *member,
                               const struct rewarm_proc_fd *fd, struct rewarm_error *err)
{
    const char *name = fd->target + strlen("anon_inode:");
    if (*name == '[')
        name++;
    if (rewarm_str_starts(name, "pidfd"))
        return check_pidfd(preflight, member, fd, err);
    if (rewarm_str_starts(name, "eventfd"))
        return check_eventfd(member, fd, err);
    for (size_t i = 0; i < sizeof(kernel_objects) / sizeof(kernel_objects[0]); i++) {
        const struct kernel_object *object = &kernel_objects[i];
        if (rewarm_str_starts(name, object->name))
            return object->why == NULL
                       ? 0
                       : rewarm_preflight_refuse_fd(member, fd, object->why, object->advice, err);
    }
    return rewarm_preflight_refuse_fd(member, fd, "a kernel object of a kind that can't be dumped",
                                      "close it before the freeze", err);
}

static int refuse_terminal(const struct rewarm_proc_stat *member, const struct rewarm_proc_fd *fd,
                           struct rewarm_error *err)
{
    return rewarm_preflight_refuse_fd(
        member, fd, "a terminal can't be frozen",
        "start the worker with `rewarm run`, or with input and output redirected (`setsid CMD "
        "</dev/null >>LOG 2>&1`)",
        err);
}

static bool is_own_pty(const struct rewarm_preflight *preflight, unsigned device_major,
                       unsigned device_minor)
{
    if (device_major < PTS_FIRST_MAJOR || device_major > PTS_LAST_MAJOR)
        return false;
    unsigned index = (device_major - PTS_FIRST_MAJOR) * MINORS_PER_PTS_MAJOR + device_minor;
    for (size_t i = 0; i < preflight->pty_count; i++)
        if (preflight->pty_indexes[i] == index)
            return true;
    return false;
}

/* /proc/PID/stat has the controlling terminal as the kernel's old encoding of a device number. */
static bool owns_controlling_terminal(const struct rewarm_preflight *preflight,
                                      const struct rewarm_proc_stat *member)
{
    unsigned device_major = (member->tty >> 8) & 0xfff;
    unsigned device_minor = (member->tty & 0xff) | ((member->tty >> 12) & 0xfff00);
    return is_own_pty(preflight, device_major, device_minor);
}

static int check_character_device(const struct rewarm_preflight *preflight,
                                  const struct rewarm_proc_stat *member,
                                  const struct rewarm_proc_fd *fd, struct rewarm_error *err)
{
    /* null, zero, full, random, urandom, kmsg: CRIU opens them again. */
    static const unsigned harmless[] = {3, 5, 7, 8, 9, 11};
    if (fd->rdev_major == MEMORY_MAJOR)
        for (size_t i = 0; i < sizeof(harmless) / sizeof(harmless[0]); i++)
            if (fd->rdev_minor == harmless[i])
                return 0;
    if (fd->rdev_major == TTY_MAJOR)
        /* The console and pty masters are fine, /dev/tty is if what it means is inside the tree. */
        return fd->rdev_minor == TTY_MINOR && !owns_controlling_terminal(preflight, member)
                   ? refuse_terminal(member, fd, err)
                   : 0;
    if (fd->rdev_major >= PTS_FIRST_MAJOR && fd->rdev_major <= PTS_LAST_MAJOR)
        return is_own_pty(preflight, fd->rdev_major, fd->rdev_minor)
                   ? 0
                   : refuse_terminal(member, fd, err);
    if (fd->rdev_major == VT_MAJOR)
        return refuse_terminal(member, fd, err);
    if (fd->rdev_major == NVIDIA_MAJOR || rewarm_str_starts(fd->target, "/dev/nvidia"))
        return rewarm_preflight_refuse_fd(member, fd, "an NVIDIA device can't be dumped",
                                          "workers on a GPU are not supported; a process that only "
                                          "inherited the descriptor should close it",
                                          err);
    return rewarm_preflight_refuse_fd(member, fd, "this device can't be dumped",
                                      "close it before the freeze", err);
}

/* Things that look like regular files but live where CRIU can't reach them. */
static int check_file(const struct rewarm_proc_stat *member, const struct rewarm_proc_fd *fd,
                      struct rewarm_error *err)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)member->pid, fd->fd);
    struct statfs fs;
    if ((fd->flags & O_PATH) != 0 || statfs(path, &fs) != 0)
        return 0;
    if ((unsigned long)fs.f_type == MQUEUE_MAGIC)
        return rewarm_preflight_refuse_fd(member, fd, "POSIX message queues can't be dumped",
                                          "close it before the freeze", err);
    if ((unsigned long)fs.f_type == SECRETMEM_MAGIC)
        return rewarm_preflight_refuse_fd(
            member, fd, "secret memory can't be read by anybody, nor dumped", FEATURE_OFF, err);
    return 0;
}

int rewarm_preflight_fd(const struct rewarm_preflight *preflight,
                        const struct rewarm_proc_stat *member, const struct rewarm_proc_fd *fd,
                        struct rewarm_error *err)
{
    if (rewarm_str_starts(fd->target, "anon_inode:"))
        return check_kernel_object(preflight, member, fd, err);
    if (rewarm_str_starts(fd->target, "pidfd:["))
        return check_pidfd(preflight, member, fd, err);
    if ((fd->flags & O_PATH) != 0)
        return 0; /* a name only, whatever it names */
    if (S_ISSOCK(fd->mode))
        return rewarm_preflight_socket(preflight, member, fd, err);
    if (S_ISCHR(fd->mode))
        return check_character_device(preflight, member, fd, err);
    if (S_ISBLK(fd->mode))
        return rewarm_preflight_refuse_fd(member, fd, "a block device can't be dumped",
                                          "close it before the freeze", err);
    if (S_ISFIFO(fd->mode) && (fd->flags & O_DIRECT) != 0)
        return rewarm_preflight_refuse_fd(member, fd,
                                          "a pipe in packet mode (O_DIRECT) can't be dumped",
                                          "close it before the freeze", err);
    if (S_ISREG(fd->mode))
        return check_file(member, fd, err);
    return 0;
}

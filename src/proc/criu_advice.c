/* CRIU's log in words.
 *
 * CRIU says what went wrong in one line marked `Error`, and then passes the failure up through
 * callers that each log another one ("Dump files (pid: 7) failed with -1", "Dumping FAILED."). Some
 * Error lines appear on success too (RLIMIT_NOFILE without CAP_SYS_RESOURCE, a missing
 * binfmt_misc). So lines that only say that something failed are `noise`; the last line that is
 * none is what a person is shown, and the lines are matched against a table from the last to the
 * first until one is known. The wording in the table is that of CRIU 4.3. */
#include "proc/criu.h"

#include <stdio.h>
#include <string.h>

#include "base/error.h"

enum {
    LOOK_BACK_LINES = 16, /* a cause is near the end; what is earlier may be a warning */
    PREFIX_MAX = 64,      /* "(00.012345)  12345: " before "Error (" */
};

struct advice {
    const char *verb; /* NULL: any */
    const char *pattern;
    const char *also; /* a second pattern in the same line, or NULL */
    enum rewarm_code code;
    const char *words, *advice;
};

static const char *const noise[] = {
    "Dumping FAILED",
    "Restoring FAILED",
    "Pre-dumping FAILED",
    "RLIMIT_NOFILE",
    "binfmt_misc",
    ") failed with -1",
    "exited, status=",
    "Can't catch all tasks",
    "tables-restore",
    "tables-legacy-restore",
    "GODEBUG",
    "Failed to wait for",
    "from daemon is trimmed",
    "Unable to kill",
    "can't open last pid",
    "Can't rollback",
    "Unable to open fd=",
    "Unable to detach from", /* follows the warning about interrupting, always with ESRCH */
    "Killing processes because",
    "Can't stop all tasks",
    "in unexpected state",
    "Network was unlocked",
};

static const struct advice table[] = {
    /* What the loader says when the bundle is damaged. */
    {NULL, "error while loading shared libraries", NULL, REWARM_E_CRIU,
     "CRIU's program or bundle is damaged", "make the bundle again, or name another: REWARM_CRIU"},
    {NULL, "unrecognized option", NULL, REWARM_E_CRIU, "CRIU does not know an option",
     "use CRIU 4.3 or newer"},

    /* What is taken on this machine. */
    {"restore", "Can't fork for", "File exists", REWARM_E_BUSY,
     "a PID of the snapshot is in use here",
     "end the process that has it (or reap it, when it is a zombie), or restore with --isolate "
     "pid"},
    {"restore", "Conflict with a dead task", NULL, REWARM_E_BUSY,
     "a PID of the snapshot is held by a process that ended and was not reaped",
     "end its parent, or restore with --isolate pid"},
    {"restore", "Can't bind inet socket", NULL, REWARM_E_BUSY,
     "an address or port of the snapshot is in use here, or not an address of this host",
     "end the process that listens there, or restore with --isolate net"},
    {"restore", "unix: Can't bind", NULL, REWARM_E_BUSY,
     "a unix socket name of the snapshot is in use here",
     "end the other copy, or restore with --isolate net (abstract names), or remove the stale "
     "socket"},
    {"restore", "tty: ", "specified index", REWARM_E_BUSY,
     "the number of a pseudo-terminal of the snapshot is in use here",
     "end the other copy, or close the terminal that has it"},
    {"restore", "tty: Can't open master pty", NULL, REWARM_E_BUSY,
     "the number of a pseudo-terminal of the snapshot is in use here",
     "end the other copy, or close the terminal that has it"},
    {"restore", "fork", "Resource temporarily unavailable", REWARM_E_BUSY,
     "no more processes may be created", "raise the pids limit of the cgroup or of the user"},
    {"restore", "Unable to link remap", "File exists", REWARM_E_BUSY,
     "a file name of the snapshot's deleted files is in use",
     "remove link_remap.* files left by an earlier restore"},
    {"restore", "File exists", "link remap", REWARM_E_BUSY,
     "a file name of the snapshot's deleted files is in use",
     "remove link_remap.* files left by an earlier restore"},

    /* What does not fit any more. */
    {"restore", "has bad size", NULL, REWARM_E_MISFIT, "a file changed its size since the freeze",
     "restore it, or freeze again"},
    {"restore", "has bad build-ID", NULL, REWARM_E_MISFIT,
     "a program or library is another build than at the freeze",
     "install the recorded version, or freeze again"},
    {"restore", "has bad mode", NULL, REWARM_E_MISFIT, "a file changed its mode since the freeze",
     "put the mode back, or freeze again"},
    {"restore", "Can't open file", "No such file", REWARM_E_MISFIT,
     "a file that the worker had open or mapped has gone", "put it back, or freeze again"},
    {"restore", "No such file or directory", "reg", REWARM_E_MISFIT,
     "a file that the worker had open or mapped has gone", "put it back, or freeze again"},
    {"restore", "cpu: ", NULL, REWARM_E_MISFIT,
     "this CPU lacks features that the snapshot's processes use",
     "restore on the same CPU model or a newer one, or freeze here"},
    {"restore", "xsave", NULL, REWARM_E_MISFIT,
     "this CPU lacks features that the snapshot's processes use",
     "restore on the same CPU model or a newer one, or freeze here"},
    {"restore", "vdso:", NULL, REWARM_E_MISFIT,
     "the kernel's vDSO differs in a way that CRIU can't bridge",
     "restore on the kernel of the freeze, use a newer CRIU, or freeze again"},
    {"restore", "images version", NULL, REWARM_E_MISFIT,
     "the images were written by another CRIU version",
     "use the CRIU of the freeze, or freeze again"},
    {"restore", "Too old image", NULL, REWARM_E_MISFIT,
     "the images were written by a CRIU that is too old", "freeze again"},
    {"restore", "can only be restored in a new pid namespace", NULL, REWARM_E_MISFIT,
     "the tree needs a PID namespace of its own", "restore with --isolate pid"},

    /* What can't be dumped, by kind. */
    {"dump", "io_uring", NULL, REWARM_E_REFUSED, "the tree uses io_uring, which can't be dumped",
     "start it with `rewarm run`, which turns io_uring off"},
    {"dump", "Can't retrieve FDs from socket", NULL, REWARM_E_REFUSED,
     "a descriptor can't be taken out of the process (io_uring rings are such descriptors)",
     "start it with `rewarm run`, which turns io_uring off"},
    {"dump", "anon_inode:[userfaultfd]", NULL, REWARM_E_REFUSED,
     "a process handles its own page faults (userfaultfd), which can't be dumped",
     "turn that feature of the program off"},
    {"dump", "anon_inode:[perf_event]", NULL, REWARM_E_REFUSED,
     "a process has a perf event open, which can't be dumped", "stop profiling before the freeze"},
    {"dump", "anon_inode:bpf", NULL, REWARM_E_REFUSED,
     "a process holds a BPF object, which can't be dumped", "turn that feature of the program off"},
    {"dump", "seccomp notify", NULL, REWARM_E_REFUSED,
     "a process holds a seccomp listener, which can't be dumped",
     "freeze the process it supervises"},
    {"dump", "Can't dump file", "chr 195:", REWARM_E_REFUSED,
     "a process has an NVIDIA device open, which CRIU can't dump",
     "use a worker without a GPU, or one whose device state is checkpointed first"},
    {"dump", "Can't dump file", "chr ", REWARM_E_REFUSED,
     "a process has a device open, which can't be dumped", "close it before the freeze"},
    {"dump", "Can't dump file", NULL, REWARM_E_REFUSED,
     "a process has a descriptor of a kind that can't be dumped", "close it before the freeze"},
    {"dump", "handle_device_vma", NULL, REWARM_E_REFUSED,
     "a process has a device mapped, which can't be dumped", "unmap it before the freeze"},
    {"dump", "Can't handle non-regular mapping", NULL, REWARM_E_REFUSED,
     "a process has something mapped that is not a regular file, which can't be dumped",
     "unmap it before the freeze"},
    {"dump", "Unsupported mapping", NULL, REWARM_E_REFUSED,
     "a process has a mapping of a kind that can't be dumped", "unmap it before the freeze"},
    {"dump", "Unknown socket collected", NULL, REWARM_E_REFUSED,
     "a process has a socket of a family that can't be dumped (vsock, AF_XDP, ...)",
     "close it before the freeze"},
    {"dump", "Unsupported proto 262", NULL, REWARM_E_REFUSED,
     "a process uses Multipath TCP, which can't be dumped",
     "turn it off (Go programs: GODEBUG=multipathtcp=0)"},
    {"dump", "inet: ", NULL, REWARM_E_REFUSED, "a process has an inet socket that can't be dumped",
     "close it before the freeze"},
    {"dump", "netlink: ", NULL, REWARM_E_REFUSED,
     "a process has a netlink socket with unread data or too many groups, which can't be dumped",
     "try again when it is idle, or close it before the freeze"},
    {"dump", "packet: ", NULL, REWARM_E_REFUSED,
     "a process has a packet socket in a state that can't be dumped", "close it before the freeze"},
    {"dump", "External socket is used", NULL, REWARM_E_REFUSED,
     "a unix socket leads to a process outside the tree", "close it before the freeze"},
    {"dump", "half of stream unix connection", NULL, REWARM_E_REFUSED,
     "a unix connection leads to a process outside the tree", "close it before the freeze"},
    {"dump", "unix: ", NULL, REWARM_E_REFUSED, "a unix socket can't be dumped",
     "close it before the freeze"},
    {"dump", "skqueue: ", NULL, REWARM_E_REFUSED,
     "a message with ancillary data waits in a socket, which can't be dumped",
     "try again when the worker is idle"},
    {"dump", "TCP_REPAIR", NULL, REWARM_E_REFUSED, "a TCP connection can't be dumped",
     "close it, or try again; CAP_NET_ADMIN is needed"},
    {"dump", "Connected TCP socket", NULL, REWARM_E_REFUSED, "a TCP connection can't be dumped",
     "close it before the freeze"},
    {"dump", "packetized mode for pipes", NULL, REWARM_E_REFUSED,
     "a process has a pipe in packet mode (O_DIRECT), which can't be dumped",
     "close it before the freeze"},
    {"dump", "is not a part of process tree", NULL, REWARM_E_REFUSED,
     "a pidfd names a process outside the tree", "freeze from their common parent, or close it"},
    {"dump", "tun: ", NULL, REWARM_E_REFUSED, "a process has a tun/tap device open",
     "close it before the freeze"},
    {"dump", "fsnotify: ", NULL, REWARM_E_REFUSED,
     "a file watch (inotify, fanotify) can't be dumped",
     "remove the watch before the freeze; watches on overlayfs are the usual case"},
    {"dump", "irmap: ", NULL, REWARM_E_REFUSED, "a file watch (inotify, fanotify) can't be dumped",
     "remove the watch before the freeze; watches on overlayfs are the usual case"},
    {"dump", "tty: ", NULL, REWARM_E_REFUSED, "a process is tied to a terminal",
     "start it with `rewarm run`, or with its input and output redirected and in its own session "
     "(setsid)"},
    {"restore", "tty: ", NULL, REWARM_E_REFUSED, "a process was tied to a terminal",
     "freeze a worker that has none: start it with `rewarm run`"},
    {"dump", "is not a session leader", NULL, REWARM_E_REFUSED,
     "the root of the tree is no session leader", "start it with setsid or `rewarm run`"},
    {NULL, "session leader", NULL, REWARM_E_REFUSED,
     "a process belongs to a session whose leader is outside the tree",
     "freeze from the session's leader, or start it with `rewarm run`"},
    {"dump", "Can't create link remap", NULL, REWARM_E_REFUSED,
     "a deleted file is still open, and its folder can't take a link to it",
     "make the folder writable, or close the file"},
    {"dump", "Can't link remap", NULL, REWARM_E_REFUSED,
     "a deleted file is still open, and its folder can't take a link to it",
     "make the folder writable, or close the file"},
    {"dump", "Can't dump ghost file", NULL, REWARM_E_REFUSED,
     "a deleted file that is still open is too large to go into the snapshot",
     "close it before the freeze"},
    {"dump", "Some file locks are hold", NULL, REWARM_E_REFUSED, "a process holds a file lock",
     "release it before the freeze"},
    {"dump", "overmounted", NULL, REWARM_E_REFUSED, "an open file is hidden under a mount",
     "unmount what hides it, or close the file"},
    {"dump", "Can't lookup mount", NULL, REWARM_E_REFUSED,
     "a file of the tree is on a mount that is not visible here (another mount namespace, a POSIX "
     "message queue, memfd_secret, a detached mount)",
     "run rewarm in the worker's namespaces (nsenter), or close the file"},
    {"dump", "nested", "namespace", REWARM_E_REFUSED,
     "a process has a namespace of its own inside the tree",
     "freeze a tree without such processes"},
    {"dump", "target user namespace", NULL, REWARM_E_REFUSED,
     "a process is in a user namespace that CRIU can't dump from here",
     "freeze a tree without such processes"},
    {"dump", "without the process init", NULL, REWARM_E_REFUSED,
     "the tree is in a PID namespace but its init is not part of it",
     "freeze from the namespace's init"},
    {"dump", "external network namespace", NULL, REWARM_E_REFUSED,
     "a socket belongs to another network namespace than the tree", "close it before the freeze"},
    {"dump", "running in 32-bit mode", NULL, REWARM_E_REFUSED,
     "a process runs 32-bit code, which this CRIU can't dump", "use a 64-bit build"},
    {"dump", "SysVIPC shmem", NULL, REWARM_E_REFUSED,
     "a process uses System V shared memory outside an IPC namespace of its own",
     "use POSIX shared memory, or run the worker in its own IPC namespace"},
    {"dump", "Sysv shmem", NULL, REWARM_E_REFUSED,
     "a process uses System V shared memory in a way that can't be dumped",
     "use POSIX shared memory"},
    /* Held by a tracer: by another CRIU as a rule, with the tree stopped ("state t"). */
    {"dump", "Unseizable", "state t", REWARM_E_BUSY,
     "another freeze of the tree is under way, or a debugger has stopped it",
     "try again when that has ended"},
    {"dump", "Unable to interrupt task", "Operation not permitted", REWARM_E_BUSY,
     "another freeze of the tree is under way, or a debugger traces it",
     "try again when that has ended"},
    {"dump", "Unable to interrupt task", "No such process", REWARM_E_NOT_FOUND,
     "the process has ended", "name another"},
    {"dump", "Unseizable", NULL, REWARM_E_REFUSED,
     "a process is being traced, or may not be traced by this user",
     "detach the debugger, strace or profiler that traces it"},
    {"dump", "Unable to find a process", NULL, REWARM_E_NOT_FOUND, "the process has ended", ""},
    {"dump", "Can't find task with pid", NULL, REWARM_E_NOT_FOUND, "the process has ended", ""},
    {"dump", "A root task is dead", NULL, REWARM_E_NOT_FOUND, "the process has ended", ""},
    {"dump", "unsupported stop signal", NULL, REWARM_E_REFUSED,
     "a process is stopped by a signal that CRIU can't dump",
     "let it go on (kill -CONT), try again"},
    {"dump", "Individually stopped threads", NULL, REWARM_E_REFUSED,
     "a single thread of a process is stopped", "let it go on (kill -CONT), try again"},
    {"dump", "pending SIGTRAP", NULL, REWARM_E_REFUSED, "a thread is being debugged",
     "detach the debugger"},
    {"dump", "Zombies with threads", NULL, REWARM_E_REFUSED,
     "the main thread of a process has ended while others run", "freeze a tree without it"},
    {"dump", "Zombie thread", NULL, REWARM_E_REFUSED, "a thread is ending", "try again"},
    {"dump", "belong to it", "unprivileged task", REWARM_E_REFUSED,
     "a process has changed its credentials, so that CRIU may not dump it", "run rewarm as root"},
    {"dump", "autofs", NULL, REWARM_E_REFUSED, "the tree serves an autofs mount", ""},
    {"dump", "fuse mount but not external", NULL, REWARM_E_REFUSED,
     "the tree's namespace has a FUSE mount", "unmount it before the freeze"},

    /* The kernel, limits and privileges. */
    {"dump", "Can't get rlimit", "Operation not permitted", REWARM_E_PERMISSION,
     "a process belongs to another user or group, and reading its limits takes CAP_SYS_RESOURCE",
     "give rewarm that capability, or run the worker as the same user and group"},
    {"dump", "Lazy pages transfer FAILED", NULL, REWARM_E_PERMISSION,
     "CRIU could not hand the memory over",
     "without CAP_SYS_RESOURCE raise the pipe limit: sysctl fs.pipe-max-size=33554432"},
    {"dump", "F_SETPIPE_SZ", NULL, REWARM_E_PERMISSION, "a pipe may not be made large enough",
     "without CAP_SYS_RESOURCE raise the pipe limit: sysctl fs.pipe-max-size=33554432"},
    {NULL, "unprivileged_userfaultfd", NULL, REWARM_E_PERMISSION,
     "userfaultfd is not allowed for this user",
     "run as root or with CAP_SYS_PTRACE, or set sysctl vm.unprivileged_userfaultfd=1"},
    {NULL, "UFFD is not supported", NULL, REWARM_E_REFUSED,
     "this kernel lacks the userfaultfd features that a restore needs",
     "use Linux 5.7 or newer with CONFIG_USERFAULTFD"},
    {NULL, "Lazy pages are not", NULL, REWARM_E_REFUSED,
     "this kernel lacks the userfaultfd features that a restore needs",
     "use Linux 5.7 or newer with CONFIG_USERFAULTFD; `rewarm doctor` shows what is missing"},
    {"restore", "No lazy-pages socket", NULL, REWARM_E_CRIU,
     "CRIU did not find the socket of the memory filler", "try again with -vv and report it"},
    {NULL, "CAP_SYS_ADMIN", NULL, REWARM_E_PERMISSION, "CRIU lacks privileges",
     "run as root, or with CAP_CHECKPOINT_RESTORE and what `rewarm doctor` lists"},
    {NULL, "CAP_CHECKPOINT_RESTORE", NULL, REWARM_E_PERMISSION, "CRIU lacks privileges",
     "run as root, or with CAP_CHECKPOINT_RESTORE and what `rewarm doctor` lists"},
    {"restore", "Unable to drop capability", NULL, REWARM_E_PERMISSION,
     "the capability bounding set here is not full, and then only root can restore",
     "run as root, or from a session whose bounding set was not cut (containers cut it)"},
    {NULL, "requires '--unprivileged'", NULL, REWARM_E_PERMISSION,
     "CRIU does not run for this user", "run as root"},
    {"restore", "monotonic clock offset", NULL, REWARM_E_PERMISSION,
     "CRIU may not set the clock offset of the tree", "add CAP_SYS_TIME"},
    {"restore", "Can't change root", NULL, REWARM_E_PERMISSION,
     "CRIU may not change the root folder of the tree", "add CAP_SYS_CHROOT"},
    {"restore", "ns_last_pid", NULL, REWARM_E_PERMISSION, "CRIU may not choose the PIDs",
     "run as root or with CAP_CHECKPOINT_RESTORE, with /proc/sys writable"},
    {NULL, "seccomp", NULL, REWARM_E_REFUSED, "a seccomp filter can't be carried over",
     "run as root, or freeze a worker without the filter"},
    {NULL, "cg: ", NULL, REWARM_E_CRIU, "the control groups can't be put back as they were",
     "check that the cgroup file systems are mounted and writable"},
    {NULL, "apparmor", NULL, REWARM_E_CRIU, "an AppArmor profile can't be carried over",
     "load the profile here, or run the worker unconfined"},
    {NULL, "selinux", NULL, REWARM_E_CRIU, "an SELinux label can't be carried over",
     "use the same policy as at the freeze"},
    {NULL, "mnt: ", NULL, REWARM_E_CRIU, "the mounts can't be carried over",
     "freeze and restore in the same mount namespace"},
    {"dump", "No such process", NULL, REWARM_E_NOT_FOUND, "the process has ended", "name another"},
    {"dump", "parasite", NULL, REWARM_E_CRIU, "CRIU's code did not run inside a process",
     "a security module, an old CRIU or memory limits can cause that; try again"},
    {"dump", "infect", NULL, REWARM_E_CRIU, "CRIU's code did not run inside a process",
     "a security module, an old CRIU or memory limits can cause that; try again"},
    {"restore", "killed by signal 9", NULL, REWARM_E_LOST,
     "a process was killed while it was being restored",
     "when nobody did that on purpose, memory was short: see the kernel log for the OOM killer"},
    {"restore", "Task signaled with 9", NULL, REWARM_E_LOST,
     "a process was killed while it was being restored",
     "when nobody did that on purpose, memory was short: see the kernel log for the OOM killer"},
    {"restore", "No such process", NULL, REWARM_E_LOST,
     "a process ended while it was being restored",
     "when nobody killed it on purpose, memory was short: see the kernel log for the OOM killer"},
    {"restore", "killed by signal", NULL, REWARM_E_CRIU,
     "a process crashed while it was being restored",
     "the kernel or CPU may differ from the freeze's; start cold and freeze again"},
    {"restore", "Restorer ", NULL, REWARM_E_CRIU, "CRIU's restorer failed inside a process",
     "start cold and freeze again"},

    /* By errno, after everything more precise. */
    {NULL, "No space left on device", NULL, REWARM_E_NO_SPACE, "the disk is full",
     "free space where the snapshot is staged"},
    {NULL, "Disk quota exceeded", NULL, REWARM_E_NO_SPACE, "a quota is used up",
     "free space where the snapshot is staged"},
    {NULL, "Cannot allocate memory", NULL, REWARM_E_NO_SPACE, "memory is short",
     "free memory, or raise the limit of the cgroup"},
    {NULL, "Too many open files", NULL, REWARM_E_NO_SPACE, "too few descriptors are allowed",
     "raise the limit: ulimit -n"},
    {NULL, "Operation not permitted", NULL, REWARM_E_PERMISSION, "CRIU lacks privileges",
     "run as root, or with what `rewarm doctor` lists"},
    {NULL, "Permission denied", NULL, REWARM_E_PERMISSION, "CRIU lacks privileges",
     "run as root, or with what `rewarm doctor` lists"},
    {NULL, "Read-only file system", NULL, REWARM_E_PERMISSION,
     "CRIU can't write where it must (/proc/sys, or the worker's folders)",
     "make /proc/sys writable"},
    {"restore", "No such file or directory", NULL, REWARM_E_MISFIT,
     "a file that the worker needs has gone", "put it back, or freeze again"},
};

struct line {
    const char *text; /* from "Error (" on */
    size_t bytes;
};

static bool contains(const struct line *line, const char *pattern)
{
    return memmem(line->text, line->bytes, pattern, strlen(pattern)) != NULL;
}

/* "(00.01) 12: Error (criu/x.c:1): text": CRIU's own mark, near the start of the line. What is
 * printed before the log opens (the loader, the option parser) has no mark and counts too, and so
 * does the one warning that has a cause which no Error line repeats. */
static bool parse_line(const char *text, size_t bytes, struct line *ret_line)
{
    while (bytes > 0 && (text[bytes - 1] == '\r' || text[bytes - 1] == ' '))
        bytes--;
    const char *mark = memmem(text, bytes, "Error (", strlen("Error ("));
    if (mark != NULL && mark - text <= PREFIX_MAX) {
        *ret_line = (struct line){mark, bytes - (size_t)(mark - text)};
        return true;
    }
    *ret_line = (struct line){text, bytes};
    if (contains(ret_line, "Warn  ("))
        return contains(ret_line, "Unable to interrupt task");
    return bytes > 0 && text[0] != '(';
}

static bool is_noise(const struct line *line)
{
    for (size_t i = 0; i < sizeof(noise) / sizeof(noise[0]); i++)
        if (contains(line, noise[i]))
            return true;
    return false;
}

static const struct advice *look_up(const char *verb, const struct line *line)
{
    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        const struct advice *entry = &table[i];
        if ((entry->verb == NULL || strcmp(entry->verb, verb) == 0) &&
            contains(line, entry->pattern) && (entry->also == NULL || contains(line, entry->also)))
            return entry;
    }
    return NULL;
}

/* A line as shown: printable, one line, at most `size` - 1 bytes. */
static void copy_line(const struct line *line, char *out, size_t size)
{
    size_t used = 0;
    for (size_t i = 0; i < line->bytes && used + 1 < size; i++) {
        unsigned char byte = (unsigned char)line->text[i];
        out[used++] = byte < 0x20 || byte == 0x7f ? ' ' : (char)byte;
    }
    out[used] = '\0';
}

int rewarm_criu_explain(const char *verb, const char *log, size_t bytes, struct rewarm_error *err)
{
    const struct advice *found = NULL;
    struct line shown = {0}, matched = {0}, last_noise = {0};
    size_t end = bytes;
    for (int looked = 0; end > 0 && looked < LOOK_BACK_LINES && found == NULL;) {
        const char *newline = memrchr(log, '\n', end);
        size_t start = newline != NULL ? (size_t)(newline - log) + 1 : 0;
        struct line line;
        if (parse_line(log + start, end - start, &line)) {
            if (is_noise(&line)) {
                if (last_noise.bytes == 0)
                    last_noise = line;
            } else {
                looked++;
                if (shown.bytes == 0)
                    shown = line;
                found = look_up(verb, &line);
                matched = line;
            }
        }
        end = newline != NULL ? (size_t)(newline - log) : 0;
    }
    if (found != NULL)
        shown = matched;
    if (shown.bytes == 0)
        shown = last_noise;
    char raw[400];
    copy_line(&shown, raw, sizeof(raw));
    if (found != NULL)
        return rewarm_error_set(err, found->code, 0, "criu %s: %s%s%s [%s]", verb, found->words,
                                found->advice[0] != '\0' ? "; " : "", found->advice, raw);
    if (raw[0] == '\0')
        return rewarm_error_set(err, REWARM_E_CRIU, 0, "criu %s failed without saying why", verb);
    return rewarm_error_set(err, REWARM_E_CRIU, 0, "criu %s failed [%s]", verb, raw);
}

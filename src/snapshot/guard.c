#include "snapshot/guard.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/clean.h"
#include "base/fs.h"
#include "base/log.h"
#include "base/str.h"
#include "base/time.h"
#include "base/trace.h"
#include "proc/procfs.h"

static const uint64_t kill_timeout_ns = 30 * REWARM_NS_PER_S;

static uint64_t boottime_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_BOOTTIME, &t);
    return (uint64_t)t.tv_sec * REWARM_NS_PER_S + (uint64_t)t.tv_nsec;
}

/* A process that started before the restore is somebody else's, whatever its PID. */
static bool is_ours(const struct rewarm_guard *guard, const struct rewarm_proc_stat *stat)
{
    uint64_t tick_ns = REWARM_NS_PER_S / (uint64_t)sysconf(_SC_CLK_TCK);
    return (stat->starttime + 1) * tick_ns >= guard->start_ns && stat->pid != guard->filler &&
           stat->pid != guard->supervisor;
}

static void kill_one(const struct rewarm_guard *guard, pid_t pid)
{
    struct rewarm_proc_stat stat;
    if (pid <= 0 || rewarm_proc_stat(pid, &stat, NULL) != 0 || !is_ours(guard, &stat))
        return;
    struct rewarm_error err = REWARM_ERROR_INIT;
    if (rewarm_proc_kill_tree(pid, stat.starttime, rewarm_time_now_ns() + kill_timeout_ns, &err) !=
        0)
        rewarm_warn("a half-restored tree may be left: %s", err.message);
}

void rewarm_guard_kill_tree(struct rewarm_guard *guard)
{
    struct rewarm_guard_shared *shared = guard->shared;
    if (shared == NULL)
        return;
    pid_t init = atomic_load(&shared->init_pid);
    /* The namespace's init takes everything in it along, whatever its parentage. */
    if (init > 0) {
        kill_one(guard, init);
        return;
    }
    kill_one(guard, atomic_load(&shared->criu_pid));
    kill_one(guard, atomic_load(&shared->root_pid));
    /* Orphans of the tree come to the supervisor, which is their subreaper. */
    if (getpid() != guard->supervisor)
        return;
    struct rewarm_proc_stat *stats = NULL;
    size_t count = 0;
    if (rewarm_proc_tree(guard->supervisor, &stats, &count, NULL) == 0) {
        for (size_t i = 0; i < count; i++) {
            if (stats[i].ppid == guard->supervisor)
                kill_one(guard, stats[i].pid);
        }
    }
    free(stats);
}

static void filler_progress(void *context, uint64_t done_bytes, uint64_t total_bytes)
{
    struct rewarm_guard *guard = context;
    atomic_store(&guard->shared->total_bytes, total_bytes);
    atomic_store(&guard->shared->done_bytes, done_bytes);
}

/* Signals of the terminal go to the whole group: they are the supervisor's to handle. */
static void ignore_signals(void)
{
    const int ignored[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGPIPE, SIGTSTP, SIGTTOU, SIGTTIN};
    for (size_t i = 0; i < sizeof(ignored) / sizeof(ignored[0]); i++)
        signal(ignored[i], SIG_IGN);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

static bool supervisor_died(const struct rewarm_guard *guard)
{
    struct pollfd poll_fd = {.fd = guard->supervisor_pidfd, .events = POLLIN};
    return poll(&poll_fd, 1, 0) > 0;
}

static _Noreturn void filler_main(struct rewarm_guard *guard, struct rewarm_session *session,
                                  const struct rewarm_lazy_options *given)
{
    prctl(PR_SET_NAME, "rewarm-filler");
    ignore_signals();
    /* Each process that the worker forks meanwhile is one more descriptor. */
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    guard->filler = getpid();
    struct rewarm_lazy_options options = *given;
    options.listen_fd = guard->listen_fd;
    options.cancel_fd = guard->supervisor_pidfd;
    options.on_progress = filler_progress;
    options.context = guard;
    uint64_t start = rewarm_time_now_ns();
    struct rewarm_lazy_stats stats = {0};
    struct rewarm_error err = REWARM_ERROR_INIT;
    int result = rewarm_lazy_serve(&options, &stats, &err);
    rewarm_trace_span("fill", "memory", start, rewarm_time_now_ns(), stats.supplied_bytes);
    if (result == 0) {
        guard->shared->stats = stats;
        atomic_store(&guard->shared->complete, 1);
        if (supervisor_died(guard))
            rewarm_session_close(session);
        _exit(0);
    }
    guard->shared->filler_error = err;
    atomic_store(&guard->shared->failed, 1);
    rewarm_guard_kill_tree(guard);
    if (supervisor_died(guard))
        rewarm_session_close(session);
    _exit(1);
}

static int listen_at(const char *path, int *ret_fd, struct rewarm_error *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof(address.sun_path))
        return rewarm_error_set(err, REWARM_E_USAGE, 0,
                                "%s is too long for a socket: set REWARM_RUN to a shorter path",
                                path);
    memcpy(address.sun_path, path, strlen(path) + 1);
    rewarm_auto_fd int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) != 0 || listen(fd, 1) != 0)
        return rewarm_error_errno(err, "listening at %s", path);
    *ret_fd = rewarm_steal_fd(&fd);
    return 0;
}

int rewarm_guard_start(struct rewarm_guard *guard, struct rewarm_session *session,
                       const struct rewarm_lazy_options *options, struct rewarm_error *err)
{
    void *memory = mmap(NULL, sizeof(*guard->shared), PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return rewarm_error_errno(err, "mapping memory to share with the filler");
    guard->shared = memory;
    guard->start_ns = boottime_ns();
    guard->supervisor = getpid();
    guard->supervisor_pidfd = (int)syscall(SYS_pidfd_open, guard->supervisor, 0);
    if (guard->supervisor_pidfd < 0)
        return rewarm_error_errno(err, "opening a pidfd of process %d", (int)guard->supervisor);
    rewarm_fs_set_cloexec(guard->supervisor_pidfd, true, NULL);
    rewarm_auto_free char *path = rewarm_str_format("%s/lazy-pages.socket", session->path);
    int result = listen_at(path, &guard->listen_fd, err);
    if (result != 0)
        return result;
    /* Not fork(): the descriptor table is shared, which is the point. Nothing else is; and as no
     * thread runs, no lock is held that the child would wait for. */
    long child = syscall(SYS_clone, CLONE_FILES | SIGCHLD, NULL, NULL, NULL, NULL);
    if (child < 0)
        return rewarm_error_errno(err, "starting the filler");
    if (child == 0)
        filler_main(guard, session, options);
    guard->filler = (pid_t)child;
    guard->filler_pidfd = (int)syscall(SYS_pidfd_open, guard->filler, 0);
    if (guard->filler_pidfd < 0)
        return rewarm_error_errno(err, "opening a pidfd of the filler");
    return rewarm_fs_set_cloexec(guard->filler_pidfd, true, err);
}

static int reap_filler(struct rewarm_guard *guard)
{
    int status = 0;
    while (guard->filler > 0 && waitpid(guard->filler, &status, 0) < 0 && errno == EINTR)
        ;
    guard->filler = 0;
    return status;
}

int rewarm_guard_wait(struct rewarm_guard *guard, struct rewarm_error *err)
{
    int status = reap_filler(guard);
    if (atomic_load(&guard->shared->complete) != 0)
        return 0;
    const struct rewarm_error *cause = &guard->shared->filler_error;
    if (WIFSIGNALED(status))
        return rewarm_error_set(
            err, REWARM_E_LOST, 0,
            "the process that supplies the worker's memory was killed by signal "
            "%d (%s): the worker was ended, as its memory was not whole",
            WTERMSIG(status), strsignal(WTERMSIG(status)));
    if (cause->code != 0)
        return rewarm_error_set(err, (enum rewarm_code)cause->code, 0, "%s", cause->message);
    return rewarm_error_set(err, REWARM_E_LOST, 0,
                            "the process that supplies the worker's memory ended early");
}

void rewarm_guard_fini(struct rewarm_guard *guard)
{
    if (guard->filler > 0) {
        kill(guard->filler, SIGKILL);
        reap_filler(guard);
    }
    const int fds[] = {guard->filler_pidfd, guard->supervisor_pidfd, guard->listen_fd};
    for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++) {
        if (fds[i] >= 0)
            close(fds[i]);
    }
    if (guard->shared != NULL)
        munmap(guard->shared, sizeof(*guard->shared));
    *guard = (struct rewarm_guard)REWARM_GUARD_INIT;
}

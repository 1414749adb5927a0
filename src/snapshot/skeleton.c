#include "snapshot/skeleton.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clean.h"
#include "base/str.h"
#include "base/time.h"
#include "proc/criu.h"
#include "proc/procfs.h"

/* CRIU's own part takes milliseconds; it waits for nothing but page faults, which the filler
 * answers. */
static const uint64_t restore_timeout_ns = 300 * REWARM_NS_PER_S;
static const uint64_t stuck_timeout_ns = 2 * REWARM_NS_PER_S;
static const int look_ms = 250;

/* The root has been killed. As our child it is not seen by CRIU, which waits for it for ever; and
 * as long as CRIU traces one of its threads, no SIGCHLD and no pidfd says so: its state has to be
 * looked at. */
static bool is_dead(pid_t root)
{
    struct rewarm_proc_stat stat;
    return rewarm_proc_stat(root, &stat, NULL) == 0 && stat.ppid == getpid() &&
           (stat.state == 'Z' || stat.state == 'X');
}

static int wait_criu(const struct rewarm_skeleton *skeleton, struct rewarm_criu_child *child,
                     struct rewarm_error *err)
{
    uint64_t deadline = rewarm_time_now_ns() + restore_timeout_ns;
    struct pollfd fds[2] = {{.fd = child->pidfd, .events = POLLIN},
                            {.fd = skeleton->filler_pidfd, .events = POLLIN}};
    bool stuck = false;
    while (fds[0].revents == 0 && rewarm_time_now_ns() < deadline) {
        int left_ms = rewarm_time_poll_ms(deadline);
        if (poll(fds, 2, left_ms < look_ms ? left_ms : look_ms) < 0 && errno != EINTR)
            break;
        if (stuck || fds[0].revents != 0 || (fds[1].revents == 0 && !is_dead(skeleton->root_pid)))
            continue;
        /* Most often CRIU notices by itself, and says why in its log. A filler also ends because it
         * is complete. */
        stuck = true;
        fds[1].fd = -1;
        deadline = rewarm_time_now_ns() + stuck_timeout_ns;
    }
    bool killed = fds[0].revents == 0;
    if (killed)
        kill(-child->pid, SIGKILL); /* its helpers too: it has a session of its own */
    /* CRIU 4.3 can also crash over it. */
    siginfo_t end = {0};
    bool crashed = waitid(P_PID, (id_t)child->pid, &end, WEXITED | WNOHANG | WNOWAIT) == 0 &&
                   end.si_pid != 0 && end.si_code != CLD_EXITED;
    bool dead = is_dead(skeleton->root_pid);
    for (int i = 0; crashed && !dead && i < 20; i++) { /* it may be still on its way out */
        poll(NULL, 0, 10);
        dead = is_dead(skeleton->root_pid);
    }
    int result = rewarm_criu_wait(child, rewarm_time_now_ns() + stuck_timeout_ns, err);
    if (result != 0 && (killed || crashed) && dead) {
        rewarm_error_clear(err);
        result = rewarm_error_set(err, REWARM_E_LOST, 0,
                                  "the worker was killed while it was being restored");
    }
    return result;
}

int rewarm_skeleton_restore(const struct rewarm_skeleton *skeleton,
                            struct rewarm_guard_shared *shared, struct rewarm_error *err)
{
    const struct rewarm_criu *criu = NULL;
    int result = rewarm_criu_find(&criu, err);
    if (result != 0)
        return result;
    const struct rewarm_session *session = skeleton->session;
    rewarm_auto_free char *images = rewarm_str_format("%s/images", session->path);
    const char *args[40] = {"--images-dir", images, "--work-dir", session->path, "--lazy-pages",
                            "--restore-detached", "--restore-sibling", "--pidfile", "restored.pid",
                            /* The same choices as at dump; never taken from the snapshot. */
                            "--tcp-established", "--network-lock", "skip", "--shell-job",
                            "--ext-unix-sk", "--file-locks", "--link-remap",
                            "--manage-cgroups=ignore"};
    size_t count = 0;
    while (args[count] != NULL)
        count++;
    char *inherit[3] = {NULL, NULL, NULL};
    int keep[3];
    for (size_t i = 0; i < skeleton->inherit_count; i++) {
        inherit[i] =
            rewarm_str_format("fd[%d]:%s", skeleton->inherit[i].fd, skeleton->inherit[i].key);
        keep[i] = skeleton->inherit[i].fd;
        args[count++] = "--inherit-fd";
        args[count++] = inherit[i];
    }
    struct rewarm_criu_child child;
    result = rewarm_criu_start(criu, "restore", args, keep, skeleton->inherit_count, session->dirfd,
                               &child, err);
    if (result == 0) {
        atomic_store(&shared->criu_pid, (int)child.pid);
        struct rewarm_proc_stat stat;
        if (session->journal_fd >= 0 && rewarm_proc_stat(child.pid, &stat, NULL) == 0)
            rewarm_session_note_process(skeleton->session, "criu", stat.pid, stat.starttime, NULL);
        result = wait_criu(skeleton, &child, err);
        atomic_store(&shared->criu_pid, 0);
    }
    for (size_t i = 0; i < 3; i++)
        free(inherit[i]);
    return result;
}

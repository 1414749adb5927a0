#include "snapshot/skeleton.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>

#include "base/clean.h"
#include "base/str.h"
#include "base/time.h"
#include "proc/criu.h"

/* CRIU's own part takes milliseconds; it waits for nothing but page faults, which the filler
 * answers. */
static const uint64_t restore_timeout_ns = 300 * REWARM_NS_PER_S;

static int wait_criu(const struct rewarm_skeleton *skeleton, struct rewarm_criu_child *child,
                     struct rewarm_error *err)
{
    uint64_t deadline = rewarm_time_now_ns() + restore_timeout_ns;
    struct pollfd fds[2] = {{.fd = child->pidfd, .events = POLLIN},
                            {.fd = skeleton->filler_pidfd, .events = POLLIN}};
    int ready;
    do {
        ready = poll(fds, skeleton->filler_pidfd >= 0 ? 2 : 1, rewarm_time_poll_ms(deadline));
    } while (ready < 0 && errno == EINTR);
    /* A filler that is complete this early is fine; one that failed has killed CRIU. A killed one
     * leaves CRIU waiting for pages: end it. The filler's error is the cause: the caller asks for
     * it. */
    if (fds[0].revents == 0 && fds[1].revents != 0) {
        struct pollfd grace = fds[0];
        if (poll(&grace, 1, 2000) == 0)
            kill(child->pid, SIGKILL);
    }
    return rewarm_criu_wait(child, deadline, err);
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
        result = wait_criu(skeleton, &child, err);
        atomic_store(&shared->criu_pid, 0);
    }
    for (size_t i = 0; i < 3; i++)
        free(inherit[i]);
    return result;
}

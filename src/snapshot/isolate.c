/* The namespaces of one copy, and their init.
 *
 * init is a fork of this process in new PID and mount (and network) namespaces. It mounts its own
 * /proc, lifts the PID counter past the image's PIDs (so that CRIU's own processes take none of
 * them), brings the loopback up, starts pasta and CRIU side by side, and is the parent of what they
 * leave. pasta joins the host's network again before it is executed: it lives in the PID namespace
 * and thus dies with it, but forwards from the host. */
#include "snapshot/isolate.h"

#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "base/clean.h"
#include "base/fs.h"
#include "base/str.h"
#include "base/trace.h"
#include "proc/procfs.h"

/* "ADDRESS:HOST:GUEST" or "HOST:GUEST" as pasta's -t wants it. NULL if it is neither. */
static char *pasta_spec(const char *pair)
{
    rewarm_auto_free char *copy = rewarm_str_dup(pair);
    char *guest = strrchr(copy, ':');
    if (guest == NULL)
        return NULL;
    *guest++ = '\0';
    char *host = strrchr(copy, ':');
    const char *address = "127.0.0.1";
    if (host != NULL) {
        *host++ = '\0';
        address = copy;
    } else {
        host = copy;
    }
    uint64_t host_port = 0;
    uint64_t guest_port = 0;
    if (!rewarm_str_to_u64(host, &host_port) || !rewarm_str_to_u64(guest, &guest_port) ||
        host_port == 0 || host_port > 65535 || guest_port == 0 || guest_port > 65535 ||
        *address == '\0')
        return NULL;
    return rewarm_str_format("%s/%llu:%llu", address, (unsigned long long)host_port,
                             (unsigned long long)guest_port);
}

int rewarm_isolate_check_publish(const char *const *ports, struct rewarm_error *err)
{
    for (; ports != NULL && *ports != NULL; ports++) {
        rewarm_auto_free char *spec = pasta_spec(*ports);
        if (spec == NULL)
            return rewarm_error_set(err, REWARM_E_USAGE, 0,
                                    "--publish %s: write [ADDRESS:]HOST:GUEST, two ports", *ports);
    }
    return 0;
}

/* --- inside --------------------------------------------------------------------------------------
 */

static int loopback_up(struct rewarm_error *err)
{
    struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP};
    rewarm_auto_fd int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &request) != 0)
        return rewarm_error_errno(err, "bringing the loopback of the new network namespace up");
    return 0;
}

static int own_proc(void)
{
    return mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 &&
                   mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) == 0
               ? 0
               : -1;
}

static int lift_pids(int32_t last_pid, struct rewarm_error *err)
{
    rewarm_auto_free char *text = rewarm_str_format("%d", last_pid + 1);
    rewarm_auto_fd int fd = open("/proc/sys/kernel/ns_last_pid", O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, text, strlen(text)) < 0)
        return rewarm_error_errno(err, "moving the PID counter past %d", last_pid);
    return 0;
}

static _Noreturn void exec_pasta(const char *const *ports, int host_net)
{
    int own_net = open("/proc/self/ns/net", O_RDONLY); /* stays open in pasta */
    char netns[64];
    snprintf(netns, sizeof(netns), "/proc/self/fd/%d", own_net);
    const char *args[64] = {"pasta", "--quiet", "--netns-only", "--no-map-gw", "--runas",
                            "0",     "--netns", netns,          "-T",          "none",
                            "-u",    "none",    "-U",           "none"};
    size_t count = 14;
    for (; *ports != NULL && count < 62; ports++) {
        args[count++] = "-t";
        args[count++] = pasta_spec(*ports);
    }
    if (own_net >= 0 && setns(host_net, CLONE_NEWNET) == 0)
        execvp("pasta", (char *const *)args);
    _exit(127);
}

static int start_pasta(const struct rewarm_isolate *isolate, int host_net, pid_t *ret_pid,
                       struct rewarm_error *err)
{
    *ret_pid = 0;
    if (isolate->publish == NULL || *isolate->publish == NULL)
        return 0;
    pid_t pid = fork();
    if (pid == 0)
        exec_pasta(isolate->publish, host_net);
    if (pid < 0)
        return rewarm_error_errno(err, "starting pasta");
    *ret_pid = pid;
    return 0;
}

/* pasta goes into the background, and its first process ends, once the ports are open. */
static int wait_pasta(pid_t pid, struct rewarm_error *err)
{
    int status = 0;
    if (pid == 0)
        return 0;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return 0;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 127)
        return rewarm_error_set(err, REWARM_E_NOT_FOUND, 0,
                                "--publish needs the program pasta: install the package 'passt'");
    return rewarm_error_set(err, REWARM_E_BUSY, 0,
                            "pasta could not forward the published ports: is one in use already?");
}

static int set_up(const struct rewarm_isolate *isolate, const struct rewarm_skeleton *skeleton,
                  int host_net, struct rewarm_error *err)
{
    if (own_proc() != 0)
        return rewarm_error_errno(err, "mounting /proc in the new namespaces");
    int result = isolate->net ? loopback_up(err) : 0;
    if (result == 0)
        result = lift_pids(isolate->last_pid, err);
    pid_t pasta = 0;
    if (result == 0)
        result = start_pasta(isolate, host_net, &pasta, err);
    if (result == 0)
        result = rewarm_skeleton_restore(skeleton, isolate->shared, err);
    /* A failure inside ends init, and the kernel everything with it. */
    if (result == 0)
        result = wait_pasta(pasta, err);
    return result;
}

static _Noreturn void init_main(const struct rewarm_isolate *isolate, int report_fd, int host_net)
{
    prctl(PR_SET_NAME, "rewarm-init");
    struct rewarm_guard_shared *shared = isolate->shared;
    struct rewarm_skeleton skeleton = *isolate->skeleton;
    rewarm_trace_close();
    skeleton.filler_pidfd = -1; /* the supervisor looks, and kills us */
    struct rewarm_session session = *skeleton.session;
    session.journal_fd = -1; /* PIDs in here mean nothing outside */
    skeleton.session = &session;
    int keep[6] = {report_fd, host_net, skeleton.session->dirfd};
    size_t kept = 3;
    for (size_t i = 0; i < skeleton.inherit_count; i++)
        keep[kept++] = skeleton.inherit[i].fd;
    /* The journal's lock, userfaultfds of other restores and so on must not live on in here. */
    rewarm_fs_close_all_but(keep, kept);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    struct rewarm_error err = REWARM_ERROR_INIT;
    int result = set_up(isolate, &skeleton, host_net, &err);
    shared->init_error = err;
    atomic_store(&shared->init_result, result == 0 ? 1 : result);
    close(report_fd);
    if (result != 0)
        _exit(1);
    for (;;) {
        int status = 0;
        pid_t pid = waitpid(-1, &status, 0);
        if (pid == isolate->root_pid) {
            atomic_store(&shared->root_status, status + 1);
            _exit(0);
        }
        if (pid < 0 && errno != EINTR)
            _exit(1);
    }
}

/* --- outside -------------------------------------------------------------------------------------
 */

/* The PID, as seen from here, of init's child that is `inside` in there. */
static pid_t find_root(pid_t init, int32_t inside)
{
    struct rewarm_proc_stat *stats = NULL;
    size_t count = 0;
    pid_t found = 0;
    if (rewarm_proc_tree(init, &stats, &count, NULL) != 0)
        return 0;
    for (size_t i = 0; i < count && found == 0; i++) {
        char path[64];
        rewarm_auto_free char *text = NULL;
        snprintf(path, sizeof(path), "/proc/%d/status", (int)stats[i].pid);
        if (rewarm_fs_read_file(AT_FDCWD, path, 65536, &text, NULL, NULL) != 0)
            continue;
        char *line = strstr(text, "\nNSpid:");
        if (line == NULL)
            continue;
        line[1 + strcspn(line + 1, "\n")] = '\0';
        const char *last = strrchr(line, '\t');
        if (last != NULL && atoi(last + 1) == inside)
            found = stats[i].pid;
    }
    free(stats);
    return found;
}

int rewarm_isolate_restore(const struct rewarm_isolate *isolate, pid_t *ret_init, pid_t *ret_root,
                           struct rewarm_error *err)
{
    int report[2];
    rewarm_auto_fd int host_net = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    if (host_net < 0 || pipe2(report, O_CLOEXEC) != 0)
        return rewarm_error_errno(err, "preparing namespaces");
    rewarm_auto_fd int result_fd = report[0];
    unsigned long flags = CLONE_NEWPID | CLONE_NEWNS | SIGCHLD;
    if (isolate->net)
        flags |= CLONE_NEWNET;
    long pid = syscall(SYS_clone, flags, NULL, NULL, NULL, NULL);
    if (pid == 0)
        init_main(isolate, report[1], host_net);
    close(report[1]);
    if (pid < 0)
        return rewarm_error_errno(err, "making namespaces for the copy");
    *ret_init = (pid_t)pid;
    atomic_store(&isolate->shared->init_pid, (int)pid);
    rewarm_session_note_process(isolate->skeleton->session, "member", (pid_t)pid, 0, NULL);
    /* End of file: init has a result, or is dead. The filler's failure kills it. */
    struct pollfd fds[2] = {{.fd = result_fd, .events = POLLIN},
                            {.fd = isolate->skeleton->filler_pidfd, .events = POLLIN}};
    while (poll(fds, 2, -1) < 0 && errno == EINTR)
        ;
    if (fds[0].revents == 0 && atomic_load(&isolate->shared->complete) != 0)
        while (poll(fds, 1, -1) < 0 && errno == EINTR)
            ;
    int result = atomic_load(&isolate->shared->init_result);
    const struct rewarm_error *cause = &isolate->shared->init_error;
    if (result < 0)
        return rewarm_error_set(err, (enum rewarm_code)cause->code, 0, "%s", cause->message);
    pid_t root = result == 1 ? find_root(*ret_init, isolate->root_pid) : 0;
    if (root == 0)
        return rewarm_error_set(err, REWARM_E_LOST, 0,
                                "the copy ended before its restore was complete");
    *ret_root = root;
    return 0;
}

/* Who supervises: this process in the foreground, or, detached or with several copies, a child for
 * each worker. A detached supervisor lives on in a session of its own; until it announces that its
 * worker is up, or failed, the caller waits on a pipe. */
#include "snapshot/run.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clean.h"
#include "base/log.h"
#include "base/str.h"
#include "snapshot/supervise.h"

#define COPIES_MAX 256u

/* One supervisor in a process of its own. */
struct keeper {
    pid_t pid;
    int pipe_fd; /* end of file: it has announced, or is dead */
    struct rewarm_announcement *announcement;
};

static int start_keeper(struct keeper *keeper, struct rewarm_supervise plan,
                        struct rewarm_error *err)
{
    int ends[2];
    void *memory = mmap(NULL, sizeof(*keeper->announcement), PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || pipe2(ends, O_CLOEXEC) != 0)
        return rewarm_error_errno(err, "preparing a supervisor for %s", plan.worker);
    keeper->announcement = memory;
    pid_t pid = fork();
    if (pid == 0) {
        struct rewarm_error own = REWARM_ERROR_INIT;
        int status = 125;
        close(ends[0]);
        if (plan.detached)
            setsid();
        plan.announcement = keeper->announcement;
        plan.announce_fd = ends[1];
        int result = rewarm_supervise(&plan, &status, &own);
        if (result != 0 && !plan.detached)
            rewarm_log(REWARM_LOG_ERROR, "%s", own.message);
        _exit(status);
    }
    close(ends[1]);
    if (pid < 0) {
        close(ends[0]);
        return rewarm_error_errno(err, "starting a supervisor for %s", plan.worker);
    }
    keeper->pid = pid;
    keeper->pipe_fd = ends[0];
    return 0;
}

/* Waits for the announcement. */
static int await_keeper(struct keeper *keeper, struct rewarm_restored *ret_restored,
                        int *ret_exit_status, struct rewarm_error *err)
{
    char byte;
    while (read(keeper->pipe_fd, &byte, 1) < 0 && errno == EINTR)
        ;
    const struct rewarm_announcement *a = keeper->announcement;
    if (ret_restored != NULL)
        *ret_restored = a->restored;
    if (a->result == 1)
        return 0;
    if (a->exit_status != 0)
        *ret_exit_status = a->exit_status;
    if (a->result == 0)
        return rewarm_error_set(err, REWARM_E_LOST, 0, "the supervisor was killed");
    return rewarm_error_set(err, (enum rewarm_code)a->err.code, 0, "%s", a->err.message);
}

static void keeper_fini(struct keeper *keeper)
{
    if (keeper->pipe_fd > 0)
        close(keeper->pipe_fd);
    if (keeper->announcement != NULL)
        munmap(keeper->announcement, sizeof(*keeper->announcement));
}

int rewarm_run(struct rewarm_store *store, const struct rewarm_run_options *options,
               int *ret_exit_status, struct rewarm_error *err)
{
    struct rewarm_supervise plan = {.store = store,
                                    .worker = options->name,
                                    .snapshot = options->name,
                                    .run = options,
                                    .detached = options->detach,
                                    .announce_fd = -1,
                                    .progress = options->progress};
    if (!options->detach)
        return rewarm_supervise(&plan, ret_exit_status, err);
    struct keeper keeper = {0};
    *ret_exit_status = 125;
    int result = start_keeper(&keeper, plan, err);
    if (result == 0)
        result = await_keeper(&keeper, NULL, ret_exit_status, err);
    keeper_fini(&keeper);
    if (result == 0)
        *ret_exit_status = 0;
    return result;
}

/* Copy I's name and published ports. */
struct copy {
    char worker[160];
    char **publish;
    struct rewarm_restore_options options;
};

static int plan_publish(struct copy *copy, const char *const *publish, unsigned index,
                        struct rewarm_error *err)
{
    size_t count = 0;
    while (publish != NULL && publish[count] != NULL)
        count++;
    copy->publish = rewarm_mem_new(count + 1, sizeof(*copy->publish));
    for (size_t i = 0; i < count; i++) {
        rewarm_auto_free char *text = rewarm_str_dup(publish[i]);
        char *guest = strrchr(text, ':');
        if (guest == NULL)
            return rewarm_error_set(err, REWARM_E_USAGE, 0,
                                    "--publish %s: write [ADDRESS:]HOST:GUEST", publish[i]);
        *guest++ = '\0';
        char *host = strrchr(text, ':');
        char *number = host != NULL ? host + 1 : text;
        uint64_t port = 0;
        if (!rewarm_str_to_u64(number, &port) || port + index > 65535)
            return rewarm_error_set(err, REWARM_E_USAGE, 0, "--publish %s: no port %s for copy %u",
                                    publish[i], number, index + 1);
        *number = '\0'; /* what is left is "" or "ADDRESS:" */
        copy->publish[i] = rewarm_str_format("%s%u:%s", text, (unsigned)port + index, guest);
    }
    copy->options.publish = (const char *const *)copy->publish;
    return 0;
}

static int plan_copy(struct copy *copy, const struct rewarm_restore_run_options *options,
                     unsigned index, unsigned count, struct rewarm_error *err)
{
    const char *base = options->worker != NULL ? options->worker : options->snapshot;
    if (count == 1)
        snprintf(copy->worker, sizeof(copy->worker), "%s", base);
    else
        snprintf(copy->worker, sizeof(copy->worker), "%s.%u", base, index + 1);
    copy->options = (struct rewarm_restore_options){.isolate = options->isolate,
                                                    .any_kernel = options->any_kernel};
    return plan_publish(copy, options->publish, index, err);
}

static void copies_free(struct copy *copies, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        for (size_t j = 0; copies[i].publish != NULL && copies[i].publish[j] != NULL; j++)
            free(copies[i].publish[j]);
        free(copies[i].publish);
    }
    free(copies);
}

/* Several in the foreground: hands signals to all, ends with the last, with the first bad status.
 */
static int wait_keepers(const struct keeper *keepers, unsigned count, int *ret_exit_status,
                        struct rewarm_error *err)
{
    sigset_t mask;
    sigset_t old;
    sigemptyset(&mask);
    const int wanted[] = {SIGCHLD, SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2};
    for (size_t i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++)
        sigaddset(&mask, wanted[i]);
    sigprocmask(SIG_BLOCK, &mask, &old);
    *ret_exit_status = 0;
    unsigned left = count;
    while (left != 0) {
        int status = 0;
        pid_t pid = waitpid(-1, &status, WNOHANG);
        if (pid < 0 && errno == ECHILD)
            break;
        if (pid > 0) {
            int code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
            if (*ret_exit_status == 0)
                *ret_exit_status = code;
            left--;
            continue;
        }
        siginfo_t info;
        if (sigwaitinfo(&mask, &info) < 0 || info.si_signo == SIGCHLD)
            continue;
        /* From the terminal, the whole group has had it already. */
        for (unsigned i = 0; i < count && info.si_code <= 0; i++)
            kill(keepers[i].pid, info.si_signo);
    }
    sigprocmask(SIG_SETMASK, &old, NULL);
    (void)err;
    return 0;
}

static int check_restore_options(const struct rewarm_restore_run_options *options, unsigned count,
                                 struct rewarm_error *err)
{
    if (count > COPIES_MAX)
        return rewarm_error_set(err, REWARM_E_USAGE, 0, "--copies %u: at most %u", count,
                                COPIES_MAX);
    if (count > 1 && options->isolate == 0)
        return rewarm_error_set(err, REWARM_E_USAGE, 0,
                                "--copies needs --isolate pid (or pid,net if the worker listens): "
                                "two copies can't have the same PIDs in one namespace");
    return 0;
}

int rewarm_restore_run(struct rewarm_store *store, const struct rewarm_restore_run_options *options,
                       struct rewarm_restored **ret_restored, unsigned *ret_count,
                       int *ret_exit_status, struct rewarm_error *err)
{
    unsigned count = options->copies != 0 ? options->copies : 1;
    *ret_exit_status = 125;
    int result = check_restore_options(options, count, err);
    if (result != 0)
        return result;
    struct copy *copies = rewarm_mem_new(count, sizeof(*copies));
    struct keeper *keepers = rewarm_mem_new(count, sizeof(*keepers));
    struct rewarm_restored *restored = rewarm_mem_new(count, sizeof(*restored));
    bool alone = count == 1 && !options->detach;
    unsigned started = 0;
    for (unsigned i = 0; result == 0 && i < count; i++) {
        result = plan_copy(&copies[i], options, i, count, err);
        struct rewarm_supervise plan = {.store = store,
                                        .worker = copies[i].worker,
                                        .snapshot = options->snapshot,
                                        .restore = &copies[i].options,
                                        .detached = options->detach,
                                        .no_wait = options->no_wait,
                                        .announce_fd = -1,
                                        .progress = count == 1 ? options->progress : NULL};
        if (result == 0 && alone)
            result = rewarm_supervise(&plan, ret_exit_status, err);
        else if (result == 0)
            result = start_keeper(&keepers[i], plan, err);
        started += result == 0 && !alone;
    }
    if (options->detach) {
        for (unsigned i = 0; i < started; i++) {
            int one = await_keeper(&keepers[i], &restored[i], ret_exit_status, err);
            result = result != 0 ? result : one;
        }
        if (result == 0)
            *ret_exit_status = 0;
    } else if (!alone) {
        int waited = wait_keepers(keepers, started, ret_exit_status, err);
        result = result != 0 ? result : waited;
    }
    for (unsigned i = 0; i < count; i++)
        keeper_fini(&keepers[i]);
    free(keepers);
    copies_free(copies, count);
    if (result == 0 && options->detach && ret_restored != NULL) {
        *ret_restored = rewarm_steal_ptr(&restored);
        *ret_count = count;
    }
    free(restored);
    return result;
}

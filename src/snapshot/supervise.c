/* How it works: set_up() makes names, descriptors and signals; start() restores or starts cold;
 * loop() then waits for what happens, one handler a source. Phases of a worker: WAITING (cold, not
 * ready yet) -> SAVING (a child of ours freezes it) -> SERVING; or FILLING (restored, memory still
 * coming in) -> SERVING. Whatever fails in restoring goes to start_cold(), if there is a command.
 */
#include "snapshot/supervise.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clean.h"
#include "base/fs.h"
#include "base/log.h"
#include "base/str.h"
#include "base/time.h"
#include "proc/launch.h"
#include "snapshot/identity.h"
#include "snapshot/ready.h"
#include "snapshot/stdio.h"
#include "snapshot/workers.h"

enum phase { WAITING, SAVING, FILLING, SERVING };

/* What the freezing child leaves for us. */
struct saved {
    int result;
    struct rewarm_error err;
    struct rewarm_freeze_result frozen;
};

struct supervisor {
    const struct rewarm_supervise *plan;
    struct rewarm_register reg;
    struct rewarm_stdio stdio;
    struct rewarm_restore_options restore_options;
    struct rewarm_restore *restore; /* while filling; isolated: to the end */
    json_t *identity;               /* of the command, when there is one */
    json_t *launch;                 /* of what runs: the same, or from its snapshot */
    bool save;                      /* freeze once ready */
    enum phase phase;
    pid_t root;   /* gets the signals; 0: ended */
    pid_t waited; /* our child: its end is the worker's end */
    pid_t look, freezer;
    struct saved *saved;
    int signal_fd, timer_fd;
    sigset_t old_mask;
    uint64_t cold_ns, ready_deadline_ns;
    bool ended;
    int exit_status;
};

static const uint64_t look_interval_ns = 25 * REWARM_NS_PER_MS;
static const uint64_t report_interval_ns = 100 * REWARM_NS_PER_MS;

static const int forwarded[] = {SIGTERM, SIGINT,  SIGHUP,   SIGQUIT,
                                SIGUSR1, SIGUSR2, SIGWINCH, SIGCONT};

static void set_timer(struct supervisor *s, uint64_t first_ns)
{
    struct itimerspec spec = {.it_value = {.tv_sec = (time_t)(first_ns / REWARM_NS_PER_S),
                                           .tv_nsec = (long)(first_ns % REWARM_NS_PER_S)}};
    timerfd_settime(s->timer_fd, 0, &spec, NULL);
}

static void register_worker(struct supervisor *s, const char *state)
{
    struct rewarm_error err = REWARM_ERROR_INIT;
    const char *snapshot = s->plan->snapshot;
    if (rewarm_register_update(&s->reg, s->root, snapshot, state, s->stdio.log, s->launch, &err) !=
        0)
        rewarm_warn("%s", err.message);
}

static void leave_terminal(const struct supervisor *s)
{
    rewarm_auto_fd int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    rewarm_auto_fd int log =
        open(s->stdio.log != NULL ? s->stdio.log : "/dev/null", O_WRONLY | O_APPEND | O_CLOEXEC);
    dup2(null, STDIN_FILENO);
    dup2(log, STDOUT_FILENO);
    dup2(log, STDERR_FILENO);
}

/* Up: whoever waits for a detached worker may go, and what we say from now on goes to its log. */
static void announce(struct supervisor *s, int result, const struct rewarm_error *err)
{
    struct rewarm_announcement *a = s->plan->announcement;
    if (a == NULL || a->result != 0)
        return;
    if (err != NULL)
        a->err = *err;
    snprintf(a->restored.worker, sizeof(a->restored.worker), "%s", s->plan->worker);
    if (s->restore != NULL)
        a->restored.result = *rewarm_restore_result(s->restore);
    else
        a->restored.result.root = s->root;
    a->exit_status = s->exit_status;
    a->result = result;
    if (s->plan->detached)
        leave_terminal(s);
    close(s->plan->announce_fd);
}

/* --- cold ----------------------------------------------------------------------------------------
 */

static void default_signals(void)
{
    for (int signal_number = 1; signal_number < NSIG; signal_number++)
        signal(signal_number, SIG_DFL);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

static _Noreturn void exec_worker(const struct supervisor *s, const char *program, int report_fd)
{
    const struct rewarm_run_options *run = s->plan->run;
    struct rewarm_error err = REWARM_ERROR_INIT;
    setsid();
    default_signals();
    for (int fd = 0; fd < 3; fd++)
        dup2(s->stdio.fds[fd], fd);
    if (run->allow_io_uring || rewarm_launch_deny_io_uring(&err) == 0) {
        execv(program, run->command);
        rewarm_error_set(&err, REWARM_E_USAGE, errno, "starting %s", program);
    }
    ssize_t ignored = write(report_fd, &err, sizeof(err));
    (void)ignored;
    _exit(127);
}

/* In a fresh container PIDs are low, and CRIU's own processes would take the worker's at the next
 * restore. */
static void leave_low_pids(void)
{
    const char file[] = "/proc/sys/kernel/ns_last_pid";
    if (getpid() > 300)
        return;
    rewarm_auto_fd int fd = open(file, O_WRONLY | O_CLOEXEC);
    ssize_t ignored = fd >= 0 ? write(fd, "1000", 4) : 0;
    (void)ignored; /* then a restore may find its PID taken, and says so */
}

/* True when readiness is found out by looking; else a log line says it, or the time alone. */
static bool looks(const struct rewarm_ready *ready)
{
    return ready->http != NULL || ready->tcp != NULL || ready->file != NULL || ready->exec != NULL;
}

static int start_cold(struct supervisor *s, struct rewarm_error *err)
{
    const struct rewarm_run_options *run = s->plan->run;
    rewarm_auto_free char *program = rewarm_identity_find_program(run->command[0]);
    s->exit_status = 127;
    if (program == NULL) {
        bool there = strchr(run->command[0], '/') != NULL && access(run->command[0], F_OK) == 0;
        s->exit_status = there ? 126 : 127;
        return rewarm_error_set(err, REWARM_E_NOT_FOUND, 0, "%s: %s", run->command[0],
                                there ? "not executable" : "no such program");
    }
    int report[2];
    if (pipe2(report, O_CLOEXEC) != 0)
        return rewarm_error_errno(err, "making a pipe");
    leave_low_pids();
    s->cold_ns = rewarm_time_now_ns();
    pid_t pid = fork();
    if (pid == 0)
        exec_worker(s, program, report[1]);
    close(report[1]);
    struct rewarm_error failure;
    bool failed = pid > 0 && read(report[0], &failure, sizeof(failure)) == sizeof(failure);
    close(report[0]);
    if (pid < 0)
        return rewarm_error_errno(err, "starting the worker");
    if (failed) {
        waitpid(pid, NULL, 0);
        s->exit_status = failure.native == ENOENT ? 127 : 126;
        return rewarm_error_set(err, (enum rewarm_code)failure.code, 0, "%s", failure.message);
    }
    s->exit_status = 0;
    s->root = pid;
    s->waited = pid;
    s->phase = WAITING;
    json_decref(s->launch);
    s->launch = json_incref(s->identity);
    rewarm_stdio_release(&s->stdio);
    register_worker(s, "starting");
    uint64_t timeout = run->ready.timeout_ns != 0 ? run->ready.timeout_ns : 600 * REWARM_NS_PER_S;
    s->ready_deadline_ns = s->cold_ns + timeout;
    if (run->ready.log != NULL)
        set_timer(s, timeout);
    else
        set_timer(s, looks(&run->ready) ? look_interval_ns : REWARM_NS_PER_S);
    return 0;
}

static _Noreturn void freeze_main(struct supervisor *s)
{
    default_signals();
    signal(SIGINT, SIG_IGN); /* the terminal's Ctrl-C is the supervisor's to forward */
    prctl(PR_SET_NAME, "rewarm-freeze");
    const struct rewarm_freeze_options options = {.root = s->root,
                                                  .name = s->plan->snapshot,
                                                  .launch = s->identity,
                                                  .progress = s->plan->progress};
    s->saved->result = rewarm_freeze(s->plan->store, &options, &s->saved->frozen, &s->saved->err);
    _exit(0);
}

static void serve_cold(struct supervisor *s)
{
    s->phase = SERVING;
    register_worker(s, "cold");
    announce(s, 1, NULL);
}

static void on_ready(struct supervisor *s)
{
    char took[REWARM_STR_HUMAN];
    rewarm_note("%s is ready, %s after its cold start", s->plan->worker,
                rewarm_str_seconds(rewarm_time_now_ns() - s->cold_ns, took));
    set_timer(s, 0);
    if (!s->save) {
        serve_cold(s);
        return;
    }
    s->saved =
        mmap(NULL, sizeof(*s->saved), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    s->freezer = s->saved != MAP_FAILED ? fork() : -1;
    if (s->freezer == 0)
        freeze_main(s);
    if (s->freezer < 0) {
        s->freezer = 0;
        rewarm_warn("can't start the freeze: %s", strerror(errno));
        serve_cold(s);
        return;
    }
    s->phase = SAVING;
    register_worker(s, "freezing");
}

static void on_frozen(struct supervisor *s)
{
    const struct saved *saved = s->saved;
    s->freezer = 0;
    if (saved->result == 0 && saved->frozen.total_ns != 0) {
        char total[REWARM_STR_HUMAN];
        char pause[REWARM_STR_HUMAN];
        char bytes[REWARM_STR_HUMAN];
        rewarm_note("saved snapshot %s in %s: the worker was paused for %s, %s stored",
                    s->plan->snapshot, rewarm_str_seconds(saved->frozen.total_ns, total),
                    rewarm_str_seconds(saved->frozen.pause_ns, pause),
                    rewarm_str_bytes(saved->frozen.totals.stored_bytes, bytes));
    } else {
        rewarm_warn("no snapshot was saved, the worker serves on: %s",
                    saved->err.code != 0 ? saved->err.message : "the freezing process was killed");
    }
    munmap(s->saved, sizeof(*s->saved));
    s->saved = NULL;
    if (!s->ended)
        serve_cold(s);
}

static void on_timer(struct supervisor *s)
{
    uint64_t ticks;
    if (read(s->timer_fd, &ticks, sizeof(ticks)) != (ssize_t)sizeof(ticks))
        return;
    if (s->phase == FILLING) {
        rewarm_restore_report(s->restore);
        set_timer(s, report_interval_ns);
    }
    if (s->phase != WAITING)
        return;
    const struct rewarm_ready *ready = &s->plan->run->ready;
    if (rewarm_time_now_ns() >= s->ready_deadline_ns) {
        struct rewarm_error err = REWARM_ERROR_INIT;
        rewarm_error_set(&err, REWARM_E_TIMEOUT, 0,
                         "%s was not ready in time (%s): it goes on, no snapshot is saved",
                         s->plan->worker, rewarm_ready_words(ready));
        rewarm_warn("%s", err.message);
        s->phase = SERVING;
        register_worker(s, "cold");
        announce(s, -err.code, &err);
        return;
    }
    if (!looks(ready)) {
        on_ready(s);
        return;
    }
    struct rewarm_error err = REWARM_ERROR_INIT;
    if (s->look == 0 && rewarm_ready_look(ready, &s->look, &err) != 0)
        rewarm_warn("%s", err.message);
}

/* --- restored ------------------------------------------------------------------------------------
 */

static int try_restore(struct supervisor *s, struct rewarm_error *err)
{
    const struct rewarm_supervise *plan = s->plan;
    if (plan->restore != NULL) {
        s->restore_options = *plan->restore;
    } else {
        s->restore_options = (struct rewarm_restore_options){.any_kernel = plan->run->any_kernel};
    }
    s->restore_options.snapshot = plan->snapshot;
    s->restore_options.worker = plan->worker;
    s->restore_options.progress = plan->progress;
    memcpy(s->restore_options.stdio, s->stdio.fds, sizeof(s->stdio.fds));
    int result = rewarm_restore_start(plan->store, &s->restore_options, &s->restore, err);
    if (result != 0)
        return result;
    const struct rewarm_restore_result *r = rewarm_restore_result(s->restore);
    s->root = r->root;
    s->waited = r->init != 0 ? r->init : r->root;
    s->phase = FILLING;
    s->launch = json_deep_copy(json_object_get(rewarm_restore_details(s->restore), "launch"));
    char took[REWARM_STR_HUMAN];
    rewarm_note("%s runs again, %s after the request", plan->worker,
                rewarm_str_seconds(r->running_ns, took));
    register_worker(s, "filling");
    set_timer(s, report_interval_ns);
    if (plan->no_wait)
        announce(s, 1, NULL);
    return 0;
}

static int fall_back(struct supervisor *s, const struct rewarm_error *why, struct rewarm_error *err)
{
    s->exit_status = 125;
    if (s->plan->run == NULL) {
        *err = *why;
        return -why->code;
    }
    rewarm_note("%s: starting cold", why->message);
    /* A PID or port that is taken says nothing against the snapshot: keep it. */
    if (why->code == REWARM_E_BUSY)
        s->save = false;
    return start_cold(s, err);
}

static int on_filled(struct supervisor *s, struct rewarm_error *err)
{
    struct rewarm_error why = REWARM_ERROR_INIT;
    set_timer(s, 0);
    if (rewarm_restore_complete(s->restore, &why) != 0) {
        rewarm_restore_free(rewarm_steal_ptr(&s->restore));
        return fall_back(s, &why, err);
    }
    if (s->root == 0) { /* it ended before it was whole, of its own accord */
        s->ended = true;
        rewarm_error_set(&why, REWARM_E_LOST, 0, "%s ended with status %d as soon as it ran",
                         s->plan->worker, s->exit_status);
        announce(s, s->exit_status == 0 ? 1 : -why.code, &why);
        return 0;
    }
    const struct rewarm_restore_result *r = rewarm_restore_result(s->restore);
    char took[REWARM_STR_HUMAN];
    char bytes[REWARM_STR_HUMAN];
    rewarm_note("%s is whole: %s supplied, %s after the request, %llu faults answered",
                s->plan->worker, rewarm_str_bytes(r->supplied_bytes, bytes),
                rewarm_str_seconds(r->complete_ns, took), (unsigned long long)r->faults);
    s->phase = SERVING;
    register_worker(s, "restored");
    announce(s, 1, NULL);
    rewarm_stdio_release(&s->stdio);
    return 0;
}

/* Is there a snapshot of this command? 0 when it can be tried. */
static int check_snapshot(struct supervisor *s, struct rewarm_error *err)
{
    const struct rewarm_run_options *run = s->plan->run;
    struct rewarm_store_reader *reader = NULL;
    int result = rewarm_store_reader_open(s->plan->store, s->plan->snapshot, &reader, err);
    if (result != 0)
        return result;
    const json_t *details = json_object_get(rewarm_store_reader_manifest(reader), "snapshot");
    const json_t *then = json_object_get(details, "launch");
    json_t *now = NULL;
    result = rewarm_identity_of_command(run->command, run->ignore_env, then, &now, err);
    if (result == 0)
        result = rewarm_identity_check(then, now, err);
    json_decref(now);
    rewarm_store_reader_close(reader);
    return result;
}

static int start(struct supervisor *s, struct rewarm_error *err)
{
    const struct rewarm_run_options *run = s->plan->run;
    struct rewarm_error why = REWARM_ERROR_INIT;
    if (run == NULL)
        return try_restore(s, err);
    if (run->refresh || s->plan->store == NULL)
        return start_cold(s, err);
    int result = check_snapshot(s, &why);
    if (result == -REWARM_E_NOT_FOUND)
        return start_cold(s, err);
    if (result == 0)
        result = try_restore(s, &why);
    return result == 0 ? 0 : fall_back(s, &why, err);
}

/* --- the loop ------------------------------------------------------------------------------------
 */

static int decode(int status)
{
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

static void on_worker_end(struct supervisor *s, int status)
{
    /* An isolated root's status is not its init's. */
    if (s->restore != NULL && rewarm_restore_result(s->restore)->init != 0)
        rewarm_restore_root_status(s->restore, &status);
    s->exit_status = decode(status);
    s->root = 0;
    /* By itself, or because its memory could not be supplied: the filler, which ends now, knows. */
    s->ended = s->phase != FILLING;
    if (s->phase == WAITING || s->phase == SAVING) {
        struct rewarm_error err = REWARM_ERROR_INIT;
        rewarm_error_set(&err, REWARM_E_LOST, 0, "%s ended with status %d before it was ready%s%s",
                         s->plan->worker, s->exit_status,
                         s->stdio.log != NULL ? "; its output is in " : "",
                         s->stdio.log != NULL ? s->stdio.log : "");
        announce(s, -err.code, &err);
    }
}

/* Everything that has ended, but the filler: rewarm_restore_complete() wants that. */
static void reap(struct supervisor *s)
{
    for (;;) {
        siginfo_t info = {0};
        if (waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) != 0 || info.si_pid == 0)
            return;
        if (s->phase == FILLING && info.si_pid != s->waited &&
            rewarm_restore_filler(s->restore) == info.si_pid)
            return; /* its descriptor is readable too: on_filled() comes next */
        int status = 0;
        waitpid(info.si_pid, &status, 0);
        if (info.si_pid == s->waited) {
            on_worker_end(s, status);
        } else if (info.si_pid == s->look) {
            s->look = 0;
            if (s->phase == WAITING && WIFEXITED(status) && WEXITSTATUS(status) == 0)
                on_ready(s);
            else if (s->phase == WAITING)
                set_timer(s, look_interval_ns);
        } else if (info.si_pid == s->freezer) {
            on_frozen(s);
        } else if (info.si_pid == s->stdio.pump) {
            s->stdio.pump = 0;
        }
    }
}

static void on_signals(struct supervisor *s)
{
    struct signalfd_siginfo info;
    while (read(s->signal_fd, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
        if (info.ssi_signo == SIGCHLD)
            reap(s);
        else if (!s->ended && s->root > 0)
            kill(s->root, (int)info.ssi_signo);
    }
}

static int loop(struct supervisor *s, struct rewarm_error *err)
{
    /* The worker may be gone while its freeze is not: that one cleans up after itself first. */
    while (!s->ended || s->freezer > 0) {
        int fill_fd = s->phase == FILLING ? rewarm_restore_fd(s->restore) : -1;
        struct pollfd fds[4] = {
            {.fd = s->signal_fd, .events = POLLIN},
            {.fd = s->timer_fd, .events = POLLIN},
            {.fd = fill_fd, .events = POLLIN},
            {.fd = s->phase == WAITING ? s->stdio.match_fd : -1, .events = POLLIN}};
        if (poll(fds, 4, -1) < 0 && errno != EINTR)
            return rewarm_error_errno(err, "waiting for events");
        if (fds[2].revents != 0) {
            int result = on_filled(s, err);
            if (result != 0)
                return result;
        }
        if (fds[0].revents != 0)
            on_signals(s);
        if (fds[1].revents != 0 && !s->ended)
            on_timer(s);
        if (fds[3].revents != 0 && s->phase == WAITING && !s->ended) {
            char byte;
            bool matched = read(s->stdio.match_fd, &byte, 1) == 1;
            rewarm_clean_fd(&s->stdio.match_fd);
            s->stdio.match_fd = -1;
            if (matched)
                on_ready(s);
        }
    }
    return 0;
}

static int set_up(struct supervisor *s, struct rewarm_error *err)
{
    const struct rewarm_supervise *plan = s->plan;
    const struct rewarm_run_options *run = plan->run;
    sigset_t mask;
    sigemptyset(&mask);
    sigaddset(&mask, SIGCHLD);
    for (size_t i = 0; i < sizeof(forwarded) / sizeof(forwarded[0]); i++)
        sigaddset(&mask, forwarded[i]);
    int result = run != NULL ? rewarm_ready_check(&run->ready, err) : 0;
    if (result == 0)
        result = rewarm_register_claim(plan->worker, &s->reg, err);
    if (result != 0)
        return result;
    sigprocmask(SIG_BLOCK, &mask, &s->old_mask);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    s->signal_fd = signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK);
    s->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (s->signal_fd < 0 || s->timer_fd < 0)
        return rewarm_error_errno(err, "setting up signals and timers");
    s->save = run != NULL && !run->no_save && plan->store != NULL;
    if (run != NULL) {
        struct rewarm_error why = REWARM_ERROR_INIT;
        if (rewarm_identity_of_command(run->command, run->ignore_env, NULL, &s->identity, &why) !=
            0)
            rewarm_debug("%s", why.message); /* start_cold() finds the same, and says it */
    }
    return rewarm_stdio_open(&s->stdio, plan->detached ? plan->worker : NULL,
                             run != NULL ? run->ready.log : NULL, err);
}

int rewarm_supervise(const struct rewarm_supervise *plan, int *ret_exit_status,
                     struct rewarm_error *err)
{
    struct supervisor s = {.plan = plan,
                           .reg = REWARM_REGISTER_INIT,
                           .stdio = REWARM_STDIO_INIT,
                           .signal_fd = -1,
                           .timer_fd = -1};
    sigprocmask(SIG_BLOCK, NULL, &s.old_mask);
    s.exit_status = 125;
    int result = set_up(&s, err);
    if (result == 0)
        result = start(&s, err);
    if (result == 0)
        result = loop(&s, err);
    if (result != 0)
        announce(&s, result, err);
    rewarm_restore_free(s.restore);
    rewarm_register_release(&s.reg);
    rewarm_stdio_close(&s.stdio);
    rewarm_clean_fd(&s.signal_fd);
    rewarm_clean_fd(&s.timer_fd);
    json_decref(s.identity);
    json_decref(s.launch);
    sigprocmask(SIG_SETMASK, &s.old_mask, NULL);
    *ret_exit_status = s.exit_status;
    return result;
}

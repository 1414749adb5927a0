#include "demo_process.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "demo_ask.h"

static volatile sig_atomic_t stopped;

bool demo_stopped(void)
{
    return stopped != 0;
}

static void on_signal(int signal)
{
    (void)signal;
    stopped = 1;
}

void demo_process_init(void)
{
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    struct sigaction action = {.sa_handler = on_signal}; /* no SA_RESTART: waits end */
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP};
    for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
        sigaction(signals[i], &action, NULL);
}

/* In the child: standard descriptors, none beside them (CRIU could not freeze the caller's pipes),
 * and the program. */
static _Noreturn void become(const char *const argv[], int output, int errors)
{
    int null = open("/dev/null", O_RDONLY);
    if (null < 0 || dup2(null, 0) < 0 || dup2(output, 1) < 0 ||
        (errors >= 0 && dup2(errors, 2) < 0) || close_range(3, ~0u, 0) != 0)
        _exit(126);
    execv(argv[0], (char *const *)argv);
    dprintf(2, "rewarm-demo: %s: %s\n", argv[0], strerror(errno));
    _exit(127);
}

pid_t demo_process_start(const char *const argv[], const char *log)
{
    int fd = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd < 0)
        return -1;
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        setsid();
        become(argv, fd, fd);
    }
    close(fd);
    return pid;
}

pid_t demo_process_command(const char *const argv[], int *ret_output)
{
    int fd = memfd_create("output", MFD_CLOEXEC);
    if (fd < 0)
        return -1;
    pid_t pid = fork();
    if (pid == 0)
        become(argv, fd, -1);
    if (pid < 0)
        close(fd);
    else
        *ret_output = fd;
    return pid;
}

bool demo_process_ended(pid_t pid)
{
    siginfo_t info = {0};
    return waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT) != 0 || info.si_pid == pid;
}

bool demo_process_failed(pid_t pid)
{
    siginfo_t info = {0};
    return waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT) != 0 ||
           (info.si_pid == pid && (info.si_code != CLD_EXITED || info.si_status != 0));
}

json_t *demo_process_finish(pid_t pid, int output, const char *what)
{
    int status = 0;
    /* A signal is passed on once: rewarm undoes what it was doing, and says so. */
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        kill(pid, SIGTERM);
    json_t *answer = NULL;
    struct stat st;
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        fprintf(stderr, "rewarm-demo: %s failed\n", what);
    } else if (fstat(output, &st) == 0 && st.st_size == 0) {
        answer = json_null();
    } else {
        lseek(output, 0, SEEK_SET);
        json_error_t error;
        answer = json_loadfd(output, 0, &error);
        if (answer == NULL)
            fprintf(stderr, "rewarm-demo: %s: its --json does not parse: %s\n", what, error.text);
    }
    close(output);
    return answer;
}

json_t *demo_process_run(const char *const argv[], const char *what)
{
    int output = -1;
    pid_t pid = demo_process_command(argv, &output);
    if (pid < 0) {
        perror("rewarm-demo: fork");
        return NULL;
    }
    return demo_process_finish(pid, output, what);
}

static bool wait_gone(int pidfd)
{
    struct pollfd poller = {.fd = pidfd, .events = POLLIN};
    uint64_t end_ns = demo_now_ns() + 10000000000u;
    int ready;
    do {
        uint64_t now_ns = demo_now_ns();
        ready = poll(&poller, 1, now_ns < end_ns ? (int)((end_ns - now_ns) / 1000000u) : 0);
    } while (ready < 0 && errno == EINTR);
    return ready > 0;
}

static void end(pid_t pid, bool wait_first)
{
    int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (pidfd < 0)
        return;
    if (!wait_first || !wait_gone(pidfd)) {
        kill(pid, SIGTERM);
        if (!wait_gone(pidfd))
            kill(pid, SIGKILL);
        wait_gone(pidfd);
    }
    close(pidfd);
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        ; /* ECHILD: not ours, its parent reaps it */
}

void demo_process_let_end(pid_t pid)
{
    end(pid, true);
}

void demo_process_end(pid_t pid)
{
    end(pid, false);
}

/* One child of ours, or 0. */
static pid_t any_child(void)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/self/task/%d/children", (int)getpid());
    FILE *file = fopen(path, "re");
    int pid = 0;
    if (file == NULL || fscanf(file, "%d", &pid) != 1)
        pid = 0;
    if (file != NULL)
        fclose(file);
    return pid;
}

void demo_process_end_all(void)
{
    /* What a child leaves behind becomes our child: until there is none. */
    for (pid_t pid; (pid = any_child()) != 0;)
        demo_process_end(pid);
}

uint64_t demo_process_memory_bytes(pid_t pid)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
    FILE *file = fopen(path, "re");
    unsigned long long kib = 0;
    char line[256];
    while (file != NULL && fgets(line, sizeof(line), file) != NULL) {
        if (sscanf(line, "VmRSS: %llu", &kib) == 1)
            break;
    }
    if (file != NULL)
        fclose(file);
    return kib * 1024;
}

#include "snapshot/stdio.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <regex.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clean.h"
#include "base/fs.h"
#include "base/str.h"
#include "snapshot/session.h"
#include "snapshot/snapshot.h"

#define LOWEST_FD  10
#define LINE_BYTES 4096

/* How long a finished worker's last output may take, should a descendant of it keep the pipe open.
 */
static const int drain_ms = 500;

struct stream { /* one direction of the pump */
    int from, to;
    bool dead_end; /* `to` is gone: read on and drop, so that the worker never blocks */
    size_t line_bytes;
    char line[LINE_BYTES];
};

struct pump {
    struct stream streams[3];
    size_t count;
    const regex_t *regex;
    int match_fd;
};

static bool can_pass(int fd, bool output)
{
    struct stat st;
    if (fstat(fd, &st) != 0)
        return false;
    if (S_ISREG(st.st_mode)) {
        /* A log that is not appended to can't be restored once it has grown: make it one that is.
         */
        int flags = fcntl(fd, F_GETFL);
        if (output && flags >= 0 && (flags & O_ACCMODE) != O_RDONLY)
            fcntl(fd, F_SETFL, flags | O_APPEND);
        return true;
    }
    return S_ISFIFO(st.st_mode) || S_ISSOCK(st.st_mode);
}

/* True when both are the same terminal, pipe or file: one pipe then keeps the order of their lines.
 */
static bool same_target(int a, int b)
{
    struct stat x;
    struct stat y;
    return fstat(a, &x) == 0 && fstat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino &&
           x.st_rdev == y.st_rdev;
}

static int lift(int fd)
{
    return fcntl(fd, F_DUPFD_CLOEXEC, LOWEST_FD);
}

static bool match_lines(struct pump *pump, struct stream *stream, const char *data, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        if (data[i] != '\n' && stream->line_bytes + 1 < LINE_BYTES) {
            stream->line[stream->line_bytes++] = data[i];
            continue;
        }
        stream->line[stream->line_bytes] = '\0';
        stream->line_bytes = 0;
        if (regexec(pump->regex, stream->line, 0, NULL, 0) == 0)
            return true;
    }
    return false;
}

static void write_all(struct stream *stream, const char *data, size_t bytes)
{
    while (bytes != 0 && !stream->dead_end) {
        ssize_t n = write(stream->to, data, bytes);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            stream->dead_end = true;
            return;
        }
        data += n;
        bytes -= (size_t)n;
    }
}

/* Copies what is there. False at the end of the stream. */
static bool copy_some(struct pump *pump, struct stream *stream)
{
    char buffer[65536];
    ssize_t n = read(stream->from, buffer, sizeof(buffer));
    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return true;
    if (n <= 0)
        return false;
    write_all(stream, buffer, (size_t)n);
    if (pump->match_fd >= 0 && stream->to != STDIN_FILENO &&
        match_lines(pump, stream, buffer, (size_t)n)) {
        ssize_t ignored = write(pump->match_fd, "", 1);
        (void)ignored;
        close(pump->match_fd);
        pump->match_fd = -1;
    }
    return true;
}

static _Noreturn void pump_main(struct pump *pump)
{
    prctl(PR_SET_NAME, "rewarm-stdio");
    const int ignored[] = {SIGINT,  SIGTERM, SIGHUP,  SIGQUIT, SIGPIPE,
                           SIGTSTP, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2};
    for (size_t i = 0; i < sizeof(ignored) / sizeof(ignored[0]); i++)
        signal(ignored[i], SIG_IGN);
    size_t outputs = 0;
    for (size_t i = 0; i < pump->count; i++)
        outputs += pump->streams[i].from != STDIN_FILENO;
    while (outputs != 0) {
        struct pollfd fds[3];
        for (size_t i = 0; i < pump->count; i++)
            fds[i] = (struct pollfd){.fd = pump->streams[i].from, .events = POLLIN};
        if (poll(fds, pump->count, -1) < 0)
            continue;
        for (size_t i = 0; i < pump->count; i++) {
            struct stream *stream = &pump->streams[i];
            if (fds[i].revents == 0 || copy_some(pump, stream))
                continue;
            outputs -= stream->from != STDIN_FILENO;
            if (stream->from == STDIN_FILENO)
                close(stream->to); /* the worker sees the end of its input */
            stream->from = -1;     /* poll() skips it */
        }
    }
    _exit(0);
}

static int open_log(struct rewarm_stdio *stdio, const char *name, struct rewarm_error *err)
{
    rewarm_auto_fd int logs = -1;
    int result = rewarm_run_dir("logs", &logs, err);
    if (result != 0)
        return result;
    rewarm_auto_free char *run = rewarm_run_path();
    rewarm_auto_free char *file = rewarm_str_format("%s.log", name);
    stdio->log = rewarm_str_format("%s/logs/%s", run, file);
    rewarm_auto_fd int fd =
        openat(logs, file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
    rewarm_auto_fd int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (fd < 0 || null < 0)
        return rewarm_error_errno(err, "opening the log %s", stdio->log);
    stdio->fds[0] = lift(null);
    stdio->fds[1] = lift(fd);
    stdio->fds[2] = lift(fd);
    return 0;
}

/* A pipe between the worker's `fd` and `outside`. */
static int add_stream(struct pump *pump, struct rewarm_stdio *stdio, int fd, int outside,
                      struct rewarm_error *err)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0)
        return rewarm_error_errno(err, "making a pipe for the worker's descriptor %d", fd);
    struct stream *stream = &pump->streams[pump->count++];
    stdio->fds[fd] = lift(ends[fd == 0 ? 0 : 1]);
    close(ends[fd == 0 ? 0 : 1]);
    *stream = fd == 0 ? (struct stream){.from = outside, .to = ends[1]}
                      : (struct stream){.from = ends[0], .to = outside};
    return 0;
}

static int plan(struct pump *pump, struct rewarm_stdio *stdio, bool match, struct rewarm_error *err)
{
    if (stdio->fds[0] < 0) {
        int result = 0;
        if (can_pass(0, false))
            stdio->fds[0] = lift(0);
        else if (isatty(0))
            result = add_stream(pump, stdio, 0, STDIN_FILENO, err);
        else
            stdio->fds[0] = open("/dev/null", O_RDONLY | O_CLOEXEC);
        if (result != 0)
            return result;
    }
    for (int fd = 1; fd < 3; fd++) {
        int outside = stdio->fds[fd] >= 0 ? stdio->fds[fd] : fd; /* the log, or our own */
        if (!match && stdio->fds[fd] >= 0)
            continue;
        if (!match && can_pass(fd, true)) {
            stdio->fds[fd] = lift(fd);
            continue;
        }
        if (fd == 2 && same_target(1, 2) && pump->count != 0 &&
            pump->streams[pump->count - 1].from != STDIN_FILENO) {
            if (stdio->fds[2] >= 0)
                close(stdio->fds[2]);
            stdio->fds[2] = lift(stdio->fds[1]);
            continue;
        }
        int result = add_stream(pump, stdio, fd, outside, err);
        if (result != 0)
            return result;
    }
    return 0;
}

static void close_streams(const struct pump *pump)
{
    for (size_t i = 0; i < pump->count; i++) {
        const struct stream *stream = &pump->streams[i];
        if (stream->from > 2)
            close(stream->from);
        if (stream->to > 2)
            close(stream->to);
    }
}

static int start_pump(struct pump *pump, struct rewarm_stdio *stdio, struct rewarm_error *err)
{
    int match[2] = {-1, -1};
    if (pump->regex != NULL && pipe2(match, O_CLOEXEC) != 0)
        return rewarm_error_errno(err, "making a pipe");
    pump->match_fd = match[1];
    stdio->match_fd = match[0];
    pid_t pid = fork();
    if (pid == 0) {
        /* Nothing of the supervisor's but the streams: a lock held here would outlive it. */
        for (int fd = 0; fd < 3; fd++)
            rewarm_clean_fd(&stdio->fds[fd]);
        int keep[7] = {match[1]};
        for (size_t i = 0; i < pump->count; i++) {
            keep[1 + 2 * i] = pump->streams[i].from;
            keep[2 + 2 * i] = pump->streams[i].to;
        }
        rewarm_fs_close_all_but(keep, 1 + 2 * pump->count);
        pump_main(pump);
    }
    if (match[1] >= 0)
        close(match[1]);
    close_streams(pump);
    if (pid < 0)
        return rewarm_error_errno(err, "starting the process that copies the worker's output");
    stdio->pump = pid;
    return 0;
}

int rewarm_stdio_open(struct rewarm_stdio *stdio, const char *log_name, const char *regex,
                      struct rewarm_error *err)
{
    rewarm_auto_free struct pump *pump = rewarm_mem_new(1, sizeof(*pump));
    pump->match_fd = -1;
    regex_t compiled;
    *stdio = (struct rewarm_stdio)REWARM_STDIO_INIT;
    if (regex != NULL) {
        int code = regcomp(&compiled, regex, REG_EXTENDED | REG_NOSUB);
        if (code != 0) {
            char why[128];
            regerror(code, &compiled, why, sizeof(why));
            return rewarm_error_set(err, REWARM_E_USAGE, 0,
                                    "'%s' is no POSIX extended regular expression: %s", regex, why);
        }
        pump->regex = &compiled;
    }
    int result = log_name != NULL ? open_log(stdio, log_name, err) : 0;
    if (result == 0)
        result = plan(pump, stdio, regex != NULL, err);
    if (result == 0 && pump->count != 0)
        result = start_pump(pump, stdio, err);
    if (regex != NULL)
        regfree(&compiled);
    if (result != 0)
        rewarm_stdio_close(stdio);
    return result;
}

void rewarm_stdio_release(struct rewarm_stdio *stdio)
{
    for (int fd = 0; fd < 3; fd++) {
        rewarm_clean_fd(&stdio->fds[fd]);
        stdio->fds[fd] = -1;
    }
}

void rewarm_stdio_close(struct rewarm_stdio *stdio)
{
    rewarm_stdio_release(stdio);
    rewarm_clean_fd(&stdio->match_fd);
    if (stdio->pump > 0) {
        rewarm_auto_fd int pidfd = (int)syscall(SYS_pidfd_open, stdio->pump, 0);
        struct pollfd poll_fd = {.fd = pidfd, .events = POLLIN};
        if (pidfd >= 0 && poll(&poll_fd, 1, drain_ms) > 0)
            waitpid(stdio->pump, NULL, 0);
        /* Else a descendant of the worker still writes: the pump goes on for it. */
    }
    free(stdio->log);
    *stdio = (struct rewarm_stdio)REWARM_STDIO_INIT;
}

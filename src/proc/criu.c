/* CRIU as a program.
 *
 * Finding: a bundle is a folder with its own loader and libraries (lib/), the program (bin/criu)
 * and an empty plugins/; it is started through its own loader, so that it runs on any distribution
 * and no LD_LIBRARY_PATH is needed that would leak into children. A CRIU that is no bundle is
 * started as it is, with a plugin folder that holds no plugin: the system's global folder may
 * contain CRIU's CUDA plugin, which must not touch a tree whose device memory is looked after
 * elsewhere.
 *
 * Starting: the caller may have many GiB mapped, so the child is made by vfork(): no page tables
 * are copied. Between vfork() and execve() the child shares our memory and makes system calls only.
 * It gets a session of its own: an interrupt typed at the terminal goes to rewarm, which can end
 * things in order, and not to a CRIU in the middle of a dump.
 *
 * There is no parent-death signal on purpose. A CRIU killed during a dump leaves its parasite code
 * in the tree it was dumping, so a kill would hurt exactly the process that must go on serving;
 * when rewarm dies instead, CRIU's end of the page-server socket closes, the dump fails, and CRIU
 * itself takes its code out and lets the tree go on. A restoring CRIU ends likewise when its
 * lazy-pages socket closes, and the restored tree is ended by whoever guards it.
 *
 * Judging: by exit status only. CRIU's log has Error lines even on success. */
#include "proc/criu.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "base/clean.h"
#include "base/fs.h"
#include "base/log.h"
#include "base/str.h"
#include "base/time.h"

enum {
    MIN_VERSION = 40300,
    LOG_LIMIT_BYTES = 8 << 20,
    PROBE_MS = 10000,
    ARGS_MAX = 96,
};

/* --- starting a program --------------------------------------------------------------------------
 */

struct spawn {
    const char *const *argv;
    char *const *env;
    const int *keep;
    size_t keep_count;
    int keep_more;       /* one more descriptor to keep, or -1 */
    int null_fd;         /* becomes 0 */
    int output_fd;       /* becomes 1 and 2 */
    volatile int failed; /* errno of the child before execve(); written there, in our memory */
};

static bool is_kept(const struct spawn *spawn, int fd)
{
    for (size_t i = 0; i < spawn->keep_count; i++)
        if (spawn->keep[i] == fd)
            return true;
    return false;
}

/* Runs in the vfork() child: system calls only, and nothing that takes a lock. */
static void spawn_child(struct spawn *spawn)
{
    setsid();
    if (!is_kept(spawn, 0) && dup2(spawn->null_fd, 0) < 0)
        goto failed;
    for (int fd = 1; fd <= 2; fd++)
        if (!is_kept(spawn, fd) && dup2(spawn->output_fd, fd) < 0)
            goto failed;
    if (syscall(SYS_close_range, 3u, ~0u, CLOSE_RANGE_CLOEXEC) != 0)
        goto failed;
    for (size_t i = 0; i < spawn->keep_count; i++)
        if (fcntl(spawn->keep[i], F_SETFD, 0) != 0)
            goto failed;
    if (spawn->keep_more >= 0 && fcntl(spawn->keep_more, F_SETFD, 0) != 0)
        goto failed;
    /* The parent blocked every signal, so no handler of its can run here before it is reset. */
    for (int number = 1; number < NSIG; number++)
        signal(number, SIG_DFL);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    execve(spawn->argv[0], (char *const *)spawn->argv, spawn->env);
failed:
    spawn->failed = errno;
    _exit(127);
}

static __attribute__((noinline)) pid_t spawn_fork(struct spawn *spawn)
{
    pid_t pid = vfork();
    if (pid == 0)
        spawn_child(spawn);
    return pid;
}

/* Returns the PID, or -1 with errno. */
static pid_t spawn_run(struct spawn *spawn)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    pid_t pid = spawn_fork(spawn);
    int saved = errno;
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (pid > 0 && spawn->failed != 0) {
        waitpid(pid, NULL, 0);
        saved = spawn->failed;
        pid = -1;
    }
    errno = saved;
    return pid;
}

/* Our environment without what would change the loader or CRIU behind our back. Free the vector
 * only. */
static char **clean_environment(void)
{
    size_t count = 0;
    while (environ[count] != NULL)
        count++;
    char **env = rewarm_mem_new(count + 1, sizeof(*env));
    size_t used = 0;
    for (size_t i = 0; i < count; i++)
        if (!rewarm_str_starts(environ[i], "LD_") && !rewarm_str_starts(environ[i], "CRIU_"))
            env[used++] = environ[i];
    return env;
}

/* Waits for `pidfd` until `deadline_ns`, then kills. Returns 0 and the status, 1 when it was killed
 * for the deadline, or -1 with errno. */
static int reap(int pidfd, uint64_t deadline_ns, siginfo_t *ret_info)
{
    bool late = false;
    struct pollfd item = {.fd = pidfd, .events = POLLIN};
    for (;;) {
        int n = poll(&item, 1, rewarm_time_poll_ms(deadline_ns));
        if (n > 0)
            break;
        if (n < 0 && errno != EINTR)
            return -1;
        if (n == 0 && rewarm_time_now_ns() >= deadline_ns) {
            late = true;
            pidfd_send_signal(pidfd, SIGKILL, NULL, 0);
            break;
        }
    }
    memset(ret_info, 0, sizeof(*ret_info));
    while (waitid(P_PIDFD, (id_t)pidfd, ret_info, WEXITED) != 0)
        if (errno != EINTR)
            return -1;
    return late ? 1 : 0;
}

/* --- finding it ----------------------------------------------------------------------------------
 */

static const char *const loaders[] = {"ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"};

/* A folder that exists everywhere and never holds a *.so. */
static const char no_plugins[] = "/proc/self/fdinfo";

static bool is_program(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISREG(st.st_mode) && access(path, X_OK) == 0;
}

/* Fills `criu` when `folder` is a bundle. */
static bool use_bundle(struct rewarm_criu *criu, const char *named)
{
    /* CRIU does not stay in our working directory. */
    rewarm_auto_free char *folder = realpath(named, NULL);
    if (folder == NULL)
        return false;
    rewarm_auto_free char *program = rewarm_str_format("%s/bin/criu", folder);
    if (!is_program(program))
        return false;
    for (size_t i = 0; i < sizeof(loaders) / sizeof(loaders[0]); i++) {
        rewarm_auto_free char *loader = rewarm_str_format("%s/lib/%s", folder, loaders[i]);
        if (!is_program(loader))
            continue;
        size_t n = 0;
        criu->path = rewarm_str_dup(folder);
        criu->argv0[n++] = rewarm_steal_ptr(&loader);
        criu->argv0[n++] = rewarm_str_dup("--library-path");
        criu->argv0[n++] = rewarm_str_format("%s/lib", folder);
        criu->argv0[n++] = rewarm_str_dup("--argv0");
        criu->argv0[n++] = rewarm_str_dup("criu");
        criu->argv0[n++] = rewarm_steal_ptr(&program);
        rewarm_auto_free char *plugins = rewarm_str_format("%s/plugins", folder);
        criu->libdir =
            access(plugins, F_OK) == 0 ? rewarm_steal_ptr(&plugins) : rewarm_str_dup(no_plugins);
        return true;
    }
    return false;
}

static bool use_program(struct rewarm_criu *criu, const char *path)
{
    if (!is_program(path))
        return false;
    criu->path = rewarm_str_dup(path);
    criu->argv0[0] = rewarm_str_dup(path);
    criu->libdir = rewarm_str_dup(no_plugins);
    return true;
}

/* The bundle that belongs to the running program: PREFIX/libexec/rewarm/criu beside PREFIX/bin, or
 * in a build tree `criu` in the program's folder or up to three above it. */
static bool use_own_bundle(struct rewarm_criu *criu)
{
    char folder[4096];
    ssize_t used = readlink("/proc/self/exe", folder, sizeof(folder) - 1);
    if (used <= 0)
        return false;
    folder[used] = '\0';
    for (int up = 0; up < 4; up++) {
        char *slash = strrchr(folder, '/');
        if (slash == NULL || slash == folder)
            return false;
        *slash = '\0';
        rewarm_auto_free char *installed = rewarm_str_format("%s/../libexec/rewarm/criu", folder);
        rewarm_auto_free char *built = rewarm_str_format("%s/criu", folder);
        if ((up == 0 && use_bundle(criu, installed)) || use_bundle(criu, built))
            return true;
    }
    return false;
}

static bool use_path(struct rewarm_criu *criu)
{
    /* The usual places of an administrator's programs are searched even when PATH lacks them. */
    const char *path = getenv("PATH");
    rewarm_auto_free char *all =
        rewarm_str_format("%s:/usr/local/sbin:/usr/sbin:/sbin", path != NULL ? path : "/usr/bin");
    char *save = NULL;
    for (char *folder = strtok_r(all, ":", &save); folder != NULL;
         folder = strtok_r(NULL, ":", &save)) {
        rewarm_auto_free char *program = rewarm_str_format("%s/criu", folder);
        if (folder[0] == '/' && use_program(criu, program))
            return true;
    }
    return false;
}

static void criu_fini(struct rewarm_criu *criu)
{
    free(criu->path);
    free(criu->libdir);
    for (size_t i = 0; i < sizeof(criu->argv0) / sizeof(criu->argv0[0]); i++)
        free(criu->argv0[i]);
    *criu = (struct rewarm_criu){0};
}

/* "Version: 4.3\nGitID: ..." to 40300. */
static bool parse_version(struct rewarm_criu *criu, const char *text)
{
    const char *at = strstr(text, "Version: ");
    if (at == NULL)
        return false;
    at += strlen("Version: ");
    unsigned part[3] = {0};
    if (sscanf(at, "%3u.%3u.%3u", &part[0], &part[1], &part[2]) < 1)
        return false;
    criu->version = part[0] * 10000 + part[1] * 100 + part[2];
    snprintf(criu->version_text, sizeof(criu->version_text), "%.*s", (int)strcspn(at, " \r\n"), at);
    return true;
}

/* A bundle's MANIFEST, written and checked by the tool that made it, has the version as its
 * package's: asking the program costs every command some milliseconds. */
static bool read_manifest(struct rewarm_criu *criu)
{
    rewarm_auto_free char *file = rewarm_str_format("%s/MANIFEST", criu->path);
    rewarm_auto_free char *text = NULL;
    if (rewarm_fs_read_file(AT_FDCWD, file, 65536, &text, NULL, NULL) != 0 ||
        !rewarm_str_starts(text, "criu "))
        return false;
    size_t length = strcspn(text + strlen("criu "), "-+~ \n");
    rewarm_auto_free char *version =
        rewarm_str_format("Version: %.*s", (int)length, text + strlen("criu "));
    return parse_version(criu, version);
}

/* Runs `criu ARGS` and gathers what it prints (both streams), cut at `size` - 1. */
int rewarm_criu_query(const struct rewarm_criu *criu, const char *const *args, char *output,
                      size_t size, int *ret_exit_code, struct rewarm_error *err)
{
    const char *argv[ARGS_MAX];
    size_t n = 0;
    for (; criu->argv0[n] != NULL; n++)
        argv[n] = criu->argv0[n];
    for (; *args != NULL && n + 1 < ARGS_MAX; args++)
        argv[n++] = *args;
    argv[n] = NULL;

    rewarm_auto_fd int null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    int ends[2];
    if (null_fd < 0 || pipe2(ends, O_CLOEXEC) != 0)
        return rewarm_error_errno(err, "can't prepare to run %s", criu->path);
    rewarm_auto_fd int reader = ends[0];
    rewarm_auto_fd int writer = ends[1];
    rewarm_auto_free char **env = clean_environment();
    struct spawn spawn = {
        .argv = argv, .env = env, .keep_more = -1, .null_fd = null_fd, .output_fd = writer};
    pid_t pid = spawn_run(&spawn);
    if (pid < 0)
        return rewarm_error_errno(err, "can't run %s", criu->path);
    close(rewarm_steal_fd(&writer));
    rewarm_auto_fd int pidfd = pidfd_open(pid, 0);
    if (pidfd < 0) {
        rewarm_error_errno(err, "can't watch %s", criu->path);
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
        return err != NULL ? -err->code : -REWARM_E_SYSTEM;
    }

    uint64_t deadline_ns = rewarm_time_now_ns() + PROBE_MS * REWARM_NS_PER_MS;
    size_t used = 0;
    for (;;) {
        struct pollfd item = {.fd = reader, .events = POLLIN};
        if (poll(&item, 1, rewarm_time_poll_ms(deadline_ns)) == 0)
            break;
        char drain[512];
        bool room = used + 1 < size;
        ssize_t got = room ? read(reader, output + used, size - 1 - used)
                           : read(reader, drain, sizeof(drain));
        if (got == 0 || (got < 0 && errno != EINTR))
            break;
        if (got > 0 && room)
            used += (size_t)got;
    }
    output[used] = '\0';
    siginfo_t info;
    int status = reap(pidfd, deadline_ns, &info);
    if (status < 0)
        return rewarm_error_errno(err, "can't wait for %s", criu->path);
    if (status > 0)
        return rewarm_error_set(err, REWARM_E_TIMEOUT, 0, "%s did not answer within %d s",
                                criu->path, PROBE_MS / 1000);
    *ret_exit_code = info.si_code == CLD_EXITED ? info.si_status : 128 + info.si_status;
    return 0;
}

static int ask_version(struct rewarm_criu *criu, struct rewarm_error *err)
{
    char output[512];
    int exit_code;
    static const char *const ask[] = {"--version", NULL};
    int result = rewarm_criu_query(criu, ask, output, sizeof(output), &exit_code, err);
    if (result != 0)
        return result;
    if (exit_code != 0 || !parse_version(criu, output)) {
        output[strcspn(output, "\n")] = '\0';
        return rewarm_error_set(err, REWARM_E_CRIU, 0,
                                "%s does not say its version (exit code %d: %.200s)", criu->path,
                                exit_code, output);
    }
    return 0;
}

static int find(struct rewarm_criu *criu, struct rewarm_error *err)
{
    const char *named = getenv("REWARM_CRIU");
    bool found = false;
    if (named != NULL && named[0] != '\0') {
        found = use_bundle(criu, named) || use_program(criu, named);
        if (!found)
            return rewarm_error_set(
                err, REWARM_E_NOT_FOUND, 0,
                "REWARM_CRIU names %s, which is neither a CRIU bundle (a folder "
                "with bin/criu and lib/) nor a program",
                named);
    } else {
        found = use_own_bundle(criu) || use_path(criu);
    }
    if (!found)
        return rewarm_error_set(err, REWARM_E_NOT_FOUND, 0,
                                "CRIU was not found: install criu 4.3 or newer, or make the bundle "
                                "(`make criu` in rewarm's source) and name it with REWARM_CRIU");
    int result = read_manifest(criu) ? 0 : ask_version(criu, err);
    if (result != 0)
        return result;
    if (criu->version < MIN_VERSION)
        return rewarm_error_set(err, REWARM_E_CRIU, 0,
                                "%s is CRIU %s; rewarm needs 4.3 or newer: name a newer one with "
                                "REWARM_CRIU (a bundle folder or a program)",
                                criu->path, criu->version_text);
    return 0;
}

int rewarm_criu_find(const struct rewarm_criu **ret_criu, struct rewarm_error *err)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static struct rewarm_criu known;
    pthread_mutex_lock(&lock);
    int result = 0;
    if (known.path == NULL || known.version == 0) {
        result = find(&known, err);
        if (result != 0)
            criu_fini(&known);
    }
    pthread_mutex_unlock(&lock);
    if (result == 0)
        *ret_criu = &known;
    return result;
}

/* --- running it ----------------------------------------------------------------------------------
 */

int rewarm_criu_start(const struct rewarm_criu *criu, const char *verb, const char *const *args,
                      const int *keep, size_t keep_count, int log_dirfd,
                      struct rewarm_criu_child *ret_child, struct rewarm_error *err)
{
    static atomic_uint attempts;
    struct rewarm_criu_child child = {.pidfd = -1, .log_dirfd = log_dirfd, .verb = verb};
    snprintf(child.log_name, sizeof(child.log_name), "criu-%.16s-%d-%u.log", verb, (int)getpid(),
             atomic_fetch_add(&attempts, 1));

    const char *argv[ARGS_MAX];
    size_t n = 0;
    for (; criu->argv0[n] != NULL; n++)
        argv[n] = criu->argv0[n];
    /* The log by its folder's descriptor: CRIU would look up a relative name in -W or -D. */
    char log_path[128];
    snprintf(log_path, sizeof(log_path), "/proc/self/fd/%d/%s", log_dirfd, child.log_name);
    const char *const ours[] = {verb,       "--no-default-config", "-v2", "-o", log_path,
                                "--libdir", criu->libdir};
    for (size_t i = 0; i < sizeof(ours) / sizeof(ours[0]); i++)
        argv[n++] = ours[i];
    if (geteuid() != 0)
        argv[n++] = "--unprivileged";
    for (; *args != NULL; args++) {
        if (n + 1 >= ARGS_MAX)
            return rewarm_error_set(err, REWARM_E_USAGE, 0, "too many arguments for criu %s", verb);
        argv[n++] = *args;
    }
    argv[n] = NULL;

    rewarm_auto_fd int null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    /* What CRIU or its loader says before it opens its log lands in the same file. */
    rewarm_auto_fd int log_fd = openat(log_dirfd, child.log_name,
                                       O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);
    if (null_fd < 0 || log_fd < 0)
        return rewarm_error_errno(err, "can't create the log %s of criu %s", child.log_name, verb);
    rewarm_auto_free char **env = clean_environment();
    struct spawn spawn = {.argv = argv,
                          .env = env,
                          .keep = keep,
                          .keep_count = keep_count,
                          .keep_more = log_dirfd,
                          .null_fd = null_fd,
                          .output_fd = log_fd};
    child.pid = spawn_run(&spawn);
    if (child.pid < 0)
        return rewarm_error_errno(err, "can't run criu %s (%s)", verb, criu->path);
    child.pidfd = pidfd_open(child.pid, 0);
    if (child.pidfd < 0) {
        rewarm_error_errno(err, "can't watch criu %s", verb);
        kill(child.pid, SIGKILL);
        waitpid(child.pid, NULL, 0);
        return err != NULL ? -err->code : -REWARM_E_SYSTEM;
    }
    *ret_child = child;
    return 0;
}

/* The last LOG_LIMIT_BYTES of the log; NULL when it can't be read. */
static char *read_log(const struct rewarm_criu_child *child, size_t *ret_bytes)
{
    rewarm_auto_fd int fd = openat(child->log_dirfd, child->log_name, O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) != 0)
        return NULL;
    uint64_t size_bytes = (uint64_t)st.st_size;
    uint64_t skip = size_bytes > LOG_LIMIT_BYTES ? size_bytes - LOG_LIMIT_BYTES : 0;
    size_t bytes = (size_t)(size_bytes - skip);
    char *text = rewarm_mem_new(bytes + 1, 1);
    if (rewarm_fs_pread_full(fd, text, bytes, skip, child->log_name, NULL) != 0) {
        free(text);
        return NULL;
    }
    *ret_bytes = bytes;
    return text;
}

int rewarm_criu_wait(struct rewarm_criu_child *child, uint64_t deadline_ns,
                     struct rewarm_error *err)
{
    siginfo_t info;
    int status = reap(child->pidfd, deadline_ns, &info);
    int saved = errno;
    close(child->pidfd);
    child->pidfd = -1;
    errno = saved;
    if (status < 0)
        return rewarm_error_errno(err, "can't wait for criu %s", child->verb);
    if (status > 0)
        return rewarm_error_set(err, REWARM_E_TIMEOUT, 0,
                                "criu %s did not end in time and was killed (log: %s)", child->verb,
                                child->log_name);
    if (info.si_code != CLD_EXITED)
        return rewarm_error_set(err, REWARM_E_CRIU, 0, "criu %s was killed by signal %d (%s)",
                                child->verb, info.si_status, strsignal(info.si_status));
    if (info.si_status == 0)
        return 0;
    rewarm_debug("criu %s: exit code %d, log %s", child->verb, info.si_status, child->log_name);
    size_t bytes = 0;
    rewarm_auto_free char *log = read_log(child, &bytes);
    return rewarm_criu_explain(child->verb, log != NULL ? log : "", bytes, err);
}

/* `rewarm doctor`: one function a line of its report, run in order. What is about the store is in
 * doctor_store.c. A check says BAD when a freeze or restore would fail, WARN when something is
 * slower or not available, and always what to do about it. Nothing is changed on the host; CRIU is
 * started for its own checks. */
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/clean.h"
#include "base/fs.h"
#include "base/str.h"
#include "proc/criu.h"
#include "proc/doctor_private.h"
#include "proc/host_private.h"

enum {
    KERNEL_MAJOR = 5,
    KERNEL_MINOR =
        11, /* close_range(CLOEXEC), pidfd_getfd, clone3(set_tid), /dev/userfaultfd aside */
};

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif

void rewarm_doctor_say(struct rewarm_doctor_line *line, enum rewarm_doctor_state state,
                       const char *detail, ...)
{
    va_list args;
    va_start(args, detail);
    line->state = state;
    vsnprintf(line->detail, sizeof(line->detail), detail, args);
    va_end(args);
}

void rewarm_doctor_advise(struct rewarm_doctor_line *line, const char *advice, ...)
{
    va_list args;
    va_start(args, advice);
    vsnprintf(line->advice, sizeof(line->advice), advice, args);
    va_end(args);
}

static void check_kernel(const char *store_path, struct rewarm_doctor_line *line)
{
    (void)store_path;
    struct utsname name;
    unsigned major = 0, minor = 0;
    if (uname(&name) != 0 || sscanf(name.release, "%u.%u", &major, &minor) != 2) {
        rewarm_doctor_say(line, REWARM_DOCTOR_BAD, "its version can't be told");
        rewarm_doctor_advise(line, "use Linux %d.%d or newer", KERNEL_MAJOR, KERNEL_MINOR);
        return;
    }
    bool old = major < KERNEL_MAJOR || (major == KERNEL_MAJOR && minor < KERNEL_MINOR);
    rewarm_doctor_say(line, old ? REWARM_DOCTOR_BAD : REWARM_DOCTOR_OK, "Linux %s, %s",
                      name.release, name.machine);
    if (old)
        rewarm_doctor_advise(line, "use Linux %d.%d or newer", KERNEL_MAJOR, KERNEL_MINOR);
}

static void check_privileges(const char *store_path, struct rewarm_doctor_line *line)
{
    (void)store_path;
    struct rewarm_privileges have;
    rewarm_host_privileges(&have);
    struct rewarm_error err = REWARM_ERROR_INIT;
    if (rewarm_host_check_privileges(&err) != 0) {
        rewarm_doctor_say(line, REWARM_DOCTOR_BAD, "%s", err.message);
        rewarm_doctor_advise(line, have.root ? "run rewarm with these capabilities"
                                             : "run rewarm as root");
    } else if (have.optional[0] != '\0') {
        rewarm_doctor_say(line, REWARM_DOCTOR_WARN, "root without %s", have.optional);
        rewarm_doctor_advise(line, "workers of other users, or with limits above root's, may need "
                                   "them; all others are fine");
    } else if (have.root) {
        rewarm_doctor_say(line, REWARM_DOCTOR_OK, "root with all capabilities that matter");
    } else {
        rewarm_doctor_say(line, REWARM_DOCTOR_OK, "user %u with all capabilities that matter",
                          (unsigned)geteuid());
    }
}

static void check_criu(const char *store_path, struct rewarm_doctor_line *line)
{
    (void)store_path;
    const struct rewarm_criu *criu;
    struct rewarm_error err = REWARM_ERROR_INIT;
    if (rewarm_criu_find(&criu, &err) == 0) {
        rewarm_doctor_say(line, REWARM_DOCTOR_OK, "%s, %s", criu->version_text, criu->path);
        return;
    }
    rewarm_doctor_say(line, REWARM_DOCTOR_BAD, "%s", err.message);
    rewarm_doctor_advise(line, "install CRIU 4.3 or newer, or name a bundle with REWARM_CRIU");
}

/* CRIU's own checks say little of use to a user who may not run them. True when the line is done.
 */
static bool lacks_privileges(struct rewarm_doctor_line *line)
{
    if (rewarm_host_check_privileges(NULL) == 0)
        return false;
    rewarm_doctor_say(line, REWARM_DOCTOR_BAD, "not tried without the privileges");
    rewarm_doctor_advise(line, "see the line about privileges");
    return true;
}

/* The last line of a text, in place. */
static char *last_line(char *text)
{
    size_t bytes = strlen(text);
    while (bytes > 0 && text[bytes - 1] == '\n')
        text[--bytes] = '\0';
    char *newline = strrchr(text, '\n');
    return newline != NULL ? newline + 1 : text;
}

static void check_criu_check(const char *store_path, struct rewarm_doctor_line *line)
{
    (void)store_path;
    const struct rewarm_criu *criu;
    char output[4096];
    int exit_code = -1;
    const char *const args[] = {"check", geteuid() != 0 ? "--unprivileged" : NULL, NULL};
    if (lacks_privileges(line))
        return;
    if (rewarm_criu_find(&criu, NULL) != 0 ||
        rewarm_criu_query(criu, args, output, sizeof(output), &exit_code, NULL) != 0) {
        rewarm_doctor_say(line, REWARM_DOCTOR_BAD, "could not be run");
        rewarm_doctor_advise(line, "see the line before");
        return;
    }
    rewarm_doctor_say(line, exit_code == 0 ? REWARM_DOCTOR_OK : REWARM_DOCTOR_BAD, "%s",
                      last_line(output));
    if (exit_code != 0)
        rewarm_doctor_advise(line, "CRIU does not work on this kernel: run `criu check -v4`");
}

static void check_criu_features(const char *store_path, struct rewarm_doctor_line *line)
{
    (void)store_path;
    /* What a lazy restore and chosen PIDs stand on. */
    static const char *const features[] = {"uffd-noncoop", "clone3_set_tid"};
    if (lacks_privileges(line))
        return;
    const struct rewarm_criu *criu;
    if (rewarm_criu_find(&criu, NULL) != 0) {
        rewarm_doctor_say(line, REWARM_DOCTOR_BAD, "could not be asked for");
        rewarm_doctor_advise(line, "see the line before");
        return;
    }
    char list[200] = "";
    size_t used = 0;
    bool bad = false;
    for (size_t i = 0; i < sizeof(features) / sizeof(features[0]); i++) {
        char output[2048];
        int exit_code = -1;
        const char *const args[] = {"check", "--feature", features[i],
                                    geteuid() != 0 ? "--unprivileged" : NULL, NULL};
        bool has = rewarm_criu_query(criu, args, output, sizeof(output), &exit_code, NULL) == 0 &&
                   exit_code == 0;
        bad = bad || !has;
        used += (size_t)snprintf(list + used, sizeof(list) - used, "%s%s: %s", i != 0 ? ", " : "",
                                 features[i], has ? "yes" : "no");
    }
    rewarm_doctor_say(line, bad ? REWARM_DOCTOR_BAD : REWARM_DOCTOR_OK, "%s", list);
    if (bad)
        rewarm_doctor_advise(line, "use a newer kernel with CONFIG_USERFAULTFD, or root");
}

static void check_userfaultfd(const char *store_path, struct rewarm_doctor_line *line)
{
    (void)store_path;
    rewarm_auto_fd int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        int saved = errno;
        rewarm_auto_fd int user_only =
            (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
        rewarm_doctor_say(line, REWARM_DOCTOR_BAD, "%s",
                          user_only >= 0 ? "not for faults inside system calls" : strerror(saved));
        rewarm_doctor_advise(line, saved == ENOSYS
                                       ? "use a kernel with CONFIG_USERFAULTFD"
                                       : "run as root or with CAP_SYS_PTRACE, or have root set "
                                         "`sysctl vm.unprivileged_userfaultfd=1`");
        return;
    }
    static const struct {
        uint64_t bit;
        const char *name;
    } wanted[] = {{UFFD_FEATURE_EVENT_FORK, "fork"},
                  {UFFD_FEATURE_EVENT_REMAP, "remap"},
                  {UFFD_FEATURE_EVENT_REMOVE, "remove"},
                  {UFFD_FEATURE_EVENT_UNMAP, "unmap"}};
    struct uffdio_api api = {.api = UFFD_API};
    uint64_t features = ioctl(fd, UFFDIO_API, &api) == 0 ? api.features : 0;
    char lacking[64] = "";
    size_t used = 0;
    for (size_t i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++)
        if ((features & wanted[i].bit) == 0)
            used += (size_t)snprintf(lacking + used, sizeof(lacking) - used, " %s", wanted[i].name);
    if (used != 0) {
        rewarm_doctor_say(line, REWARM_DOCTOR_BAD, "no events for%s", lacking);
        rewarm_doctor_advise(line, "use Linux %d.%d or newer", KERNEL_MAJOR, KERNEL_MINOR);
        return;
    }
    rewarm_doctor_say(line, REWARM_DOCTOR_OK, "with fork, remap, remove and unmap events%s",
                      access("/dev/userfaultfd", R_OK | W_OK) == 0 ? "; /dev/userfaultfd too" : "");
}

/* CRIU keeps what it has found out about the kernel in /run, if that goes away with the kernel. */
static void check_criu_cache(const char *store_path, struct rewarm_doctor_line *line)
{
    (void)store_path;
    struct statfs fs;
    if (statfs("/run", &fs) == 0 && fs.f_type == TMPFS_MAGIC) {
        rewarm_doctor_say(line, REWARM_DOCTOR_OK, "/run is a tmpfs: CRIU probes the kernel once");
        return;
    }
    rewarm_doctor_say(line, REWARM_DOCTOR_WARN,
                      "/run is no tmpfs: CRIU probes the kernel each time");
    rewarm_doctor_advise(line,
                         "mount a tmpfs on /run: a freeze and a restore then take some 40 ms less");
}

static void check_pipes(const char *store_path, struct rewarm_doctor_line *line)
{
    (void)store_path;
    static const char path[] = "/proc/sys/fs/pipe-max-size";
    struct rewarm_privileges have;
    rewarm_host_privileges(&have);
    uint64_t limit_bytes = 0;
    char text[REWARM_STR_HUMAN];
    rewarm_host_read_number(path, &limit_bytes);
    rewarm_str_bytes(limit_bytes, text);
    if (limit_bytes >= REWARM_PIPE_BYTES)
        rewarm_doctor_say(line, REWARM_DOCTOR_OK, "up to %s", text);
    else if (have.resource)
        rewarm_doctor_say(line, REWARM_DOCTOR_OK, "up to %s, and CAP_SYS_RESOURCE lifts that",
                          text);
    else if (have.root && access(path, W_OK) == 0)
        rewarm_doctor_say(line, REWARM_DOCTOR_OK, "up to %s; a freeze raises it while it runs",
                          text);
    else
        rewarm_doctor_say(line, REWARM_DOCTOR_BAD, "up to %s, too little for a freeze", text);
    if (line->state == REWARM_DOCTOR_BAD)
        rewarm_doctor_advise(line,
                             "have root set `sysctl fs.pipe-max-size=%u`, or add "
                             "CAP_SYS_RESOURCE",
                             REWARM_PIPE_BYTES);
}

static void check_io_uring(const char *store_path, struct rewarm_doctor_line *line)
{
    (void)store_path;
    char params[120] = {0}; /* struct io_uring_params, all zero */
    rewarm_auto_fd int ring = (int)syscall(SYS_io_uring_setup, 4, params);
    if (ring >= 0)
        rewarm_doctor_say(line, REWARM_DOCTOR_OK,
                          "available; `rewarm run` hides it from workers, whose rings can't be "
                          "frozen");
    else
        rewarm_doctor_say(line, REWARM_DOCTOR_OK, "not available (%s); rewarm does without",
                          strerror(errno));
}

static void check_ptrace(const char *store_path, struct rewarm_doctor_line *line)
{
    (void)store_path;
    static const char path[] = "/proc/sys/kernel/yama/ptrace_scope";
    struct rewarm_privileges have;
    rewarm_host_privileges(&have);
    uint64_t scope;
    if (!rewarm_host_read_number(path, &scope)) {
        rewarm_doctor_say(line, REWARM_DOCTOR_OK, "not restricted by Yama");
    } else if (scope >= 3) {
        rewarm_doctor_say(line, REWARM_DOCTOR_BAD, "forbidden to everybody (ptrace_scope %llu)",
                          (unsigned long long)scope);
        rewarm_doctor_advise(line, "boot with kernel.yama.ptrace_scope at 2 or less");
    } else if (scope > 0 && !have.trace) {
        rewarm_doctor_say(line, REWARM_DOCTOR_BAD, "only of own children (ptrace_scope %llu)",
                          (unsigned long long)scope);
        rewarm_doctor_advise(line, "run as root or with CAP_SYS_PTRACE, or have root set "
                                   "`sysctl kernel.yama.ptrace_scope=0`");
    } else {
        rewarm_doctor_say(line, REWARM_DOCTOR_OK, "allowed (ptrace_scope %llu)",
                          (unsigned long long)scope);
    }
}

static void check_memory(const char *store_path, struct rewarm_doctor_line *line)
{
    (void)store_path;
    rewarm_auto_free char *text = NULL;
    uint64_t available_bytes = 0;
    if (rewarm_fs_read_file(AT_FDCWD, "/proc/meminfo", 1 << 16, &text, NULL, NULL) == 0) {
        const char *at = strstr(text, "MemAvailable:");
        if (at != NULL)
            available_bytes = strtoull(at + strlen("MemAvailable:"), NULL, 10) * 1024;
    }
    char human[REWARM_STR_HUMAN];
    bool little = available_bytes < 1ull << 30;
    rewarm_doctor_say(line, little ? REWARM_DOCTOR_WARN : REWARM_DOCTOR_OK, "%s available",
                      rewarm_str_bytes(available_bytes, human));
    if (little)
        rewarm_doctor_advise(line, "a restored worker needs what it had when it was frozen");
}

static void check_huge_pages(const char *store_path, struct rewarm_doctor_line *line)
{
    (void)store_path;
    rewarm_auto_free char *text = NULL;
    bool known = rewarm_fs_read_file(AT_FDCWD, "/sys/kernel/mm/transparent_hugepage/enabled", 256,
                                     &text, NULL, NULL) == 0;
    const char *open = known ? strchr(text, '[') : NULL;
    const char *close = open != NULL ? strchr(open, ']') : NULL;
    bool off = close == NULL || rewarm_str_starts(open, "[never");
    rewarm_doctor_say(line, off ? REWARM_DOCTOR_WARN : REWARM_DOCTOR_OK, "%.*s",
                      close != NULL ? (int)(close - open - 1) : 3,
                      close != NULL ? open + 1 : "off");
    if (off)
        rewarm_doctor_advise(line, "a freeze is faster with them: echo madvise > "
                                   "/sys/kernel/mm/transparent_hugepage/enabled");
}

static void check_pasta(const char *store_path, struct rewarm_doctor_line *line)
{
    (void)store_path;
    const char *path = getenv("PATH");
    rewarm_auto_free char *folders = rewarm_str_dup(path != NULL ? path : "/usr/bin:/bin");
    char *save = NULL;
    for (char *folder = strtok_r(folders, ":", &save); folder != NULL;
         folder = strtok_r(NULL, ":", &save)) {
        rewarm_auto_free char *program = rewarm_str_format("%s/pasta", folder);
        if (access(program, X_OK) == 0) {
            rewarm_doctor_say(line, REWARM_DOCTOR_OK, "%s", program);
            return;
        }
    }
    rewarm_doctor_say(line, REWARM_DOCTOR_WARN, "not found");
    rewarm_doctor_advise(line, "install passt for `rewarm restore --publish`; all else works");
}

static const struct {
    const char *name;
    void (*check)(const char *store_path, struct rewarm_doctor_line *line);
} checks[] = {
    {"kernel", check_kernel},
    {"privileges", check_privileges},
    {"ptrace", check_ptrace},
    {"userfaultfd", check_userfaultfd},
    {"criu", check_criu},
    {"criu check", check_criu_check},
    {"criu features", check_criu_features},
    {"criu cache", check_criu_cache},
    {"pipes", check_pipes},
    {"io_uring", check_io_uring},
    {"memory", check_memory},
    {"huge pages", check_huge_pages},
    {"pasta", check_pasta},
    {"store", rewarm_doctor_check_store},
    {"store space", rewarm_doctor_check_space},
    {"store direct", rewarm_doctor_check_direct},
};

int rewarm_host_doctor(const char *store_path, struct rewarm_doctor_line **ret_lines,
                       size_t *ret_count, struct rewarm_error *err)
{
    if (store_path == NULL || store_path[0] == '\0')
        return rewarm_error_set(err, REWARM_E_USAGE, 0, "the store has no path");
    size_t count = sizeof(checks) / sizeof(checks[0]);
    struct rewarm_doctor_line *lines = rewarm_mem_new(count, sizeof(*lines));
    for (size_t i = 0; i < count; i++) {
        lines[i].check = checks[i].name;
        checks[i].check(store_path, &lines[i]);
    }
    *ret_lines = lines;
    *ret_count = count;
    return 0;
}

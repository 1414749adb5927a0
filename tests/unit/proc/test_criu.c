/* Running CRIU: a stand-in script shows how it is started, the real one (when there is one) that it
 * works, and lines of real logs that failures are told apart. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "base/clean.h"
#include "base/fs.h"
#include "base/str.h"
#include "base/time.h"
#include "proc/criu.h"

/* --- words
 * ---------------------------------------------------------------------------------------- */

struct sample {
    const char *verb, *log;
    enum rewarm_code code;
    const char *words; /* must be in the message */
};

#define RLIMIT                                                                                     \
    "Error (criu/util.c:1532): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not "         \
    "permitted\n"
#define DUMP_FAILED    "Error (criu/cr-dump.c:2005): Dumping FAILED.\n"
#define RESTORE_FAILED "Error (criu/cr-restore.c:2424): Restoring FAILED.\n"

/* From criu 4.3's logs. */
static const struct sample samples[] = {
    {"dump",
     RLIMIT "Error (criu/parasite-syscall.c:280): Can't retrieve FDs from socket\n"
            "Error (compel/src/lib/infect-rpc.c:44): Message reply from daemon is trimmed (12/0)\n"
            "Error (criu/cr-dump.c:1550): Dump files (pid: 10229) failed with -1\n" DUMP_FAILED,
     REWARM_E_REFUSED, "io_uring"},
    {"dump",
     "Error (criu/files-ext.c:98): Can't dump file 3 of that type [600] (anon "
     "anon_inode:[userfaultfd])\nError (criu/cr-dump.c:1550): Dump files (pid: 1) failed with "
     "-1\n" DUMP_FAILED,
     REWARM_E_REFUSED, "userfaultfd"},
    {"dump",
     "Error (criu/files-ext.c:98): Can't dump file 3 of that type [20600] (chr 10:232)\n"
     "Error (criu/cr-dump.c:1550): Dump files (pid: 1) failed with -1\n" DUMP_FAILED,
     REWARM_E_REFUSED, "device"},
    {"dump",
     "Error (criu/sockets.c:767): sockets: BUG! Unknown socket collected (family 40)\n" DUMP_FAILED,
     REWARM_E_REFUSED, "vsock"},
    {"dump",
     "Error (criu/sk-inet.c:138): inet: Unsupported proto 262 for socket 7956\n"
     "Error (criu/sk-inet.c:140): inet: For Go programs, consider using "
     "\"GODEBUG=multipathtcp=0\" to disable MPTCP\n" DUMP_FAILED,
     REWARM_E_REFUSED, "Multipath"},
    {"dump",
     "Error (compel/src/lib/infect.c:271): Unseizable non-zombie 12094 found, state S, err "
     "-1/10\n" DUMP_FAILED,
     REWARM_E_REFUSED, "traced"},
    {"dump",
     "Error (criu/tty.c:410): tty: Found slave peer index 1 without correspond master "
     "peer\n" DUMP_FAILED,
     REWARM_E_REFUSED, "terminal"},
    {"dump",
     "Error (criu/files-reg.c:1031): Can't dump ghost file /tmp/gh of 3145728 size, increase "
     "limit\n" DUMP_FAILED,
     REWARM_E_REFUSED, "too large"},
    {"dump",
     "Error (criu/page-xfer.c:752): page-xfer: Unable to splice data: No space left on device\n"
     "Error (criu/mem.c:748): Can't dump page with parasite\n"
     "Error (criu/bfd.c:148): bfd: Error flushing image: No space left on device\n" DUMP_FAILED,
     REWARM_E_NO_SPACE, "disk is full"},
    {"dump",
     RLIMIT "Warn  (compel/src/lib/infect.c:132): Unable to interrupt task: 3999999 (No such "
            "process)\nError (compel/src/lib/infect.c:426): Unable to detach from 3999999: No such "
            "process\n" DUMP_FAILED,
     REWARM_E_NOT_FOUND, "has ended"},
    {"dump",
     RLIMIT "Warn  (compel/src/lib/infect.c:132): Unable to interrupt task: 10264 (Operation not "
            "permitted)\nError (compel/src/lib/infect.c:426): Unable to detach from 10264: No such "
            "process\n" DUMP_FAILED,
     REWARM_E_BUSY, "another freeze"},
    {"dump",
     "Error (compel/src/lib/infect.c:271): Unseizable non-zombie 12094 found, state t, err "
     "-1/1\n" DUMP_FAILED,
     REWARM_E_BUSY, "another freeze"},
    {"dump",
     RLIMIT "Error (criu/cr-dump.c:391): Can't get rlimit 0: Operation not permitted\n" DUMP_FAILED,
     REWARM_E_PERMISSION, "CAP_SYS_RESOURCE"},
    {"dump", "Error (criu/page-xfer.c:1400): Lazy pages transfer FAILED.\n" DUMP_FAILED,
     REWARM_E_PERMISSION, "fs.pipe-max-size"},
    {"dump",
     "CRIU needs to have the CAP_SYS_ADMIN or the CAP_CHECKPOINT_RESTORE capability: \n"
     "setcap cap_checkpoint_restore+eip criu\n",
     REWARM_E_PERMISSION, "CAP_CHECKPOINT_RESTORE"},
    {"restore",
     RLIMIT "  1640: Error (criu/files-reg.c:2175): File tmp/data has bad size 101 (expect 100)\n"
            "  1640: Error (criu/files.c:1235): Unable to open fd=3 id=0x1d\n" RESTORE_FAILED,
     REWARM_E_MISFIT, "tmp/data has bad size"},
    {"restore",
     "(00.012345)   1670: Error (criu/files-reg.c:2268): Can't open file tmp/data: No such file or "
     "directory\n(00.02) 1670: Error (criu/files.c:1235): Unable to open fd=3 "
     "id=0x1d\n" RESTORE_FAILED,
     REWARM_E_MISFIT, "has gone"},
    {"restore",
     "  1700: Error (criu/sk-inet.c:1077): inet: Can't bind inet socket (id 29): Address already "
     "in use\n  1700: Error (criu/files.c:1235): Unable to open fd=3 id=0x1d\n" RESTORE_FAILED,
     REWARM_E_BUSY, "port"},
    {"restore",
     "  1730: Error (criu/sk-unix.c:1691): unix: Can't bind id 0x1d ino 104348 addr : Address "
     "already in use\n" RESTORE_FAILED,
     REWARM_E_BUSY, "unix socket name"},
    {"restore",
     RLIMIT "Error (criu/cr-restore.c:1245): Can't fork for 1790: File exists\n" RESTORE_FAILED,
     REWARM_E_BUSY, "PID"},
    {"restore",
     "Error (criu/cpu.c:1): cpu: CPU xfeatures has unsupported bits (0x2000)\n" RESTORE_FAILED,
     REWARM_E_MISFIT, "CPU"},
    {"restore", "Error (criu/vdso.c:633): vdso: Unexpected rt vDSO area bounds\n" RESTORE_FAILED,
     REWARM_E_MISFIT, "vDSO"},
    {"restore",
     "Error (criu/cr-restore.c:1500): 4711 killed by signal 11: Segmentation "
     "fault\n" RESTORE_FAILED,
     REWARM_E_CRIU, "crashed"},
    {"restore",
     "criu: error while loading shared libraries: libnet.so.9: cannot open shared object file: No "
     "such file or directory\n",
     REWARM_E_CRIU, "bundle is damaged"},
    /* An early warning that appears on success as well is never the cause. */
    {"dump", RLIMIT "Error (criu/x.c:1): Something never seen before\n" DUMP_FAILED, REWARM_E_CRIU,
     "Something never seen before"},
    {"dump", RLIMIT "Warn  (criu/y.c:2): seccomp is odd\n" DUMP_FAILED, REWARM_E_CRIU, "FAILED"},
    {"dump", "", REWARM_E_CRIU, "without saying why"},
};

static void says_what_failed(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(samples) / sizeof(samples[0]); i++) {
        const struct sample *sample = &samples[i];
        struct rewarm_error err = REWARM_ERROR_INIT;
        int result = rewarm_criu_explain(sample->verb, sample->log, strlen(sample->log), &err);
        if (result != -(int)sample->code || strstr(err.message, sample->words) == NULL)
            fail_msg("sample %zu: %d, %s", i, result, err.message);
    }
}

static void stays_one_line(void **state)
{
    (void)state;
    char log[5000];
    memset(log, 'x', sizeof(log));
    memcpy(log, "Error (\001\033[31m", 12);
    struct rewarm_error err = REWARM_ERROR_INIT;
    assert_int_equal(rewarm_criu_explain("dump", log, sizeof(log), &err), -REWARM_E_CRIU);
    assert_null(strchr(err.message, '\033'));
    assert_true(strlen(err.message) < 600);
}

/* --- a stand-in
 * ----------------------------------------------------------------------------------- */

static const char script[] =
    "#!/bin/sh\n"
    "if [ \"$1\" = --version ]; then echo \"Version: ${FAKE_VERSION:-4.3}\"; exit 0; fi\n"
    "if [ \"$1\" = check ]; then echo one; echo two >&2; exit 3; fi\n"
    "if [ \"$1\" = hang ]; then exec sleep 1000; fi\n"
    "if [ \"$1\" = die ]; then kill -SEGV $$; fi\n"
    "echo \"args: $*\"\n"
    "env\n"
    "for fd in /proc/$$/fd/*; do echo \"fd ${fd##*/} $(readlink $fd)\"; done\n"
    "grep -E '^Sig(Blk|Ign)' /proc/self/status\n"
    "echo \"session $(cut -d' ' -f6 /proc/$$/stat) pid $$\"\n"
    "[ \"$1\" = fail ] && echo 'Error (a.c:1): cpu: bad'\n"
    "exit 0\n";

struct sandbox {
    char folder[64];
    int dirfd;
};

static int set_up(void **state)
{
    struct sandbox *sandbox = rewarm_mem_new(1, sizeof(*sandbox));
    strcpy(sandbox->folder, "/tmp/rewarm-criu-XXXXXX");
    if (mkdtemp(sandbox->folder) == NULL)
        return -1;
    sandbox->dirfd = open(sandbox->folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    rewarm_auto_free char *path = rewarm_str_format("%s/criu", sandbox->folder);
    rewarm_auto_fd int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0755);
    if (rewarm_fs_write_full(fd, script, strlen(script), path, NULL) != 0)
        return -1;
    setenv("REWARM_CRIU", path, 1);
    *state = sandbox;
    return 0;
}

static int tear_down(void **state)
{
    struct sandbox *sandbox = *state;
    close(sandbox->dirfd);
    rewarm_fs_remove_tree(AT_FDCWD, sandbox->folder, NULL);
    free(sandbox);
    unsetenv("REWARM_CRIU");
    return 0;
}

/* What is found is remembered for the process: each case asks in a child of its own. Returns its
 * code. */
static int find_in_child(const char *criu, const char *version)
{
    pid_t pid = fork();
    if (pid == 0) {
        setenv("REWARM_CRIU", criu, 1);
        setenv("FAKE_VERSION", version, 1);
        const struct rewarm_criu *found;
        struct rewarm_error err = REWARM_ERROR_INIT;
        _exit(-rewarm_criu_find(&found, &err));
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void finds_a_new_enough_one(void **state)
{
    struct sandbox *sandbox = *state;
    rewarm_auto_free char *path = rewarm_str_format("%s/criu", sandbox->folder);
    assert_int_equal(find_in_child(path, "4.3"), 0);
    assert_int_equal(find_in_child(path, "4.3.1"), 0);
    assert_int_equal(find_in_child(path, "5.0"), 0);
    assert_int_equal(find_in_child(path, "4.2"), REWARM_E_CRIU);
    assert_int_equal(find_in_child(path, "3.17.1"), REWARM_E_CRIU);
    assert_int_equal(find_in_child(path, "four"), REWARM_E_CRIU);
    assert_int_equal(find_in_child(sandbox->folder, "4.3"), REWARM_E_NOT_FOUND);
    assert_int_equal(find_in_child("/nowhere/criu", "4.3"), REWARM_E_NOT_FOUND);
}

static char *read_log(struct sandbox *sandbox, const struct rewarm_criu_child *child)
{
    char *text = NULL;
    assert_int_equal(
        rewarm_fs_read_file(sandbox->dirfd, child->log_name, 1 << 20, &text, NULL, NULL), 0);
    return text;
}

static void ignore(int number)
{
    (void)number;
}

static void starts_it_clean(void **state)
{
    struct sandbox *sandbox = *state;
    const struct rewarm_criu *criu;
    assert_int_equal(rewarm_criu_find(&criu, NULL), 0);
    assert_int_equal(criu->version, 40300);
    assert_string_equal(criu->version_text, "4.3");

    int kept = open("/dev/zero", O_RDONLY | O_CLOEXEC);
    int closed = open("/dev/full", O_RDONLY); /* not close-on-exec: must not get in all the same */
    assert_true(kept > 2 && closed > 2);
    setenv("LD_LIBRARY_PATH", "/nowhere", 1);
    setenv("CRIU_LIBS_DIR", "/nowhere", 1);
    setenv("KEPT_VARIABLE", "yes", 1);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGUSR1, ignore);
    sigset_t set, old;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigprocmask(SIG_BLOCK, &set, &old);
    const char *const args[] = {"-D", "/images", NULL};
    struct rewarm_criu_child child;
    assert_int_equal(rewarm_criu_start(criu, "dump", args, &kept, 1, sandbox->dirfd, &child, NULL),
                     0);
    sigprocmask(SIG_SETMASK, &old, NULL);
    signal(SIGPIPE, SIG_DFL);
    signal(SIGUSR1, SIG_DFL);
    unsetenv("LD_LIBRARY_PATH");
    unsetenv("CRIU_LIBS_DIR");
    assert_int_equal(rewarm_criu_wait(&child, REWARM_NEVER_NS, NULL), 0);

    rewarm_auto_free char *log = read_log(sandbox, &child);
    assert_non_null(strstr(log, "args: dump --no-default-config -v2 -o /proc/self/fd/"));
    assert_non_null(strstr(log, " --libdir "));
    assert_non_null(strstr(log, " -D /images\n"));
    assert_non_null(strstr(log, "KEPT_VARIABLE=yes\n"));
    if (geteuid() == 0)
        assert_null(strstr(log, "--unprivileged"));
    assert_null(strstr(log, "LD_LIBRARY_PATH"));
    assert_null(strstr(log, "CRIU_LIBS_DIR"));
    assert_non_null(strstr(log, "fd 0 /dev/null\n"));
    rewarm_auto_free char *line = rewarm_str_format("fd %d /dev/zero\n", kept);
    assert_non_null(strstr(log, line));
    assert_null(strstr(log, "/dev/full"));
    assert_non_null(strstr(log, "SigBlk:\t0000000000000000\n"));
    /* But for 32 and 33, which are libc's own and which GNU make leaves ignored. */
    assert_true(strstr(log, "SigIgn:\t0000000000000000\n") != NULL ||
                strstr(log, "SigIgn:\t0000000180000000\n") != NULL);
    rewarm_auto_free char *session = rewarm_str_format("session %d pid %d\n", child.pid, child.pid);
    assert_non_null(strstr(log, session));
    /* Ours are as they were. */
    assert_int_equal(fcntl(kept, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
    close(kept);
    close(closed);
}

static void names_logs_apart(void **state)
{
    struct sandbox *sandbox = *state;
    const struct rewarm_criu *criu;
    assert_int_equal(rewarm_criu_find(&criu, NULL), 0);
    const char *const args[] = {NULL};
    struct rewarm_criu_child first, second;
    assert_int_equal(rewarm_criu_start(criu, "dump", args, NULL, 0, sandbox->dirfd, &first, NULL),
                     0);
    assert_int_equal(rewarm_criu_start(criu, "dump", args, NULL, 0, sandbox->dirfd, &second, NULL),
                     0);
    assert_string_not_equal(first.log_name, second.log_name);
    assert_int_equal(rewarm_criu_wait(&first, REWARM_NEVER_NS, NULL), 0);
    assert_int_equal(rewarm_criu_wait(&second, REWARM_NEVER_NS, NULL), 0);
}

static int run(struct sandbox *sandbox, const char *verb, uint64_t patience_ns,
               struct rewarm_error *err)
{
    const struct rewarm_criu *criu;
    assert_int_equal(rewarm_criu_find(&criu, NULL), 0);
    const char *const args[] = {NULL};
    struct rewarm_criu_child child;
    assert_int_equal(rewarm_criu_start(criu, verb, args, NULL, 0, sandbox->dirfd, &child, err), 0);
    int result = rewarm_criu_wait(&child, rewarm_time_now_ns() + patience_ns, err);
    assert_int_equal(child.pidfd, -1);
    assert_int_equal(kill(child.pid, 0), -1); /* reaped */
    return result;
}

static void ends_it_at_the_deadline(void **state)
{
    struct rewarm_error err = REWARM_ERROR_INIT;
    assert_int_equal(run(*state, "hang", 50 * REWARM_NS_PER_MS, &err), -REWARM_E_TIMEOUT);
}

static void reports_a_crash(void **state)
{
    struct rewarm_error err = REWARM_ERROR_INIT;
    assert_int_equal(run(*state, "die", 10 * REWARM_NS_PER_S, &err), -REWARM_E_CRIU);
    assert_non_null(strstr(err.message, "signal 11"));
}

static void asks_questions(void **state)
{
    (void)state;
    const struct rewarm_criu *criu;
    assert_int_equal(rewarm_criu_find(&criu, NULL), 0);
    const char *const args[] = {"check", NULL};
    char output[64];
    int exit_code = 0;
    assert_int_equal(rewarm_criu_query(criu, args, output, sizeof(output), &exit_code, NULL), 0);
    assert_int_equal(exit_code, 3);
    assert_string_equal(output, "one\ntwo\n");
    assert_int_equal(rewarm_criu_query(criu, args, output, 5, &exit_code, NULL), 0);
    assert_string_equal(output, "one\n"); /* cut, not written beyond */
}

static void start_as_nobody(struct sandbox *sandbox)
{
    if (setresgid(65534, 65534, 65534) != 0 || setresuid(65534, 65534, 65534) != 0)
        _exit(90);
    const struct rewarm_criu *criu;
    struct rewarm_criu_child child;
    const char *const args[] = {NULL};
    if (rewarm_criu_find(&criu, NULL) != 0 ||
        rewarm_criu_start(criu, "dump", args, NULL, 0, sandbox->dirfd, &child, NULL) != 0 ||
        rewarm_criu_wait(&child, REWARM_NEVER_NS, NULL) != 0)
        _exit(91);
    char *log = NULL;
    if (rewarm_fs_read_file(sandbox->dirfd, child.log_name, 1 << 20, &log, NULL, NULL) != 0)
        _exit(92);
    _exit(strstr(log, " --unprivileged") != NULL ? 0 : 1);
}

static void says_that_it_is_not_root(void **state)
{
    if (geteuid() != 0)
        skip();
    struct sandbox *sandbox = *state;
    chmod(sandbox->folder, 0777);
    pid_t pid = fork();
    if (pid == 0)
        start_as_nobody(sandbox);
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

#if defined(__SANITIZE_THREAD__)
#define VFORK_IS_FORK 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define VFORK_IS_FORK 1
#endif
#endif

static void refuses_a_bad_descriptor(void **state)
{
#ifdef VFORK_IS_FORK
    skip(); /* ThreadSanitizer makes vfork() a fork(): the child can't tell why it failed */
#endif
    struct sandbox *sandbox = *state;
    const struct rewarm_criu *criu;
    assert_int_equal(rewarm_criu_find(&criu, NULL), 0);
    const char *const args[] = {NULL};
    const int bad = 1000;
    struct rewarm_criu_child child;
    struct rewarm_error err = REWARM_ERROR_INIT;
    assert_int_equal(rewarm_criu_start(criu, "dump", args, &bad, 1, sandbox->dirfd, &child, &err),
                     -REWARM_E_SYSTEM);
    assert_int_equal(err.native, EBADF);
}

/* --- the real one
 * --------------------------------------------------------------------------------- */

static void real_one_in_child(struct sandbox *sandbox)
{
    unsetenv("REWARM_CRIU");
    const struct rewarm_criu *criu;
    struct rewarm_error err = REWARM_ERROR_INIT;
    int result = rewarm_criu_find(&criu, &err);
    if (result != 0)
        _exit(result == -REWARM_E_NOT_FOUND ? 77 : 1);
    if (criu->version < 40300 || strchr(criu->version_text, '.') == NULL)
        _exit(2);
    const char *const args[] = {"-t", "999999999", "-D", sandbox->folder, NULL};
    struct rewarm_criu_child child;
    if (rewarm_criu_start(criu, "dump", args, NULL, 0, sandbox->dirfd, &child, &err) != 0)
        _exit(3);
    result = rewarm_criu_wait(&child, rewarm_time_now_ns() + 10 * REWARM_NS_PER_S, &err);
    /* Whatever this user may do, its last word is in the message. */
    _exit((result == -REWARM_E_NOT_FOUND || result == -REWARM_E_PERMISSION) &&
                  strchr(err.message, '[') != NULL
              ? 0
              : 4);
}

static void runs_the_real_one(void **state)
{
    pid_t pid = fork();
    if (pid == 0)
        real_one_in_child(*state);
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77) {
        print_message("no CRIU here: make the bundle first\n");
        skip();
    }
    assert_int_equal(WEXITSTATUS(status), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(says_what_failed),         cmocka_unit_test(stays_one_line),
        cmocka_unit_test(runs_the_real_one), /* before anything is remembered */
        cmocka_unit_test(finds_a_new_enough_one),   cmocka_unit_test(starts_it_clean),
        cmocka_unit_test(names_logs_apart),         cmocka_unit_test(ends_it_at_the_deadline),
        cmocka_unit_test(reports_a_crash),          cmocka_unit_test(asks_questions),
        cmocka_unit_test(says_that_it_is_not_root), cmocka_unit_test(refuses_a_bad_descriptor),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}

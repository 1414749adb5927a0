#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clean.h"
#include "base/str.h"
#include "run_folder.h"
#include "snapshot/limits.h"
#include "snapshot/session.h"
#include "snapshot/snapshot.h"

static void test_journal_round_trip(void **state)
{
    (void)state;
    struct rewarm_session session;
    struct rewarm_error err = REWARM_ERROR_INIT;
    assert_int_equal(rewarm_session_open("freeze", "llm", &session, &err), 0);
    assert_int_equal(rewarm_session_note_path(&session, "staging", "/store/staging/x", &err), 0);
    assert_int_equal(rewarm_session_note_path(&session, "link", "/dev/shm/link_remap.7.x", &err),
                     0);
    assert_int_equal(rewarm_session_note_process(&session, "target", 1234, 99, &err), 0);
    assert_int_equal(rewarm_session_note_stage(&session, "dump", &err), 0);
    assert_int_equal(rewarm_session_note_stage(&session, "read", &err), 0);

    rewarm_auto_free char *path = rewarm_str_dup(session.path);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);

    rewarm_auto_free char *text = NULL;
    size_t bytes = 0;
    assert_int_equal(rewarm_fs_read_file(session.dirfd, "journal", 65536, &text, &bytes, &err), 0);
    struct rewarm_journal journal;
    assert_int_equal(rewarm_journal_parse(text, bytes, &journal, &err), 0);
    assert_string_equal(journal.verb, "freeze");
    assert_string_equal(journal.name, "llm");
    assert_string_equal(journal.stage, "read");
    assert_string_equal(journal.staging, "/store/staging/x");
    assert_int_equal(journal.link_count, 1);
    assert_string_equal(journal.links[0], "/dev/shm/link_remap.7.x");
    assert_int_equal(journal.process_count, 1);
    assert_string_equal(journal.processes[0].role, "target");
    assert_int_equal(journal.processes[0].pid, 1234);
    assert_int_equal(journal.processes[0].starttime, 99);
    rewarm_journal_fini(&journal);

    /* Every cut of it is read as far as whole lines go. */
    for (size_t cut = 0; cut <= bytes; cut++) {
        int result = rewarm_journal_parse(text, cut, &journal, NULL);
        const char *first_line = memchr(text, '\n', cut);
        assert_int_equal(result, first_line != NULL ? 0 : -REWARM_E_CORRUPT);
        if (result == 0)
            rewarm_journal_fini(&journal);
    }
    rewarm_session_close(&session);
    assert_int_not_equal(stat(path, &st), 0);
    rewarm_session_close(&session); /* idempotent */
}

static void test_journal_nonsense(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "",
        "\n",
        "[]\n",
        "{\"stage\":\"dump\"}\n",
        "{\"verb\":1,\"name\":\"x\"}\n",
        "{\"verb\":\"freeze-and-much-too-long-for-this\",\"name\":\"x\"}\n"};
    struct rewarm_journal journal;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_int_equal(rewarm_journal_parse(bad[i], strlen(bad[i]), &journal, NULL),
                         -REWARM_E_CORRUPT);
    /* PID 1 is nobody's to kill, whatever a journal says. */
    const char text[] = "{\"verb\":\"restore\",\"name\":\"x\"}\n"
                        "{\"process\":\"member\",\"pid\":1,\"starttime\":0}\n";
    assert_int_equal(rewarm_journal_parse(text, sizeof(text) - 1, &journal, NULL), 0);
    assert_int_equal(journal.process_count, 0);
    rewarm_journal_fini(&journal);
}

/* A session whose owner was killed is undone by the next command; one whose owner lives is not
 * touched. */
static void test_repair(void **state)
{
    (void)state;
    struct rewarm_session own;
    assert_int_equal(rewarm_session_open("freeze", "mine", &own, NULL), 0);
    pid_t pid = fork();
    if (pid == 0) {
        struct rewarm_session session;
        if (rewarm_session_open("restore", "dead", &session, NULL) != 0)
            _exit(1);
        raise(SIGKILL);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(rewarm_repair(NULL, NULL), 1);
    assert_int_equal(rewarm_repair(NULL, NULL), 0);
    struct stat st;
    assert_int_equal(stat(own.path, &st), 0);
    rewarm_session_close(&own);
}

/* Killed between making the folder and its journal: nobody's, unless it is just being made. */
static void test_repair_before_the_journal(void **state)
{
    (void)state;
    pid_t dead = fork();
    if (dead == 0)
        _exit(0);
    waitpid(dead, NULL, 0);
    int sessions = -1;
    assert_int_equal(rewarm_run_dir("sessions", &sessions, NULL), 0);
    rewarm_auto_free char *gone = rewarm_str_format("restore-%d-aa", (int)dead);
    rewarm_auto_free char *made = rewarm_str_format("restore-%d-bb", (int)getpid());
    assert_int_equal(mkdirat(sessions, gone, 0700), 0);
    assert_int_equal(mkdirat(sessions, made, 0700), 0);
    assert_int_equal(rewarm_repair(NULL, NULL), 1);
    assert_int_not_equal(faccessat(sessions, gone, F_OK, 0), 0);
    assert_int_equal(faccessat(sessions, made, F_OK, 0), 0);
    assert_int_equal(unlinkat(sessions, made, AT_REMOVEDIR), 0);
    close(sessions);
}

/* A half-restored member is killed by repair, but never a process that is older than the journal.
 */
static void test_repair_kills_members_only(void **state)
{
    (void)state;
    pid_t older = fork();
    if (older == 0) {
        pause();
        _exit(0);
    }
    usleep(50000); /* start times are counted in ticks of 10 ms */
    int pipe_fds[2];
    assert_int_equal(pipe(pipe_fds), 0);
    pid_t owner = fork();
    if (owner == 0) {
        struct rewarm_session session;
        pid_t member = 0;
        if (rewarm_session_open("restore", "half", &session, NULL) != 0)
            _exit(1);
        usleep(50000);
        member = fork();
        if (member == 0) {
            close(pipe_fds[1]);
            pause();
            _exit(0);
        }
        rewarm_session_note_process(&session, "member", member, 0, NULL);
        rewarm_session_note_process(&session, "member", older, 0, NULL);
        if (write(pipe_fds[1], &member, sizeof(member)) != sizeof(member))
            _exit(1);
        /* The child holds no copy of the lock for long: like a real member, it is another program.
         */
        kill(member, SIGSTOP);
        raise(SIGKILL);
    }
    pid_t member = 0;
    assert_int_equal(read(pipe_fds[0], &member, sizeof(member)), sizeof(member));
    assert_int_equal(waitpid(owner, NULL, 0), owner);
    /* The forked member inherited the journal's descriptor, and with it the lock: the session has
     * an owner. */
    assert_int_equal(rewarm_repair(NULL, NULL), 0);
    assert_int_equal(kill(member, SIGKILL), 0);
    while (rewarm_repair(NULL, NULL) == 0)
        usleep(1000);
    assert_int_equal(kill(older, 0), 0);
    kill(older, SIGKILL);
    waitpid(older, NULL, 0);
    close(pipe_fds[0]);
    close(pipe_fds[1]);
}

static unsigned long pipe_max_size(void)
{
    rewarm_auto_free char *text = NULL;
    assert_int_equal(
        rewarm_fs_read_file(AT_FDCWD, "/proc/sys/fs/pipe-max-size", 64, &text, NULL, NULL), 0);
    return strtoul(text, NULL, 10);
}

/* Raised while anybody needs it, put back by the last, and by repair when the last was killed. */
static void test_limits(void **state)
{
    (void)state;
    if (geteuid() != 0)
        skip(); /* only root writes /proc/sys */
    unsigned long before = pipe_max_size();
    if (before >= 32u << 20)
        skip(); /* high already, or a freeze is under way elsewhere on this machine */
    struct rewarm_limits a = REWARM_LIMITS_INIT;
    struct rewarm_limits b = REWARM_LIMITS_INIT;
    assert_int_equal(rewarm_limits_raise(&a, NULL), 0);
    assert_int_equal(rewarm_limits_raise(&b, NULL), 0);
    if (a.lock_fd < 0)
        skip(); /* CAP_SYS_RESOURCE: nothing has to be raised */
    assert_true(pipe_max_size() >= 32u << 20);
    rewarm_limits_restore(&a);
    assert_true(pipe_max_size() >= 32u << 20);
    rewarm_limits_restore(&b);
    assert_int_equal(pipe_max_size(), before);

    pid_t pid = fork();
    if (pid == 0) {
        struct rewarm_limits limits = REWARM_LIMITS_INIT;
        rewarm_limits_raise(&limits, NULL);
        raise(SIGKILL);
    }
    waitpid(pid, NULL, 0);
    assert_true(pipe_max_size() >= 32u << 20);
    assert_int_equal(rewarm_repair(NULL, NULL), 1);
    assert_int_equal(pipe_max_size(), before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_journal_round_trip),
        cmocka_unit_test(test_journal_nonsense),
        cmocka_unit_test(test_repair),
        cmocka_unit_test(test_repair_before_the_journal),
        cmocka_unit_test(test_repair_kills_members_only),
        cmocka_unit_test(test_limits),
    };
    return cmocka_run_group_tests_name("session", tests, run_folder_set_up, run_folder_tear_down);
}

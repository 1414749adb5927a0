/* The filter that turns io_uring off. The program runs itself again with "probe" to see what is
 * left of io_uring after exec. */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "proc/launch.h"

enum { DENIED = 40, ALLOWED = 41, BROKEN = 42 };

static int probe(void)
{
    char params[120] = {0};
    long setup = syscall(SYS_io_uring_setup, 4, params);
    bool denied = setup < 0 && errno == ENOSYS;
    if (setup >= 0)
        close((int)setup);
    /* With a bad descriptor: EBADF where the call exists. */
    denied = denied && syscall(SYS_io_uring_enter, -1, 0, 0, 0, NULL, 0) < 0 && errno == ENOSYS;
    denied = denied && syscall(SYS_io_uring_register, -1, 0, NULL, 0) < 0 && errno == ENOSYS;
    /* The neighbours must work: pidfd_send_signal is 424, open_tree 428. */
    if (syscall(SYS_pidfd_send_signal, -1, 0, NULL, 0) >= 0 || errno != EBADF)
        return BROKEN;
    if (syscall(SYS_open_tree, -1, "x", 0xffffffffu) >= 0 || errno == ENOSYS)
        return BROKEN;
    return denied ? DENIED : ALLOWED;
}

static int run(void (*child)(void))
{
    pid_t pid = fork();
    if (pid == 0) {
        child();
        _exit(99);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static void exec_probe(void)
{
    execl("/proc/self/exe", "test_launch", "probe", NULL);
}

static void deny_then_fork_and_exec(void)
{
    if (rewarm_launch_deny_io_uring(NULL) != 0)
        _exit(98);
    if (prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 0)
        _exit(97); /* not needed by root, and it would break setuid programs */
    _exit(run(exec_probe));
}

static void deny_unprivileged(void)
{
    if (setresgid(65534, 65534, 65534) != 0 || setresuid(65534, 65534, 65534) != 0)
        _exit(96);
    if (rewarm_launch_deny_io_uring(NULL) != 0)
        _exit(98);
    if (prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1)
        _exit(97);
    _exit(probe());
}

#ifdef __x86_64__
static void call_as_i386(void)
{
    if (rewarm_launch_deny_io_uring(NULL) != 0)
        _exit(98);
    int result;
    __asm__ volatile("int $0x80"
                     : "=a"(result)
                     : "a"(SYS_io_uring_setup), "b"(4), "c"(0)
                     : "memory", "r8", "r9", "r10", "r11");
    _exit(result == -ENOSYS ? DENIED : ALLOWED);
}
#endif

static void holds_over_fork_and_exec(void **state)
{
    (void)state;
    if (geteuid() != 0)
        skip();
    assert_int_equal(run(deny_then_fork_and_exec), DENIED);
}

static void works_for_anybody(void **state)
{
    (void)state;
    if (geteuid() != 0)
        skip();
    assert_int_equal(run(deny_unprivileged), DENIED);
}

static void holds_for_32_bit_calls(void **state)
{
    (void)state;
#ifdef __x86_64__
    int result = run(call_as_i386);
    if (result == -SIGSEGV)
        skip(); /* a kernel without 32-bit system calls */
    assert_int_equal(result, DENIED);
#else
    skip();
#endif
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "probe") == 0)
        return probe();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(holds_over_fork_and_exec),
        cmocka_unit_test(works_for_anybody),
        cmocka_unit_test(holds_for_32_bit_calls),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

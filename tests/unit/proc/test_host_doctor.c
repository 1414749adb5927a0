/* The doctor's report and the privileges check, in processes with fewer privileges. */
#include <fcntl.h>
#include <linux/capability.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "base/clean.h"
#include "base/fs.h"
#include "base/str.h"
#include "proc/host.h"

static int set_up(void **state)
{
    char *folder = rewarm_str_dup("/tmp/rewarm-doctor-XXXXXX");
    if (mkdtemp(folder) == NULL)
        return -1;
    *state = folder;
    return 0;
}

static int tear_down(void **state)
{
    rewarm_fs_remove_tree(AT_FDCWD, *state, NULL);
    free(*state);
    return 0;
}

/* The state of one line of the report on `store_path`. */
static enum rewarm_doctor_state ask(const char *store_path, const char *check, char *ret_detail,
                                    size_t size)
{
    struct rewarm_doctor_line *lines = NULL;
    size_t count = 0;
    assert_int_equal(rewarm_host_doctor(store_path, &lines, &count, NULL), 0);
    enum rewarm_doctor_state result = REWARM_DOCTOR_BAD;
    bool found = false;
    for (size_t i = 0; i < count; i++) {
        assert_non_null(lines[i].check);
        assert_true(lines[i].detail[0] != '\0');
        /* Whatever is not well has an advice, and nothing else has. */
        assert_int_equal(lines[i].advice[0] != '\0', lines[i].state != REWARM_DOCTOR_OK);
        if (strcmp(lines[i].check, check) == 0) {
            found = true;
            result = lines[i].state;
            snprintf(ret_detail, size, "%s", lines[i].detail);
        }
    }
    assert_true(found);
    free(lines);
    return result;
}

static void judges_the_store(void **state)
{
    char detail[256];
    const char *folder = *state;
    assert_int_equal(ask(folder, "store", detail, sizeof(detail)), REWARM_DOCTOR_OK);
    assert_non_null(strstr(detail, folder));
    rewarm_auto_free char *missing = rewarm_str_format("%s/a/b", folder);
    assert_int_equal(ask(missing, "store", detail, sizeof(detail)), REWARM_DOCTOR_OK);
    assert_non_null(strstr(detail, "will be made"));
    assert_int_equal(access(missing, F_OK), -1); /* it only looks */
    chmod(folder, 0755);
    assert_int_equal(ask(folder, "store", detail, sizeof(detail)), REWARM_DOCTOR_WARN);
    assert_non_null(strstr(detail, "0755"));
    chmod(folder, 0700);
    rewarm_auto_free char *file = rewarm_str_format("%s/file", folder);
    close(open(file, O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    assert_int_equal(ask(file, "store", detail, sizeof(detail)), REWARM_DOCTOR_BAD);
    assert_int_equal(ask("/dev/shm", "store space", detail, sizeof(detail)), REWARM_DOCTOR_WARN);
    assert_non_null(strstr(detail, "tmpfs"));
    assert_int_equal(ask("/proc", "store direct", detail, sizeof(detail)), REWARM_DOCTOR_WARN);
    struct rewarm_doctor_line *lines;
    size_t count;
    assert_int_equal(rewarm_host_doctor("", &lines, &count, NULL), -REWARM_E_USAGE);
}

static void finds_pasta_in_path(void **state)
{
    char detail[256];
    rewarm_auto_free char *program = rewarm_str_format("%s/pasta", (char *)*state);
    rewarm_auto_free char *old = rewarm_str_dup(getenv("PATH"));
    setenv("PATH", *state, 1);
    assert_int_equal(ask("/tmp", "pasta", detail, sizeof(detail)), REWARM_DOCTOR_WARN);
    close(open(program, O_WRONLY | O_CREAT | O_CLOEXEC, 0755));
    assert_int_equal(ask("/tmp", "pasta", detail, sizeof(detail)), REWARM_DOCTOR_OK);
    assert_string_equal(detail, program);
    setenv("PATH", old, 1);
}

/* --- privileges
 * ----------------------------------------------------------------------------------- */

static void drop(int capability)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2];
    if (syscall(SYS_capget, &header, data) != 0)
        _exit(90);
    data[capability / 32].effective &= ~(1u << (capability % 32));
    if (syscall(SYS_capset, &header, data) != 0)
        _exit(91);
}

/* Runs in a child: 0 when the check says what it should. */
static int run(int (*child)(void))
{
    pid_t pid = fork();
    if (pid == 0)
        _exit(child());
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static int as_nobody(void)
{
    if (setresgid(65534, 65534, 65534) != 0 || setresuid(65534, 65534, 65534) != 0)
        return 92;
    struct rewarm_error err = REWARM_ERROR_INIT;
    if (rewarm_host_check_privileges(&err) != -REWARM_E_PERMISSION)
        return 1;
    return strstr(err.message, "user 65534 lacks CAP_CHECKPOINT_RESTORE, CAP_SYS_PTRACE,") != NULL
               ? 0
               : 2;
}

static int as_lesser_root(void)
{
    drop(CAP_NET_ADMIN);
    drop(CAP_SYS_PTRACE);
    struct rewarm_error err = REWARM_ERROR_INIT;
    if (rewarm_host_check_privileges(&err) != -REWARM_E_PERMISSION)
        return 1;
    return strstr(err.message, "root lacks CAP_SYS_PTRACE, CAP_NET_ADMIN here") != NULL ? 0 : 2;
}

static int as_root_without_chown(void)
{
    drop(CAP_CHOWN);
    return rewarm_host_check_privileges(NULL) == 0 ? 0 : 1; /* only some workers need it */
}

static void names_what_is_missing(void **state)
{
    (void)state;
    if (geteuid() != 0 || rewarm_host_check_privileges(NULL) != 0)
        skip(); /* it takes privileges to take them away */
    assert_int_equal(run(as_nobody), 0);
    assert_int_equal(run(as_lesser_root), 0);
    assert_int_equal(run(as_root_without_chown), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(judges_the_store),
        cmocka_unit_test(finds_pasta_in_path),
        cmocka_unit_test(names_what_is_missing),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}

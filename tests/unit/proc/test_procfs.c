/* /proc: parsers on text, readers on real processes, and the end of a whole tree. */
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "base/clean.h"
#include "base/time.h"
#include "proc/procfs.h"

static uint64_t soon(void)
{
    return rewarm_time_now_ns() + 10 * REWARM_NS_PER_S;
}

/* A byte to the test from a process under test. */
static void tell(int fd, const char *byte)
{
    if (write(fd, byte, 1) != 1)
        _exit(70);
}

static void parses_stat(void **state)
{
    (void)state;
    static const char text[] = "42 (a) b (c)) S 1 40 39 34816 -1 4194304 9 0 0 0 5 6 0 0 20 0 3 0 "
                               "777 1024 5 18446744073709551615\n";
    struct rewarm_proc_stat stat;
    assert_int_equal(rewarm_proc_parse_stat(text, strlen(text), &stat, NULL), 0);
    assert_int_equal(stat.pid, 42);
    assert_string_equal(stat.comm, "a) b (c)");
    assert_int_equal(stat.state, 'S');
    assert_int_equal(stat.ppid, 1);
    assert_int_equal(stat.pgrp, 40);
    assert_int_equal(stat.session, 39);
    assert_int_equal(stat.tty, 34816);
    assert_int_equal(stat.flags, 4194304);
    assert_int_equal(stat.threads, 3);
    assert_int_equal(stat.starttime, 777);
}

static void refuses_bad_stat(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "",
        "x",
        "12 (x",
        "12 (x) S",
        "12 (x) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18", /* one field short */
        "12 (x) S 1 99999999999 12 0 -1 4194304 0 0 0 0 0 0 0 0 20 0 1 0 777",
        "99999999999999999999 (x) S 1 1 12 0 -1 4194304 0 0 0 0 0 0 0 0 20 0 1 0 777",
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct rewarm_error err = REWARM_ERROR_INIT;
        struct rewarm_proc_stat stat;
        assert_int_equal(rewarm_proc_parse_stat(bad[i], strlen(bad[i]), &stat, &err),
                         -REWARM_E_CORRUPT);
        assert_int_equal(err.code, REWARM_E_CORRUPT);
    }
}

static void parses_maps(void **state)
{
    (void)state;
    static const char text[] =
        "55d0-55d1 r-xp 00001000 fe:01 1234      /bin/with space\\012and newline\n"
        "Rss:                 4 kB\n"
        "VmFlags: rd ex mr\n"
        "7f00-7f10 rw-p 00000000 00:00 0 \n"
        "ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n";
    struct rewarm_proc_vma *vmas;
    size_t count;
    assert_int_equal(rewarm_proc_parse_maps(text, strlen(text), &vmas, &count, NULL), 0);
    assert_int_equal(count, 3);
    assert_int_equal(vmas[0].start, 0x55d0);
    assert_int_equal(vmas[0].end, 0x55d1);
    assert_int_equal(vmas[0].offset_bytes, 0x1000);
    assert_string_equal(vmas[0].perms, "r-xp");
    assert_int_equal(vmas[0].dev_major, 0xfe);
    assert_int_equal(vmas[0].dev_minor, 1);
    assert_int_equal(vmas[0].inode, 1234);
    assert_string_equal(vmas[0].path, "/bin/with space\nand newline");
    assert_string_equal(vmas[1].path, "");
    assert_int_equal(vmas[2].start, 0xffffffffff600000);
    rewarm_proc_vmas_free(vmas, count);
}

static void refuses_bad_maps(void **state)
{
    (void)state;
    static const char *const bad[] = {"nonsense", "55d1-55d0 r-xp 0 0:0 0\n", "55d0-55d1 r-",
                                      "55d0-55d1 r?xp 0 0:0 0", "55d0-55d1 r-xp 0 00 0"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct rewarm_proc_vma *vmas;
        size_t count;
        assert_int_equal(rewarm_proc_parse_maps(bad[i], strlen(bad[i]), &vmas, &count, NULL),
                         -REWARM_E_CORRUPT);
    }
}

static void reads_itself(void **state)
{
    (void)state;
    struct rewarm_proc_stat stat;
    assert_int_equal(rewarm_proc_stat(getpid(), &stat, NULL), 0);
    assert_int_equal(stat.pid, getpid());
    assert_int_equal(stat.ppid, getppid());
    assert_int_equal(stat.session, getsid(0));
    assert_true(rewarm_proc_alive(getpid(), stat.starttime));
    assert_false(rewarm_proc_alive(getpid(), stat.starttime + 1));

    size_t bytes = 32 << 20;
    char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(memory, MAP_FAILED);
    uint64_t before, after;
    assert_int_equal(rewarm_proc_rss_anon(getpid(), &before, NULL), 0);
    memset(memory, 1, bytes);
    assert_int_equal(rewarm_proc_rss_anon(getpid(), &after, NULL), 0);
    assert_true(after >= before + bytes - (1 << 20));

    struct rewarm_proc_vma *vmas;
    size_t count;
    bool found = false;
    assert_int_equal(rewarm_proc_maps(getpid(), &vmas, &count, NULL), 0);
    for (size_t i = 0; i < count; i++)
        found = found || (vmas[i].start <= (uintptr_t)memory && (uintptr_t)memory < vmas[i].end);
    assert_true(found);
    rewarm_proc_vmas_free(vmas, count);
    munmap(memory, bytes);

    char **vector;
    assert_int_equal(rewarm_proc_vector(getpid(), "cmdline", &vector, NULL), 0);
    assert_string_equal(vector[0], program_invocation_name);
    assert_null(vector[1]);
    rewarm_proc_vector_free(vector);
}

static void lists_descriptors(void **state)
{
    (void)state;
    char path[] = "/tmp/rewarm-procfs-XXXXXX";
    int file = mkstemp(path);
    assert_true(file >= 0);
    assert_int_equal(write(file, "abcdef", 6), 6);
    assert_int_equal(lseek(file, 4, SEEK_SET), 4);
    assert_int_equal(fcntl(file, F_SETFL, O_APPEND), 0);
    int null_fd = open("/dev/null", O_WRONLY);
    int pair[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);

    struct rewarm_proc_fd *fds;
    size_t count;
    unsigned seen = 0;
    assert_int_equal(rewarm_proc_fds(getpid(), &fds, &count, NULL), 0);
    for (size_t i = 0; i < count; i++) {
        assert_true(i == 0 || fds[i - 1].fd < fds[i].fd);
        if (fds[i].fd == file) {
            seen |= 1;
            assert_string_equal(fds[i].target, path);
            assert_int_equal(fds[i].size_bytes, 6);
            assert_int_equal(fds[i].pos, 4);
            assert_int_equal(fds[i].flags & O_APPEND, O_APPEND);
            assert_true(S_ISREG(fds[i].mode));
        } else if (fds[i].fd == null_fd) {
            seen |= 2;
            assert_int_equal(fds[i].rdev_major, 1);
            assert_int_equal(fds[i].rdev_minor, 3);
            assert_int_equal(fds[i].flags & O_ACCMODE, O_WRONLY);
        } else if (fds[i].fd == pair[0]) {
            seen |= 4;
            char expected[64];
            snprintf(expected, sizeof(expected), "socket:[%llu]", (unsigned long long)fds[i].inode);
            assert_string_equal(fds[i].target, expected);
        }
    }
    assert_int_equal(seen, 7);
    rewarm_proc_fds_free(fds, count);
    close(file);
    close(null_fd);
    close(pair[0]);
    close(pair[1]);
    unlink(path);
}

static void misses_the_dead(void **state)
{
    (void)state;
    pid_t pid = fork();
    if (pid == 0)
        _exit(0);
    siginfo_t info;
    assert_int_equal(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT), 0);
    struct rewarm_proc_stat stat;
    assert_int_equal(rewarm_proc_stat(pid, &stat, NULL), 0);
    assert_int_equal(stat.state, 'Z');
    assert_false(rewarm_proc_alive(pid, stat.starttime));
    uint64_t bytes = 1;
    assert_int_equal(rewarm_proc_rss_anon(pid, &bytes, NULL), 0);
    assert_int_equal(bytes, 0);
    char **vector;
    assert_int_equal(rewarm_proc_vector(pid, "cmdline", &vector, NULL), 0);
    assert_null(vector[0]);
    rewarm_proc_vector_free(vector);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    struct rewarm_error err = REWARM_ERROR_INIT;
    assert_int_equal(rewarm_proc_stat(pid, &stat, &err), -REWARM_E_NOT_FOUND);
    struct rewarm_proc_fd *fds;
    size_t count;
    assert_int_equal(rewarm_proc_fds(pid, &fds, &count, NULL), -REWARM_E_NOT_FOUND);
}

/* A tree: the root forks one child from its main thread and one from another thread, one of them
 * forks a grandchild in a session of its own; one zombie. */
static void *fork_in_thread(void *context)
{
    int writer = *(int *)context;
    if (fork() == 0) {
        if (fork() == 0) {
            setsid();
            tell(writer, "g");
            for (;;)
                pause();
        }
        tell(writer, "c");
        for (;;)
            pause();
    }
    tell(writer, "t");
    for (;;)
        pause();
    return NULL;
}

static pid_t start_tree(int reader, int writer)
{
    pid_t root = fork();
    if (root != 0) {
        char bytes[5];
        for (size_t got = 0; got < sizeof(bytes);) {
            ssize_t n = read(reader, bytes + got, sizeof(bytes) - got);
            assert_true(n > 0);
            got += (size_t)n;
        }
        return root;
    }
    pthread_t thread;
    pthread_create(&thread, NULL, fork_in_thread, &writer);
    if (fork() == 0) {
        tell(writer, "m");
        for (;;)
            pause();
    }
    pid_t zombie = fork();
    if (zombie == 0)
        _exit(0);
    siginfo_t info;
    waitid(P_PID, (id_t)zombie, &info, WEXITED | WNOWAIT);
    tell(writer, "z");
    for (;;)
        pause();
}

static void walks_and_ends_a_tree(void **state)
{
    (void)state;
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    pid_t root = start_tree(ends[0], ends[1]);

    struct rewarm_proc_stat *stats;
    size_t count, zombies = 0;
    assert_int_equal(rewarm_proc_tree(root, &stats, &count, NULL), 0);
    assert_int_equal(count, 5); /* root, m, c, g, and the zombie */
    assert_int_equal(stats[0].pid, root);
    assert_true(stats[0].threads >= 2); /* a sanitizer may have one of its own */
    for (size_t i = 1; i < count; i++) {
        bool parent_is_earlier = false;
        for (size_t j = 0; j < i; j++)
            parent_is_earlier = parent_is_earlier || stats[j].pid == stats[i].ppid;
        assert_true(parent_is_earlier);
        zombies += stats[i].state == 'Z';
    }
    assert_int_equal(zombies, 1);

    /* Another start time is another process: nothing happens. */
    assert_int_equal(rewarm_proc_kill_tree(root, stats[0].starttime + 1, soon(), NULL), 0);
    assert_true(rewarm_proc_alive(root, stats[0].starttime));
    assert_int_equal(rewarm_proc_kill_tree(root, stats[0].starttime, soon(), NULL), 0);
    for (size_t i = 0; i < count; i++)
        assert_false(rewarm_proc_alive(stats[i].pid, stats[i].starttime));
    free(stats);
    while (waitpid(-1, NULL, 0) > 0)
        ;
    close(ends[0]);
    close(ends[1]);
}

/* Forks without end; at most two of its children live at a time. */
static void __attribute__((noreturn)) fork_for_ever(int writer)
{
    tell(writer, "x");
    for (pid_t last = 0;;) {
        pid_t child = fork();
        if (child == 0)
            for (;;)
                pause();
        if (last != 0) {
            kill(last, SIGKILL);
            waitpid(last, NULL, 0);
        }
        last = child;
    }
}

static void ends_a_forking_tree(void **state)
{
    (void)state;
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    for (int round = 0; round < 30; round++) {
        int ends[2];
        assert_int_equal(pipe(ends), 0);
        pid_t root = fork();
        if (root == 0)
            fork_for_ever(ends[1]);
        char byte;
        assert_int_equal(read(ends[0], &byte, 1), 1);
        struct rewarm_proc_stat stat;
        assert_int_equal(rewarm_proc_stat(root, &stat, NULL), 0);
        assert_int_equal(rewarm_proc_kill_tree(root, stat.starttime, soon(), NULL), 0);
        /* What the tree left is ours now (subreaper): nothing of it may live. */
        int living = 0;
        for (;;) {
            siginfo_t info = {0};
            if (waitid(P_ALL, 0, &info, WEXITED | WNOHANG) != 0)
                break;
            if (info.si_pid == 0) { /* one that lives: end it, so that the test ends */
                struct rewarm_proc_stat *stats;
                size_t count;
                assert_int_equal(rewarm_proc_tree(getpid(), &stats, &count, NULL), 0);
                for (size_t i = 1; i < count; i++)
                    kill(stats[i].pid, SIGKILL);
                free(stats);
                living++;
            }
        }
        assert_int_equal(errno, ECHILD);
        assert_int_equal(living, 0);
        close(ends[0]);
        close(ends[1]);
    }
}

static void never_ends_itself(void **state)
{
    (void)state;
    struct rewarm_proc_stat stat;
    assert_int_equal(rewarm_proc_stat(getpid(), &stat, NULL), 0);
    assert_int_equal(rewarm_proc_kill_tree(getpid(), stat.starttime, soon(), NULL),
                     -REWARM_E_USAGE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parses_stat),         cmocka_unit_test(refuses_bad_stat),
        cmocka_unit_test(parses_maps),         cmocka_unit_test(refuses_bad_maps),
        cmocka_unit_test(reads_itself),        cmocka_unit_test(lists_descriptors),
        cmocka_unit_test(misses_the_dead),     cmocka_unit_test(walks_and_ends_a_tree),
        cmocka_unit_test(ends_a_forking_tree), cmocka_unit_test(never_ends_itself),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

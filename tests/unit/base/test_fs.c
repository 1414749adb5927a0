/* Files: each test works in a folder of its own below $TMPDIR, which the teardown removes. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clean.h"
#include "base/fs.h"
#include "base/str.h"

struct folder {
    char *path;
    int fd;
};

static int make_folder(void **state)
{
    struct folder *folder = rewarm_mem_new(1, sizeof(*folder));
    const char *base = getenv("TMPDIR");
    folder->path = rewarm_str_format("%s/rewarm-test-fs-XXXXXX", base != NULL ? base : "/tmp");
    if (mkdtemp(folder->path) == NULL)
        return -1;
    folder->fd = open(folder->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    *state = folder;
    return folder->fd < 0 ? -1 : 0;
}

static int drop_folder(void **state)
{
    struct folder *folder = *state;
    close(folder->fd);
    int result = rewarm_fs_remove_tree(AT_FDCWD, folder->path, NULL);
    free(folder->path);
    free(folder);
    return result;
}

static void put(int dirfd, const char *path, const char *text)
{
    rewarm_auto_fd int fd = openat(dirfd, path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
}

static void test_full_transfers(void **state)
{
    struct folder *folder = *state;
    rewarm_auto_fd int fd = openat(folder->fd, "a", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    struct rewarm_error err = REWARM_ERROR_INIT;
    assert_int_equal(rewarm_fs_write_full(fd, "0123456789", 10, "a", &err), 0);
    assert_int_equal(rewarm_fs_pwrite_full(fd, "xy", 2, 4, "a", &err), 0);
    char got[11] = "";
    assert_int_equal(rewarm_fs_pread_full(fd, got, 10, 0, "a", &err), 0);
    assert_string_equal(got, "0123xy6789");
    assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
    assert_int_equal(rewarm_fs_read_full(fd, got, 10, "a", &err), 0);

    /* Short files are damage, with the file named. */
    assert_int_equal(rewarm_fs_read_full(fd, got, 1, "the a", &err), -REWARM_E_CORRUPT);
    assert_non_null(strstr(err.message, "the a"));
    rewarm_error_clear(&err);
    assert_int_equal(rewarm_fs_pread_full(fd, got, 10, 5, "the a", &err), -REWARM_E_CORRUPT);
    rewarm_error_clear(&err);
    assert_int_equal(rewarm_fs_write_full(-1, "x", 1, "none", &err), -REWARM_E_SYSTEM);
    assert_int_equal(err.native, EBADF);
}

static void test_full_device(void **state)
{
    (void)state;
    rewarm_auto_fd int fd = open("/dev/full", O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        skip();
    struct rewarm_error err = REWARM_ERROR_INIT;
    assert_int_equal(rewarm_fs_write_full(fd, "x", 1, "full", &err), -REWARM_E_NO_SPACE);
}

/* A pipe gives its bytes in pieces. */
static void test_short_reads(void **state)
{
    (void)state;
    int ends[2];
    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    pid_t child = fork();
    if (child == 0) {
        for (int i = 0; i < 50; i++) {
            if (write(ends[1], "ab", 2) != 2)
                _exit(1);
            usleep(100);
        }
        _exit(0);
    }
    close(ends[1]);
    char got[100];
    assert_int_equal(rewarm_fs_read_full(ends[0], got, sizeof(got), "pipe", NULL), 0);
    for (size_t i = 0; i < sizeof(got); i++)
        assert_int_equal(got[i], i % 2 == 0 ? 'a' : 'b');
    close(ends[0]);
    int status = 1;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

static void test_read_file(void **state)
{
    struct folder *folder = *state;
    struct rewarm_error err = REWARM_ERROR_INIT;
    rewarm_auto_free char *text = NULL;
    size_t bytes = 77;
    put(folder->fd, "a", "hello");
    assert_int_equal(rewarm_fs_read_file(folder->fd, "a", 5, &text, &bytes, &err), 0);
    assert_string_equal(text, "hello");
    assert_int_equal(bytes, 5);

    /* One byte over the limit: refused, and nothing was written to the outputs. */
    char *other = NULL;
    bytes = 77;
    assert_int_equal(rewarm_fs_read_file(folder->fd, "a", 4, &other, &bytes, &err),
                     -REWARM_E_CORRUPT);
    assert_null(other);
    assert_int_equal(bytes, 77);
    rewarm_error_clear(&err);
    assert_int_equal(rewarm_fs_read_file(folder->fd, "none", 4, &other, NULL, &err),
                     -REWARM_E_NOT_FOUND);

    put(folder->fd, "empty", "");
    assert_int_equal(rewarm_fs_read_file(folder->fd, "empty", 0, &other, NULL, NULL), 0);
    assert_string_equal(other, "");
    free(other);
}

/* Files of /proc say that they are empty, and may be longer than a page. */
static void test_read_proc(void **state)
{
    (void)state;
    rewarm_auto_free char *text = NULL;
    size_t bytes = 0;
    assert_int_equal(
        rewarm_fs_read_file(AT_FDCWD, "/proc/self/smaps", 16 << 20, &text, &bytes, NULL), 0);
    assert_true(bytes > 4096);
    assert_int_equal(strlen(text), bytes);
    assert_int_equal(text[bytes - 1], '\n');
    char *other = NULL;
    assert_int_equal(rewarm_fs_read_file(AT_FDCWD, "/proc/self/smaps", 5000, &other, NULL, NULL),
                     -REWARM_E_CORRUPT);
}

static unsigned count_entries(int dirfd)
{
    rewarm_auto_dir DIR *dir = fdopendir(openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    unsigned count = 0;
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;)
        count += entry->d_name[0] != '.';
    return count;
}

static void test_write_durable(void **state)
{
    struct folder *folder = *state;
    struct rewarm_error err = REWARM_ERROR_INIT;
    rewarm_auto_free char *text = NULL;
    assert_int_equal(rewarm_fs_write_durable(folder->fd, "a", 0640, "one", 3, &err), 0);
    assert_int_equal(rewarm_fs_write_durable(folder->fd, "a", 0640, "two", 3, &err), 0);
    assert_int_equal(rewarm_fs_read_file(folder->fd, "a", 10, &text, NULL, &err), 0);
    assert_string_equal(text, "two");
    struct stat st;
    assert_int_equal(fstatat(folder->fd, "a", &st, 0), 0);
    assert_int_equal(st.st_mode & 0777 & ~0640u, 0);
    assert_int_equal(count_entries(folder->fd), 1); /* no temporary file is left */

    /* Below a folder, and by an absolute path. */
    assert_int_equal(mkdirat(folder->fd, "d", 0700), 0);
    assert_int_equal(rewarm_fs_write_durable(folder->fd, "d/b", 0600, "x", 1, &err), 0);
    rewarm_auto_free char *path = rewarm_str_format("%s/d/c", folder->path);
    assert_int_equal(rewarm_fs_write_durable(AT_FDCWD, path, 0600, "y", 1, &err), 0);
    assert_int_equal(faccessat(folder->fd, "d/b", F_OK, 0), 0);
    assert_int_equal(faccessat(folder->fd, "d/c", F_OK, 0), 0);

    /* A failure leaves the old content, and nothing beside it: "d" is a folder, so the rename
     * fails. */
    assert_true(rewarm_fs_write_durable(folder->fd, "d", 0600, "z", 1, &err) < 0);
    assert_int_equal(count_entries(folder->fd), 2);
    rewarm_error_clear(&err);
    assert_int_equal(rewarm_fs_write_durable(folder->fd, "none/a", 0600, "z", 1, &err),
                     -REWARM_E_NOT_FOUND);
}

static void test_dirs(void **state)
{
    struct folder *folder = *state;
    struct rewarm_error err = REWARM_ERROR_INIT;
    int fd = -1;
    assert_int_equal(rewarm_fs_open_dir(folder->fd, "d", false, &fd, &err), -REWARM_E_NOT_FOUND);
    assert_int_equal(fd, -1);
    rewarm_error_clear(&err);
    assert_int_equal(rewarm_fs_open_dir(folder->fd, "d", true, &fd, &err), 0);
    assert_true((fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0);
    close(fd);
    assert_int_equal(rewarm_fs_open_dir(folder->fd, "d", true, &fd, &err), 0); /* again */
    close(fd);
    struct stat st;
    assert_int_equal(fstatat(folder->fd, "d", &st, 0), 0);
    assert_int_equal(st.st_mode & 0777, 0700); /* memory images hold secrets */

    rewarm_auto_free char *deep = rewarm_str_format("%s/x/y/z", folder->path);
    assert_int_equal(rewarm_fs_make_dirs(deep, &err), 0);
    assert_int_equal(rewarm_fs_make_dirs(deep, &err), 0);
    assert_int_equal(stat(deep, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    put(folder->fd, "file", "");
    rewarm_auto_free char *below = rewarm_str_format("%s/file/z", folder->path);
    assert_true(rewarm_fs_make_dirs(below, &err) < 0);
    rewarm_error_clear(&err);
    rewarm_auto_free char *file = rewarm_str_format("%s/file", folder->path);
    assert_true(rewarm_fs_make_dirs(file, &err) < 0);
}

static void test_remove_tree(void **state)
{
    struct folder *folder = *state;
    struct rewarm_error err = REWARM_ERROR_INIT;
    assert_int_equal(rewarm_fs_remove_tree(folder->fd, "none", &err), 0);

    /* What a link points to is not ours to remove. */
    assert_int_equal(mkdirat(folder->fd, "kept", 0700), 0);
    put(folder->fd, "kept/file", "x");
    assert_int_equal(mkdirat(folder->fd, "tree", 0700), 0);
    assert_int_equal(mkdirat(folder->fd, "tree/sub", 0700), 0);
    put(folder->fd, "tree/sub/file", "x");
    put(folder->fd, "tree/.hidden", "x");
    assert_int_equal(symlinkat("../kept", folder->fd, "tree/link"), 0);
    assert_int_equal(mkfifoat(folder->fd, "tree/fifo", 0600), 0);
    assert_int_equal(rewarm_fs_remove_tree(folder->fd, "tree", &err), 0);
    assert_int_equal(faccessat(folder->fd, "tree", F_OK, 0), -1);
    assert_int_equal(faccessat(folder->fd, "kept/file", F_OK, 0), 0);

    assert_int_equal(symlinkat("kept", folder->fd, "link"), 0);
    assert_int_equal(rewarm_fs_remove_tree(folder->fd, "link", &err), 0);
    assert_int_equal(faccessat(folder->fd, "kept/file", F_OK, 0), 0);
    assert_int_equal(rewarm_fs_remove_tree(folder->fd, "kept/file", &err), 0); /* a file */
    assert_int_equal(count_entries(folder->fd), 1);
}

/* What is mounted below stays. */
static void test_remove_tree_stops_at_mounts(void **state)
{
    struct folder *folder = *state;
    rewarm_auto_free char *mounted = rewarm_str_format("%s/tree/mount", folder->path);
    assert_int_equal(rewarm_fs_make_dirs(mounted, NULL), 0);
    if (mount("none", mounted, "tmpfs", 0, "size=64k") != 0) {
        print_message("skipped: a mount needs CAP_SYS_ADMIN\n");
        skip();
    }
    put(folder->fd, "tree/mount/file", "x");
    struct rewarm_error err = REWARM_ERROR_INIT;
    int result = rewarm_fs_remove_tree(folder->fd, "tree", &err);
    int there = faccessat(folder->fd, "tree/mount/file", F_OK, 0);
    assert_int_equal(umount(mounted), 0);
    assert_int_equal(result, -REWARM_E_REFUSED);
    assert_int_equal(there, 0);
}

static void test_cloexec(void **state)
{
    struct folder *folder = *state;
    assert_int_equal(rewarm_fs_set_cloexec(folder->fd, false, NULL), 0);
    assert_int_equal(fcntl(folder->fd, F_GETFD) & FD_CLOEXEC, 0);
    assert_int_equal(rewarm_fs_set_cloexec(folder->fd, true, NULL), 0);
    assert_int_equal(fcntl(folder->fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
    assert_true(rewarm_fs_set_cloexec(-1, true, NULL) < 0);
}

#define in_folder(test) cmocka_unit_test_setup_teardown(test, make_folder, drop_folder)

int main(void)
{
    const struct CMUnitTest tests[] = {
        in_folder(test_full_transfers),
        cmocka_unit_test(test_full_device),
        cmocka_unit_test(test_short_reads),
        in_folder(test_read_file),
        cmocka_unit_test(test_read_proc),
        in_folder(test_write_durable),
        in_folder(test_dirs),
        in_folder(test_remove_tree),
        in_folder(test_remove_tree_stops_at_mounts),
        in_folder(test_cloexec),
    };
    return cmocka_run_group_tests_name("fs", tests, NULL, NULL);
}

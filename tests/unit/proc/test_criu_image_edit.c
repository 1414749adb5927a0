/* The edits for a restore, on the kept images and on a disk that the test invents. That CRIU
 * accepts the result is shown by tests/e2e/test_images.py. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "base/clean.h"
#include "base/fs.h"
#include "base/str.h"
#include "proc/criu_image.h"
#include "proc/criu_image_entry.h"

#define LOG        "/tmp/rewarm-sample/log"
#define APPEND_LOG "/tmp/rewarm-sample/append-log"
#define DATA       "/tmp/rewarm-sample/data"

/* The disk: the sizes of the worker's own files. */
struct fake_disk {
    char *image;
    size_t image_bytes;
    long log_bytes, append_bytes, data_bytes; /* -1: gone */
    mode_t log_mode;
    bool read_only;
    unsigned created;
};

static const struct fake_disk as_frozen = {
    .log_bytes = 6, .append_bytes = 6, .data_bytes = 10, .log_mode = S_IFREG | 0644};

static long *size_of(struct fake_disk *disk, const char *path)
{
    if (strcmp(path, LOG) == 0)
        return &disk->log_bytes;
    if (strcmp(path, APPEND_LOG) == 0)
        return &disk->append_bytes;
    return strcmp(path, DATA) == 0 ? &disk->data_bytes : NULL;
}

static int fake_look(void *context, const char *path, struct stat *ret_stat)
{
    struct fake_disk *disk = context;
    const long *size = size_of(disk, path);
    assert_non_null(size); /* devices, folders and the deleted file are not looked at */
    memset(ret_stat, 0, sizeof(*ret_stat));
    if (*size < 0)
        return -ENOENT;
    ret_stat->st_size = *size;
    ret_stat->st_mode = disk->log_mode;
    return 0;
}

static int fake_create(void *context, const char *path, mode_t mode)
{
    struct fake_disk *disk = context;
    assert_int_equal(mode, 0644);
    if (disk->read_only)
        return -EROFS;
    *size_of(disk, path) = 0;
    disk->created++;
    return 0;
}

/* The kept files.img without its first entries, the libraries of the machine that it came from. */
static void load(struct fake_disk *disk)
{
    struct rewarm_error err = REWARM_ERROR_INIT;
    rewarm_auto_free char *data = NULL;
    size_t bytes, message_bytes;
    assert_int_equal(rewarm_fs_read_file(AT_FDCWD, REWARM_TEST_DATA "/criu/files.img", 65536, &data,
                                         &bytes, &err),
                     0);
    struct rewarm_image_cursor cursor;
    const uint8_t *message;
    assert_int_equal(
        rewarm_image_begin("files.img", data, bytes, REWARM_MAGIC_FILES, &cursor, &err), 0);
    size_t head = cursor.at;
    for (int i = 0; i < 9; i++)
        assert_int_equal(rewarm_image_next(&cursor, &message, &message_bytes, &err), 1);
    disk->image_bytes = head + bytes - cursor.at;
    disk->image = rewarm_mem_new(disk->image_bytes, 1);
    memcpy(disk->image, data, head);
    memcpy(disk->image + head, data + cursor.at, bytes - cursor.at);
}

static int edit(struct fake_disk *disk, const void *image, size_t bytes, char *const *keys,
                size_t key_count, struct rewarm_image_edited *ret_edited, struct rewarm_error *err)
{
    static const uint32_t remaps[] = {32};
    struct rewarm_image_disk interface = {fake_look, fake_create, disk};
    struct rewarm_image_edit request = {.remaps = remaps,
                                        .remap_count = 1,
                                        .skip_keys = keys,
                                        .skip_count = key_count,
                                        .disk = &interface};
    memset(ret_edited, 0, sizeof(*ret_edited));
    return rewarm_image_edit_files(image, bytes, &request, ret_edited, err);
}

static int edit_kept(struct fake_disk *disk, char *const *keys, size_t key_count,
                     struct rewarm_image_edited *ret_edited, struct rewarm_error *err)
{
    load(disk);
    int rc = edit(disk, disk->image, disk->image_bytes, keys, key_count, ret_edited, err);
    free(disk->image);
    return rc;
}

static void fini(struct rewarm_image_edited *edited)
{
    free(edited->data);
    free(edited->pipe_ids);
}

static void test_tcp(void **state)
{
    (void)state;
    struct fake_disk disk = as_frozen;
    struct rewarm_image_edited edited, again;
    struct rewarm_error err = REWARM_ERROR_INIT;
    load(&disk);
    assert_int_equal(edit(&disk, disk.image, disk.image_bytes, NULL, 0, &edited, &err), 0);
    /* v4, v6, v4 to dual, mapped to dual, and the one with the child */
    assert_int_equal(edited.report.tcp_kept, 10);
    assert_int_equal(edited.report.tcp_closed, 2);
    assert_int_equal(edited.report.listeners, 3);

    /* The other entries are the same bytes; the changed ones still have what we have no names for.
     */
    struct rewarm_image_cursor before, after;
    const uint8_t *old, *new;
    size_t old_bytes, new_bytes, changed = 0;
    assert_int_equal(
        rewarm_image_begin("a", disk.image, disk.image_bytes, REWARM_MAGIC_FILES, &before, &err),
        0);
    assert_int_equal(
        rewarm_image_begin("b", edited.data, edited.bytes, REWARM_MAGIC_FILES, &after, &err), 0);
    while (rewarm_image_next(&before, &old, &old_bytes, &err) == 1) {
        assert_int_equal(rewarm_image_next(&after, &new, &new_bytes, &err), 1);
        if (old_bytes == new_bytes && memcmp(old, new, old_bytes) == 0)
            continue;
        changed++;
        assert_true(new_bytes <= old_bytes && new_bytes + 10 >= old_bytes);
    }
    assert_int_equal(rewarm_image_next(&after, &new, &new_bytes, &err), 0);
    assert_int_equal(changed, 4); /* two sockets; the log and its reader lost their size check */

    /* What was edited needs no more edits. */
    assert_int_equal(edit(&disk, edited.data, edited.bytes, NULL, 0, &again, &err), 0);
    assert_null(again.data);
    assert_int_equal(again.report.tcp_kept, 10);
    assert_int_equal(again.report.tcp_closed, 0);
    fini(&edited);
    fini(&again);
    free(disk.image);
}

/* Ports 61000, 61000, 61001, ...: each is offered twice. */
struct fake_ports {
    unsigned picked, listeners;
    int failure;
};

static int fake_pick(void *context, const struct sockaddr *address, uint16_t *ret_port)
{
    struct fake_ports *ports = context;
    assert_true(address->sa_family == AF_INET || address->sa_family == AF_INET6);
    *ret_port = (uint16_t)(61000 + ports->picked++ / 2);
    return ports->failure;
}

static void fake_forget(void *context, const struct sockaddr *address)
{
    assert_true(address->sa_family == AF_INET || address->sa_family == AF_INET6);
    ((struct fake_ports *)context)->listeners++;
}

static int edit_ports(struct fake_ports *ports, struct rewarm_image_edited *ret_edited,
                      struct rewarm_error *err)
{
    static const uint32_t remaps[] = {32};
    struct fake_disk disk = as_frozen;
    struct rewarm_image_disk interface = {fake_look, fake_create, &disk};
    struct rewarm_image_ports picker = {fake_pick, fake_forget, ports};
    struct rewarm_image_edit request = {
        .remaps = remaps, .remap_count = 1, .disk = &interface, .ports = &picker};
    load(&disk);
    int rc = rewarm_image_edit_files(disk.image, disk.image_bytes, &request, ret_edited, err);
    free(disk.image);
    return rc;
}

static uint64_t take_varint(const uint8_t **at)
{
    uint64_t value = 0;
    for (unsigned shift = 0;; shift += 7) {
        value |= (uint64_t)(**at & 127) << shift;
        if ((*(*at)++ & 128) == 0)
            return value;
    }
}

/* The last value of a field of a message, or of its length if it is bytes, which begin at
 * *ret_bytes then. 0 when there is none. */
static uint64_t field(const uint8_t *message, size_t bytes, unsigned number,
                      const uint8_t **ret_bytes)
{
    uint64_t found = 0;
    for (const uint8_t *at = message; at < message + bytes;) {
        uint64_t tag = take_varint(&at), value = take_varint(&at);
        if (tag >> 3 == number) {
            found = value;
            if (ret_bytes != NULL)
                *ret_bytes = at;
        }
        assert_true((tag & 7) == 0 || (tag & 7) == 2);
        at += (tag & 7) == 2 ? value : 0;
    }
    return found;
}

/* Both ends of the five pairs agree on ports that differ; those of the servers are what they were.
 */
static void test_fresh_ports(void **state)
{
    (void)state;
    struct fake_ports ports = {0};
    struct rewarm_image_edited edited;
    struct rewarm_error err = REWARM_ERROR_INIT;
    assert_int_equal(edit_ports(&ports, &edited, &err), 0);
    assert_int_equal(edited.report.tcp_kept, 10);
    assert_int_equal(edited.report.tcp_closed, 2);
    assert_int_equal(edited.report.tcp_moved, 5);
    assert_int_equal(ports.listeners, 3);

    struct rewarm_image_cursor cursor;
    const uint8_t *message;
    size_t bytes;
    uint32_t listening[3], clients[5], servers[5][2];
    size_t listener_count = 0, client_count = 0, server_count = 0;
    assert_int_equal(rewarm_image_begin("files.img", edited.data, edited.bytes, REWARM_MAGIC_FILES,
                                        &cursor, &err),
                     0);
    while (rewarm_image_next(&cursor, &message, &bytes, &err) == 1) {
        const uint8_t *socket = NULL;
        if (field(message, bytes, 1, NULL) != REWARM_FD_INET)
            continue;
        size_t socket_bytes = field(message, bytes, 4, &socket);
        uint32_t from = (uint32_t)field(socket, socket_bytes, 7, NULL);
        uint32_t to = (uint32_t)field(socket, socket_bytes, 8, NULL);
        if (field(socket, socket_bytes, 6, NULL) == 10)
            listening[listener_count++] = from;
        else if (to != 0 && from >= 61000)
            clients[client_count++] = from;
        else if (to != 0)
            memcpy(servers[server_count++], (uint32_t[]){from, to}, 8);
    }
    assert_int_equal(listener_count, 3);
    assert_int_equal(client_count, 5);
    assert_int_equal(server_count, 5);
    for (size_t i = 0; i < 5; i++) {
        size_t as_listener = 0, as_client = 0;
        for (size_t k = 0; k < 3; k++)
            as_listener += listening[k] == servers[i][0];
        for (size_t k = 0; k < 5; k++)
            as_client += clients[k] == servers[i][1];
        assert_int_equal(as_listener, 1);
        assert_int_equal(as_client, 1);
    }
    fini(&edited);
}

static void test_no_fresh_ports(void **state)
{
    (void)state;
    struct fake_ports ports = {.failure = -EADDRINUSE};
    struct rewarm_image_edited edited;
    struct rewarm_error err = REWARM_ERROR_INIT;
    assert_int_equal(edit_ports(&ports, &edited, &err), -REWARM_E_BUSY);
}

/* CRIU's own names for deleted files end in what the restore wants, and are not looked at. */
static void test_link_suffix(void **state)
{
    (void)state;
    struct fake_disk disk = as_frozen;
    struct rewarm_image_edited edited;
    struct rewarm_error err = REWARM_ERROR_INIT;
    struct rewarm_image_file *files = NULL;
    size_t count = 0, seen = 0;
    load(&disk);
    assert_int_equal(rewarm_image_parse_files(disk.image, disk.image_bytes, &files, &count, &err),
                     0);
    uint32_t data_id = 0;
    for (size_t i = 0; i < count; i++)
        if (files[i].path != NULL && strcmp(files[i].path, DATA) == 0)
            data_id = files[i].id;
    rewarm_image_files_free(files, count);
    disk.data_bytes = -1;
    static const uint32_t remaps[] = {32};
    struct rewarm_image_disk interface = {fake_look, fake_create, &disk};
    struct rewarm_image_edit request = {.remaps = remaps,
                                        .remap_count = 1,
                                        .links = &data_id,
                                        .link_count = 1,
                                        .link_suffix = ".one",
                                        .disk = &interface};
    assert_int_equal(rewarm_image_edit_files(disk.image, disk.image_bytes, &request, &edited, &err),
                     0);
    assert_int_equal(rewarm_image_parse_files(edited.data, edited.bytes, &files, &count, &err), 0);
    for (size_t i = 0; i < count; i++)
        seen += files[i].path != NULL && strcmp(files[i].path, DATA ".one") == 0;
    assert_int_equal(seen, 1);
    rewarm_image_files_free(files, count);
    fini(&edited);
    free(disk.image);
}

static void test_logs(void **state)
{
    (void)state;
    static const struct {
        long log_bytes;
        unsigned moved, created;
        mode_t mode;
    } cases[] = {
        {6, 0, 0, 0644},   /* as it was */
        {600, 1, 0, 0644}, /* grown */
        {2, 1, 0, 0644},   /* truncated */
        {0, 1, 0, 0640},   /* replaced, as logrotate does */
        {-1, 1, 1, 0644},  /* gone */
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct fake_disk disk = as_frozen;
        disk.log_bytes = cases[i].log_bytes;
        disk.log_mode = S_IFREG | cases[i].mode;
        struct rewarm_image_edited edited;
        struct rewarm_error err = REWARM_ERROR_INIT;
        assert_int_equal(edit_kept(&disk, NULL, 0, &edited, &err), 0);
        assert_int_equal(edited.report.files_moved_to_end, cases[i].moved);
        assert_int_equal(edited.report.files_created, cases[i].created);
        assert_int_equal(disk.created, cases[i].created);
        fini(&edited);
    }
}

static void test_append_log_gone(void **state)
{
    (void)state;
    struct fake_disk disk = as_frozen;
    disk.append_bytes = -1; /* CRIU records no size for it, but wants it to be there */
    struct rewarm_image_edited edited;
    struct rewarm_error err = REWARM_ERROR_INIT;
    assert_int_equal(edit_kept(&disk, NULL, 0, &edited, &err), 0);
    assert_int_equal(edited.report.files_created, 1);
    fini(&edited);

    struct fake_disk second = as_frozen;
    second.append_bytes = -1;
    second.read_only = true;
    assert_int_equal(edit_kept(&second, NULL, 0, &edited, &err), -REWARM_E_MISFIT);
    assert_non_null(strstr(err.message, APPEND_LOG));
}

static void test_data_changed(void **state)
{
    (void)state;
    static const long sizes[] = {9, 11, -1};
    for (size_t i = 0; i < 3; i++) {
        struct fake_disk disk = as_frozen;
        disk.data_bytes = sizes[i];
        struct rewarm_image_edited edited;
        struct rewarm_error err = REWARM_ERROR_INIT;
        assert_int_equal(edit_kept(&disk, NULL, 0, &edited, &err), -REWARM_E_MISFIT);
        assert_non_null(strstr(err.message, DATA));
        assert_int_equal(disk.created, 0);
    }
    struct fake_disk disk = as_frozen;
    disk.log_mode = S_IFDIR | 0755;
    struct rewarm_image_edited edited;
    struct rewarm_error err = REWARM_ERROR_INIT;
    assert_int_equal(edit_kept(&disk, NULL, 0, &edited, &err), -REWARM_E_MISFIT);
}

static void test_inherited(void **state)
{
    (void)state;
    char *keys[] = {(char *)"pipe:[152150]", (char *)"tmp/rewarm-sample/data"};
    struct fake_disk disk = as_frozen;
    disk.data_bytes = -1; /* does not matter: it is inherited */
    struct rewarm_image_edited edited;
    struct rewarm_error err = REWARM_ERROR_INIT;
    assert_int_equal(edit_kept(&disk, keys, 2, &edited, &err), 0);
    assert_int_equal(edited.report.pipes_inherited, 1);
    assert_int_equal(edited.pipe_count, 1);
    assert_int_equal(edited.pipe_ids[0], 11);

    struct rewarm_image_file *files = NULL;
    size_t count = 0, seen = 0;
    assert_int_equal(rewarm_image_parse_files(edited.data, edited.bytes, &files, &count, &err), 0);
    for (size_t i = 0; i < count; i++) {
        if (files[i].id != 11)
            continue;
        seen++;
        assert_int_equal(files[i].type, REWARM_FD_REG);
        assert_string_equal(files[i].path, "/pipe:[152150]");
    }
    assert_int_equal(seen, 1);
    rewarm_image_files_free(files, count);
    fini(&edited);
}

/* The whole of it in a folder: descriptor tables too, and nothing but the edited files is touched.
 */
static void test_folder(void **state)
{
    (void)state;
    char path[] = "/tmp/rewarm-test-XXXXXX";
    assert_non_null(mkdtemp(path));
    struct rewarm_error err = REWARM_ERROR_INIT;
    rewarm_auto_fd int dirfd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    static const char *const names[] = {"fdinfo-2.img", "fdinfo-3.img", "ids-7337.img",
                                        "ids-7339.img"};
    for (size_t i = 0; i < 4; i++) {
        rewarm_auto_free char *data = NULL;
        rewarm_auto_free char *from = rewarm_str_format("%s/criu/%s", REWARM_TEST_DATA, names[i]);
        size_t bytes;
        assert_int_equal(rewarm_fs_read_file(AT_FDCWD, from, 65536, &data, &bytes, &err), 0);
        assert_int_equal(rewarm_fs_write_durable(dirfd, names[i], 0644, data, bytes, &err), 0);
    }
    /* Only entries that need nothing of this disk: pipes, sockets, devices. */
    struct fake_disk disk = as_frozen;
    load(&disk);
    struct rewarm_image_cursor cursor;
    const uint8_t *message;
    size_t bytes;
    assert_int_equal(rewarm_image_begin("files.img", disk.image, disk.image_bytes,
                                        REWARM_MAGIC_FILES, &cursor, &err),
                     0);
    for (int i = 0; i < 18; i++)
        assert_int_equal(rewarm_image_next(&cursor, &message, &bytes, &err), 1);
    assert_int_equal(rewarm_fs_write_durable(dirfd, "files.img", 0644, disk.image, cursor.at, &err),
                     0);
    free(disk.image);

    rewarm_auto_free char *before = NULL;
    rewarm_auto_free char *after = NULL;
    assert_int_equal(rewarm_image_inherit_key(dirfd, 7339, 1, &before, &err), 0);
    assert_string_equal(before, "pipe:[152150]");
    struct rewarm_image_edits report;
    const struct rewarm_image_edit_options options = {.skip_keys = &before, .skip_count = 1};
    assert_int_equal(rewarm_image_edit_for_restore(dirfd, &options, &report, &err), 0);
    assert_int_equal(report.pipes_inherited, 1);
    /* Read back, the descriptor is a "regular file" of no recorded mode: nothing to inherit twice.
     */
    assert_int_equal(rewarm_image_inherit_key(dirfd, 7337, 1, &after, &err), 0);
    assert_null(after);
    struct stat st;
    assert_int_equal(fstatat(dirfd, "files.img", &st, 0), 0);
    assert_int_equal(st.st_mode & 07777, 0600);
    assert_int_equal(fstatat(dirfd, "fdinfo-3.img", &st, 0), 0);
    assert_int_equal(st.st_mode & 07777, 0600);
    assert_int_equal(fstatat(dirfd, "ids-7339.img", &st, 0), 0);
    assert_int_equal(st.st_mode & 07777, 0644);
    struct timespec written = st.st_mtim;
    assert_int_equal(rewarm_image_edit_for_restore(dirfd, &options, &report, &err), 0);
    assert_int_equal(report.pipes_inherited, 0);
    assert_int_equal(fstatat(dirfd, "ids-7339.img", &st, 0), 0);
    assert_int_equal(st.st_mtim.tv_nsec, written.tv_nsec);
    assert_int_equal(rewarm_fs_remove_tree(AT_FDCWD, path, &err), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tcp),
        cmocka_unit_test(test_fresh_ports),
        cmocka_unit_test(test_no_fresh_ports),
        cmocka_unit_test(test_link_suffix),
        cmocka_unit_test(test_logs),
        cmocka_unit_test(test_append_log_gone),
        cmocka_unit_test(test_data_changed),
        cmocka_unit_test(test_inherited),
        cmocka_unit_test(test_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

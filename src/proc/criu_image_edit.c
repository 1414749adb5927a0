/* The edits of files.img for one restore: TCP connections that lead out of the image, and files
 * that have changed since the freeze.
 *
 * All entries are unpacked first. Connections are sorted by (namespace, local end, remote end), so
 * that each one's other end is found by searching for the same key turned round; IPv4 addresses are
 * treated as their v4-mapped IPv6 form, because an accepted socket of a dual-stack listener is IPv6
 * where its client may be IPv4. Kept pairs are then moved to free ports if that is asked for. Then
 * the paths that are logs are gathered, and each regular file is compared with what the disk has
 * now. At the end, changed entries are packed again (protobuf-c keeps the fields that criu.proto
 * does not name) and the others are copied byte for byte. */
#include <criu.pb-c.h>
#include <endian.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <string.h>

#include "base/clean.h"
#include "base/fs.h"
#include "base/str.h"
#include "proc/criu_image.h"
#include "proc/criu_image_entry.h"
#include "proc/tcp_port.h"

static const char image_name[] = "files.img";

/* States of a TCP socket, as the kernel numbers them. */
enum { STATE_CLOSE = 7, STATE_LISTEN = 10 };

struct item {
    const uint8_t *raw; /* the message as it was */
    size_t raw_bytes;
    FileEntry *entry;
    bool changed;
};

struct endpoint {
    uint8_t address[16];
    uint32_t port;
};

struct connection {
    uint32_t ns_id;
    struct endpoint from, to;
    size_t item;
};

struct editor {
    const struct rewarm_image_edit *edit;
    struct item *items;
    size_t count, head_bytes; /* bytes before the first entry */
    const char **logs; /* paths that somebody writes at the end, sorted; borrowed from entries */
    size_t log_count;
    uint32_t *pipe_ids; /* what became a regular file */
    size_t pipe_count;
    struct rewarm_image_edits report;
};

static void free_items(struct editor *editor)
{
    for (size_t i = 0; i < editor->count; i++)
        file_entry__free_unpacked(editor->items[i].entry, NULL);
    free(editor->items);
    free(editor->logs);
    free(editor->pipe_ids);
}

static int load_items(struct editor *editor, const void *data, size_t bytes,
                      struct rewarm_error *err)
{
    struct rewarm_image_cursor cursor;
    int rc = rewarm_image_begin(image_name, data, bytes, REWARM_MAGIC_FILES, &cursor, err);
    if (rc != 0)
        return rc;
    editor->head_bytes = cursor.at;
    size_t capacity = 0;
    const uint8_t *message;
    size_t message_bytes;
    while ((rc = rewarm_image_next(&cursor, &message, &message_bytes, err)) > 0) {
        FileEntry *entry = file_entry__unpack(NULL, message_bytes, message);
        if (entry == NULL)
            return rewarm_image_damaged(image_name, "an entry can't be read", err);
        REWARM_GROW(&editor->items, &capacity, editor->count);
        editor->items[editor->count++] = (struct item){message, message_bytes, entry, false};
        if ((entry->type == REWARM_FD_REG && entry->reg == NULL) ||
            (entry->type == REWARM_FD_INET && entry->isk == NULL))
            return rewarm_image_damaged(image_name, "an entry has no body", err);
    }
    return rc;
}

/* --- TCP
 * ---------------------------------------------------------------------------------------------- */

static bool is_connection(const InetSkEntry *sk)
{
    return sk->proto == IPPROTO_TCP && sk->dst_port != 0 && sk->state != STATE_CLOSE &&
           sk->state != STATE_LISTEN;
}

static bool is_listener(const InetSkEntry *sk)
{
    return sk->proto == IPPROTO_TCP && sk->state == STATE_LISTEN;
}

/* False when the number of words does not fit the family. CRIU keeps addresses as words in memory
 * order: the bytes of an address in network order, read as the machine's own integers. */
static bool copy_endpoint(uint32_t family, const uint32_t *words, size_t count, uint32_t port,
                          struct endpoint *ret_endpoint)
{
    struct endpoint endpoint = {.port = port};
    if (family == AF_INET && count >= 1) {
        endpoint.address[10] = endpoint.address[11] = 0xff;
        memcpy(endpoint.address + 12, words, 4);
    } else if (family == AF_INET6 && count >= 4) {
        memcpy(endpoint.address, words, 16);
    } else {
        return false;
    }
    *ret_endpoint = endpoint;
    return true;
}

static int compare_endpoints(const struct endpoint *a, const struct endpoint *b)
{
    int order = memcmp(a->address, b->address, sizeof(a->address));
    return order != 0 ? order : (a->port > b->port) - (a->port < b->port);
}

static int compare_connections(const void *left, const void *right)
{
    const struct connection *a = left, *b = right;
    if (a->ns_id != b->ns_id)
        return a->ns_id < b->ns_id ? -1 : 1;
    int order = compare_endpoints(&a->from, &b->from);
    return order != 0 ? order : compare_endpoints(&a->to, &b->to);
}

/* Makes the socket what socket(2) gives. The local port goes too: bound, it could clash with the
 * source that still runs, or with a copy. */
static void close_connection(struct item *item)
{
    InetSkEntry *sk = item->entry->isk;
    sk->state = STATE_CLOSE;
    sk->src_port = 0;
    sk->dst_port = 0;
    item->changed = true;
}

static int gather_connections(struct editor *editor, struct connection *connections,
                              size_t *ret_count, struct rewarm_error *err)
{
    size_t count = 0;
    for (size_t i = 0; i < editor->count; i++) {
        const FileEntry *entry = editor->items[i].entry;
        if (entry->type != REWARM_FD_INET)
            continue;
        const InetSkEntry *sk = entry->isk;
        if (is_listener(sk))
            editor->report.listeners++;
        if (!is_connection(sk))
            continue;
        struct connection *connection = &connections[count++];
        connection->ns_id = sk->has_ns_id ? sk->ns_id : 0;
        connection->item = i;
        if (!copy_endpoint(sk->family, sk->src_addr, sk->n_src_addr, sk->src_port,
                           &connection->from) ||
            !copy_endpoint(sk->family, sk->dst_addr, sk->n_dst_addr, sk->dst_port, &connection->to))
            return rewarm_image_damaged(image_name, "a socket's address is impossible", err);
    }
    qsort(connections, count, sizeof(*connections), compare_connections);
    *ret_count = count;
    return 0;
}

/* NULL when it is not in the image. */
static const struct connection *other_end(const struct connection *connections, size_t count,
                                          const struct connection *connection)
{
    struct connection other = *connection;
    other.from = connection->to;
    other.to = connection->from;
    return bsearch(&other, connections, count, sizeof(other), compare_connections);
}

/* --- free ports for the client ends
 * ----------------------------------------------------------------------------------------------
 */

/* Every port of the image, and those given out: no two are the same. */
struct port_set {
    uint64_t words[65536 / 64];
};

static void add_port(struct port_set *set, uint32_t port)
{
    set->words[port / 64 % 1024] |= UINT64_C(1) << port % 64;
}

static bool has_port(const struct port_set *set, uint32_t port)
{
    return (set->words[port / 64 % 1024] >> port % 64 & 1) != 0;
}

/* The socket's own end, or false when it is none of the kernel's families. */
static bool own_address(const InetSkEntry *sk, struct sockaddr_storage *ret_address)
{
    memset(ret_address, 0, sizeof(*ret_address));
    struct endpoint checked;
    if (!copy_endpoint(sk->family, sk->src_addr, sk->n_src_addr, sk->src_port, &checked))
        return false;
    if (sk->family == AF_INET) {
        struct sockaddr_in *v4 = (void *)ret_address;
        v4->sin_family = AF_INET;
        v4->sin_port = htons((uint16_t)sk->src_port);
        memcpy(&v4->sin_addr, sk->src_addr, sizeof(v4->sin_addr));
    } else {
        struct sockaddr_in6 *v6 = (void *)ret_address;
        v6->sin6_family = AF_INET6;
        v6->sin6_port = htons((uint16_t)sk->src_port);
        memcpy(&v6->sin6_addr, sk->src_addr, sizeof(v6->sin6_addr));
    }
    return true;
}

/* Lets listeners be bound, and gathers the ports of the image. */
static void prepare_ports(const struct editor *editor, struct port_set *listening,
                          struct port_set *taken)
{
    const struct rewarm_image_ports *ports = editor->edit->ports;
    for (size_t i = 0; i < editor->count; i++) {
        const FileEntry *entry = editor->items[i].entry;
        struct sockaddr_storage address;
        if (entry->type != REWARM_FD_INET)
            continue;
        add_port(taken, entry->isk->src_port);
        if (!is_listener(entry->isk))
            continue;
        add_port(listening, entry->isk->src_port);
        if (own_address(entry->isk, &address))
            ports->forget(ports->context, (const struct sockaddr *)&address);
    }
}

/* Which of the two ends called: not the one at a listener's port; if that does not tell (the
 * listener has been closed), the one at the higher port, as ports are given out above those that
 * servers have. */
static bool is_client(const struct port_set *listening, const InetSkEntry *sk,
                      const InetSkEntry *other)
{
    bool serves = has_port(listening, sk->src_port);
    if (serves != has_port(listening, other->src_port))
        return !serves;
    return sk->src_port >= other->src_port;
}

static int move_connection(struct editor *editor, struct port_set *taken, struct item *client,
                           struct item *server, struct rewarm_error *err)
{
    const struct rewarm_image_ports *ports = editor->edit->ports;
    struct sockaddr_storage address;
    own_address(client->entry->isk, &address); /* was checked when it was gathered */
    uint16_t port = 0;
    int rc = 0;
    for (int tries = 0; rc == 0 && (port == 0 || has_port(taken, port)); tries++)
        rc = tries < 256 ? ports->pick(ports->context, (const struct sockaddr *)&address, &port)
                         : -EADDRINUSE;
    if (rc != 0)
        return rewarm_error_set(err, REWARM_E_BUSY, -rc,
                                "there is no free local port for a TCP connection inside the "
                                "worker: restore it with a network namespace of its own");
    add_port(taken, port);
    client->entry->isk->src_port = port;
    server->entry->isk->dst_port = port;
    client->changed = server->changed = true;
    editor->report.tcp_moved++;
    return 0;
}

static int move_connections(struct editor *editor, const struct connection *connections,
                            size_t count, struct rewarm_error *err)
{
    struct port_set listening = {{0}}, taken = {{0}};
    int rc = 0;
    prepare_ports(editor, &listening, &taken);
    for (size_t i = 0; rc == 0 && i < count; i++) {
        const struct connection *one = &connections[i];
        const struct connection *other = other_end(connections, count, one);
        /* Each pair once; and none of an image in which two sockets have the same two ends. */
        if (other == NULL || other < one || other_end(connections, count, other) != one)
            continue;
        struct item *items[2] = {&editor->items[one->item], &editor->items[other->item]};
        bool first = is_client(&listening, items[0]->entry->isk, items[1]->entry->isk);
        rc = move_connection(editor, &taken, items[!first], items[first], err);
    }
    return rc;
}

static int edit_sockets(struct editor *editor, struct rewarm_error *err)
{
    rewarm_auto_free struct connection *connections =
        rewarm_mem_new(editor->count != 0 ? editor->count : 1, sizeof(*connections));
    size_t count = 0;
    int rc = gather_connections(editor, connections, &count, err);
    if (rc != 0)
        return rc;
    for (size_t i = 0; i < count; i++) {
        if (other_end(connections, count, &connections[i]) != NULL) {
            editor->report.tcp_kept++;
        } else {
            close_connection(&editor->items[connections[i].item]);
            editor->report.tcp_closed++;
        }
    }
    return editor->edit->ports != NULL ? move_connections(editor, connections, count, err) : 0;
}

/* --- regular files
 * ------------------------------------------------------------------------------------ */

/* Written at its end: by O_APPEND, or because that is where the descriptor stands. */
static bool is_log(const RegFileEntry *file)
{
    if ((file->flags & O_ACCMODE) == O_RDONLY)
        return false;
    return (file->flags & O_APPEND) != 0 || (file->has_size && file->pos >= file->size);
}

/* Regular, with a name, and opened by that name at restore. */
static bool is_checked(const struct editor *editor, const FileEntry *entry)
{
    if (entry->type != REWARM_FD_REG)
        return false;
    const RegFileEntry *file = entry->reg;
    return file->has_mode && S_ISREG(file->mode) && !(file->has_ext && file->ext) &&
           file->name[0] == '/' &&
           !rewarm_image_has_id(editor->edit->remaps, editor->edit->remap_count, file->id) &&
           !rewarm_image_has_id(editor->edit->links, editor->edit->link_count, file->id);
}

static bool is_inherited(const struct editor *editor, const char *key)
{
    for (size_t i = 0; i < editor->edit->skip_count; i++)
        if (strcmp(key, editor->edit->skip_keys[i]) == 0)
            return true;
    return false;
}

static int compare_paths(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static void gather_logs(struct editor *editor)
{
    editor->logs = rewarm_mem_new(editor->count != 0 ? editor->count : 1, sizeof(*editor->logs));
    for (size_t i = 0; i < editor->count; i++) {
        const FileEntry *entry = editor->items[i].entry;
        if (is_checked(editor, entry) && is_log(entry->reg))
            editor->logs[editor->log_count++] = entry->reg->name;
    }
    qsort(editor->logs, editor->log_count, sizeof(*editor->logs), compare_paths);
}

/* A log, or a reader of one. CRIU's check of the size goes, so that it may be written meanwhile;
 * its check of the mode is given what is there now. */
static void edit_log(struct editor *editor, struct item *item, const struct stat *st)
{
    RegFileEntry *file = item->entry->reg;
    uint64_t size = (uint64_t)st->st_size;
    bool resized = file->has_size && size != file->size;
    if (file->has_size || file->mode != st->st_mode)
        item->changed = true;
    file->mode = st->st_mode;
    if (resized && is_log(file)) {
        file->pos = size;
        editor->report.files_moved_to_end++;
    } else if (resized && file->pos > size) {
        file->pos = size;
    }
    file->has_size = false;
}

static int edit_file(struct editor *editor, struct item *item, struct rewarm_error *err)
{
    const struct rewarm_image_disk *disk = editor->edit->disk;
    RegFileEntry *file = item->entry->reg;
    const char *path = file->name;
    bool log = bsearch(&path, editor->logs, editor->log_count, sizeof(*editor->logs),
                       compare_paths) != NULL;
    struct stat st;
    int rc = disk->look(disk->context, path, &st);
    if (rc == -ENOENT && log) {
        rc = disk->create(disk->context, path, file->mode & 07777);
        if (rc == 0) {
            editor->report.files_created++;
            rc = disk->look(disk->context, path, &st);
        }
        if (rc != 0)
            return rewarm_error_set(err, REWARM_E_MISFIT, -rc,
                                    "the worker writes to %s, which has gone and can't be created",
                                    path);
    }
    if (rc == -ENOENT)
        return rewarm_error_set(err, REWARM_E_MISFIT, 0,
                                "%s, which the worker had open, has gone since the freeze: put it "
                                "back, or freeze anew",
                                path);
    if (rc != 0)
        return rewarm_error_set(err, REWARM_E_MISFIT, -rc,
                                "%s, which the worker had open, can't be looked at", path);
    if (!S_ISREG(st.st_mode))
        return rewarm_error_set(err, REWARM_E_MISFIT, 0,
                                "%s, which the worker had open, was a regular file at the freeze "
                                "and is none now",
                                path);
    if (log)
        edit_log(editor, item, &st);
    else if (file->has_size && (uint64_t)st.st_size != file->size)
        return rewarm_error_set(err, REWARM_E_MISFIT, 0,
                                "%s, which the worker had open, had %llu bytes at the freeze and "
                                "has %llu now: put it back, or freeze anew",
                                path, (unsigned long long)file->size,
                                (unsigned long long)st.st_size);
    return 0;
}

static int edit_files(struct editor *editor, struct rewarm_error *err)
{
    gather_logs(editor);
    for (size_t i = 0; i < editor->count; i++) {
        struct item *item = &editor->items[i];
        int rc = 0;
        if (is_checked(editor, item->entry) && !is_inherited(editor, item->entry->reg->name + 1))
            rc = edit_file(editor, item, err);
        if (rc != 0)
            return rc;
    }
    return 0;
}

/* --- inherited pipes
 * ---------------------------------------------------------------------------------- */

/* A copy that file_entry__free_unpacked() can free. */
static char *copy_bytes(const void *data, size_t bytes)
{
    char *copy = rewarm_mem_new(bytes + 1, 1);
    if (bytes != 0)
        memcpy(copy, data, bytes);
    return copy;
}

/* The regular file "/KEY" instead of the pipe: CRIU drops the slash, so the key stays the same. */
static void replace_pipe(struct item *item, const char *key)
{
    FileEntry *entry = item->entry;
    PipeEntry *pipe = entry->pipe;
    RegFileEntry *file = rewarm_mem_new(1, sizeof(*file));
    reg_file_entry__init(file);
    file->id = entry->id;
    file->flags = pipe->flags;
    file->fown.len = pipe->fown.len;
    file->fown.data = (uint8_t *)copy_bytes(pipe->fown.data, pipe->fown.len);
    file->name = rewarm_str_format("/%s", key);
    entry->pipe = NULL;
    pipe_entry__free_unpacked(pipe, NULL);
    if (entry->reg != NULL)
        reg_file_entry__free_unpacked(entry->reg, NULL);
    entry->reg = file;
    entry->type = REWARM_FD_REG;
    item->changed = true;
}

static int edit_pipes(struct editor *editor, struct rewarm_error *err)
{
    editor->pipe_ids = rewarm_mem_new(editor->count != 0 ? editor->count : 1, sizeof(uint32_t));
    for (size_t i = 0; i < editor->count; i++) {
        struct item *item = &editor->items[i];
        if (item->entry->type != REWARM_FD_PIPE)
            continue;
        if (item->entry->pipe == NULL)
            return rewarm_image_damaged(image_name, "an entry has no body", err);
        rewarm_auto_free char *key = rewarm_str_format("pipe:[%u]", item->entry->pipe->pipe_id);
        if (!is_inherited(editor, key))
            continue;
        replace_pipe(item, key);
        editor->pipe_ids[editor->pipe_count++] = item->entry->id;
        editor->report.pipes_inherited++;
    }
    qsort(editor->pipe_ids, editor->pipe_count, sizeof(uint32_t), rewarm_image_compare_ids);
    return 0;
}

int rewarm_image_edit_fdinfo(const char *name, const void *data, size_t bytes,
                             const uint32_t *pipe_ids, size_t pipe_count, uint8_t **ret_data,
                             size_t *ret_bytes, struct rewarm_error *err)
{
    struct rewarm_image_cursor cursor;
    int rc = rewarm_image_begin(name, data, bytes, REWARM_MAGIC_FDINFO, &cursor, err);
    if (rc != 0)
        return rc;
    /* An entry that was changed is at most as long as before: its kind became a smaller number.
     * Only an encoder that pads numbers could make it longer, and CRIU's does not. */
    rewarm_auto_free uint8_t *out = rewarm_mem_new(bytes, 1);
    size_t at = cursor.at, message_bytes;
    memcpy(out, data, at);
    bool changed = false;
    const uint8_t *message;
    while ((rc = rewarm_image_next(&cursor, &message, &message_bytes, err)) > 0) {
        FdinfoEntry *entry = fdinfo_entry__unpack(NULL, message_bytes, message);
        if (entry == NULL)
            return rewarm_image_damaged(name, "an entry can't be read", err);
        size_t out_bytes = message_bytes;
        if (entry->type == REWARM_FD_PIPE && rewarm_image_has_id(pipe_ids, pipe_count, entry->id)) {
            entry->type = REWARM_FD_REG;
            changed = true;
            out_bytes = fdinfo_entry__get_packed_size(entry);
            if (out_bytes <= message_bytes)
                fdinfo_entry__pack(entry, out + at + 4);
        } else if (message_bytes != 0) {
            memcpy(out + at + 4, message, message_bytes);
        }
        fdinfo_entry__free_unpacked(entry, NULL);
        if (out_bytes > message_bytes)
            return rewarm_image_damaged(name, "an entry is longer than it need be", err);
        uint32_t length = htole32((uint32_t)out_bytes);
        memcpy(out + at, &length, sizeof(length));
        at += 4 + out_bytes;
    }
    if (rc < 0)
        return rc;
    *ret_data = changed ? rewarm_steal_ptr(&out) : NULL;
    *ret_bytes = at;
    return 0;
}

/* --- CRIU's names for deleted files
 * ----------------------------------------------------------------------------------------------
 */

static void edit_links(struct editor *editor)
{
    const struct rewarm_image_edit *edit = editor->edit;
    for (size_t i = 0; edit->link_suffix != NULL && i < editor->count; i++) {
        struct item *item = &editor->items[i];
        if (item->entry->type != REWARM_FD_REG ||
            !rewarm_image_has_id(edit->links, edit->link_count, item->entry->reg->id))
            continue;
        char *name = rewarm_str_format("%s%s", item->entry->reg->name, edit->link_suffix);
        free(item->entry->reg->name);
        item->entry->reg->name = name;
        item->changed = true;
    }
}

/* --- the whole image
 * ---------------------------------------------------------------------------------- */

/* NULL when no entry was changed. */
static uint8_t *pack_items(const struct editor *editor, const void *data, size_t *ret_bytes)
{
    size_t bytes = editor->head_bytes;
    bool changed = false;
    for (size_t i = 0; i < editor->count; i++) {
        const struct item *item = &editor->items[i];
        changed |= item->changed;
        bytes += 4 + (item->changed ? file_entry__get_packed_size(item->entry) : item->raw_bytes);
    }
    if (!changed)
        return NULL;
    uint8_t *out = rewarm_mem_new(bytes, 1);
    memcpy(out, data, editor->head_bytes);
    size_t at = editor->head_bytes;
    for (size_t i = 0; i < editor->count; i++) {
        const struct item *item = &editor->items[i];
        size_t item_bytes = item->raw_bytes;
        if (item->changed)
            item_bytes = file_entry__pack(item->entry, out + at + 4);
        else
            memcpy(out + at + 4, item->raw, item_bytes);
        uint32_t length = htole32((uint32_t)item_bytes);
        memcpy(out + at, &length, sizeof(length));
        at += 4 + item_bytes;
    }
    *ret_bytes = at;
    return out;
}

int rewarm_image_edit_files(const void *data, size_t bytes, const struct rewarm_image_edit *edit,
                            struct rewarm_image_edited *ret_edited, struct rewarm_error *err)
{
    struct editor editor = {.edit = edit};
    int rc = load_items(&editor, data, bytes, err);
    if (rc == 0)
        rc = edit_sockets(&editor, err);
    if (rc == 0)
        rc = edit_files(&editor, err);
    if (rc == 0)
        rc = edit_pipes(&editor, err);
    if (rc == 0) {
        edit_links(&editor);
        *ret_edited = (struct rewarm_image_edited){
            .pipe_ids = rewarm_steal_ptr(&editor.pipe_ids),
            .pipe_count = editor.pipe_count,
            .report = editor.report,
        };
        ret_edited->data = pack_items(&editor, data, &ret_edited->bytes);
    }
    free_items(&editor);
    return rc;
}

/* Every descriptor table of the image: a pipe may have been handed to children. */
static int edit_tables(int dirfd, const uint32_t *pipe_ids, size_t pipe_count,
                       struct rewarm_error *err)
{
    rewarm_auto_fd int fd = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    rewarm_auto_dir DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
    if (dir == NULL)
        return rewarm_error_errno(err, "list CRIU's images");
    rewarm_steal_fd(&fd);
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        const char *name = entry->d_name;
        if (!rewarm_str_starts(name, "fdinfo-") || !rewarm_str_ends(name, ".img"))
            continue;
        rewarm_auto_free char *data = NULL;
        rewarm_auto_free uint8_t *edited = NULL;
        size_t bytes, edited_bytes = 0;
        int rc = rewarm_image_read(dirfd, name, &data, &bytes, err);
        if (rc == 0)
            rc = rewarm_image_edit_fdinfo(name, data, bytes, pipe_ids, pipe_count, &edited,
                                          &edited_bytes, err);
        if (rc == 0 && edited != NULL)
            rc = rewarm_fs_write_durable(dirfd, name, 0600, edited, edited_bytes, err);
        if (rc != 0)
            return rc;
    }
    return 0;
}

static int look_real(void *context, const char *path, struct stat *ret_stat)
{
    (void)context;
    return stat(path, ret_stat) == 0 ? 0 : -errno;
}

static int create_real(void *context, const char *path, mode_t mode)
{
    (void)context;
    rewarm_auto_fd int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return errno == EEXIST ? 0 : -errno;
    return fchmod(fd, mode) == 0 ? 0 : -errno;
}

static int pick_real(void *context, const struct sockaddr *address, uint16_t *ret_port)
{
    (void)context;
    return rewarm_tcp_port_pick(address, ret_port);
}

static void forget_real(void *context, const struct sockaddr *address)
{
    (void)context;
    rewarm_tcp_port_forget(address);
}

static int load_links(int dirfd, uint32_t **ret_ids, size_t *ret_count, struct rewarm_error *err)
{
    rewarm_auto_free struct rewarm_image_relink *relinks = NULL;
    size_t count = 0;
    int rc = rewarm_image_relinks(dirfd, &relinks, &count, err);
    if (rc != 0)
        return rc;
    uint32_t *ids = rewarm_mem_new(count != 0 ? count : 1, sizeof(*ids));
    for (size_t i = 0; i < count; i++)
        ids[i] = relinks[i].link_id;
    qsort(ids, count, sizeof(*ids), rewarm_image_compare_ids);
    *ret_ids = ids;
    *ret_count = count;
    return 0;
}

int rewarm_image_edit_for_restore(int dirfd, const struct rewarm_image_edit_options *options,
                                  struct rewarm_image_edits *ret_report, struct rewarm_error *err)
{
    static const struct rewarm_image_disk disk = {look_real, create_real, NULL};
    static const struct rewarm_image_ports ports = {pick_real, forget_real, NULL};
    rewarm_auto_free char *data = NULL;
    rewarm_auto_free uint32_t *remaps = NULL;
    rewarm_auto_free uint32_t *links = NULL;
    struct rewarm_image_edit edit = {.skip_keys = options->skip_keys,
                                     .skip_count = options->skip_count,
                                     .link_suffix = options->link_suffix,
                                     .ports = options->fresh_ports ? &ports : NULL,
                                     .disk = &disk};
    struct rewarm_image_edited edited;
    size_t bytes;
    int rc = rewarm_image_remaps(dirfd, &remaps, &edit.remap_count, err);
    if (rc == 0)
        rc = load_links(dirfd, &links, &edit.link_count, err);
    edit.remaps = remaps;
    edit.links = links;
    if (rc == 0)
        rc = rewarm_image_read(dirfd, image_name, &data, &bytes, err);
    if (rc == 0)
        rc = rewarm_image_edit_files(data, bytes, &edit, &edited, err);
    if (rc != 0)
        return rc;
    rewarm_auto_free uint8_t *edited_data = edited.data;
    rewarm_auto_free uint32_t *pipe_ids = edited.pipe_ids;
    if (edited.pipe_count != 0) /* first: if we die in between, another call does it again */
        rc = edit_tables(dirfd, pipe_ids, edited.pipe_count, err);
    if (rc == 0 && edited_data != NULL)
        rc = rewarm_fs_write_durable(dirfd, image_name, 0600, edited_data, edited.bytes, err);
    if (rc == 0)
        rc = rewarm_image_edit_shmem(dirfd, err);
    if (rc == 0 && ret_report != NULL)
        *ret_report = edited.report;
    return rc;
}

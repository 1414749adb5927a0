/* The writer: takes chunks, blobs and memory maps in, from any thread.
 *
 * A writer has a name's lock, locks/gc shared, and a staging directory of its own, where its pack
 * grows. A chunk is hashed with no lock held; the lock is held for the look-up in the table and for
 * reserving an offset; the bytes are written with no lock held. So a chunk that another thread is
 * still writing may already be referred to, which is harmless: when that write fails, the writer
 * has failed as a whole and publishes nothing.
 *
 * Every failure sticks, also of a blob or a map: a snapshot that lacks something must not come to
 * be because a caller overlooked a return value. */
#include "store/writer.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>

#include "base/clean.h"
#include "base/fs.h"
#include "base/str.h"
#include "store/digest.h"
#include "store/map.h"

/* Remembers the failure for all that follows, and gives it to the caller. */
static int fail(struct rewarm_store_writer *writer, const struct rewarm_error *error,
                struct rewarm_error *err)
{
    pthread_mutex_lock(&writer->lock);
    if (writer->failure.code == 0)
        writer->failure = *error;
    pthread_mutex_unlock(&writer->lock);
    if (err != NULL && err->code == 0)
        *err = *error;
    return -error->code;
}

/* Under the lock, with an empty `err`: 0, or why nothing more is taken in. */
static int check_open(const struct rewarm_store_writer *writer, struct rewarm_error *err)
{
    if (writer->failure.code != 0) {
        *err = writer->failure;
        return -err->code;
    }
    if (writer->published)
        return rewarm_error_set(err, REWARM_E_USAGE, 0, "snapshot %s is published already",
                                writer->name);
    return 0;
}

/* --- opening and closing
 * -------------------------------------------------------------------------------- */

static int write_owner(struct rewarm_store_writer *writer, struct rewarm_error *err)
{
    /* For people who look around; what tells gc that a writer is gone is its lock. */
    rewarm_auto_free char *stat = NULL;
    unsigned long long start_time = 0;
    int result = rewarm_fs_read_file(AT_FDCWD, "/proc/self/stat", 4096, &stat, NULL, err);
    if (result < 0)
        return result;
    const char *rest = strrchr(stat, ')'); /* the command may have spaces and parentheses */
    if (rest == NULL ||
        sscanf(rest + 1,
               " %*c %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %llu",
               &start_time) != 1)
        start_time = 0;
    rewarm_auto_free char *text =
        rewarm_str_format("%d %llu %s\n", (int)getpid(), start_time, writer->name);
    rewarm_auto_fd int fd = openat(writer->staging_fd, REWARM_STAGING_OWNER,
                                   O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return rewarm_error_errno(err, "cannot create %s", REWARM_STAGING_OWNER);
    return rewarm_fs_write_full(fd, text, strlen(text), REWARM_STAGING_OWNER, err);
}

static int make_staging(struct rewarm_store_writer *writer, struct rewarm_error *err)
{
    struct rewarm_store *store = writer->store;
    if (getrandom(writer->id, sizeof(writer->id), 0) != (ssize_t)sizeof(writer->id))
        return rewarm_error_errno(err, "cannot get random bytes");
    writer->id[6] = (uint8_t)((writer->id[6] & 0x0f) | 0x40); /* a version 4 UUID */
    writer->id[8] = (uint8_t)((writer->id[8] & 0x3f) | 0x80);
    rewarm_str_hex(writer->id, sizeof(writer->id), writer->hex);
    if (mkdirat(store->staging_fd, writer->hex, 0700) != 0)
        return rewarm_error_errno(err, "cannot make a staging directory (%s)",
                                  REWARM_STORE_NO_SPACE_HINT);
    writer->staging_fd =
        openat(store->staging_fd, writer->hex, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (writer->staging_fd < 0)
        return rewarm_error_errno(err, "cannot open the staging directory");
    int result = write_owner(writer, err);
    if (result < 0)
        return result;
    writer->files_path =
        rewarm_str_format("%s/staging/%s/%s", store->path, writer->hex, REWARM_STAGING_FILES);
    if (mkdirat(writer->staging_fd, REWARM_STAGING_FILES, 0700) != 0)
        return rewarm_error_errno(err, "cannot make %s (%s)", writer->files_path,
                                  REWARM_STORE_NO_SPACE_HINT);
    writer->pack_fd = openat(writer->staging_fd, REWARM_STAGING_PACK,
                             O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (writer->pack_fd < 0)
        return rewarm_error_errno(err, "cannot create a pack (%s)", REWARM_STORE_NO_SPACE_HINT);
    writer->next_offset = REWARM_PACK_HEADER_BYTES;
    return rewarm_pack_write_header(writer->pack_fd, writer->id, "a new pack", err);
}

int rewarm_store_writer_open(struct rewarm_store *store, const char *name,
                             struct rewarm_store_writer **ret_writer, struct rewarm_error *err)
{
    int result = rewarm_str_check_name(name, err);
    if (result < 0)
        return result;
    struct rewarm_store_writer *writer = rewarm_mem_new(1, sizeof(*writer));
    writer->store = store;
    writer->name = rewarm_str_dup(name);
    writer->gc_fd = writer->name_fd = writer->staging_fd = writer->pack_fd = -1;
    writer->own_pack = REWARM_WRITER_NO_PACK;
    pthread_mutex_init(&writer->lock, NULL);
    result = rewarm_store_lock_shared(store, &writer->gc_fd, err);
    if (result == 0)
        result = rewarm_store_lock_name(store, name, &writer->name_fd, err);
    if (result == 0)
        result = make_staging(writer, err);
    if (result == 0)
        result = rewarm_dedup_open(store, &writer->dedup, err);
    if (result < 0) {
        rewarm_store_writer_close(writer);
        return result;
    }
    size_t known = rewarm_dedup_packs(writer->dedup);
    writer->dedup_packs = rewarm_mem_new(known, sizeof(*writer->dedup_packs));
    for (size_t i = 0; i < known; i++)
        writer->dedup_packs[i] = REWARM_WRITER_NO_PACK;
    *ret_writer = writer;
    return 0;
}

const char *rewarm_store_writer_staging(const struct rewarm_store_writer *writer)
{
    return writer->files_path;
}

void rewarm_store_writer_close(struct rewarm_store_writer *writer)
{
    if (writer == NULL)
        return;
    rewarm_clean_fd(&writer->pack_fd);
    if (writer->staging_fd >= 0) {
        /* What can't be removed now, gc takes. */
        rewarm_fs_remove_tree(writer->store->staging_fd, writer->hex, NULL);
        close(writer->staging_fd);
    }
    rewarm_dedup_close(writer->dedup);
    for (size_t i = 0; i < writer->space_count; i++) {
        free(writer->spaces[i].windows);
        free(writer->spaces[i].runs);
    }
    for (size_t i = 0; i < writer->blob_count; i++) {
        free(writer->blobs[i].name);
        free(writer->blobs[i].chunks);
    }
    free(writer->spaces);
    free(writer->blobs);
    free(writer->packs);
    free(writer->dedup_packs);
    rewarm_chunk_table_fini(&writer->table);
    pthread_mutex_destroy(&writer->lock);
    free(writer->files_path);
    free(writer->name);
    /* The name before the store: gc may remove the name's lock file as soon as it has the store. */
    rewarm_clean_fd(&writer->name_fd);
    rewarm_clean_fd(&writer->gc_fd);
    free(writer);
}

/* --- chunks
 * --------------------------------------------------------------------------------------------- */

/* Under the lock. */
static uint32_t add_pack(struct rewarm_store_writer *writer, const struct rewarm_pack_ref *pack)
{
    REWARM_GROW(&writer->packs, &writer->pack_capacity, writer->pack_count);
    writer->packs[writer->pack_count] = *pack;
    return (uint32_t)writer->pack_count++;
}

/* Under the lock: an equal chunk of this snapshot. */
static bool find_own(struct rewarm_store_writer *writer, const struct rewarm_chunk *chunk,
                     uint32_t *ret_index)
{
    if (!rewarm_chunk_table_find(&writer->table, chunk->digest, ret_index))
        return false;
    writer->totals.chunks++;
    writer->totals.chunks_shared++;
    writer->totals.shared_bytes += chunk->raw_bytes;
    return true;
}

/* Under the lock: a chunk of a published pack becomes one of this snapshot. */
static uint32_t add_shared(struct rewarm_store_writer *writer, struct rewarm_chunk *chunk,
                           size_t dedup_pack)
{
    uint32_t *pack = &writer->dedup_packs[dedup_pack];
    if (*pack == REWARM_WRITER_NO_PACK) {
        struct rewarm_pack_ref ref = rewarm_dedup_pack(writer->dedup, dedup_pack);
        *pack = add_pack(writer, &ref);
    }
    chunk->pack = *pack;
    writer->totals.chunks++;
    writer->totals.chunks_shared++;
    writer->totals.shared_bytes += chunk->raw_bytes;
    return rewarm_chunk_table_add(&writer->table, chunk);
}

/* Under the lock: reserves room in our pack. */
static uint32_t add_new(struct rewarm_store_writer *writer, struct rewarm_chunk *chunk)
{
    if (writer->own_pack == REWARM_WRITER_NO_PACK) {
        struct rewarm_pack_ref ref = {.bytes = 0};
        memcpy(ref.id, writer->id, sizeof(ref.id));
        writer->own_pack = add_pack(writer, &ref);
    }
    chunk->pack = writer->own_pack;
    chunk->offset_bytes = writer->next_offset;
    writer->next_offset += rewarm_pack_align(chunk->stored_bytes);
    writer->totals.chunks++;
    writer->totals.stored_bytes += chunk->stored_bytes;
    return rewarm_chunk_table_add(&writer->table, chunk);
}

static int put_chunk(struct rewarm_store_writer *writer, const void *data, size_t bytes,
                     uint32_t *ret_chunk, struct rewarm_error *err)
{
    if (bytes == 0 || bytes > REWARM_WINDOW_BYTES)
        return rewarm_error_set(err, REWARM_E_USAGE, 0, "a chunk of %zu bytes is not possible",
                                bytes);
    struct rewarm_chunk chunk = {
        .raw_bytes = (uint32_t)bytes, .stored_bytes = (uint32_t)bytes, .codec = REWARM_CODEC_RAW};
    int result = rewarm_store_sha256(data, bytes, chunk.digest, err);
    if (result < 0)
        return result;
    pthread_mutex_lock(&writer->lock);
    result = check_open(writer, err);
    bool found = result == 0 && find_own(writer, &chunk, ret_chunk);
    pthread_mutex_unlock(&writer->lock);
    if (result < 0 || found)
        return result;

    chunk.xxh3 = rewarm_store_xxh3(data, bytes);
    struct rewarm_chunk stored;
    size_t dedup_pack;
    bool known = rewarm_dedup_find(writer->dedup, chunk.digest, data, bytes, &stored, &dedup_pack);

    bool fresh = false;
    pthread_mutex_lock(&writer->lock);
    result = check_open(writer, err);
    if (result == 0 && writer->table.count == UINT32_MAX - 1)
        result = rewarm_error_set(err, REWARM_E_REFUSED, 0, "too many chunks for one snapshot");
    /* Looked up again: another thread may have come with the same bytes meanwhile. */
    if (result == 0 && !find_own(writer, &chunk, ret_chunk)) {
        if (known) {
            *ret_chunk = add_shared(writer, &stored, dedup_pack);
        } else {
            *ret_chunk = add_new(writer, &chunk);
            fresh = true;
        }
    }
    pthread_mutex_unlock(&writer->lock);
    if (!fresh)
        return result;
    result = rewarm_fs_pwrite_full(writer->pack_fd, data, bytes, chunk.offset_bytes, "a pack", err);
    return result < 0
               ? rewarm_error_wrap(err, "cannot store a chunk (%s)", REWARM_STORE_NO_SPACE_HINT)
               : 0;
}

int rewarm_store_writer_put(struct rewarm_store_writer *writer, const void *data, size_t bytes,
                            uint32_t *ret_chunk, struct rewarm_error *err)
{
    struct rewarm_error error = REWARM_ERROR_INIT;
    uint32_t chunk;
    if (put_chunk(writer, data, bytes, &chunk, &error) < 0)
        return fail(writer, &error, err);
    *ret_chunk = chunk;
    return 0;
}

/* --- blobs and spaces
 * ----------------------------------------------------------------------------------- */

static int read_blob(struct rewarm_store_writer *writer, int fd, struct rewarm_pending_blob *blob,
                     struct rewarm_error *err)
{
    uint8_t *buffer = rewarm_store_scratch(REWARM_SCRATCH_BLOB);
    size_t capacity = 0, used = 0;
    bool end = false;
    while (!end) {
        ssize_t got = read(fd, buffer + used, REWARM_WINDOW_BYTES - used);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return rewarm_error_errno(err, "cannot read %s", blob->name);
        used += (size_t)got;
        end = got == 0;
        if (used < REWARM_WINDOW_BYTES && !(end && used > 0))
            continue;
        REWARM_GROW(&blob->chunks, &capacity, blob->chunk_count);
        int result = put_chunk(writer, buffer, used, &blob->chunks[blob->chunk_count], err);
        if (result < 0)
            return result;
        blob->chunk_count++;
        blob->bytes += used;
        used = 0;
    }
    return 0;
}

static int put_blob(struct rewarm_store_writer *writer, int dirfd, const char *name,
                    struct rewarm_error *err)
{
    if (!rewarm_map_blob_name_ok(name, strlen(name)))
        return rewarm_error_set(err, REWARM_E_USAGE, 0, "\"%s\" can't be the name of a blob", name);
    rewarm_auto_fd int fd = openat(dirfd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) != 0)
        return rewarm_error_errno(err, "cannot open %s", name);
    if (!S_ISREG(st.st_mode))
        return rewarm_error_set(err, REWARM_E_USAGE, 0, "%s is not a regular file", name);
    struct rewarm_pending_blob blob = {.name = rewarm_str_dup(name)};
    int result = read_blob(writer, fd, &blob, err);
    if (result < 0) {
        free(blob.name);
        free(blob.chunks);
        return result;
    }
    pthread_mutex_lock(&writer->lock);
    REWARM_GROW(&writer->blobs, &writer->blob_capacity, writer->blob_count);
    writer->blobs[writer->blob_count++] = blob;
    writer->totals.logical_bytes += blob.bytes;
    pthread_mutex_unlock(&writer->lock);
    return 0;
}

int rewarm_store_writer_put_blob(struct rewarm_store_writer *writer, int dirfd, const char *name,
                                 struct rewarm_error *err)
{
    struct rewarm_error error = REWARM_ERROR_INIT;
    return put_blob(writer, dirfd, name, &error) < 0 ? fail(writer, &error, err) : 0;
}

/* Copies windows and runs so that each window's runs follow the ones before. */
static void copy_space(struct rewarm_pending_space *pending, const struct rewarm_window *windows,
                       size_t window_count, const struct rewarm_run *runs)
{
    size_t run_count = 0;
    for (size_t i = 0; i < window_count; i++)
        run_count += windows[i].runs;
    pending->windows = rewarm_mem_new(window_count, sizeof(*windows));
    pending->runs = rewarm_mem_new(run_count, sizeof(*runs));
    for (size_t i = 0; i < window_count; i++) {
        pending->windows[i] = windows[i];
        pending->windows[i].first_run = (uint32_t)pending->run_count;
        pending->windows[i].reserved = 0;
        memcpy(pending->runs + pending->run_count, runs + windows[i].first_run,
               windows[i].runs * sizeof(*runs));
        pending->run_count += windows[i].runs;
    }
    pending->window_count = window_count;
}

static int put_space(struct rewarm_store_writer *writer, const struct rewarm_space *space,
                     const struct rewarm_window *windows, size_t window_count,
                     const struct rewarm_run *runs, size_t run_count, struct rewarm_error *err)
{
    uint64_t pages = 0;
    const char *problem =
        rewarm_map_space_problem(space, windows, window_count, runs, run_count,
                                 writer->table.chunks, writer->table.count, &pages);
    for (size_t i = 0; i < writer->space_count; i++)
        if (writer->spaces[i].space.pid == space->pid)
            problem = "it was handed over already";
    if (problem != NULL)
        return rewarm_error_set(err, REWARM_E_USAGE, 0, "the memory map of process %d is wrong: %s",
                                space->pid, problem);
    struct rewarm_pending_space pending = {.space = *space, .pages = pages};
    copy_space(&pending, windows, window_count, runs);
    REWARM_GROW(&writer->spaces, &writer->space_capacity, writer->space_count);
    writer->spaces[writer->space_count++] = pending;
    writer->totals.logical_bytes += space->lazy_pages * REWARM_PAGE_BYTES;
    writer->totals.zero_bytes += (space->lazy_pages - pages) * REWARM_PAGE_BYTES;
    return 0;
}

int rewarm_store_writer_put_space(struct rewarm_store_writer *writer,
                                  const struct rewarm_space *space,
                                  const struct rewarm_window *windows, size_t window_count,
                                  const struct rewarm_run *runs, size_t run_count,
                                  struct rewarm_error *err)
{
    struct rewarm_error error = REWARM_ERROR_INIT;
    pthread_mutex_lock(&writer->lock);
    int result = check_open(writer, &error);
    if (result == 0)
        result = put_space(writer, space, windows, window_count, runs, run_count, &error);
    pthread_mutex_unlock(&writer->lock);
    return result < 0 ? fail(writer, &error, err) : 0;
}

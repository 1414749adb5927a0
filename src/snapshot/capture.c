/* From a stopped tree to the store.
 *
 * The pages that CRIU lists as lazy are cut into windows (io/memmap.h). Readers take windows by an
 * atomic counter, read each with one process_vm_readv() into their current *batch* (an arena slot),
 * squeeze out its zero pages while it is still in the cache, and pass full batches on through a
 * queue. Storers take batches, put each window as a chunk, and give the slot back. With an arena
 * that holds everything the storers start only once the tree runs again. A failure anywhere stops
 * the arena and the queue, which ends all threads. */
#include "snapshot/capture.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>

#include "base/clean.h"
#include "base/fs.h"
#include "base/str.h"
#include "base/time.h"
#include "base/trace.h"
#include "io/arena.h"
#include "io/parallel.h"
#include "proc/criu_image.h"

#define SLOT_BYTES      ((size_t)4 << 20)
#define WINDOW_PAGES    (REWARM_WINDOW_BYTES / REWARM_PAGE_BYTES)
#define BOUNDED_BYTES   ((uint64_t)256 << 20)
#define MAX_BATCH_PARTS (SLOT_BYTES / REWARM_PAGE_BYTES)

/* Consecutive lazy pages of one window. */
struct piece {
    uint64_t vaddr;
    uint32_t pages;
};

struct job { /* a window to read */
    uint64_t vaddr;
    uint32_t space;
    uint32_t first_piece, pieces;
    uint32_t run_count; /* 0 after reading: all zero */
    uint32_t chunk;
    struct rewarm_run *runs;
};

struct part { /* a window in a batch */
    size_t job;
    uint32_t offset_bytes, bytes;
};

struct batch {
    struct batch *next;
    char *slot;
    size_t used_bytes;
    size_t part_count, part_capacity;
    struct part *parts;
};

struct rewarm_capture {
    struct rewarm_arena *arena;
    uint64_t arena_bytes;
    unsigned threads;

    struct rewarm_space *spaces;
    int *mem_fds; /* /proc/PID/mem by space: for pages that process_vm_readv() may not read */
    size_t space_count;
    struct piece *pieces;
    size_t piece_count, piece_capacity;
    struct job *jobs;
    size_t job_count, job_capacity;

    atomic_size_t next_job;
    atomic_uint_fast64_t read_bytes, stored_bytes;
    uint64_t total_bytes, queued_bytes;
    unsigned readers; /* still running, under the lock */

    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct batch *first, *last;
    bool stopped;

    struct rewarm_store_writer *writer;
    const struct rewarm_progress *progress;
};

static uint64_t memory_available(void)
{
    rewarm_auto_free char *text = NULL;
    if (rewarm_fs_read_file(AT_FDCWD, "/proc/meminfo", 65536, &text, NULL, NULL) != 0)
        return 0;
    const char *line = strstr(text, "MemAvailable:");
    return line != NULL ? strtoull(line + strlen("MemAvailable:"), NULL, 10) * 1024 : 0;
}

int rewarm_capture_new(uint64_t estimate_bytes, bool bounded, struct rewarm_capture **ret_capture,
                       struct rewarm_error *err)
{
    unsigned threads = rewarm_parallel_width();
    /* A slot's last window may not fit: a sixteenth more; and one open slot a reader. */
    uint64_t wanted = estimate_bytes + estimate_bytes / 16 + (threads + 1) * SLOT_BYTES;
    uint64_t most = memory_available() / 2;
    if (bounded && most > BOUNDED_BYTES)
        most = BOUNDED_BYTES;
    if (wanted > most)
        wanted = most;
    uint64_t least = (threads + 2) * SLOT_BYTES;
    size_t slots = (size_t)((wanted > least ? wanted : least) / SLOT_BYTES);
    struct rewarm_capture *capture = rewarm_mem_new(1, sizeof(*capture));
    capture->threads = threads;
    capture->arena_bytes = slots * SLOT_BYTES;
    pthread_mutex_init(&capture->lock, NULL);
    pthread_cond_init(&capture->changed, NULL);
    int result = rewarm_arena_new(slots, SLOT_BYTES, threads, &capture->arena, err);
    if (result != 0) {
        rewarm_capture_free(capture);
        return result;
    }
    *ret_capture = capture;
    return 0;
}

static void batch_free(struct batch *batch)
{
    free(batch->parts);
    free(batch);
}

void rewarm_capture_free(struct rewarm_capture *capture)
{
    if (capture == NULL)
        return;
    while (capture->first != NULL) {
        struct batch *batch = capture->first;
        capture->first = batch->next;
        batch_free(batch);
    }
    for (size_t i = 0; i < capture->job_count; i++)
        free(capture->jobs[i].runs);
    for (size_t i = 0; i < capture->space_count; i++) {
        if (capture->mem_fds[i] >= 0)
            close(capture->mem_fds[i]);
    }
    rewarm_arena_free(capture->arena);
    pthread_mutex_destroy(&capture->lock);
    pthread_cond_destroy(&capture->changed);
    free(capture->mem_fds);
    free(capture->spaces);
    free(capture->pieces);
    free(capture->jobs);
    free(capture);
}

/* --- planning ------------------------------------------------------------------------------------
 */

static void plan_range(struct rewarm_capture *capture, uint32_t space, uint64_t vaddr, uint64_t end)
{
    while (vaddr < end) {
        uint64_t window = vaddr & ~(uint64_t)(REWARM_WINDOW_BYTES - 1);
        uint64_t stop = window + REWARM_WINDOW_BYTES < end ? window + REWARM_WINDOW_BYTES : end;
        struct job *job = capture->job_count != 0 ? &capture->jobs[capture->job_count - 1] : NULL;
        if (job == NULL || job->space != space || job->vaddr != window) {
            REWARM_GROW(&capture->jobs, &capture->job_capacity, capture->job_count);
            job = &capture->jobs[capture->job_count++];
            *job = (struct job){
                .vaddr = window, .space = space, .first_piece = (uint32_t)capture->piece_count};
        }
        REWARM_GROW(&capture->pieces, &capture->piece_capacity, capture->piece_count);
        capture->pieces[capture->piece_count++] =
            (struct piece){vaddr, (uint32_t)((stop - vaddr) / REWARM_PAGE_BYTES)};
        job->pieces++;
        vaddr = stop;
    }
}

static int plan_space(struct rewarm_capture *capture, int images_dirfd, int32_t pid,
                      struct rewarm_error *err)
{
    struct rewarm_image_pages *entries = NULL;
    size_t count = 0;
    int result = rewarm_image_pagemap(images_dirfd, pid, &entries, &count, err);
    if (result != 0)
        return result;
    uint32_t index = (uint32_t)capture->space_count++;
    struct rewarm_space *space = &capture->spaces[index];
    *space = (struct rewarm_space){.pid = pid};
    rewarm_auto_free char *path = rewarm_str_format("/proc/%d/mem", (int)pid);
    capture->mem_fds[index] = open(path, O_RDONLY | O_CLOEXEC);
    for (size_t i = 0; i < count; i++) {
        if ((entries[i].flags & REWARM_PE_LAZY) == 0)
            continue;
        space->lazy_pages += entries[i].pages;
        plan_range(capture, index, entries[i].vaddr,
                   entries[i].vaddr + entries[i].pages * REWARM_PAGE_BYTES);
    }
    capture->total_bytes += space->lazy_pages * REWARM_PAGE_BYTES;
    free(entries);
    return 0;
}

/* --- reading -------------------------------------------------------------------------------------
 */

static bool page_is_zero(const char *page)
{
    const uint64_t *words = (const uint64_t *)(const void *)page;
    for (size_t i = 0; i < REWARM_PAGE_BYTES / 8; i += 8) {
        if ((words[i] | words[i + 1] | words[i + 2] | words[i + 3] | words[i + 4] | words[i + 5] |
             words[i + 6] | words[i + 7]) != 0)
            return false;
    }
    return true;
}

/* Page by page through /proc/PID/mem, which reads what the protection bits forbid (PROT_NONE with
 * content). */
static int read_forced(struct rewarm_capture *capture, const struct job *job, char *buffer,
                       struct rewarm_error *err)
{
    int fd = capture->mem_fds[job->space];
    const struct piece *pieces = &capture->pieces[job->first_piece];
    size_t at = 0;
    for (uint32_t i = 0; i < job->pieces; i++) {
        size_t bytes = (size_t)pieces[i].pages * REWARM_PAGE_BYTES;
        int result = rewarm_fs_pread_full(fd, buffer + at, bytes, pieces[i].vaddr,
                                          "the stopped process's memory", err);
        if (result != 0)
            return rewarm_error_wrap(err, "process %d", (int)capture->spaces[job->space].pid);
        at += bytes;
    }
    return 0;
}

static int read_window(struct rewarm_capture *capture, const struct job *job, char *buffer,
                       size_t *ret_bytes, struct rewarm_error *err)
{
    struct iovec remote[WINDOW_PAGES];
    size_t bytes = 0;
    for (uint32_t i = 0; i < job->pieces; i++) {
        const struct piece *piece = &capture->pieces[job->first_piece + i];
        remote[i].iov_base = (void *)(uintptr_t)piece->vaddr; // NOLINT: an address over there
        remote[i].iov_len = (size_t)piece->pages * REWARM_PAGE_BYTES;
        bytes += remote[i].iov_len;
    }
    struct iovec local = {buffer, bytes};
    pid_t pid = capture->spaces[job->space].pid;
    ssize_t n = process_vm_readv(pid, &local, 1, remote, job->pieces, 0);
    if (n != (ssize_t)bytes) {
        int result = read_forced(capture, job, buffer, err);
        if (result != 0)
            return result;
    }
    *ret_bytes = bytes;
    return 0;
}

/* Squeezes out zero pages and records the runs of what is left. Returns the bytes left. */
static size_t squeeze(struct rewarm_capture *capture, struct job *job, char *buffer)
{
    struct rewarm_run runs[WINDOW_PAGES];
    uint32_t count = 0;
    uint32_t kept = 0;
    uint32_t seen = 0;
    for (uint32_t i = 0; i < job->pieces; i++) {
        const struct piece *piece = &capture->pieces[job->first_piece + i];
        for (uint32_t p = 0; p < piece->pages; p++, seen++) {
            char *page = buffer + (size_t)seen * REWARM_PAGE_BYTES;
            if (page_is_zero(page))
                continue;
            uint64_t vaddr = piece->vaddr + (uint64_t)p * REWARM_PAGE_BYTES;
            if (seen != kept)
                memcpy(buffer + (size_t)kept * REWARM_PAGE_BYTES, page, REWARM_PAGE_BYTES);
            struct rewarm_run *last = count != 0 ? &runs[count - 1] : NULL;
            if (last != NULL && last->vaddr + (uint64_t)last->pages * REWARM_PAGE_BYTES == vaddr)
                last->pages++;
            else
                runs[count++] = (struct rewarm_run){vaddr, 1, kept};
            kept++;
        }
    }
    job->run_count = count;
    if (count != 0) {
        job->runs = rewarm_mem_new(count, sizeof(*runs));
        memcpy(job->runs, runs, count * sizeof(*runs));
    }
    return (size_t)kept * REWARM_PAGE_BYTES;
}

static void stop_all(struct rewarm_capture *capture)
{
    pthread_mutex_lock(&capture->lock);
    capture->stopped = true;
    pthread_cond_broadcast(&capture->changed);
    pthread_mutex_unlock(&capture->lock);
    rewarm_arena_stop(capture->arena);
}

static void push(struct rewarm_capture *capture, struct batch *batch)
{
    pthread_mutex_lock(&capture->lock);
    if (capture->last != NULL)
        capture->last->next = batch;
    else
        capture->first = batch;
    capture->last = batch;
    capture->queued_bytes += batch->used_bytes;
    pthread_cond_signal(&capture->changed);
    pthread_mutex_unlock(&capture->lock);
}

/* The next batch; NULL when there is none and none will come. */
static struct batch *pop(struct rewarm_capture *capture)
{
    pthread_mutex_lock(&capture->lock);
    while (capture->first == NULL && capture->readers != 0 && !capture->stopped)
        pthread_cond_wait(&capture->changed, &capture->lock);
    struct batch *batch = capture->stopped ? NULL : capture->first;
    if (batch != NULL) {
        capture->first = batch->next;
        if (capture->first == NULL)
            capture->last = NULL;
        batch->next = NULL;
    }
    pthread_mutex_unlock(&capture->lock);
    return batch;
}

static int read_jobs(struct rewarm_capture *capture, struct batch **batch, bool report,
                     uint64_t *own_bytes, struct rewarm_error *err)
{
    for (;;) {
        size_t index = atomic_fetch_add(&capture->next_job, 1);
        if (index >= capture->job_count)
            return 0;
        struct job *job = &capture->jobs[index];
        if (*batch != NULL && (*batch)->used_bytes + REWARM_WINDOW_BYTES > SLOT_BYTES) {
            push(capture, *batch);
            *batch = NULL;
        }
        if (*batch == NULL) {
            char *slot = rewarm_arena_get(capture->arena);
            if (slot == NULL)
                return rewarm_error_set(err, REWARM_E_CANCELLED, 0, "the capture was stopped");
            *batch = rewarm_mem_new(1, sizeof(**batch));
            (*batch)->slot = slot;
        }
        char *buffer = (*batch)->slot + (*batch)->used_bytes;
        size_t bytes = 0;
        int result = read_window(capture, job, buffer, &bytes, err);
        if (result != 0)
            return result;
        size_t kept = squeeze(capture, job, buffer);
        if (kept != 0) {
            struct batch *b = *batch;
            REWARM_GROW(&b->parts, &b->part_capacity, b->part_count);
            b->parts[b->part_count++] =
                (struct part){index, (uint32_t)b->used_bytes, (uint32_t)kept};
            b->used_bytes += kept;
        }
        *own_bytes += bytes;
        uint64_t done = atomic_fetch_add(&capture->read_bytes, bytes) + bytes;
        if (report && capture->progress != NULL)
            capture->progress->update(capture->progress->context, "read", done,
                                      capture->total_bytes);
    }
}

static int reader(struct rewarm_capture *capture, unsigned index, struct rewarm_error *err)
{
    uint64_t start = rewarm_time_now_ns();
    struct batch *batch = NULL;
    uint64_t own_bytes = 0;
    int result = read_jobs(capture, &batch, index == 0, &own_bytes, err);
    if (result != 0)
        stop_all(capture);
    if (batch != NULL)
        push(capture, batch);
    pthread_mutex_lock(&capture->lock);
    capture->readers--;
    pthread_cond_broadcast(&capture->changed);
    pthread_mutex_unlock(&capture->lock);
    char lane[32];
    snprintf(lane, sizeof(lane), "read %u", index);
    rewarm_trace_span(lane, "memory", start, rewarm_time_now_ns(), own_bytes);
    return result;
}

static int storer(struct rewarm_capture *capture, unsigned index, bool report,
                  struct rewarm_error *err)
{
    uint64_t start = rewarm_time_now_ns();
    uint64_t own = 0;
    int result = 0;
    for (struct batch *batch; result == 0 && (batch = pop(capture)) != NULL; batch_free(batch)) {
        for (size_t i = 0; result == 0 && i < batch->part_count; i++) {
            const struct part *part = &batch->parts[i];
            result = rewarm_store_writer_put(capture->writer, batch->slot + part->offset_bytes,
                                             part->bytes, &capture->jobs[part->job].chunk, err);
            own += part->bytes;
        }
        rewarm_arena_put(capture->arena, batch->slot);
        uint64_t done =
            atomic_fetch_add(&capture->stored_bytes, batch->used_bytes) + batch->used_bytes;
        if (report && capture->progress != NULL)
            capture->progress->update(capture->progress->context, "store", done,
                                      capture->queued_bytes);
    }
    if (result != 0)
        stop_all(capture);
    char lane[32];
    snprintf(lane, sizeof(lane), "store %u", index);
    rewarm_trace_span(lane, "chunks", start, rewarm_time_now_ns(), own);
    return result;
}

static int read_worker(void *context, unsigned index, struct rewarm_error *err)
{
    struct rewarm_capture *capture = context;
    if (index < capture->threads)
        return reader(capture, index, err);
    return storer(capture, index - capture->threads, false, err);
}

static int store_worker(void *context, unsigned index, struct rewarm_error *err)
{
    return storer(context, index, index == 0, err);
}

int rewarm_capture_read(struct rewarm_capture *capture, int images_dirfd, const int32_t *pids,
                        size_t pid_count, struct rewarm_store_writer *writer,
                        const struct rewarm_progress *progress, struct rewarm_error *err)
{
    capture->writer = writer;
    capture->progress = progress;
    capture->spaces = rewarm_mem_new(pid_count, sizeof(*capture->spaces));
    capture->mem_fds = rewarm_mem_new(pid_count, sizeof(*capture->mem_fds));
    for (size_t i = 0; i < pid_count; i++) {
        int result = plan_space(capture, images_dirfd, pids[i], err);
        if (result != 0)
            return result;
    }
    capture->readers = capture->threads;
    bool fits = capture->total_bytes + capture->total_bytes / 16 + capture->threads * SLOT_BYTES <=
                capture->arena_bytes;
    return rewarm_parallel_run(fits ? capture->threads : 2 * capture->threads, read_worker, capture,
                               err);
}

/* Windows and runs of one process, in address order: jobs are. */
static int put_space(struct rewarm_capture *capture, uint32_t index, size_t *next_job,
                     struct rewarm_error *err)
{
    size_t first = *next_job;
    size_t last = first;
    size_t run_count = 0;
    for (; last < capture->job_count && capture->jobs[last].space == index; last++)
        run_count += capture->jobs[last].run_count;
    *next_job = last;
    rewarm_auto_free struct rewarm_window *windows = rewarm_mem_new(last - first, sizeof(*windows));
    rewarm_auto_free struct rewarm_run *runs = rewarm_mem_new(run_count, sizeof(*runs));
    size_t window_count = 0;
    run_count = 0;
    for (size_t i = first; i < last; i++) {
        const struct job *job = &capture->jobs[i];
        if (job->run_count == 0)
            continue;
        windows[window_count++] = (struct rewarm_window){.vaddr = job->vaddr,
                                                         .first_run = (uint32_t)run_count,
                                                         .runs = job->run_count,
                                                         .chunk = job->chunk};
        memcpy(&runs[run_count], job->runs, job->run_count * sizeof(*runs));
        run_count += job->run_count;
    }
    return rewarm_store_writer_put_space(capture->writer, &capture->spaces[index], windows,
                                         window_count, runs, run_count, err);
}

int rewarm_capture_store(struct rewarm_capture *capture, struct rewarm_store_writer *writer,
                         const struct rewarm_progress *progress, struct rewarm_error *err)
{
    capture->writer = writer;
    capture->progress = progress;
    int result = rewarm_parallel_run(capture->threads, store_worker, capture, err);
    size_t next_job = 0;
    for (uint32_t i = 0; result == 0 && i < capture->space_count; i++)
        result = put_space(capture, i, &next_job, err);
    return result;
}

/* One address space: its layout, which of its windows are done, and the kernel's messages about it.
 *
 * The kernel refuses copies (EAGAIN) from the moment a layout change starts until its event has
 * been *read*, and no longer. A copy that was decided on before the read and issued after it would
 * put stale bytes where a new mapping or a discarded page is. So messages are read with the
 * process's lock held for writing, and it is kept until the layout is up to date, while whoever
 * copies decides and copies under one read lock. Faults of the same batch are queued and answered
 * later, by the new layout.
 *
 * A fork's event brings the child's descriptor. The child starts with its parent's layout and done
 * windows: the kernel has copied no page in between, for the same reason. */
#include "proc/lazy_private.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clean.h"
#include "base/str.h"

#define MESSAGES  16
#define WORD_BITS 64u

static size_t words(uint64_t bits)
{
    return (size_t)((bits + WORD_BITS - 1) / WORD_BITS);
}

static bool bit(const uint64_t *set, uint64_t at)
{
    return (set[at / WORD_BITS] >> (at % WORD_BITS) & 1) != 0;
}

static void set_bit(uint64_t *set, uint64_t at)
{
    set[at / WORD_BITS] |= (uint64_t)1 << (at % WORD_BITS);
}

static void clear_bit(uint64_t *set, uint64_t at)
{
    set[at / WORD_BITS] &= ~((uint64_t)1 << (at % WORD_BITS));
}

static uint64_t window_bytes(const struct rewarm_memmap *map, const struct rewarm_space *space,
                             uint64_t window)
{
    const struct rewarm_window *w = &map->windows[space->first_window + window];
    uint64_t pages = 0;
    for (uint32_t i = 0; i < w->runs; i++)
        pages += map->runs[w->first_run + i].pages;
    return pages * REWARM_PAGE_BYTES;
}

/* CRIU opens its descriptors non-blocking, and a child's is like its parent's; poll(2) reports
 * nothing but an error for any other. */
static int set_nonblocking(int uffd, struct rewarm_error *err)
{
    int flags = fcntl(uffd, F_GETFL);
    if (flags < 0 || ((flags & O_NONBLOCK) == 0 && fcntl(uffd, F_SETFL, flags | O_NONBLOCK) != 0))
        return rewarm_error_errno(err, "can't prepare a userfaultfd");
    return 0;
}

/* Layout and done windows as the parent's, but for what fork wipes. */
static void inherit(struct lazy_process *child, const struct lazy_process *parent)
{
    const struct rewarm_lazy_options *options = child->service->options;
    rewarm_lazy_ranges_copy(&child->ranges, &parent->ranges);
    for (size_t i = 0; i < options->wipe_count; i++) {
        const struct rewarm_lazy_wipe *wipe = &options->wipes[i];
        if (wipe->pid == child->pid)
            rewarm_lazy_ranges_forget(&child->ranges, wipe->start, wipe->end);
    }
}

static void init_windows(struct lazy_process *process, const struct lazy_process *parent)
{
    uint64_t windows = process->space != NULL ? process->space->windows : 0;
    process->claimed = rewarm_mem_new(words(windows) + 1, sizeof(uint64_t));
    process->done = rewarm_mem_new(words(windows) + 1, sizeof(uint64_t));
    if (parent != NULL) {
        process->remaining = parent->remaining;
        process->remaining_bytes = parent->remaining_bytes;
        memcpy(process->claimed, parent->done, words(windows) * sizeof(uint64_t));
        memcpy(process->done, parent->done, words(windows) * sizeof(uint64_t));
        return;
    }
    process->remaining = windows;
    for (uint64_t i = 0; i < windows; i++)
        process->remaining_bytes += window_bytes(process->service->options->map, process->space, i);
}

int rewarm_lazy_process_add(struct lazy_service *service, int32_t pid, int uffd,
                            const struct lazy_process *parent, struct rewarm_error *err)
{
    int result = set_nonblocking(uffd, err);
    if (result != 0)
        return result;
    struct lazy_process *process = rewarm_mem_new(1, sizeof(*process));
    process->service = service;
    process->pid = pid;
    process->space =
        parent != NULL ? parent->space : rewarm_memmap_space(service->options->map, pid);
    process->fd = uffd;
    pthread_rwlockattr_t attributes;
    pthread_rwlockattr_init(&attributes);
    /* An event must not wait for a stream of copiers that never ends. */
    pthread_rwlockattr_setkind_np(&attributes, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(&process->lock, &attributes);
    pthread_rwlockattr_destroy(&attributes);
    if (parent != NULL)
        inherit(process, parent);
    else
        rewarm_lazy_ranges_init(&process->ranges);

    pthread_mutex_lock(&service->lock);
    init_windows(process, parent);
    service->total_bytes += process->remaining_bytes;
    REWARM_GROW(&service->processes, &service->process_capacity, service->process_count);
    service->processes[service->process_count++] = process;
    REWARM_GROW(&service->live, &service->live_capacity, service->live_count);
    service->live[service->live_count++] = process;
    pthread_mutex_unlock(&service->lock);

    result = rewarm_lazy_watch(service, uffd, (uint64_t)(uintptr_t)process, err);
    if (result == 0) {
        rewarm_lazy_process_close_if_whole(process);
        if (rewarm_lazy_is_running(service))
            rewarm_lazy_kick(service, service->workers);
    }
    return result;
}

void rewarm_lazy_process_free(struct lazy_process *process)
{
    rewarm_lazy_ranges_fini(&process->ranges);
    pthread_rwlock_destroy(&process->lock);
    free(process->claimed);
    free(process->done);
    free(process);
}

/* The caller holds the lock for writing. */
static int apply(struct lazy_process *process, const struct uffd_msg *message,
                 struct rewarm_error *err)
{
    struct lazy_service *service = process->service;
    __atomic_fetch_add(&service->stats.events, 1, __ATOMIC_RELAXED);
    switch (message->event) {
    case UFFD_EVENT_FORK:
        __atomic_fetch_add(&service->stats.forks, 1, __ATOMIC_RELAXED);
        return rewarm_lazy_process_add(service, process->pid, (int)message->arg.fork.ufd, process,
                                       err);
    case UFFD_EVENT_REMAP:
        rewarm_lazy_ranges_move(&process->ranges, message->arg.remap.from, message->arg.remap.to,
                                message->arg.remap.len);
        return 0;
    case UFFD_EVENT_REMOVE:
    case UFFD_EVENT_UNMAP:
        rewarm_lazy_ranges_drop(&process->ranges, message->arg.remove.start,
                                message->arg.remove.end);
        return 0;
    default:
        return rewarm_error_set(err, REWARM_E_SYSTEM, 0,
                                "the kernel sent an unknown userfaultfd event (%u) for process %d",
                                message->event, process->pid);
    }
}

/* Returns how many messages were read (0: none waited), or a negative code. */
static int read_messages(const struct lazy_process *process, struct uffd_msg *messages,
                         struct rewarm_error *err)
{
    ssize_t got;
    do
        got = read(process->fd, messages, MESSAGES * sizeof(*messages));
    while (got < 0 && errno == EINTR);
    if (got < 0 && errno == EAGAIN)
        return 0;
    if (got < 0 && (errno == EMFILE || errno == ENFILE))
        return rewarm_error_set(err, REWARM_E_SYSTEM, errno,
                                "process %d forks: no descriptor is left to serve the child "
                                "(raise the open file limit)",
                                process->pid);
    if (got < 0)
        return rewarm_error_errno(err, "can't read the userfaultfd of process %d", process->pid);
    return (int)((size_t)got / sizeof(*messages));
}

/* `takes_one`: the caller is about to answer one itself; somebody is woken for each other. */
static void queue_faults(struct lazy_process *process, const struct uffd_msg *messages, int count,
                         bool takes_one)
{
    struct lazy_service *service = process->service;
    unsigned queued = 0;
    pthread_mutex_lock(&service->lock);
    for (int i = 0; i < count; i++) {
        if (messages[i].event != UFFD_EVENT_PAGEFAULT)
            continue;
        uint64_t address = messages[i].arg.pagefault.address & ~(uint64_t)(REWARM_PAGE_BYTES - 1);
        REWARM_GROW(&service->faults, &service->fault_capacity, service->fault_count);
        service->faults[service->fault_count++] =
            (struct lazy_fault){.process = process, .address = address};
        queued++;
    }
    pthread_mutex_unlock(&service->lock);
    if (queued != 0)
        __atomic_fetch_add(&service->stats.faults, queued, __ATOMIC_RELAXED);
    if (queued != 0 && takes_one)
        queued--;
    rewarm_lazy_kick(service, queued);
}

int rewarm_lazy_process_drain(struct lazy_process *process, bool rewatch, bool *ret_any,
                              struct rewarm_error *err)
{
    struct uffd_msg messages[MESSAGES];
    int count = 0, result = 0;
    pthread_rwlock_wrlock(&process->lock);
    if (process->fd >= 0) {
        count = read_messages(process, messages, err);
        for (int i = 0; i < count && result == 0; i++) {
            if (messages[i].event != UFFD_EVENT_PAGEFAULT)
                result = apply(process, &messages[i], err);
        }
        if (rewatch)
            rewarm_lazy_rewatch(process->service, process->fd, (uint64_t)(uintptr_t)process);
    }
    pthread_rwlock_unlock(&process->lock);
    if (count < 0 || result != 0)
        return count < 0 ? count : result;
    if (count > 0)
        queue_faults(process, messages, count, rewatch);
    if (ret_any != NULL)
        *ret_any = count > 0;
    return 0;
}

void rewarm_lazy_process_close(struct lazy_process *process)
{
    struct lazy_service *service = process->service;
    pthread_rwlock_wrlock(&process->lock);
    int fd = process->fd;
    if (fd >= 0) {
        /* Closing ends it all at once: no page goes missing any more, whoever waits on a fault or
         * an event goes on, and so does a fork in flight, whose child has all that its parent has.
         */
        __atomic_store_n(&process->fd, -1, __ATOMIC_RELAXED);
        rewarm_lazy_unwatch(service, fd);
        close(fd);
        rewarm_lazy_ranges_fini(&process->ranges);
    }
    pthread_rwlock_unlock(&process->lock);
    if (fd < 0)
        return;

    pthread_mutex_lock(&service->lock);
    free(rewarm_steal_ptr(&process->claimed));
    free(rewarm_steal_ptr(&process->done));
    service->progress_bytes += process->remaining_bytes;
    __atomic_fetch_add(&service->stats.dropped_bytes, process->remaining_bytes, __ATOMIC_RELAXED);
    process->remaining_bytes = process->remaining = 0;
    for (size_t i = 0; i < service->live_count; i++) {
        if (service->live[i] == process) {
            service->live[i] = service->live[--service->live_count];
            break;
        }
    }
    pthread_mutex_unlock(&service->lock);
    rewarm_lazy_check_finished(service);
}

void rewarm_lazy_process_close_if_whole(struct lazy_process *process)
{
    struct lazy_service *service = process->service;
    pthread_mutex_lock(&service->lock);
    bool whole = process->remaining == 0 && service->running;
    pthread_mutex_unlock(&service->lock);
    if (whole)
        rewarm_lazy_process_close(process);
}

enum lazy_claim rewarm_lazy_process_claim(struct lazy_process *process, uint64_t window)
{
    enum lazy_claim answer = LAZY_TAKEN;
    pthread_mutex_lock(&process->service->lock);
    if (process->done == NULL || bit(process->done, window)) {
        answer = LAZY_DONE;
    } else if (!bit(process->claimed, window)) {
        set_bit(process->claimed, window);
        answer = LAZY_CLAIMED;
    }
    pthread_mutex_unlock(&process->service->lock);
    return answer;
}

bool rewarm_lazy_process_is_done(struct lazy_process *process, uint64_t window)
{
    pthread_mutex_lock(&process->service->lock);
    bool done = process->done == NULL || bit(process->done, window);
    pthread_mutex_unlock(&process->service->lock);
    return done;
}

bool rewarm_lazy_process_defer(struct lazy_process *process, uint64_t window, uint64_t address)
{
    struct lazy_service *service = process->service;
    pthread_mutex_lock(&service->lock);
    bool deferred = service->running && process->done != NULL && bit(process->claimed, window) &&
                    !bit(process->done, window);
    if (deferred) {
        REWARM_GROW(&service->deferred, &service->deferred_capacity, service->deferred_count);
        service->deferred[service->deferred_count++] =
            (struct lazy_deferred){.fault = {process, address}, .window = window};
    }
    pthread_mutex_unlock(&service->lock);
    return deferred;
}

/* The caller holds the service's lock. Returns how many faults were queued. */
static unsigned requeue_deferred(const struct lazy_process *process, uint64_t window)
{
    struct lazy_service *service = process->service;
    unsigned queued = 0;
    for (size_t i = 0; i < service->deferred_count;) {
        const struct lazy_deferred *deferred = &service->deferred[i];
        if (deferred->fault.process != process || deferred->window != window) {
            i++;
            continue;
        }
        REWARM_GROW(&service->faults, &service->fault_capacity, service->fault_count);
        service->faults[service->fault_count++] = deferred->fault;
        service->deferred[i] = service->deferred[--service->deferred_count];
        queued++;
    }
    return queued;
}

bool rewarm_lazy_process_release(struct lazy_process *process, uint64_t window, bool supplied)
{
    struct lazy_service *service = process->service;
    bool accepted = true;
    unsigned queued = 0;
    pthread_mutex_lock(&service->lock);
    if (process->done == NULL) {
        ; /* closed meanwhile */
    } else if (supplied) {
        uint64_t bytes = window_bytes(service->options->map, process->space, window);
        set_bit(process->done, window);
        process->remaining--;
        process->remaining_bytes -= bytes;
        service->progress_bytes += bytes;
    } else if (service->running) {
        accepted = false;
    } else {
        clear_bit(process->claimed, window);
    }
    if (accepted)
        queued = requeue_deferred(process, window);
    pthread_mutex_unlock(&service->lock);
    rewarm_lazy_kick(service, queued);
    return accepted;
}

/* The service: its threads, what wakes them, and when it ends.
 *
 * All threads run the same loop: a queued fault first, then a ready descriptor, then the next
 * window of the background. There is one thread more than may be at the background at a time, so
 * that a fault finds a thread in epoll_wait(2) and does not wait for a window to end. Descriptors
 * are watched one-shot: the thread that gets the event reads the messages and lets the next event
 * through before it answers the faults, so several threads answer the faults of one process.
 *
 * kick_fd, a semaphore, wakes a thread for each count. Any thread may take a count, also one that
 * was not asleep: so whoever takes one looks for work of every kind before it sleeps, and whoever
 * adds work adds it before the kick. The service ends when CRIU has said that the tree runs and no
 * process is left to serve, or at the first failure; `stop` and a kick for everybody make all
 * threads return. */
#include "proc/lazy.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/clean.h"
#include "base/str.h"
#include "base/time.h"
#include "io/parallel.h"
#include "proc/lazy_private.h"

#define PROGRESS_MS 50

/* --- waking -------------------------------------------------------------------------------------
 */

int rewarm_lazy_watch(struct lazy_service *service, int fd, uint64_t tag, struct rewarm_error *err)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLONESHOT, .data.u64 = tag};
    if (epoll_ctl(service->epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0)
        return rewarm_error_errno(err, "can't watch a descriptor");
    return 0;
}

void rewarm_lazy_rewatch(struct lazy_service *service, int fd, uint64_t tag)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLONESHOT, .data.u64 = tag};
    epoll_ctl(service->epoll_fd, EPOLL_CTL_MOD, fd, &event);
}

void rewarm_lazy_unwatch(struct lazy_service *service, int fd)
{
    epoll_ctl(service->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
}

void rewarm_lazy_kick(struct lazy_service *service, unsigned count)
{
    uint64_t value = count;
    if (count != 0 && write(service->kick_fd, &value, sizeof(value)) != sizeof(value))
        abort(); /* impossible before 2^64 kicks */
}

bool rewarm_lazy_stopping(const struct lazy_service *service)
{
    return __atomic_load_n(&service->stop, __ATOMIC_ACQUIRE);
}

bool rewarm_lazy_is_running(const struct lazy_service *service)
{
    return __atomic_load_n(&service->running, __ATOMIC_ACQUIRE);
}

static void stop(struct lazy_service *service)
{
    __atomic_store_n(&service->stop, true, __ATOMIC_RELEASE);
    rewarm_lazy_kick(service, service->workers + 1);
}

void rewarm_lazy_check_finished(struct lazy_service *service)
{
    pthread_mutex_lock(&service->lock);
    bool finished = service->running && service->live_count == 0;
    pthread_mutex_unlock(&service->lock);
    if (finished)
        stop(service);
}

void rewarm_lazy_set_running(struct lazy_service *service)
{
    const struct rewarm_lazy_options *options = service->options;
    if (rewarm_lazy_is_running(service))
        return;
    service->stats.running_ns = rewarm_time_now_ns();
    if (options->on_running != NULL)
        options->on_running(options->context);
    pthread_mutex_lock(&service->lock);
    __atomic_store_n(&service->running, true, __ATOMIC_RELEASE);
    size_t count = service->process_count;
    pthread_mutex_unlock(&service->lock);
    for (size_t i = 0; i < count; i++) {
        pthread_mutex_lock(&service->lock);
        struct lazy_process *process = service->processes[i];
        pthread_mutex_unlock(&service->lock);
        rewarm_lazy_process_close_if_whole(process);
    }
    rewarm_lazy_check_finished(service);
    rewarm_lazy_kick(service, service->workers);
}

/* --- work ---------------------------------------------------------------------------------------
 */

static bool take_fault(struct lazy_service *service, struct lazy_fault *ret_fault)
{
    bool any = false;
    pthread_mutex_lock(&service->lock);
    if (service->fault_count != 0) {
        *ret_fault = service->faults[--service->fault_count];
        any = true;
    }
    pthread_mutex_unlock(&service->lock);
    return any;
}

/* The next window that nobody has claimed, of each process in turn: a child that has exited is
 * found out soon, and no process is last. NULL: nothing to do for now. */
static struct lazy_process *find_window(struct lazy_service *service, uint64_t *ret_window)
{
    for (size_t i = 0; i < service->live_count && service->running; i++) {
        struct lazy_process *process = service->live[service->turn++ % service->live_count];
        uint64_t windows = process->space != NULL ? process->space->windows : 0;
        while (process->next_window < windows) {
            uint64_t window = process->next_window++;
            uint64_t mask = (uint64_t)1 << (window % 64);
            if ((process->claimed[window / 64] & mask) != 0)
                continue;
            process->claimed[window / 64] |= mask;
            *ret_window = window;
            return process;
        }
    }
    return NULL;
}

/* Keeps the thread at the background as long as there are windows. The last thread stays out of it,
 * and one that starts wakes the next. */
static struct lazy_process *take_window(struct lazy_thread *thread, uint64_t *ret_window)
{
    struct lazy_service *service = thread->service;
    struct lazy_process *found = NULL;
    bool wake_another = false;
    pthread_mutex_lock(&service->lock);
    if (thread->at_background || service->at_background < service->workers)
        found = find_window(service, ret_window);
    if (found != NULL && !thread->at_background) {
        service->at_background++;
        wake_another = service->at_background < service->workers;
    } else if (found == NULL && thread->at_background) {
        service->at_background--;
    }
    thread->at_background = found != NULL;
    pthread_mutex_unlock(&service->lock);
    if (wake_another)
        rewarm_lazy_kick(service, 1);
    return found;
}

static int handle_event(struct lazy_service *service, uint64_t tag, struct rewarm_error *err)
{
    uint64_t count;
    switch (tag) {
    case LAZY_EVENT_LISTEN:
        return rewarm_lazy_peer_accept(service, err);
    case LAZY_EVENT_PEER:
        return rewarm_lazy_peer_receive(service, err);
    case LAZY_EVENT_CANCEL:
        return rewarm_error_set(err, REWARM_E_CANCELLED, 0, "cancelled");
    case LAZY_EVENT_KICK:
        if (read(service->kick_fd, &count, sizeof(count)) != sizeof(count))
            return 0; /* another thread took it */
        return 0;
    default:
        return rewarm_lazy_process_drain((struct lazy_process *)(uintptr_t)tag, true, NULL, err);
    }
}

/* Waits up to `wait_ms` (-1: for ever) for one event and handles it. */
static int next_event(struct lazy_service *service, int wait_ms, bool *ret_any,
                      struct rewarm_error *err)
{
    struct epoll_event event;
    int count = epoll_wait(service->epoll_fd, &event, 1, wait_ms);
    *ret_any = count == 1;
    if (count < 0 && errno != EINTR)
        return rewarm_error_errno(err, "can't wait for events");
    if (count != 1 || rewarm_lazy_stopping(service))
        return 0;
    return handle_event(service, event.data.u64, err);
}

static void report_progress(struct lazy_service *service)
{
    const struct rewarm_lazy_options *options = service->options;
    if (options->on_progress == NULL)
        return;
    pthread_mutex_lock(&service->lock);
    uint64_t done = service->progress_bytes, total = service->total_bytes;
    pthread_mutex_unlock(&service->lock);
    options->on_progress(options->context, done, total);
}

/* Thread 0 is the one that reports progress. */
static void report_when_due(struct lazy_thread *thread)
{
    uint64_t now_ns = rewarm_time_now_ns();
    if (now_ns - thread->reported_ns < PROGRESS_MS * REWARM_NS_PER_MS)
        return;
    thread->reported_ns = now_ns;
    report_progress(thread->service);
}

static int work_one(struct lazy_thread *thread, bool reports, struct rewarm_error *err)
{
    struct lazy_service *service = thread->service;
    bool running = rewarm_lazy_is_running(service);
    bool any = false;
    reports = reports && running && service->options->on_progress != NULL;
    if (reports)
        report_when_due(thread);
    if (running && service->options->background) {
        int result = next_event(service, 0, &any, err);
        if (result != 0 || any)
            return result;
        uint64_t window = 0;
        struct lazy_process *process = take_window(thread, &window);
        if (process != NULL)
            return rewarm_lazy_supply_window(thread, process, window, err);
    }
    return next_event(service, reports ? PROGRESS_MS : -1, &any, err);
}

static int serve(void *context, unsigned index, struct rewarm_error *err)
{
    struct lazy_service *service = context;
    rewarm_auto_free void *buffer = aligned_alloc(REWARM_PAGE_BYTES, REWARM_WINDOW_BYTES);
    struct lazy_thread thread = {.service = service, .buffer = buffer};
    int result = 0;
    if (buffer == NULL)
        result = rewarm_error_errno(err, "can't get a buffer");
    else
        memset(buffer, 0, REWARM_WINDOW_BYTES); /* populated now, not while a fault waits */
    while (result == 0 && !rewarm_lazy_stopping(service)) {
        struct lazy_fault fault;
        if (take_fault(service, &fault))
            result = rewarm_lazy_supply_fault(&thread, &fault, err);
        else
            result = work_one(&thread, index == 0, err);
    }
    if (result != 0)
        stop(service);
    return result;
}

/* --- life ---------------------------------------------------------------------------------------
 */

static int open_service(struct lazy_service *service, struct rewarm_error *err)
{
    const struct rewarm_lazy_options *options = service->options;
    service->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    service->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK | EFD_SEMAPHORE);
    if (service->epoll_fd < 0 || service->kick_fd < 0)
        return rewarm_error_errno(err, "can't prepare to serve memory");
    struct epoll_event kick = {.events = EPOLLIN, .data.u64 = LAZY_EVENT_KICK};
    struct epoll_event cancel = {.events = EPOLLIN, .data.u64 = LAZY_EVENT_CANCEL};
    if (epoll_ctl(service->epoll_fd, EPOLL_CTL_ADD, service->kick_fd, &kick) != 0 ||
        (options->cancel_fd >= 0 &&
         epoll_ctl(service->epoll_fd, EPOLL_CTL_ADD, options->cancel_fd, &cancel) != 0))
        return rewarm_error_errno(err, "can't prepare to serve memory");
    return rewarm_lazy_watch(service, options->listen_fd, LAZY_EVENT_LISTEN, err);
}

/* The userfaultfds are not closed here: those of whole processes are already, and after a failure
 * the others must outlive the tree. */
static void close_service(struct lazy_service *service)
{
    rewarm_clean_fd(&service->peer.fd);
    rewarm_clean_fd(&service->epoll_fd);
    rewarm_clean_fd(&service->kick_fd);
    for (size_t i = 0; i < service->process_count; i++)
        rewarm_lazy_process_free(service->processes[i]);
    free(service->processes);
    free(service->live);
    free(service->faults);
    free(service->deferred);
    pthread_mutex_destroy(&service->lock);
}

int rewarm_lazy_serve(const struct rewarm_lazy_options *options,
                      struct rewarm_lazy_stats *ret_stats, struct rewarm_error *err)
{
    struct lazy_service service = {
        .options = options,
        .workers = options->threads != 0 ? options->threads : rewarm_parallel_width(),
        .epoll_fd = -1,
        .kick_fd = -1,
        .peer = {.fd = -1},
        .lock = PTHREAD_MUTEX_INITIALIZER,
    };
    int result = open_service(&service, err);
    if (result == 0)
        result = rewarm_parallel_run(service.workers + 1, serve, &service, err);
    if (result == 0) {
        service.stats.complete_ns = rewarm_time_now_ns();
        report_progress(&service);
        *ret_stats = service.stats;
    }
    close_service(&service);
    return result;
}

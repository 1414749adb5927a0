/* Putting pages in: the answer to a fault, and whole windows.
 *
 * Each piece is looked up in the process's layout and copied under one read lock, at most
 * COPY_BYTES at a time because an event (and every fault queued behind it) waits for the lock. What
 * the kernel may answer, and what it means here: EEXIST  the page is there: somebody faulted on it,
 * or fork copied it. Go on after it. ENOENT  the piece is not inside one registered mapping: halve
 * it. A single page: nobody can miss it any more, once the tree runs; before that CRIU may not have
 * registered it yet. EAGAIN  the layout is changing: let its event be read, then try again. ESRCH
 * the address space has gone: its process exited, was killed, or called exec. ENOMEM  its memory
 * cgroup is full, perhaps until the OOM killer is through: try for a while. */
#include "proc/lazy_private.h"

#include <errno.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/time.h"

#define COPY_BYTES     (32u * 1024u)
#define WINDOW_PAGES   (REWARM_WINDOW_BYTES / REWARM_PAGE_BYTES)
#define PAUSE_FIRST_NS (50 * 1000)
#define PAUSE_LAST_NS  (2 * 1000 * 1000)
#define MEMORY_WAIT_NS (5 * REWARM_NS_PER_S)

/* How an attempt ended. Negative values are errors of the service. */
enum outcome { SUPPLIED, PRESENT, ABSENT, AGAIN, GONE, MOVED, NO_MEMORY };

/* An attempt that is repeated. */
struct patience {
    unsigned tries;
    uint64_t memory_deadline_ns; /* 0: memory was not short yet */
};

static int outcome_of(int failure, const struct lazy_process *process, uint64_t address,
                      struct rewarm_error *err)
{
    switch (failure) {
    case EEXIST:
        return PRESENT;
    case ENOENT:
        return ABSENT;
    case EAGAIN:
        return AGAIN;
    case ESRCH:
        return GONE;
    case ENOMEM:
        return NO_MEMORY;
    default:
        return rewarm_error_set(err, REWARM_E_SYSTEM, failure,
                                "can't supply memory of process %d at 0x%llx", process->pid,
                                (unsigned long long)address);
    }
}

/* Copies; the caller holds the lock and has looked `to` up under it. On SUPPLIED `ret_bytes` may be
 * less than asked for. */
static int copy_locked(const struct lazy_process *process, uint64_t to, const void *from,
                       uint64_t bytes, uint64_t *ret_bytes, struct rewarm_error *err)
{
    struct uffdio_copy copy = {.dst = to, .src = (uintptr_t)from, .len = bytes};
    int failure = ioctl(process->fd, UFFDIO_COPY, &copy) == 0 ? 0 : errno;
    if (failure == ENOENT) {
        copy.copy = 0;
        failure = ioctl(process->fd, UFFDIO_COPY, &copy) == 0 ? 0 : errno;
    }
    if (failure != 0 && copy.copy <= 0)
        return outcome_of(failure, process, to, err);
    *ret_bytes = (uint64_t)copy.copy;
    __atomic_fetch_add(&process->service->stats.supplied_bytes, *ret_bytes, __ATOMIC_RELAXED);
    return SUPPLIED;
}

static void wake_locked(const struct lazy_process *process, uint64_t address)
{
    struct uffdio_range range = {.start = address, .len = REWARM_PAGE_BYTES};
    /* Can only fail when there is nobody left to wake. */
    ioctl(process->fd, UFFDIO_WAKE, &range);
}

/* After AGAIN and NO_MEMORY. The layout may change without an event to read yet (a large munmap),
 * and goes on changing for a moment after its event has been read (until the thread that waited for
 * that has run): the kernel announces neither, so this waits for the next message with a limit. */
static int wait_for_change(struct lazy_process *process, int outcome, struct patience *patience,
                           struct rewarm_error *err)
{
    bool any = false;
    int result = rewarm_lazy_process_drain(process, false, &any, err);
    if (result != 0)
        return result;
    if (outcome == NO_MEMORY) {
        uint64_t now_ns = rewarm_time_now_ns();
        if (patience->memory_deadline_ns == 0)
            patience->memory_deadline_ns = now_ns + MEMORY_WAIT_NS;
        if (now_ns > patience->memory_deadline_ns)
            return rewarm_error_set(err, REWARM_E_NO_SPACE, ENOMEM,
                                    "no memory for the restored process %d (is the limit of its "
                                    "memory cgroup below its size?)",
                                    process->pid);
    }
    if (any)
        return 0;
    long pause_ns = PAUSE_FIRST_NS << (patience->tries < 6 ? patience->tries : 6);
    struct timespec limit = {.tv_nsec = pause_ns < PAUSE_LAST_NS ? pause_ns : PAUSE_LAST_NS};
    struct pollfd poll_fd = {
        .fd = __atomic_load_n(&process->fd, __ATOMIC_RELAXED),
        .events = POLLIN,
    };
    patience->tries++;
    ppoll(&poll_fd, 1, &limit, NULL);
    return 0;
}

/* --- windows ------------------------------------------------------------------------------------
 */

/* One pass over a window. */
struct pass {
    struct lazy_process *process;
    const struct rewarm_window *window;
    const char *buffer;
    uint64_t skip;  /* original address of a page that is there already; 0: none */
    bool final;     /* all ranges are registered: absent means gone */
    bool missing;   /* a page was absent and that is not final */
    uint64_t piece; /* what ENOENT has left of COPY_BYTES */
    struct patience patience;
};

static void count_dropped(const struct pass *pass, uint64_t bytes)
{
    __atomic_fetch_add(&pass->process->service->stats.dropped_bytes, bytes, __ATOMIC_RELAXED);
}

/* Supplies from original address `*at` on, which is in `run`, and advances it. */
static int supply_piece(struct pass *pass, const struct rewarm_run *run, uint64_t *at,
                        struct rewarm_error *err)
{
    struct lazy_process *process = pass->process;
    uint64_t end = run->vaddr + (uint64_t)run->pages * REWARM_PAGE_BYTES;
    if (pass->skip == *at) {
        *at += REWARM_PAGE_BYTES;
        return SUPPLIED;
    }
    if (pass->skip > *at && pass->skip < end)
        end = pass->skip;

    pthread_rwlock_rdlock(&process->lock);
    struct rewarm_lazy_range part;
    uint64_t done = 0;
    int outcome = SUPPLIED;
    if (process->fd < 0) {
        outcome = GONE;
    } else if (!rewarm_lazy_ranges_first(&process->ranges, *at, end, &part)) {
        count_dropped(pass, end - *at);
        *at = end;
    } else {
        count_dropped(pass, part.original - *at);
        *at = part.original;
        if (part.bytes > pass->piece)
            part.bytes = pass->piece;
        const char *from =
            pass->buffer + (uint64_t)run->first_page * REWARM_PAGE_BYTES + (*at - run->vaddr);
        outcome = copy_locked(process, part.current, from, part.bytes, &done, err);
    }
    pthread_rwlock_unlock(&process->lock);

    *at += done;
    if (outcome == SUPPLIED) {
        if (done != 0 && pass->piece < COPY_BYTES)
            pass->piece *= 2;
    } else if (outcome == PRESENT) {
        *at += REWARM_PAGE_BYTES;
        outcome = SUPPLIED;
    } else if (outcome == ABSENT && part.bytes > REWARM_PAGE_BYTES) {
        pass->piece = part.bytes / 2 / REWARM_PAGE_BYTES * REWARM_PAGE_BYTES;
        outcome = SUPPLIED;
    } else if (outcome == ABSENT) {
        if (pass->final)
            count_dropped(pass, REWARM_PAGE_BYTES);
        else
            pass->missing = true;
        *at += REWARM_PAGE_BYTES;
        outcome = SUPPLIED;
    }
    return outcome;
}

/* Returns SUPPLIED, GONE, AGAIN when the service stops, or a negative code. */
static int supply_runs(struct pass *pass, struct rewarm_error *err)
{
    const struct lazy_service *service = pass->process->service;
    const struct rewarm_memmap *map = service->options->map;
    for (uint32_t i = 0; i < pass->window->runs; i++) {
        const struct rewarm_run *run = &map->runs[pass->window->first_run + i];
        uint64_t end = run->vaddr + (uint64_t)run->pages * REWARM_PAGE_BYTES;
        for (uint64_t at = run->vaddr; at < end;) {
            int outcome = supply_piece(pass, run, &at, err);
            if (outcome < 0 || outcome == GONE)
                return outcome;
            if (outcome == SUPPLIED) {
                pass->patience = (struct patience){0};
                continue;
            }
            if (rewarm_lazy_stopping(service))
                return AGAIN;
            int result = wait_for_change(pass->process, outcome, &pass->patience, err);
            if (result != 0)
                return result;
        }
    }
    return SUPPLIED;
}

static const struct rewarm_window *window_at(const struct lazy_process *process, uint64_t index)
{
    return &process->service->options->map->windows[process->space->first_window + index];
}

/* Supplies a claimed window from `thread->buffer` and gives it back. */
static int finish_window(struct lazy_thread *thread, struct lazy_process *process, uint64_t index,
                         uint64_t skip, struct rewarm_error *err)
{
    struct pass pass = {
        .process = process,
        .window = window_at(process, index),
        .buffer = thread->buffer,
        .skip = skip,
        .piece = COPY_BYTES,
    };
    do {
        pass.final = rewarm_lazy_is_running(thread->service);
        pass.missing = false;
        int outcome = supply_runs(&pass, err);
        if (outcome == GONE)
            rewarm_lazy_process_close(process);
        if (outcome != SUPPLIED)
            return outcome < 0 ? outcome : 0;
    } while (!rewarm_lazy_process_release(process, index, !pass.missing));
    if (!pass.missing)
        rewarm_lazy_process_close_if_whole(process);
    return 0;
}

static int get_window(struct lazy_thread *thread, const struct lazy_process *process,
                      uint64_t index, struct rewarm_error *err)
{
    const struct rewarm_lazy_options *options = thread->service->options;
    int result = options->source->get(options->source_context, window_at(process, index)->chunk,
                                      thread->buffer, err);
    if (result != 0)
        return rewarm_error_wrap(err, "memory of process %d", process->pid);
    return 0;
}

int rewarm_lazy_supply_window(struct lazy_thread *thread, struct lazy_process *process,
                              uint64_t window, struct rewarm_error *err)
{
    int result = get_window(thread, process, window, err);
    if (result != 0)
        return result;
    return finish_window(thread, process, window, 0, err);
}

/* --- faults -------------------------------------------------------------------------------------
 */

/* What belongs at an address. */
struct place {
    bool stored;
    uint64_t original;   /* of the page; if stored */
    uint64_t window;     /* index in the space; if stored */
    uint64_t chunk_page; /* if stored */
    uint64_t zero_bytes; /* if not: so much from the address on is zero too, a window at most */
};

/* The caller holds the lock. */
static struct place find_place(const struct lazy_process *process, uint64_t address)
{
    struct rewarm_lazy_range range;
    bool here = rewarm_lazy_ranges_at(&process->ranges, address, &range);
    uint64_t room = REWARM_WINDOW_BYTES - address % REWARM_WINDOW_BYTES;
    struct place place = {.zero_bytes = range.bytes < room ? range.bytes : room};
    if (!here || process->space == NULL)
        return place;
    const struct rewarm_memmap *map = process->service->options->map;
    const struct rewarm_window *window = rewarm_memmap_window(map, process->space, range.original);
    room = REWARM_WINDOW_BYTES - range.original % REWARM_WINDOW_BYTES;
    if (place.zero_bytes > room)
        place.zero_bytes = room;
    for (uint32_t i = 0; window != NULL && i < window->runs; i++) {
        const struct rewarm_run *run = &map->runs[window->first_run + i];
        uint64_t end = run->vaddr + (uint64_t)run->pages * REWARM_PAGE_BYTES;
        if (run->vaddr > range.original && place.zero_bytes > run->vaddr - range.original)
            place.zero_bytes = run->vaddr - range.original;
        if (run->vaddr > range.original || range.original >= end)
            continue;
        place.stored = true;
        place.original = range.original;
        place.window = (uint64_t)(window - map->windows) - process->space->first_window;
        place.chunk_page = run->first_page + (range.original - run->vaddr) / REWARM_PAGE_BYTES;
    }
    return place;
}

/* Makes [address, address + bytes) zero as far as nothing is there; at least the first page. */
static int zero_locked(const struct lazy_process *process, uint64_t address, uint64_t bytes,
                       struct rewarm_error *err)
{
    struct uffdio_zeropage zero = {.range = {.start = address, .len = bytes}};
    int failure = ioctl(process->fd, UFFDIO_ZEROPAGE, &zero) == 0 ? 0 : errno;
    if (failure == ENOENT && bytes > REWARM_PAGE_BYTES)
        return zero_locked(process, address, REWARM_PAGE_BYTES, err);
    if (failure == 0 || zero.zeropage > 0) {
        __atomic_fetch_add(&process->service->stats.zero_faults, 1, __ATOMIC_RELAXED);
        return SUPPLIED;
    }
    int outcome = outcome_of(failure, process, address, err);
    if (outcome == PRESENT || outcome == ABSENT) {
        wake_locked(process, address);
        return SUPPLIED;
    }
    return outcome;
}

/* Answers with a zero page where that is right; else returns MOVED and the place to supply from. A
 * page of a window that is done was there: if it is not any more, its owner discarded it in a way
 * that the kernel does not report, and zero is what belongs there. */
static int zero_or_find(struct lazy_process *process, uint64_t address, struct place *ret_place,
                        struct rewarm_error *err)
{
    int outcome = MOVED;
    pthread_rwlock_rdlock(&process->lock);
    if (process->fd < 0) {
        outcome = GONE;
    } else {
        struct place place = find_place(process, address);
        if (place.stored && rewarm_lazy_process_is_done(process, place.window))
            outcome = zero_locked(process, address, REWARM_PAGE_BYTES, err);
        else if (!place.stored)
            outcome = zero_locked(process, address, place.zero_bytes, err);
        else
            *ret_place = place;
    }
    pthread_rwlock_unlock(&process->lock);
    return outcome;
}

/* Supplies the one page, if it still belongs at `address`; MOVED if not. */
static int supply_page(struct lazy_process *process, uint64_t address, const struct place *place,
                       const char *buffer, struct rewarm_error *err)
{
    int outcome;
    uint64_t done;
    pthread_rwlock_rdlock(&process->lock);
    if (process->fd < 0) {
        outcome = GONE;
    } else {
        struct place now = find_place(process, address);
        if (!now.stored || now.original != place->original)
            outcome = MOVED;
        else
            outcome = copy_locked(process, address, buffer + place->chunk_page * REWARM_PAGE_BYTES,
                                  REWARM_PAGE_BYTES, &done, err);
        if (outcome == PRESENT || outcome == ABSENT)
            wake_locked(process, address);
    }
    pthread_rwlock_unlock(&process->lock);
    return outcome;
}

/* Waits out a changing layout. Returns 0 to try again, 1 when the fault needs no more answer. */
static int fault_again(struct lazy_process *process, int outcome, struct patience *patience,
                       struct rewarm_error *err)
{
    if (outcome < 0)
        return outcome;
    if (outcome == GONE)
        rewarm_lazy_process_close(process);
    if (outcome == MOVED)
        return 0;
    if (outcome != AGAIN && outcome != NO_MEMORY)
        return 1;
    return rewarm_lazy_stopping(process->service)
               ? 1
               : wait_for_change(process, outcome, patience, err);
}

int rewarm_lazy_supply_fault(struct lazy_thread *thread, const struct lazy_fault *fault,
                             struct rewarm_error *err)
{
    struct lazy_process *process = fault->process;
    struct patience patience = {0};
    for (;;) {
        struct place place = {0};
        int outcome = zero_or_find(process, fault->address, &place, err);
        int next = fault_again(process, outcome, &patience, err);
        if (next != 0)
            return next < 0 ? next : 0;
        if (outcome != MOVED)
            continue;

        enum lazy_claim claim = rewarm_lazy_process_claim(process, place.window);
        bool claimed = claim == LAZY_CLAIMED;
        if (claim == LAZY_TAKEN && rewarm_lazy_process_defer(process, place.window, fault->address))
            return 0;
        int result = get_window(thread, process, place.window, err);
        if (result != 0)
            return result;
        do {
            outcome = supply_page(process, fault->address, &place, thread->buffer, err);
            next = outcome == MOVED ? 1 : fault_again(process, outcome, &patience, err);
        } while (next == 0);
        if (next < 0)
            return next;
        if (claimed) {
            bool there = outcome == SUPPLIED || outcome == PRESENT;
            result = finish_window(thread, process, place.window, there ? place.original : 0, err);
        }
        if (result != 0 || outcome != MOVED)
            return result;
    }
}

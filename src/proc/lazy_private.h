/* Inside the lazy-pages peer: what its files share. lazy.c has the threads and the life of the
 * service, lazy_peer.c CRIU's side of the socket, lazy_process.c one process's layout and events,
 * lazy_supply.c the copying, lazy_ranges.c the layout.
 *
 * Locks, outermost first: a process's `lock`, then the service's `lock`. */
#ifndef REWARM_PROC_LAZY_PRIVATE_H
#define REWARM_PROC_LAZY_PRIVATE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "io/memmap.h"
#include "proc/lazy.h"
#include "proc/lazy_ranges.h"

struct lazy_service;

/* One address space with its userfaultfd. Lives until the service ends; `fd` until it is complete.
 */
struct lazy_process {
    struct lazy_service *service;
    int32_t pid;                      /* in the image; a forked child keeps its parent's */
    const struct rewarm_space *space; /* NULL: nothing of it was stored */

    /* Held for reading over every ioctl that puts pages in, for writing while messages are read and
     * until their effect is in `ranges`: no page goes where the layout has already changed. */
    pthread_rwlock_t lock;
    int fd; /* -1 once nothing is left to serve; written under `lock`, read with __atomic_load_n too
             */
    struct rewarm_lazy_ranges ranges;

    /* Under the service's lock. Windows are counted from the space's first. */
    uint64_t *claimed, *done; /* bit sets; NULL once closed. Done implies claimed */
    uint64_t next_window;     /* where the background goes on */
    uint64_t remaining, remaining_bytes;
};

struct lazy_fault {
    struct lazy_process *process;
    uint64_t address;
};

/* A fault on a window that a thread is supplying: that thread will have answered it. */
struct lazy_deferred {
    struct lazy_fault fault;
    uint64_t window;
};

/* The bytes that CRIU has sent of the message that is being received. */
struct lazy_peer {
    int fd; /* -1: not connected yet, or no longer needed */
    bool descriptor_next;
    int32_t pid;
    size_t have_bytes;
};

struct lazy_service {
    const struct rewarm_lazy_options *options;
    unsigned workers;
    int epoll_fd, kick_fd;
    struct lazy_peer peer; /* touched by the thread that has its one-shot event */

    bool stop;    /* atomic: all threads return */
    bool running; /* atomic, written under `lock`: CRIU says that the tree is about to run */

    pthread_mutex_t lock;
    struct lazy_process **processes; /* all that ever were, to free them */
    size_t process_count, process_capacity;
    struct lazy_process **live; /* with an open descriptor */
    size_t live_count, live_capacity;
    size_t turn;            /* whose window the background takes next */
    unsigned at_background; /* threads; `workers` at most */
    struct lazy_fault
        *faults; /* a stack: the latest fault is the least likely to be answered yet */
    size_t fault_count, fault_capacity;
    struct lazy_deferred *deferred;
    size_t deferred_count, deferred_capacity;
    uint64_t progress_bytes, total_bytes;

    struct rewarm_lazy_stats stats; /* the counters are atomic */
};

/* A thread's own. */
struct lazy_thread {
    struct lazy_service *service;
    void *buffer; /* a window's bytes */
    bool at_background;
    uint64_t reported_ns;
};

/* --- lazy.c */

enum lazy_event { LAZY_EVENT_LISTEN = 1, LAZY_EVENT_PEER, LAZY_EVENT_CANCEL, LAZY_EVENT_KICK };

/* Adds a descriptor that one thread at a time handles; `tag` is a lazy_event or a lazy_process. */
int rewarm_lazy_watch(struct lazy_service *service, int fd, uint64_t tag, struct rewarm_error *err);
/* Lets the next event of `fd` through. */
void rewarm_lazy_rewatch(struct lazy_service *service, int fd, uint64_t tag);
void rewarm_lazy_unwatch(struct lazy_service *service, int fd);
/* Makes `count` threads look for work, if so many wait. */
void rewarm_lazy_kick(struct lazy_service *service, unsigned count);
bool rewarm_lazy_stopping(const struct lazy_service *service);
bool rewarm_lazy_is_running(const struct lazy_service *service);
/* CRIU says that the tree is about to run: every range is registered, the background may start. */
void rewarm_lazy_set_running(struct lazy_service *service);
/* Ends the service when nothing is left to serve. */
void rewarm_lazy_check_finished(struct lazy_service *service);

/* --- lazy_peer.c */

int rewarm_lazy_peer_accept(struct lazy_service *service, struct rewarm_error *err);
int rewarm_lazy_peer_receive(struct lazy_service *service, struct rewarm_error *err);

/* --- lazy_process.c */

/* Takes over `uffd`, also on failure (then it stays open: see lazy.h). `parent` is locked for
 * writing, or NULL for a process of CRIU's. */
int rewarm_lazy_process_add(struct lazy_service *service, int32_t pid, int uffd,
                            const struct lazy_process *parent, struct rewarm_error *err);
/* Only for the end of the service: no lock, and the descriptor is left alone. */
void rewarm_lazy_process_free(struct lazy_process *process);

/* Reads what the kernel has to say and brings `ranges` up to date; faults are queued. `rewatch`
 * when the call is the answer to the descriptor's one-shot event. */
int rewarm_lazy_process_drain(struct lazy_process *process, bool rewatch, bool *ret_any,
                              struct rewarm_error *err);
/* Closes the descriptor: it is whole, or it has gone. Idempotent. */
void rewarm_lazy_process_close(struct lazy_process *process);
/* Closes it when it is whole and runs. */
void rewarm_lazy_process_close_if_whole(struct lazy_process *process);

enum lazy_claim { LAZY_CLAIMED, LAZY_TAKEN, LAZY_DONE };
enum lazy_claim rewarm_lazy_process_claim(struct lazy_process *process, uint64_t window);
bool rewarm_lazy_process_is_done(struct lazy_process *process, uint64_t window);
/* Leaves a fault to the thread that has the window, which wakes whoever waits for its pages:
 * reading the chunk twice for one page costs more than it saves. The fault is queued again when the
 * window is given back, in case that thread was past the page. False: nobody has the window, or
 * CRIU may not have registered its range yet. */
bool rewarm_lazy_process_defer(struct lazy_process *process, uint64_t window, uint64_t address);
/* The claimer gives the window back: supplied as a whole, or (false) still to be done. False is
 * refused, by returning false, once the background may have passed the window: then it is to be
 * tried again. */
bool rewarm_lazy_process_release(struct lazy_process *process, uint64_t window, bool supplied);

/* --- lazy_supply.c */

/* Answers one fault; with its window, unless another thread is at that. */
int rewarm_lazy_supply_fault(struct lazy_thread *thread, const struct lazy_fault *fault,
                             struct rewarm_error *err);
/* Supplies a window that this thread has claimed. */
int rewarm_lazy_supply_window(struct lazy_thread *thread, struct lazy_process *process,
                              uint64_t window, struct rewarm_error *err);

#endif

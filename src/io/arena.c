#include "io/arena.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/clean.h"
#include "base/str.h"
#include "io/parallel.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

#define PAGE_BYTES      4096u
#define HUGE_PAGE_BYTES ((size_t)2 << 20)
#define PIECE_BYTES     ((size_t)8 << 20) /* what one thread populates at a time */

struct rewarm_arena {
    char *base;    /* huge page aligned */
    char *mapping; /* what was mapped: base with room for its alignment */
    size_t bytes, mapping_bytes;
    size_t slots, slot_bytes;
    size_t populated; /* bytes given to a thread so far; while populating */
    pthread_mutex_t lock;
    pthread_cond_t freed;
    void **free_slots; /* a stack: the slot used last is warm in the caches */
    size_t free_count;
    bool stopped;
};

/* Populates one piece; kernels before 5.14 lack the call and get touched pages instead. */
static int populate_piece(char *start, size_t bytes)
{
    while (madvise(start, bytes, MADV_POPULATE_WRITE) != 0) {
        if (errno == EINTR || errno == EAGAIN)
            continue;
        if (errno != EINVAL)
            return errno;
        for (size_t at = 0; at < bytes; at += PAGE_BYTES)
            *(volatile char *)(start + at) = 0;
        return 0;
    }
    return 0;
}

static int populate(void *context, unsigned index, struct rewarm_error *err)
{
    struct rewarm_arena *arena = context;
    (void)index;
    for (;;) {
        size_t at = __atomic_fetch_add(&arena->populated, PIECE_BYTES, __ATOMIC_RELAXED);
        if (at >= arena->bytes)
            return 0;
        size_t bytes = arena->bytes - at < PIECE_BYTES ? arena->bytes - at : PIECE_BYTES;
        int failure = populate_piece(arena->base + at, bytes);
        if (failure != 0)
            return rewarm_error_set(err, REWARM_E_NO_SPACE, failure,
                                    "can't populate %zu MiB of buffers", arena->bytes >> 20);
    }
}

static int map_arena(struct rewarm_arena *arena, struct rewarm_error *err)
{
    arena->mapping_bytes = arena->bytes + HUGE_PAGE_BYTES;
    void *mapping = mmap(NULL, arena->mapping_bytes, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED)
        return rewarm_error_errno(err, "can't reserve %zu MiB of buffers", arena->bytes >> 20);
    arena->mapping = mapping;
    size_t skew = (uintptr_t)mapping % HUGE_PAGE_BYTES;
    arena->base = arena->mapping + (skew != 0 ? HUGE_PAGE_BYTES - skew : 0);
    /* Both are wishes: a kernel without huge pages, or without core dumps, still gives an arena. */
    madvise(arena->base, arena->bytes, MADV_HUGEPAGE);
    madvise(arena->mapping, arena->mapping_bytes, MADV_DONTDUMP);
    return 0;
}

int rewarm_arena_new(size_t slots, size_t slot_bytes, unsigned threads,
                     struct rewarm_arena **ret_arena, struct rewarm_error *err)
{
    size_t bytes;
    if (slots == 0 || slot_bytes == 0 || slot_bytes % PAGE_BYTES != 0 || threads == 0 ||
        __builtin_mul_overflow(slots, slot_bytes, &bytes) || bytes > SIZE_MAX - HUGE_PAGE_BYTES)
        return rewarm_error_set(err, REWARM_E_USAGE, 0, "no arena of %zu slots of %zu bytes", slots,
                                slot_bytes);
    struct rewarm_arena *arena = rewarm_mem_new(1, sizeof(*arena));
    arena->slots = slots;
    arena->slot_bytes = slot_bytes;
    arena->bytes = bytes;
    pthread_mutex_init(&arena->lock, NULL);
    pthread_cond_init(&arena->freed, NULL);
    arena->free_slots = rewarm_mem_new(slots, sizeof(*arena->free_slots));
    int result = map_arena(arena, err);
    if (result == 0)
        result = rewarm_parallel_run(threads, populate, arena, err);
    if (result != 0) {
        rewarm_arena_free(arena);
        return result;
    }
    for (size_t i = slots; i-- > 0;)
        arena->free_slots[arena->free_count++] = arena->base + i * slot_bytes;
    *ret_arena = arena;
    return 0;
}

void rewarm_arena_free(struct rewarm_arena *arena)
{
    if (arena == NULL)
        return;
    if (arena->mapping != NULL)
        munmap(arena->mapping, arena->mapping_bytes);
    pthread_cond_destroy(&arena->freed);
    pthread_mutex_destroy(&arena->lock);
    free(arena->free_slots);
    free(arena);
}

void *rewarm_arena_get(struct rewarm_arena *arena)
{
    void *slot = NULL;
    pthread_mutex_lock(&arena->lock);
    while (arena->free_count == 0 && !arena->stopped)
        pthread_cond_wait(&arena->freed, &arena->lock);
    if (!arena->stopped)
        slot = arena->free_slots[--arena->free_count];
    pthread_mutex_unlock(&arena->lock);
    return slot;
}

void rewarm_arena_put(struct rewarm_arena *arena, void *slot)
{
    if (slot == NULL)
        return;
    pthread_mutex_lock(&arena->lock);
    arena->free_slots[arena->free_count++] = slot;
    pthread_cond_signal(&arena->freed);
    pthread_mutex_unlock(&arena->lock);
}

void rewarm_arena_stop(struct rewarm_arena *arena)
{
    pthread_mutex_lock(&arena->lock);
    arena->stopped = true;
    pthread_cond_broadcast(&arena->freed);
    pthread_mutex_unlock(&arena->lock);
}

size_t rewarm_arena_slot_bytes(const struct rewarm_arena *arena)
{
    return arena->slot_bytes;
}

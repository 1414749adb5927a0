/* lazy_storm DIR [MODE] [MIB]: memory that is remapped, discarded, unmapped, protected and forked
 * over all the time, so that a restore finds it in the middle and every kind of event reaches
 * whoever supplies the pages, from the first millisecond on.
 *
 * Memory is cut into regions of 512 KiB. One thread takes a region at random, does one action of
 * the mode to it, and checks what must hold: moved content follows, discarded and newly mapped
 * pages are zero (not what the snapshot had), a forked child sees all of it. Then it fills the
 * region again. Half of the actions come before the region has been read at all. SIGUSR1 checks
 * every region. */
#include "program.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { REGION_PAGES = 128, REGION_BYTES = REGION_PAGES * 4096 };
enum action { MOVE, SHRINK, DISCARD, DISCARD_PART, UNMAP, FORK, PROTECT, ACTIONS };
static const char *const names[ACTIONS] = {"move",  "shrink", "discard", "discard-part",
                                           "unmap", "fork",   "protect"};
static char **regions;
static uint64_t *seeds;
static size_t region_count;
static uint64_t next_seed = 1, state = 88172645463325252u;
static int only = -1;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static const char *_Atomic trouble;
static atomic_ulong actions;

static uint64_t random_number(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static bool is_right(size_t region, size_t first, size_t pages)
{
    for (size_t i = first; i < first + pages; i++)
        if (!program_filled(regions[region] + i * PROGRAM_PAGE, seeds[region] + i))
            return false;
    return true;
}

static bool is_zero(const char *memory, size_t pages)
{
    for (size_t i = 0; i < pages; i++)
        if (!program_zero(memory + i * PROGRAM_PAGE))
            return false;
    return true;
}

static void fill(size_t region)
{
    seeds[region] = next_seed;
    next_seed += REGION_PAGES;
    for (size_t i = 0; i < REGION_PAGES; i++)
        program_fill(regions[region] + i * PROGRAM_PAGE, seeds[region] + i);
}

static const char *move(size_t region)
{
    char *target = program_map(REGION_BYTES);
    char *moved =
        mremap(regions[region], REGION_BYTES, REGION_BYTES, MREMAP_MAYMOVE | MREMAP_FIXED, target);
    if (moved != target)
        return "mremap failed";
    regions[region] = moved;
    return is_right(region, 0, REGION_PAGES) ? NULL : "moved memory is wrong";
}

static const char *shrink(size_t region)
{
    char *memory = mremap(regions[region], REGION_BYTES, REGION_BYTES / 2, 0);
    if (memory == MAP_FAILED)
        return "mremap failed";
    memory = mremap(memory, REGION_BYTES / 2, REGION_BYTES, MREMAP_MAYMOVE);
    if (memory == MAP_FAILED)
        return "mremap failed";
    regions[region] = memory;
    if (!is_zero(memory + REGION_BYTES / 2, REGION_PAGES / 2))
        return "memory that was cut off has come back";
    return is_right(region, 0, REGION_PAGES / 2) ? NULL : "memory before a cut is wrong";
}

static const char *discard(size_t region, size_t pages)
{
    size_t first = random_number() % (REGION_PAGES - pages + 1);
    if (madvise(regions[region] + first * PROGRAM_PAGE, pages * PROGRAM_PAGE, MADV_DONTNEED) != 0)
        return "madvise failed";
    if (!is_zero(regions[region] + first * PROGRAM_PAGE, pages))
        return "discarded memory is not zero";
    if (!is_right(region, 0, first) ||
        !is_right(region, first + pages, REGION_PAGES - first - pages))
        return "memory beside discarded memory is wrong";
    return NULL;
}

static const char *unmap(size_t region)
{
    if (munmap(regions[region], REGION_BYTES) != 0)
        return "munmap failed";
    void *memory = mmap(regions[region], REGION_BYTES, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    if (memory == MAP_FAILED)
        return "mmap failed";
    return is_zero(memory, REGION_PAGES) ? NULL : "new memory is not zero";
}

/* The child looks at a few regions, discards one and forks a child of its own, all at once. */
static int in_child(void)
{
    for (size_t i = 0; i < region_count; i += 5)
        if (!is_right(i, 0, REGION_PAGES))
            return 2;
    if (discard(1 % region_count, REGION_PAGES / 2) != NULL)
        return 3;
    pid_t pid = fork();
    if (pid == 0)
        _exit(is_right(0, 0, REGION_PAGES) ? 0 : 4);
    int status = -1;
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 5;
}

static const char *fork_over(void)
{
    pid_t pid = fork();
    if (pid < 0)
        return "fork failed";
    if (pid == 0)
        _exit(in_child());
    int status = 0;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    if (!WIFEXITED(status))
        return "a forked child was killed";
    static const char *const words[] = {NULL,
                                        "a forked child failed",
                                        "a forked child sees wrong memory",
                                        "a forked child's discarded memory is wrong",
                                        "a grandchild sees wrong memory",
                                        "a grandchild was killed"};
    return words[WEXITSTATUS(status) < 6 ? WEXITSTATUS(status) : 1];
}

static const char *protect(size_t region)
{
    if (mprotect(regions[region], REGION_BYTES, PROT_NONE) != 0 ||
        mprotect(regions[region], REGION_BYTES, PROT_READ | PROT_WRITE) != 0)
        return "mprotect failed";
    return is_right(region, 0, REGION_PAGES) ? NULL : "protected memory is wrong";
}

static const char *act(enum action action, size_t region)
{
    switch (action) {
    case MOVE:
        return move(region);
    case SHRINK:
        return shrink(region);
    case DISCARD:
        return discard(region, REGION_PAGES);
    case DISCARD_PART:
        return discard(region, 1 + random_number() % 16);
    case UNMAP:
        return unmap(region);
    case FORK:
        return fork_over();
    default:
        return protect(region);
    }
}

static void *storm(void *argument)
{
    (void)argument;
    while (trouble == NULL) {
        size_t region = random_number() % region_count;
        enum action action =
            only >= 0 ? (enum action)only : (enum action)(random_number() % ACTIONS);
        pthread_mutex_lock(&mutex);
        const char *words = NULL;
        if (random_number() % 2 == 0 && !is_right(region, 0, REGION_PAGES))
            words = "memory is wrong before an action";
        if (words == NULL)
            words = act(action, region);
        if (words != NULL)
            atomic_store(&trouble, program_words("after %lu actions, %s: %s", atomic_load(&actions),
                                                 names[action], words));
        else
            fill(region);
        pthread_mutex_unlock(&mutex);
        atomic_fetch_add(&actions, 1);
        usleep(200);
    }
    for (;;)
        pause(); /* its words live in this thread */
    return NULL;
}

static const char *check(void)
{
    pthread_mutex_lock(&mutex);
    const char *words = atomic_load(&trouble);
    for (size_t i = 0; i < region_count && words == NULL; i++)
        if (!is_right(i, 0, REGION_PAGES))
            words = program_words("region %zu of %zu is wrong", i, region_count);
    pthread_mutex_unlock(&mutex);
    return words;
}

int main(int argc, char **argv)
{
    program_begin(argc, argv);
    for (int i = 0; i < ACTIONS; i++)
        if (strcmp(program_arg(2, "all"), names[i]) == 0)
            only = i;
    region_count = program_arg_size(3, 32) * 2;
    regions = calloc(region_count, sizeof(*regions));
    seeds = calloc(region_count, sizeof(*seeds));
    for (size_t i = 0; i < region_count; i++) {
        regions[i] = program_map(REGION_BYTES);
        fill(i);
    }
    pthread_t thread;
    if (pthread_create(&thread, NULL, storm, NULL) != 0)
        program_die("pthread_create");
    program_serve(check);
}

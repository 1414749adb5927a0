/* The synthetic worker of `rewarm bench`: memory in which every page is different, does not
 * compress and can be checked, and a main thread that ticks.
 *
 * The k-th 8-byte word of the memory is a mix of k, so any word can be checked by itself. What the
 * worker sees is written to the board, which is a file mapping: the bench reads from there when the
 * worker ran again and for how long it did not run. */
#include "bench.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/clean.h"
#include "base/str.h"
#include "base/time.h"

#define PAGE_BYTES  4096u
#define PAGE_WORDS  (PAGE_BYTES / sizeof(uint64_t))
#define TICK_NS     500000
#define OWNER_TICKS 512 /* how often the worker looks whether the bench is still there */

struct memory {
    uint64_t **areas; /* equal mappings, one after the other the pages of the worker */
    uint64_t area_count, area_pages;
};

void rewarm_bench_board_post(struct bench_board *board)
{
    atomic_fetch_add(&board->events, 1);
    syscall(SYS_futex, &board->events, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

void rewarm_bench_board_wait(struct bench_board *board, unsigned seen)
{
    const struct timespec limit = {.tv_nsec = 100 * (long)REWARM_NS_PER_MS};
    syscall(SYS_futex, &board->events, FUTEX_WAIT, seen, &limit, NULL, 0);
}

static uint64_t word(uint64_t index)
{
    uint64_t x = (index + 1) * 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93u;
    return x ^ (x >> 29);
}

static void fill_page(uint64_t *page, uint64_t number)
{
    for (uint64_t i = 0; i < PAGE_WORDS; i++)
        page[i] = word(number * PAGE_WORDS + i);
}

static bool check_page(const uint64_t *page, uint64_t number)
{
    uint64_t wrong = 0;
    for (uint64_t i = 0; i < PAGE_WORDS; i++)
        wrong |= page[i] ^ word(number * PAGE_WORDS + i);
    return wrong == 0;
}

static bool touch_page(const uint64_t *page, uint64_t number)
{
    const volatile uint64_t *words = page;
    return words[0] == word(number * PAGE_WORDS) &&
           words[PAGE_WORDS - 1] == word(number * PAGE_WORDS + PAGE_WORDS - 1);
}

/* A mapping the kernel can't merge with the next one: the page behind it is given back. */
static uint64_t *map_area(uint64_t pages)
{
    size_t bytes = (pages + 1) * PAGE_BYTES;
    char *area = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (area == MAP_FAILED)
        return NULL;
    munmap(area + pages * PAGE_BYTES, PAGE_BYTES);
    return (uint64_t *)(void *)area;
}

static bool fill_memory(struct memory *memory)
{
    for (uint64_t a = 0; a < memory->area_count; a++) {
        memory->areas[a] = map_area(memory->area_pages);
        if (memory->areas[a] == NULL)
            return false;
        for (uint64_t p = 0; p < memory->area_pages; p++)
            fill_page(memory->areas[a] + p * PAGE_WORDS, a * memory->area_pages + p);
    }
    return true;
}

static uint64_t tick(struct bench_board *board, uint64_t last_ns)
{
    uint64_t now_ns = rewarm_time_now_ns();
    if (atomic_load(&board->first_tick_ns) == 0) {
        atomic_store(&board->first_tick_ns, rewarm_time_wall_ns());
        rewarm_bench_board_post(board);
    }
    if (now_ns - last_ns > atomic_load(&board->longest_gap_ns))
        atomic_store(&board->longest_gap_ns, now_ns - last_ns);
    return now_ns;
}

static uint64_t walk(const struct memory *memory, struct bench_board *board, bool whole,
                     uint64_t last_ns)
{
    uint64_t bad = 0;
    for (uint64_t a = 0; a < memory->area_count; a++) {
        for (uint64_t p = 0; p < memory->area_pages; p++) {
            const uint64_t *page = memory->areas[a] + p * PAGE_WORDS;
            uint64_t number = a * memory->area_pages + p;
            bad += whole ? !check_page(page, number) : !touch_page(page, number);
            if (number % 16 == 0)
                last_ns = tick(board, last_ns);
        }
    }
    atomic_fetch_add(&board->bad_pages, bad);
    return last_ns;
}

static uint64_t do_step(const struct memory *memory, struct bench_board *board, unsigned step,
                        uint64_t last_ns)
{
    if (step != BENCH_TICK)
        last_ns = walk(memory, board, step == BENCH_VERIFY, last_ns);
    if (step == BENCH_TOUCH)
        atomic_store(&board->touched_ns, rewarm_time_wall_ns());
    atomic_store(&board->done, step);
    rewarm_bench_board_post(board);
    return last_ns;
}

static _Noreturn void live(const struct memory *memory, struct bench_board *board)
{
    const struct timespec pause = {.tv_nsec = TICK_NS};
    uint64_t last_ns = rewarm_time_now_ns();
    for (unsigned ticks = 1;; ticks++) {
        last_ns = tick(board, last_ns);
        unsigned wanted = atomic_load(&board->wanted);
        if (wanted != atomic_load(&board->done))
            last_ns = do_step(memory, board, wanted, last_ns);
        if (ticks % OWNER_TICKS == 0 && kill(atomic_load(&board->owner), 0) != 0 && errno == ESRCH)
            _exit(0);
        nanosleep(&pause, NULL);
    }
}

int rewarm_bench_worker_main(int argc, char **argv)
{
    uint64_t bytes = 0;
    struct memory memory = {0};
    if (argc != 3 || !rewarm_str_to_u64(argv[1], &bytes) ||
        !rewarm_str_to_u64(argv[2], &memory.area_count) || memory.area_count == 0 ||
        bytes < memory.area_count * PAGE_BYTES) {
        fputs("rewarm bench-worker is started by rewarm bench\n", stderr);
        return REWARM_E_USAGE;
    }
    int fd = open(argv[0], O_RDWR | O_CLOEXEC);
    struct bench_board *board =
        fd < 0 ? MAP_FAILED
               : mmap(NULL, BENCH_BOARD_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (board == MAP_FAILED)
        return REWARM_E_SYSTEM;
    close(fd);
    memory.area_pages = bytes / memory.area_count / PAGE_BYTES;
    memory.areas = rewarm_mem_new(memory.area_count, sizeof(uint64_t *));
    if (!fill_memory(&memory))
        return REWARM_E_NO_SPACE;
    live(&memory, board);
}

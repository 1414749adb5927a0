/* How fast this kernel lets UFFDIO_COPY fill another process: what a restore's fill is compared
 * with. Nothing but the loop: no look-ups, no store, no checksums, no worker that runs meanwhile.
 *
 * The process that is filled shares our descriptor table, so the number of its userfaultfd is all
 * it has to tell us. The source is populated memory, larger than the caches, used again and again.
 */
#include "bench.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clean.h"
#include "base/time.h"
#include "io/memmap.h"
#include "io/parallel.h"

#define SOURCE_BYTES (256u << 20)
#define COPY_BYTES   (32u * 1024u)

struct fill {
    struct bench_board *said; /* `events` only */
    atomic_int uffd;          /* -1: failed */
    char *target;             /* an address of the other process */
    const char *source;
    uint64_t bytes;
    atomic_uint_fast64_t next;
};

/* In the other process. */
static _Noreturn void be_filled(struct fill *fill)
{
    void *memory = mmap(fill->target, fill->bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
    struct uffdio_api api = {.api = UFFD_API};
    struct uffdio_register range = {.range = {(uintptr_t)fill->target, fill->bytes},
                                    .mode = UFFDIO_REGISTER_MODE_MISSING};
    bool good = memory != MAP_FAILED && madvise(memory, fill->bytes, MADV_NOHUGEPAGE) == 0 &&
                fd >= 0 && ioctl(fd, UFFDIO_API, &api) == 0 &&
                ioctl(fd, UFFDIO_REGISTER, &range) == 0;
    atomic_store(&fill->uffd, good ? fd : -1);
    rewarm_bench_board_post(fill->said);
    for (;;)
        pause();
}

static int copy_some(void *context, unsigned index, struct rewarm_error *err)
{
    struct fill *fill = context;
    (void)index;
    for (;;) {
        uint64_t at = atomic_fetch_add(&fill->next, REWARM_WINDOW_BYTES);
        if (at >= fill->bytes)
            return 0;
        for (uint64_t end = at + REWARM_WINDOW_BYTES; at < end; at += COPY_BYTES) {
            struct uffdio_copy copy = {.dst = (uintptr_t)fill->target + at,
                                       .src = (uintptr_t)fill->source + at % SOURCE_BYTES,
                                       .len = COPY_BYTES};
            if (ioctl(atomic_load(&fill->uffd), UFFDIO_COPY, &copy) != 0)
                return rewarm_error_errno(err, "filling another process");
        }
    }
}

static int measure(struct fill *fill, double *ret_bytes_per_s, struct rewarm_error *err)
{
    const int not_yet = -2;
    atomic_store(&fill->uffd, not_yet);
    long child = syscall(SYS_clone, CLONE_FILES | SIGCHLD, NULL, NULL, NULL, NULL);
    if (child < 0)
        return rewarm_error_errno(err, "starting a process to fill");
    if (child == 0)
        be_filled(fill);
    while (atomic_load(&fill->uffd) == not_yet && rewarm_bench_room_check_stop(NULL) == 0)
        rewarm_bench_board_wait(fill->said, atomic_load(&fill->said->events));
    int result = rewarm_bench_room_check_stop(err);
    if (result == 0 && atomic_load(&fill->uffd) < 0)
        result = rewarm_error_set(err, REWARM_E_SYSTEM, 0,
                                  "userfaultfd can't be used: see rewarm doctor");
    uint64_t start_ns = rewarm_time_now_ns();
    if (result == 0)
        result = rewarm_parallel_run(rewarm_parallel_width(), copy_some, fill, err);
    uint64_t took_ns = rewarm_time_now_ns() - start_ns;
    kill((pid_t)child, SIGKILL);
    waitpid((pid_t)child, NULL, 0);
    if (atomic_load(&fill->uffd) >= 0)
        close(atomic_load(&fill->uffd));
    *ret_bytes_per_s = (double)fill->bytes * 1e9 / (double)took_ns;
    return result;
}

int rewarm_bench_fill_bare(uint64_t bytes, double *ret_bytes_per_s, struct rewarm_error *err)
{
    bytes -= bytes % REWARM_WINDOW_BYTES;
    struct fill *fill = mmap(NULL, sizeof(*fill) + BENCH_BOARD_BYTES, PROT_READ | PROT_WRITE,
                             MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    char *source = mmap(NULL, SOURCE_BYTES, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    /* An address that nothing has here can be taken in a copy of this process. */
    char *target = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    int result = 0;
    if (fill == MAP_FAILED || source == MAP_FAILED || target == MAP_FAILED) {
        result = rewarm_error_errno(err, "mapping memory to copy from");
    } else {
        memset(source, 1, SOURCE_BYTES);
        fill->said = (struct bench_board *)(void *)(fill + 1);
        fill->target = target;
        fill->source = source;
        fill->bytes = bytes;
        result = measure(fill, ret_bytes_per_s, err);
    }
    if (target != MAP_FAILED)
        munmap(target, bytes);
    if (source != MAP_FAILED)
        munmap(source, SOURCE_BYTES);
    if (fill != MAP_FAILED)
        munmap(fill, sizeof(*fill) + BENCH_BOARD_BYTES);
    return result;
}

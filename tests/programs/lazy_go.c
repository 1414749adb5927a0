/* lazy_go DIR ACTION [MIB]: waits for DIR/go and then acts at once, so that a test which makes that
 * file between freeze and restore has it act in the first moments of its new life, on memory that
 * is not there yet: exit      ends with code 7 exec      a child executes /proc/self/exe, checks
 * nothing and ends; the parent then checks its memory become    the process itself executes its own
 * binary (a fresh lazy_go with ACTION none) fork      32 children at once check all of the memory
 *   unmap     unmaps half of the memory
 *   discard   discards all of the memory (zeros from then on)
 *   syscall   hands memory that is not there to the kernel: write, writev, process_vm_readv,
 * O_DIRECT abort     dies of SIGABRT none      nothing */
#include "program.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *action;
static char *memory, *self;
static size_t page_count, from, discarded;
static const char *_Atomic trouble;
static atomic_int done;

static bool all_right(void)
{
    for (size_t i = from; i < page_count; i++) {
        const char *page = memory + i * PROGRAM_PAGE;
        if (!(i < discarded ? program_zero(page) : program_filled(page, i)))
            return false;
    }
    return true;
}

static const char *wait_for(pid_t pid, const char *words)
{
    int status = -1;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    return status == 0 ? NULL : words;
}

static const char *do_exec(void)
{
    pid_t pid = fork();
    if (pid == 0) {
        execl(self, self, program_dir, "child", (char *)NULL);
        _exit(1);
    }
    return wait_for(pid, "the executed child failed");
}

static const char *do_fork(void)
{
    pid_t pids[32];
    const char *words = NULL;
    for (int i = 0; i < 32; i++) {
        pids[i] = fork();
        if (pids[i] == 0)
            _exit(all_right() ? 0 : 1);
    }
    for (int i = 0; i < 32; i++) {
        const char *problem = wait_for(pids[i], "a forked child saw wrong memory or was killed");
        words = problem != NULL ? problem : words;
    }
    return words;
}

/* Each call touches pages of its own, the kernel being the first to want them. */
static const char *do_syscall(void)
{
    char *copy = program_map(16 * PROGRAM_PAGE);
    int plain = open(program_path("plain"), O_RDWR | O_CREAT | O_TRUNC, 0600);
    int direct = open(program_path("direct"), O_RDWR | O_CREAT | O_TRUNC | O_DIRECT, 0600);
    struct iovec pieces[4], local = {.iov_base = copy, .iov_len = 16 * PROGRAM_PAGE};
    for (size_t i = 0; i < 4; i++)
        pieces[i] = (struct iovec){memory + (32 + 4 * i) * PROGRAM_PAGE, 4 * PROGRAM_PAGE};
    struct iovec remote = {memory + 64 * PROGRAM_PAGE, 16 * PROGRAM_PAGE};
    if (write(plain, memory, 16 * PROGRAM_PAGE) != 16 * PROGRAM_PAGE)
        return "write of lazy memory failed";
    if (writev(plain, pieces, 4) != 16 * PROGRAM_PAGE)
        return "writev of lazy memory failed";
    if (process_vm_readv(getpid(), &local, 1, &remote, 1, 0) != 16 * PROGRAM_PAGE)
        return "process_vm_readv of lazy memory failed";
    for (size_t i = 0; i < 16; i++)
        if (!program_filled(copy + i * PROGRAM_PAGE, 64 + i))
            return "process_vm_readv of lazy memory gave wrong bytes";
    if (direct >= 0) {
        if (write(direct, memory + 96 * PROGRAM_PAGE, 16 * PROGRAM_PAGE) != 16 * PROGRAM_PAGE)
            return "O_DIRECT write of lazy memory failed";
        if (pread(direct, copy, 16 * PROGRAM_PAGE, 0) != 16 * PROGRAM_PAGE)
            return "O_DIRECT read failed";
        for (size_t i = 0; i < 16; i++)
            if (!program_filled(copy + i * PROGRAM_PAGE, 96 + i))
                return "O_DIRECT write of lazy memory gave wrong bytes";
    }
    close(plain);
    close(direct);
    return NULL;
}

static const char *act(void)
{
    if (strcmp(action, "exit") == 0)
        _exit(7);
    if (strcmp(action, "abort") == 0)
        abort();
    if (strcmp(action, "become") == 0)
        execl(self, self, program_dir, "none", (char *)NULL);
    if (strcmp(action, "exec") == 0)
        return do_exec();
    if (strcmp(action, "fork") == 0)
        return do_fork();
    if (strcmp(action, "syscall") == 0)
        return do_syscall();
    if (strcmp(action, "unmap") == 0) {
        from = page_count / 2;
        return munmap(memory, from * PROGRAM_PAGE) == 0 ? NULL : "munmap failed";
    }
    if (strcmp(action, "discard") == 0) {
        discarded = page_count;
        return madvise(memory, page_count * PROGRAM_PAGE, MADV_DONTNEED) == 0 ? NULL
                                                                              : "madvise failed";
    }
    return NULL;
}

static void *wait_for_go(void *argument)
{
    (void)argument;
    while (!program_exists("go"))
        usleep(500);
    atomic_store(&trouble, act());
    atomic_store(&done, 1);
    return NULL;
}

static const char *check(void)
{
    uint64_t end = program_now_ms() + 10000;
    while (program_exists("go") && atomic_load(&done) == 0 && program_now_ms() < end)
        usleep(1000);
    PROGRAM_EXPECT(!program_exists("go") || atomic_load(&done) != 0, "%s has not come to an end",
                   action);
    PROGRAM_EXPECT(trouble == NULL, "%s", trouble);
    PROGRAM_EXPECT(all_right(), "memory is wrong after %s", action);
    return NULL;
}

int main(int argc, char **argv)
{
    program_begin(argc, argv);
    action = program_arg(2, "none");
    if (strcmp(action, "child") == 0)
        return 0;
    self = realpath("/proc/self/exe", NULL);
    page_count = program_arg_size(3, 64) * 256;
    memory = program_map(page_count * PROGRAM_PAGE);
    for (size_t i = 0; i < page_count; i++)
        program_fill(memory + i * PROGRAM_PAGE, i);
    pthread_t thread;
    if (pthread_create(&thread, NULL, wait_for_go, NULL) != 0)
        program_die("pthread_create");
    program_serve(check);
}

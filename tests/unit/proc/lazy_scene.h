/* A stage for the lazy-pages peer's tests: a made-up snapshot, a fake CRIU, and targets.
 *
 * A target is a child process that maps and registers memory like CRIU's restorer, sends its pid
 * and userfaultfd over the lazy-pages socket, and then uses the memory. What every page must hold
 * follows from the image pid and the original address, so nothing big is kept. Targets check with
 * CHECK(): the first failure is noted in shared memory, and the test fails with its line and value.
 */
#ifndef REWARM_TEST_LAZY_SCENE_H
#define REWARM_TEST_LAZY_SCENE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/clean.h"
#include "base/str.h"
#include "base/time.h"
#include "proc/lazy.h"

#define PAGE        ((uint64_t)REWARM_PAGE_BYTES)
#define WINDOW      ((uint64_t)REWARM_WINDOW_BYTES)
#define BASE        0x551000000000ull /* where sanitizers leave room, too */
#define ELSEWHERE   0x552000000000ull
#define FINISHED    0x52535446u
#define MAX_TARGETS 8
#define NOBODY      UINT32_MAX

/* Shared with the targets. */
struct scene_shared {
    int failed_line;
    uint64_t failed_value;
    uint32_t at_chunk; /* the chunk that the source was asked for last */
    bool served;       /* the service has returned */
    uint64_t rounds;   /* counted by the targets */
};

struct scene {
    struct rewarm_memmap map;
    struct rewarm_lazy_source source;
    struct rewarm_lazy_options options;
    struct rewarm_lazy_stats stats;
    struct rewarm_error err;
    int result;
    uint64_t serve_ns;
    pthread_t service;
    bool serving;
    char directory[32], path[64];
    int criu_fd;
    struct scene_shared *shared;
    uint32_t corrupt_chunk;
    unsigned source_delay_us;
    int running_calls;
    uint64_t progress_done, progress_total;
    pid_t targets[MAX_TARGETS];
    int go[MAX_TARGETS]; /* written to let the target start */
    int target_count;
    int fds_before;
};

static struct scene *scene_now; /* for CHECK() in targets */

#define CHECK_VALUE(condition, value)                                                              \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            if (scene_now->shared->failed_line == 0) {                                             \
                scene_now->shared->failed_value = (uint64_t)(value);                               \
                scene_now->shared->failed_line = __LINE__;                                         \
            }                                                                                      \
            _exit(99);                                                                             \
        }                                                                                          \
    } while (0)
#define CHECK(condition) CHECK_VALUE(condition, errno)

/* --- what memory must hold ----------------------------------------------------------------------
 */

static inline uint64_t scene_word(int32_t pid, uint64_t address)
{
    uint64_t x = address + ((uint64_t)(uint32_t)pid << 48) + 1;
    x ^= x >> 31;
    x *= 0x9E3779B97F4A7C15ull;
    return x | 1; /* never zero */
}

static inline void scene_fill_page(int32_t pid, uint64_t vaddr, uint64_t *page)
{
    for (uint64_t i = 0; i < PAGE / 8; i++)
        page[i] = scene_word(pid, vaddr + i * 8);
}

/* Every fifth page, and a tail of every third window, was never dumped. */
static inline bool scene_stored(uint64_t vaddr)
{
    uint64_t page = vaddr / PAGE;
    if (vaddr / WINDOW % 3 == 1 && page % 64 >= 48)
        return false;
    return page % 5 != 3;
}

/* The page at `at` holds what the snapshot has for `original` (zero if never dumped). */
static inline bool scene_page_is(int32_t pid, const void *at, uint64_t original)
{
    const volatile uint64_t *words = at;
    bool stored = scene_stored(original);
    for (uint64_t i = 0; i < PAGE / 8; i += 17) {
        if (words[i] != (stored ? scene_word(pid, original + i * 8) : 0))
            return false;
    }
    return words[PAGE / 8 - 1] == (stored ? scene_word(pid, original + PAGE - 8) : 0);
}

static inline bool scene_page_is_zero(const void *at)
{
    const volatile uint64_t *words = at;
    for (uint64_t i = 0; i < PAGE / 8; i++) {
        if (words[i] != 0)
            return false;
    }
    return true;
}

static inline char *scene_at(uint64_t address)
{
    return (char *)(uintptr_t)address;
}

#define CHECK_SNAPSHOT(pid, at, original, bytes)                                                   \
    do {                                                                                           \
        for (uint64_t offset_ = 0; offset_ < (bytes); offset_ += PAGE)                             \
            CHECK_VALUE(scene_page_is(pid, scene_at((at) + offset_), (original) + offset_),        \
                        (at) + offset_);                                                           \
    } while (0)
#define CHECK_ZERO(at, bytes)                                                                      \
    do {                                                                                           \
        for (uint64_t offset_ = 0; offset_ < (bytes); offset_ += PAGE)                             \
            CHECK_VALUE(scene_page_is_zero(scene_at((at) + offset_)), (at) + offset_);             \
    } while (0)

/* --- the snapshot -------------------------------------------------------------------------------
 */

static inline int scene_get(void *context, uint32_t chunk, void *buffer, struct rewarm_error *err)
{
    struct scene *scene = context;
    const struct rewarm_window *window = &scene->map.windows[chunk];
    int32_t pid = 0;
    for (size_t i = 0; i < scene->map.space_count; i++) {
        const struct rewarm_space *space = &scene->map.spaces[i];
        if (chunk >= space->first_window && chunk < space->first_window + space->windows)
            pid = space->pid;
    }
    if (chunk == scene->corrupt_chunk)
        return rewarm_error_set(err, REWARM_E_CORRUPT, 0, "chunk %u is damaged", chunk);
    char *out = buffer;
    for (uint32_t i = 0; i < window->runs; i++) {
        const struct rewarm_run *run = &scene->map.runs[window->first_run + i];
        for (uint32_t page = 0; page < run->pages; page++)
            scene_fill_page(pid, run->vaddr + page * PAGE,
                            (uint64_t *)(void *)(out + (run->first_page + page) * PAGE));
    }
    __atomic_store_n(&scene->shared->at_chunk, chunk, __ATOMIC_RELEASE);
    if (scene->source_delay_us != 0) {
        struct timespec delay = {.tv_nsec = (long)scene->source_delay_us * 1000};
        nanosleep(&delay, NULL);
    }
    return 0;
}

static inline void scene_add_run(struct scene *scene, size_t *capacity, uint64_t vaddr,
                                 uint32_t *pages)
{
    struct rewarm_window *window = &scene->map.windows[scene->map.window_count - 1];
    struct rewarm_run *last = window->runs != 0 ? &scene->map.runs[scene->map.run_count - 1] : NULL;
    if (last != NULL && last->vaddr + last->pages * PAGE == vaddr) {
        last->pages++;
    } else {
        REWARM_GROW(&scene->map.runs, capacity, scene->map.run_count);
        scene->map.runs[scene->map.run_count++] =
            (struct rewarm_run){.vaddr = vaddr, .pages = 1, .first_page = *pages};
        window->runs++;
    }
    (*pages)++;
}

/* Adds the lazy memory [start, start + bytes) of process `pid` to the snapshot. */
static inline void scene_add_space(struct scene *scene, int32_t pid, uint64_t start, uint64_t bytes)
{
    struct rewarm_memmap *map = &scene->map;
    size_t space_capacity = map->space_count, window_capacity = map->window_count;
    size_t run_capacity = map->run_count;
    REWARM_GROW(&map->spaces, &space_capacity, map->space_count);
    struct rewarm_space *space = &map->spaces[map->space_count++];
    *space = (struct rewarm_space){.pid = pid, .first_window = map->window_count};
    space->lazy_pages = bytes / PAGE;
    uint32_t pages = 0;
    for (uint64_t vaddr = start; vaddr < start + bytes; vaddr += PAGE) {
        if (!scene_stored(vaddr))
            continue;
        uint64_t base = vaddr / WINDOW * WINDOW;
        if (space->windows == 0 || map->windows[map->window_count - 1].vaddr != base) {
            REWARM_GROW(&map->windows, &window_capacity, map->window_count);
            map->windows[map->window_count] = (struct rewarm_window){
                .vaddr = base,
                .first_run = (uint32_t)map->run_count,
                .chunk = (uint32_t)map->window_count,
            };
            map->window_count++;
            space->windows++;
            pages = 0;
        }
        scene_add_run(scene, &run_capacity, vaddr, &pages);
    }
}

static inline uint64_t scene_stored_bytes(const struct scene *scene)
{
    uint64_t pages = 0;
    for (size_t i = 0; i < scene->map.run_count; i++)
        pages += scene->map.runs[i].pages;
    return pages * PAGE;
}

/* --- the fake CRIU ------------------------------------------------------------------------------
 */

static inline int scene_count_fds(void)
{
    int count = 0;
    for (int fd = 0; fd < 1024; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

static inline void scene_count_running(void *context)
{
    struct scene *scene = context;
    scene->running_calls++;
}

static inline void scene_note_progress(void *context, uint64_t done, uint64_t total)
{
    struct scene *scene = context;
    if (done < scene->progress_done || done > total)
        abort();
    scene->progress_done = done;
    scene->progress_total = total;
}

static inline void scene_init(struct scene *scene)
{
    *scene = (struct scene){.corrupt_chunk = NOBODY, .source = {.get = scene_get}};
    scene->fds_before = scene_count_fds();
    scene->shared = mmap(NULL, sizeof(*scene->shared), PROT_READ | PROT_WRITE,
                         MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(scene->shared != MAP_FAILED);
    scene->shared->at_chunk = NOBODY;
    strcpy(scene->directory, "/tmp/rewarm-lazy-XXXXXX");
    assert_non_null(mkdtemp(scene->directory));
    snprintf(scene->path, sizeof(scene->path), "%s/lazy-pages.socket", scene->directory);
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    strcpy(name.sun_path, scene->path);
    int listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(listen_fd >= 0);
    assert_int_equal(bind(listen_fd, (void *)&name, sizeof(name)), 0);
    assert_int_equal(listen(listen_fd, 1), 0);
    scene->criu_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(scene->criu_fd, (void *)&name, sizeof(name)), 0);
    scene->options = (struct rewarm_lazy_options){
        .map = &scene->map,
        .source = &scene->source,
        .source_context = scene,
        .threads = 2,
        .listen_fd = listen_fd,
        .cancel_fd = eventfd(0, EFD_CLOEXEC),
        .background = true,
        .on_running = scene_count_running,
        .on_progress = scene_note_progress,
        .context = scene,
    };
    scene_now = scene;
}

static inline void *scene_serve(void *argument)
{
    struct scene *scene = argument;
    uint64_t start_ns = rewarm_time_now_ns();
    scene->result = rewarm_lazy_serve(&scene->options, &scene->stats, &scene->err);
    scene->serve_ns = rewarm_time_now_ns() - start_ns;
    __atomic_store_n(&scene->shared->served, true, __ATOMIC_RELEASE);
    return NULL;
}

/* After the targets were forked: a sanitizer wants a single-threaded fork. */
static inline void scene_start(struct scene *scene)
{
    assert_int_equal(pthread_create(&scene->service, NULL, scene_serve, scene), 0);
    scene->serving = true;
}

static inline void scene_let_go(struct scene *scene)
{
    for (int i = 0; i < scene->target_count; i++)
        assert_int_equal(write(scene->go[i], "g", 1), 1);
}

static inline void scene_finish_restore(struct scene *scene)
{
    uint32_t finished = FINISHED;
    assert_int_equal(send(scene->criu_fd, &finished, sizeof(finished), MSG_NOSIGNAL),
                     sizeof(finished));
}

/* Starts the service, the tree and the targets. */
static inline void scene_run(struct scene *scene)
{
    scene_start(scene);
    scene_finish_restore(scene);
    scene_let_go(scene);
}

static inline int scene_join(struct scene *scene)
{
    assert_int_equal(pthread_join(scene->service, NULL), 0);
    scene->serving = false;
    return scene->result;
}

/* Waits for target `index`; returns its wait status. */
static inline int scene_wait(struct scene *scene, int index)
{
    int status;
    assert_int_equal(waitpid(scene->targets[index], &status, 0), scene->targets[index]);
    scene->targets[index] = 0;
    if (scene->shared->failed_line != 0)
        fail_msg("target failed at line %d, value 0x%llx", scene->shared->failed_line,
                 (unsigned long long)scene->shared->failed_value);
    return status;
}

static inline void scene_expect_success(struct scene *scene)
{
    for (int i = 0; i < scene->target_count; i++) {
        if (scene->targets[i] != 0)
            assert_int_equal(scene_wait(scene, i), 0);
    }
    int result = scene_join(scene);
    if (result != 0)
        fail_msg("service: %s", scene->err.message);
    assert_int_equal(scene->running_calls, 1);
    assert_true(scene->progress_done == scene->progress_total);
}

static inline void scene_fini(struct scene *scene)
{
    for (int i = 0; i < scene->target_count; i++) {
        if (scene->targets[i] > 0) {
            kill(scene->targets[i], SIGKILL);
            waitpid(scene->targets[i], NULL, 0);
        }
        close(scene->go[i]);
    }
    assert_false(scene->serving);
    close(scene->criu_fd);
    close(scene->options.listen_fd);
    close(scene->options.cancel_fd);
    unlink(scene->path);
    rmdir(scene->directory);
    munmap(scene->shared, sizeof(*scene->shared));
    rewarm_memmap_fini(&scene->map);
    scene_now = NULL;
}

static inline void scene_close_userfaultfds(void)
{
    for (int fd = 3; fd < 1024; fd++) {
        char path[64], target[64];
        snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
        ssize_t length = readlink(path, target, sizeof(target) - 1);
        if (length <= 0)
            continue;
        target[length] = '\0';
        if (strstr(target, "userfaultfd") != NULL)
            close(fd);
    }
}

/* Teardown: whatever a failed test has left. */
static inline int scene_abandon(void **state)
{
    (void)state;
    struct scene *scene = scene_now;
    if (scene == NULL)
        return 0;
    for (int i = 0; i < scene->target_count; i++) {
        if (scene->targets[i] > 0)
            kill(scene->targets[i], SIGKILL);
    }
    uint64_t one = 1;
    if (scene->serving && write(scene->options.cancel_fd, &one, sizeof(one)) == sizeof(one))
        pthread_join(scene->service, NULL);
    scene->serving = false;
    scene_close_userfaultfds();
    scene_fini(scene);
    return 0;
}

#define SCENE_TEST(function) cmocka_unit_test_teardown(function, scene_abandon)

/* --- targets ------------------------------------------------------------------------------------
 */

static inline void scene_send_pid(int socket, int32_t pid)
{
    CHECK(send(socket, &pid, sizeof(pid), MSG_NOSIGNAL) == sizeof(pid));
}

static inline void scene_send_descriptor(int socket, int fd)
{
    char byte = 0;
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct iovec part = {&byte, 1};
    struct msghdr message = {
        .msg_iov = &part,
        .msg_iovlen = 1,
        .msg_control = control.bytes,
        .msg_controllen = sizeof(control.bytes),
    };
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &fd, sizeof(int));
    CHECK(sendmsg(socket, &message, MSG_NOSIGNAL) == 1);
}

static inline void scene_register(int uffd, uint64_t start, uint64_t bytes)
{
    struct uffdio_register range = {
        .range = {.start = start, .len = bytes},
        .mode = UFFDIO_REGISTER_MODE_MISSING,
    };
    CHECK(ioctl(uffd, UFFDIO_REGISTER, &range) == 0);
}

static inline void scene_map(uint64_t start, uint64_t bytes)
{
    void *at = mmap(scene_at(start), bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
    CHECK(at == scene_at(start));
}

static inline int scene_open_uffd(void)
{
    int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    struct uffdio_api api = {
        .api = UFFD_API,
        .features = UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE |
                    UFFD_FEATURE_EVENT_UNMAP,
    };
    CHECK(uffd >= 0 && ioctl(uffd, UFFDIO_API, &api) == 0);
    return uffd;
}

/* Forks a target with [start, start + bytes) mapped (by `map`, or plainly when it is NULL) and sent
 * to the service; it runs `body` once it is let go, and ends with status 0. */
static inline void scene_spawn(struct scene *scene, int32_t pid, uint64_t start, uint64_t bytes,
                               void (*map)(void), void (*body)(void))
{
    int go[2], sent[2];
    assert_int_equal(pipe2(go, O_CLOEXEC), 0);
    assert_int_equal(pipe2(sent, O_CLOEXEC), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        char byte;
        close(go[1]);
        if (map != NULL)
            map();
        else
            scene_map(start, bytes);
        int uffd = scene_open_uffd();
        /* In CRIU's order: the descriptor is sent before anything is registered. */
        scene_send_pid(scene->criu_fd, pid);
        scene_send_descriptor(scene->criu_fd, uffd);
        scene_register(uffd, start, bytes);
        close(uffd);
        CHECK(write(sent[1], "s", 1) == 1);
        CHECK(read(go[0], &byte, 1) == 1);
        body();
        _exit(0);
    }
    char byte;
    close(go[0]);
    close(sent[1]);
    assert_int_equal(read(sent[0], &byte, 1), 1);
    close(sent[0]);
    scene->go[scene->target_count] = go[1];
    scene->targets[scene->target_count++] = child;
}

/* In a target: forks and runs `body` in the child. Returns the child, to be reaped. The child ends
 * without _exit(2), in which a sanitizer would miss the threads that fork left behind. */
static inline pid_t scene_fork(void (*body)(void))
{
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        body();
        syscall(SYS_exit_group, 0);
    }
    return child;
}

static inline void scene_reap(pid_t child)
{
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK_VALUE(status == 0, status);
}

static inline uint64_t scene_random(uint64_t *seed)
{
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return *seed >> 33;
}

/* 0 when this process may serve kernel-mode faults; else says why the tests are skipped. */
static inline bool scene_possible(void)
{
    int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    if (uffd < 0) {
        fprintf(stderr, "SKIP: userfaultfd needs root or CAP_SYS_PTRACE: %s\n", strerror(errno));
        return false;
    }
    struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_EVENT_FORK};
    bool possible = ioctl(uffd, UFFDIO_API, &api) == 0;
    if (!possible)
        fprintf(stderr, "SKIP: no fork events for userfaultfd here: %s\n", strerror(errno));
    close(uffd);
    return possible;
}

#endif

/* Where `rewarm bench` works: a folder in RAM, and the end of everything it starts.
 *
 * The folder is /dev/shm/rewarm-bench.PID. Every process that is started (workers, CRIU, rewarm and
 * its supervisors) descends from this one, which is their subreaper, and has a session of its own:
 * a Ctrl-C reaches only us, the step in hand is let finish, and then all of it is ended and
 * removed. If this process is killed outright the worker ends itself, and the next bench repairs
 * and removes the folder. */
#include "bench.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clean.h"
#include "base/fs.h"
#include "base/str.h"
#include "base/time.h"
#include "io/parallel.h"
#include "proc/procfs.h"
#include "snapshot/snapshot.h"

#define PARENT "/dev/shm"
#define PREFIX "rewarm-bench."

static volatile sig_atomic_t stop_signal;

static void on_signal(int number)
{
    stop_signal = number;
}

int rewarm_bench_room_check_stop(struct rewarm_error *err)
{
    if (stop_signal == 0)
        return 0;
    return rewarm_error_set(err, REWARM_E_CANCELLED, 0, "stopped by signal %d (%s)",
                            (int)stop_signal, strsignal(stop_signal));
}

static void catch_signals(void)
{
    const int numbers[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT};
    struct sigaction action = {.sa_handler = on_signal};
    sigemptyset(&action.sa_mask);
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
        sigaction(numbers[i], &action, NULL);
}

/* --- space ---------------------------------------------------------------------------------------
 */

static uint64_t memory_available(void)
{
    rewarm_auto_free char *text = NULL;
    if (rewarm_fs_read_file(AT_FDCWD, "/proc/meminfo", 65536, &text, NULL, NULL) != 0)
        return UINT64_MAX;
    const char *line = strstr(text, "MemAvailable:");
    unsigned long long kib = 0;
    if (line == NULL || sscanf(line, "MemAvailable: %llu kB", &kib) != 1)
        return UINT64_MAX;
    return kib * 1024;
}

static int check_space(uint64_t need_room_bytes, uint64_t need_memory_bytes,
                       struct rewarm_error *err)
{
    char need[REWARM_STR_HUMAN];
    char have[REWARM_STR_HUMAN];
    struct statfs fs;
    uint64_t memory_bytes = memory_available();
    if (memory_bytes < need_memory_bytes)
        return rewarm_error_set(err, REWARM_E_NO_SPACE, 0,
                                "the bench needs %s of memory at once, and %s are available: take "
                                "a smaller --size",
                                rewarm_str_bytes(need_memory_bytes, need),
                                rewarm_str_bytes(memory_bytes, have));
    if (statfs(PARENT, &fs) != 0)
        return rewarm_error_errno(err, "looking for room in " PARENT);
    if (fs.f_type != TMPFS_MAGIC)
        return rewarm_error_set(err, REWARM_E_REFUSED, 0,
                                PARENT " is no tmpfs: the bench keeps all images in RAM");
    uint64_t room_bytes = (uint64_t)fs.f_bavail * (uint64_t)fs.f_bsize;
    if (room_bytes < need_room_bytes)
        return rewarm_error_set(err, REWARM_E_NO_SPACE, 0,
                                "the bench needs %s in " PARENT ", which has %s free: take a "
                                "smaller --size, or make it larger (mount -o remount,size=...)",
                                rewarm_str_bytes(need_room_bytes, need),
                                rewarm_str_bytes(room_bytes, have));
    return 0;
}

struct warm {
    char *memory;
    uint64_t bytes;
    atomic_uint_fast64_t next;
};

static int warm_some(void *context, unsigned index, struct rewarm_error *err)
{
    struct warm *warm = context;
    const uint64_t step = 64u << 20;
    (void)index;
    for (;;) {
        uint64_t at = atomic_fetch_add(&warm->next, step);
        if (at >= warm->bytes || rewarm_bench_room_check_stop(NULL) != 0)
            return 0;
        uint64_t bytes = warm->bytes - at < step ? warm->bytes - at : step;
        if (madvise(warm->memory + at, bytes, MADV_POPULATE_WRITE) != 0 && errno != EINTR)
            return rewarm_error_errno(err, "touching memory");
    }
}

int rewarm_bench_room_warm(uint64_t bytes, struct rewarm_error *err)
{
    struct warm warm = {.bytes = bytes};
    warm.memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (warm.memory == MAP_FAILED)
        return rewarm_error_errno(err, "mapping memory to touch");
    int result = rewarm_parallel_run(rewarm_parallel_width(), warm_some, &warm, err);
    munmap(warm.memory, bytes);
    return result != 0 ? result : rewarm_bench_room_check_stop(err);
}

/* --- the folder ----------------------------------------------------------------------------------
 */

static void set_paths(const char *room)
{
    rewarm_auto_free char *store = rewarm_str_format("%s/store", room);
    rewarm_auto_free char *run = rewarm_str_format("%s/run", room);
    setenv("REWARM_STORE", store, 1);
    setenv("REWARM_RUN", run, 1);
}

/* What a killed bench has left: its journals are repaired first (a limit may still be raised). */
static void sweep_one(const char *name)
{
    rewarm_auto_free char *room = rewarm_str_format(PARENT "/%s", name);
    struct stat st;
    uint64_t pid = 0;
    if (!rewarm_str_to_u64(name + strlen(PREFIX), &pid) || pid == 0 || pid > INT32_MAX ||
        kill((pid_t)pid, 0) == 0 || errno != ESRCH || lstat(room, &st) != 0 ||
        !S_ISDIR(st.st_mode) || st.st_uid != geteuid())
        return;
    set_paths(room);
    rewarm_auto_free char *path = rewarm_store_default_path();
    struct rewarm_store *store = NULL;
    if (rewarm_store_open(path, false, &store, NULL) == 0) {
        rewarm_repair(store, NULL);
        rewarm_store_close(store);
    }
    rewarm_fs_remove_tree(AT_FDCWD, room, NULL);
}

static void sweep(void)
{
    rewarm_auto_dir DIR *dir = opendir(PARENT);
    for (struct dirent *entry; dir != NULL && (entry = readdir(dir)) != NULL;) {
        if (rewarm_str_starts(entry->d_name, PREFIX))
            sweep_one(entry->d_name);
    }
}

static int make_board(struct bench *bench, struct rewarm_error *err)
{
    rewarm_auto_free char *path = rewarm_str_format("%s/board", bench->room);
    rewarm_auto_fd int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, BENCH_BOARD_BYTES) != 0)
        return rewarm_error_errno(err, "making %s", path);
    void *memory = mmap(NULL, BENCH_BOARD_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED)
        return rewarm_error_errno(err, "mapping %s", path);
    bench->board = memory;
    atomic_store(&bench->board->owner, (int)getpid());
    return 0;
}

int rewarm_bench_room_open(struct bench *bench, uint64_t need_room_bytes,
                           uint64_t need_memory_bytes, struct rewarm_error *err)
{
    sweep();
    int result = check_space(need_room_bytes, need_memory_bytes, err);
    if (result != 0)
        return result;
    catch_signals();
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    rewarm_auto_free char *room = rewarm_str_format(PARENT "/" PREFIX "%d", (int)getpid());
    if (mkdir(room, 0700) != 0)
        return rewarm_error_errno(err, "making %s", room);
    bench->room = rewarm_steal_ptr(&room);
    set_paths(bench->room);
    return make_board(bench, err);
}

int rewarm_bench_room_empty(struct bench *bench, const char *name, struct rewarm_error *err)
{
    rewarm_auto_free char *path = rewarm_str_format("%s/%s", bench->room, name);
    int result = rewarm_fs_remove_tree(AT_FDCWD, path, err);
    return result != 0 ? result : rewarm_fs_make_dirs(path, err);
}

/* Everything that descends from us; whoever forks meanwhile is met again in the next turn. */
static void end_all(void)
{
    uint64_t deadline_ns = rewarm_time_now_ns() + 20 * REWARM_NS_PER_S;
    while (rewarm_time_now_ns() < deadline_ns) {
        struct rewarm_proc_stat *stats = NULL;
        size_t count = 0;
        if (rewarm_proc_tree(getpid(), &stats, &count, NULL) != 0)
            return;
        for (size_t i = 0; i < count; i++) {
            if (stats[i].ppid == getpid())
                rewarm_proc_kill_tree(stats[i].pid, stats[i].starttime, deadline_ns, NULL);
        }
        free(stats);
        /* Whatever there was is dying, so one of them can be waited for. */
        if (waitpid(-1, NULL, 0) < 0 && errno == ECHILD)
            return;
    }
}

void rewarm_bench_room_close(struct bench *bench)
{
    if (bench->room == NULL)
        return;
    end_all();
    if (bench->board != NULL)
        munmap(bench->board, BENCH_BOARD_BYTES);
    bench->board = NULL;
    rewarm_fs_remove_tree(AT_FDCWD, bench->room, NULL);
    free(rewarm_steal_ptr(&bench->room));
}

/* The commands that `rewarm bench` measures: starting and ending the worker, and freezing and
 * restoring it with rewarm or with CRIU alone.
 *
 * Ours is this same program, started as a person would start it; CRIU is started in the way that
 * rewarm starts it (same bundle, same log level), with no option beyond what its job needs. The
 * clock starts before the fork. */
#include "bench.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clean.h"
#include "base/fs.h"
#include "base/str.h"
#include "base/time.h"
#include "output.h"
#include "proc/procfs.h"
#include "store/store.h"

#define SNAPSHOT  "bench"
#define SAMPLE_MS 2

static const uint64_t command_timeout_ns = 300 * REWARM_NS_PER_S;
static const uint64_t step_timeout_ns = 120 * REWARM_NS_PER_S;

/* --- starting programs ---------------------------------------------------------------------------
 */

/* `output`: a file of the room that gets stdout and stderr, or NULL for /dev/null. */
static pid_t start(struct bench *bench, const char *const *argv, const char *output)
{
    pid_t pid = fork();
    if (pid != 0)
        return pid;
    setsid();
    for (int number = 1; number < NSIG; number++)
        signal(number, SIG_DFL);
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    int out = null;
    int error = null;
    if (output != NULL) {
        rewarm_auto_free char *path = rewarm_str_format("%s/%s", bench->room, output);
        rewarm_auto_free char *error_path = rewarm_str_format("%s.err", path);
        out = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        error = open(error_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    }
    if (null < 0 || dup2(null, 0) < 0 || dup2(out, 1) < 0 || dup2(error, 2) < 0)
        _exit(127);
    execv(argv[0], (char *const *)argv);
    _exit(127);
}

static json_t *read_answer(struct bench *bench, const char *output)
{
    rewarm_auto_free char *path = rewarm_str_format("%s/%s", bench->room, output);
    return json_load_file(path, 0, NULL);
}

static void put_last_line(struct bench *bench, const char *output, char *line, size_t size)
{
    rewarm_auto_free char *path = rewarm_str_format("%s/%s.err", bench->room, output);
    rewarm_auto_free char *text = NULL;
    snprintf(line, size, "it said nothing");
    size_t bytes = 0;
    if (rewarm_fs_read_file(AT_FDCWD, path, 1 << 20, &text, &bytes, NULL) != 0)
        return;
    while (bytes > 0 && text[bytes - 1] == '\n')
        text[--bytes] = '\0';
    const char *last = strrchr(text, '\n');
    if (bytes > 0)
        snprintf(line, size, "%s", last != NULL ? last + 1 : text);
}

/* Waits for a command of ours; its JSON answer becomes *ret_answer. */
static int finish(struct bench *bench, pid_t pid, const char *what, json_t **ret_answer,
                  struct rewarm_error *err)
{
    int status = 0;
    while (waitpid(pid, &status, 0) < 0) {
        if (errno != EINTR)
            return rewarm_error_errno(err, "waiting for rewarm %s", what);
    }
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        char line[512];
        put_last_line(bench, "answer", line, sizeof(line));
        return rewarm_error_set(err, REWARM_E_SYSTEM, 0, "rewarm %s failed: %s", what, line);
    }
    if (ret_answer == NULL)
        return 0;
    *ret_answer = read_answer(bench, "answer");
    if (*ret_answer == NULL)
        return rewarm_error_set(err, REWARM_E_SYSTEM, 0, "rewarm %s gave no answer", what);
    return 0;
}

/* --- the worker ----------------------------------------------------------------------------------
 */

static int check_worker(const struct bench *bench, struct rewarm_error *err)
{
    struct rewarm_proc_stat stat;
    if (rewarm_proc_stat(bench->worker, &stat, NULL) == 0 && stat.state != 'Z')
        return 0;
    return rewarm_error_set(err, REWARM_E_LOST, 0, "the worker (process %d) has ended",
                            (int)bench->worker);
}

/* Waits until `is_so`; the worker must live. */
static int await(struct bench *bench, bool (*is_so)(const struct bench_board *, unsigned),
                 unsigned argument, const char *what, struct rewarm_error *err)
{
    uint64_t deadline_ns = rewarm_time_now_ns() + step_timeout_ns;
    for (;;) {
        unsigned seen = atomic_load(&bench->board->events);
        if (is_so(bench->board, argument))
            return 0;
        int result = rewarm_bench_room_check_stop(err);
        if (result == 0)
            result = check_worker(bench, err);
        if (result == 0 && rewarm_time_now_ns() > deadline_ns)
            result = rewarm_error_set(err, REWARM_E_TIMEOUT, 0, "the worker did not %s", what);
        if (result != 0)
            return result;
        rewarm_bench_board_wait(bench->board, seen);
    }
}

static bool has_ticked(const struct bench_board *board, unsigned unused)
{
    (void)unused;
    return atomic_load(&board->first_tick_ns) != 0;
}

static bool has_done(const struct bench_board *board, unsigned step)
{
    return atomic_load(&board->done) == step;
}

int rewarm_bench_await_tick(struct bench *bench, struct rewarm_error *err)
{
    return await(bench, has_ticked, 0, "run", err);
}

int rewarm_bench_await_step(struct bench *bench, enum bench_step step, struct rewarm_error *err)
{
    int result = await(bench, has_done, step, "read its memory", err);
    if (result == 0 && atomic_load(&bench->board->bad_pages) != 0)
        result = rewarm_error_set(err, REWARM_E_CORRUPT, 0, "%llu pages of the worker are wrong",
                                  (unsigned long long)atomic_load(&bench->board->bad_pages));
    return result;
}

/* In a fresh container PIDs are low, and the commands' own processes would take the worker's. */
static void leave_low_pids(void)
{
    rewarm_auto_fd int fd = open("/proc/sys/kernel/ns_last_pid", O_WRONLY | O_CLOEXEC);
    ssize_t ignored = getpid() < 1000 && fd >= 0 ? write(fd, "1000", 4) : 0;
    (void)ignored; /* then a restore may find its PID taken, and says so */
}

int rewarm_bench_worker_start(struct bench *bench, uint64_t bytes, unsigned areas,
                              struct rewarm_error *err)
{
    rewarm_auto_free char *board = rewarm_str_format("%s/board", bench->room);
    rewarm_auto_free char *bytes_text = rewarm_str_format("%llu", (unsigned long long)bytes);
    rewarm_auto_free char *areas_text = rewarm_str_format("%u", areas);
    const char *const argv[] = {bench->self, "bench-worker", board, bytes_text, areas_text, NULL};
    atomic_store(&bench->board->wanted, BENCH_TICK);
    atomic_store(&bench->board->done, BENCH_TICK);
    atomic_store(&bench->board->bad_pages, 0);
    atomic_store(&bench->board->first_tick_ns, 0);
    leave_low_pids();
    bench->worker = start(bench, argv, NULL);
    if (bench->worker < 0)
        return rewarm_error_errno(err, "starting the worker");
    return rewarm_bench_await_tick(bench, err);
}

int rewarm_bench_worker_end(struct bench *bench, struct rewarm_error *err)
{
    if (bench->worker > 0 && kill(bench->worker, SIGKILL) != 0 && errno != ESRCH)
        return rewarm_error_errno(err, "ending the worker");
    bench->worker = 0;
    /* Supervisors end with their worker: until none of our children is left. */
    while (waitpid(-1, NULL, 0) > 0 || errno == EINTR) {
        int result = rewarm_bench_room_check_stop(err);
        if (result != 0)
            return result;
    }
    return 0;
}

/* --- CRIU alone ----------------------------------------------------------------------------------
 */

static int run_criu(struct bench *bench, const char *verb, const char *const *args,
                    uint64_t *ret_start_wall_ns, uint64_t *ret_ns, struct rewarm_error *err)
{
    rewarm_auto_free char *images = rewarm_str_format("%s/criu", bench->room);
    rewarm_auto_fd int images_fd = -1;
    int result = rewarm_fs_open_dir(AT_FDCWD, images, false, &images_fd, err);
    if (result != 0)
        return result;
    const char *all[16] = {"--images-dir", images};
    for (size_t i = 0; args[i] != NULL; i++)
        all[2 + i] = args[i];
    struct rewarm_criu_child child;
    uint64_t start_ns = rewarm_time_now_ns();
    *ret_start_wall_ns = rewarm_time_wall_ns();
    result = rewarm_criu_start(bench->criu, verb, all, NULL, 0, images_fd, &child, err);
    if (result == 0)
        result = rewarm_criu_wait(&child, start_ns + command_timeout_ns, err);
    *ret_ns = rewarm_time_now_ns() - start_ns;
    return result;
}

/* --- freeze --------------------------------------------------------------------------------------
 */

static int freeze_ours(struct bench *bench, const char *pid, uint64_t *ret_ns, json_t **ret_answer,
                       struct rewarm_error *err)
{
    const char *const argv[] = {bench->self, "-q", "freeze", pid, "--as", SNAPSHOT, "--json", NULL};
    int result = rewarm_bench_room_empty(bench, "store", err);
    if (result != 0)
        return result;
    uint64_t start_ns = rewarm_time_now_ns();
    pid_t child = start(bench, argv, "answer");
    if (child < 0)
        return rewarm_error_errno(err, "starting rewarm freeze");
    result = finish(bench, child, "freeze", ret_answer, err);
    *ret_ns = rewarm_time_now_ns() - start_ns;
    return result;
}

int rewarm_bench_freeze(struct bench *bench, enum bench_who who, uint64_t *ret_ns,
                        json_t **ret_answer, struct rewarm_error *err)
{
    rewarm_auto_free char *pid = rewarm_str_format("%d", (int)bench->worker);
    if (who == BENCH_OURS)
        return freeze_ours(bench, pid, ret_ns, ret_answer, err);
    const char *const args[] = {"--tree", pid, "--leave-running", NULL};
    uint64_t start_wall_ns;
    int result = rewarm_bench_room_empty(bench, "criu", err);
    return result != 0 ? result : run_criu(bench, "dump", args, &start_wall_ns, ret_ns, err);
}

int rewarm_bench_stage_ns(const char *stage, uint64_t *ret_ns, struct rewarm_error *err)
{
    rewarm_auto_free char *path = rewarm_store_default_path();
    struct rewarm_store *store = NULL;
    struct rewarm_store_reader *reader = NULL;
    int result = rewarm_store_open(path, false, &store, err);
    if (result != 0)
        return result;
    result = rewarm_store_reader_open(store, SNAPSHOT, &reader, err);
    if (result == 0) {
        const json_t *details = json_object_get(rewarm_store_reader_manifest(reader), "snapshot");
        size_t i;
        json_t *entry;
        result = rewarm_error_set(NULL, REWARM_E_NOT_FOUND, 0, "no such stage");
        json_array_foreach(json_object_get(details, "stages"), i, entry)
        {
            if (strcmp(rewarm_json_text(entry, "stage", ""), stage) == 0) {
                *ret_ns = rewarm_json_u64(entry, "ns");
                result = 0;
            }
        }
        if (result != 0)
            rewarm_error_set(err, REWARM_E_NOT_FOUND, 0, "the snapshot has no time of stage %s",
                             stage);
    }
    rewarm_store_reader_close(reader);
    rewarm_store_close(store);
    return result;
}

/* --- restore -------------------------------------------------------------------------------------
 */

static pid_t start_restore(struct bench *bench)
{
    const char *const argv[] = {bench->self, "-q", "restore", SNAPSHOT, "--detach", "--json", NULL};
    return start(bench, argv, "answer");
}

/* The worker comes back with the PID it was frozen with, as what it was told to do then. */
static int set_worker(struct bench *bench, pid_t pid, struct rewarm_error *err)
{
    bench->worker = pid;
    return check_worker(bench, err);
}

int rewarm_bench_restore(struct bench *bench, enum bench_who who, uint64_t *ret_request_wall_ns,
                         uint64_t *ret_ns, json_t **ret_answer, struct rewarm_error *err)
{
    if (who == BENCH_THEIRS) {
        const char *const args[] = {"--restore-detached", "--pidfile", "restored.pid", NULL};
        rewarm_auto_free char *file = rewarm_str_format("%s/criu/restored.pid", bench->room);
        rewarm_auto_free char *text = NULL;
        unlink(file);
        int result = run_criu(bench, "restore", args, ret_request_wall_ns, ret_ns, err);
        if (result == 0)
            result = rewarm_fs_read_file(AT_FDCWD, file, 64, &text, NULL, err);
        return result != 0 ? result : set_worker(bench, (pid_t)atoi(text), err);
    }
    json_t *answer = NULL;
    uint64_t start_ns = rewarm_time_now_ns();
    *ret_request_wall_ns = rewarm_time_wall_ns();
    pid_t child = start_restore(bench);
    if (child < 0)
        return rewarm_error_errno(err, "starting rewarm restore");
    int result = finish(bench, child, "restore", &answer, err);
    *ret_ns = rewarm_time_now_ns() - start_ns;
    if (result == 0)
        result = set_worker(bench, (pid_t)rewarm_json_u64(answer, "pid"), err);
    if (result == 0 && ret_answer != NULL)
        *ret_answer = json_incref(answer);
    json_decref(answer);
    return result;
}

/* --- memory of rewarm itself ---------------------------------------------------------------------
 */

#define PROCESSES_MAX 32

struct peaks {
    pid_t pids[PROCESSES_MAX];
    uint64_t bytes[PROCESSES_MAX];
    size_t count;
};

static uint64_t field_bytes(const char *status, const char *name)
{
    const char *at = strstr(status, name);
    unsigned long long kib = 0;
    if (at == NULL || sscanf(at + strlen(name), " %llu kB", &kib) != 1)
        return 0;
    return kib * 1024;
}

static bool is_ours(const struct bench *bench, pid_t pid)
{
    char path[64];
    char target[4096];
    snprintf(path, sizeof(path), "/proc/%d/exe", (int)pid);
    ssize_t bytes = readlink(path, target, sizeof(target) - 1);
    if (bytes <= 0)
        return false;
    target[bytes] = '\0';
    return strcmp(target, bench->self) == 0;
}

static void sample_one(struct peaks *peaks, pid_t pid)
{
    char path[64];
    rewarm_auto_free char *status = NULL;
    snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
    if (rewarm_fs_read_file(AT_FDCWD, path, 65536, &status, NULL, NULL) != 0)
        return;
    uint64_t bytes = field_bytes(status, "\nRssAnon:") + field_bytes(status, "\nRssShmem:");
    size_t i = 0;
    while (i < peaks->count && peaks->pids[i] != pid)
        i++;
    if (i == PROCESSES_MAX)
        return;
    if (i == peaks->count)
        peaks->pids[peaks->count++] = pid;
    if (bytes > peaks->bytes[i])
        peaks->bytes[i] = bytes;
}

/* The worker is the same program: it and CRIU's children, which become it, have its PID. */
static void sample(struct bench *bench, pid_t worker, struct peaks *peaks)
{
    struct rewarm_proc_stat *stats = NULL;
    size_t count = 0;
    if (rewarm_proc_tree(getpid(), &stats, &count, NULL) != 0)
        return;
    for (size_t i = 0; i < count; i++) {
        if (stats[i].pid != getpid() && stats[i].pid != worker && is_ours(bench, stats[i].pid))
            sample_one(peaks, stats[i].pid);
    }
    free(stats);
}

int rewarm_bench_restore_sampled(struct bench *bench, pid_t worker, uint64_t *ret_peak_bytes,
                                 json_t **ret_answer, struct rewarm_error *err)
{
    struct peaks peaks = {0};
    pid_t child = start_restore(bench);
    if (child < 0)
        return rewarm_error_errno(err, "starting rewarm restore");
    rewarm_auto_fd int pidfd = pidfd_open(child, 0);
    struct pollfd item = {.fd = pidfd, .events = POLLIN};
    while (pidfd >= 0 && poll(&item, 1, SAMPLE_MS) <= 0)
        sample(bench, worker, &peaks);
    json_t *answer = NULL;
    int result = finish(bench, child, "restore", &answer, err);
    if (result == 0)
        result = set_worker(bench, (pid_t)rewarm_json_u64(answer, "pid"), err);
    *ret_peak_bytes = 0;
    for (size_t i = 0; i < peaks.count; i++)
        *ret_peak_bytes += peaks.bytes[i];
    if (result == 0 && peaks.count < 2)
        result = rewarm_error_set(err, REWARM_E_SYSTEM, 0,
                                  "rewarm restore was over before its memory could be seen");
    if (result == 0)
        *ret_answer = json_incref(answer);
    json_decref(answer);
    return result;
}

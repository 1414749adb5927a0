#include "snapshot/workers.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/clean.h"
#include "base/fs.h"
#include "base/str.h"
#include "base/time.h"
#include "proc/procfs.h"

/* A command line and digests of its environment are in it. */
#define WORKER_LIMIT ((size_t)4 << 20)

/* How long a supervisor may take from its worker's end to its own. */
static const uint64_t supervisor_end_ns = 2 * REWARM_NS_PER_S;

static bool parse_worker(const char *text, size_t bytes, struct rewarm_worker *ret_worker)
{
    json_t *object = json_loadb(text, bytes, 0, NULL);
    const char *name = json_string_value(json_object_get(object, "name"));
    const char *snapshot = json_string_value(json_object_get(object, "snapshot"));
    const char *state = json_string_value(json_object_get(object, "state"));
    const char *log = json_string_value(json_object_get(object, "log"));
    json_t *launch = json_object_get(object, "launch");
    json_int_t pid = json_integer_value(json_object_get(object, "pid"));
    json_int_t supervisor = json_integer_value(json_object_get(object, "supervisor"));
    json_int_t supervisor_start =
        json_integer_value(json_object_get(object, "supervisor_starttime"));
    bool good = name != NULL && snapshot != NULL && state != NULL && log != NULL && pid > 0;
    if (good)
        *ret_worker = (struct rewarm_worker){
            .name = rewarm_str_dup(name),
            .pid = (pid_t)pid,
            .starttime = (uint64_t)json_integer_value(json_object_get(object, "starttime")),
            .supervisor = rewarm_proc_alive((pid_t)supervisor, (uint64_t)supervisor_start)
                              ? (pid_t)supervisor
                              : 0,
            .snapshot = rewarm_str_dup(snapshot),
            .state = rewarm_str_dup(state),
            .started_wall_ns = (uint64_t)json_integer_value(json_object_get(object, "started_ns")),
            .log = rewarm_str_dup(log),
            .launch = json_is_object(launch) ? json_incref(launch) : NULL};
    json_decref(object);
    return good;
}

static void worker_fini(struct rewarm_worker *worker)
{
    free(worker->name);
    free(worker->snapshot);
    free(worker->state);
    free(worker->log);
    json_decref(worker->launch);
}

void rewarm_workers_free(struct rewarm_worker *workers, size_t count)
{
    for (size_t i = 0; i < count; i++)
        worker_fini(&workers[i]);
    free(workers);
}

int rewarm_workers_list(struct rewarm_worker **ret_workers, size_t *ret_count,
                        struct rewarm_error *err)
{
    int fd = -1;
    int result = rewarm_run_dir("workers", &fd, err);
    if (result != 0)
        return result;
    rewarm_auto_dir DIR *dir = fdopendir(fd);
    if (dir == NULL) {
        result = rewarm_error_errno(err, "listing the workers");
        close(fd);
        return result;
    }
    struct rewarm_worker *workers = NULL;
    size_t count = 0;
    size_t capacity = 0;
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        rewarm_auto_free char *text = NULL;
        size_t bytes = 0;
        if (!rewarm_str_ends(entry->d_name, ".json") ||
            rewarm_fs_read_file(fd, entry->d_name, WORKER_LIMIT, &text, &bytes, NULL) != 0)
            continue;
        REWARM_GROW(&workers, &capacity, count);
        if (!parse_worker(text, bytes, &workers[count]))
            continue;
        if (rewarm_proc_alive(workers[count].pid, workers[count].starttime)) {
            count++;
            continue;
        }
        /* Its supervisor was killed, or is just about to remove it. */
        if (workers[count].supervisor == 0)
            unlinkat(fd, entry->d_name, 0);
        worker_fini(&workers[count]);
    }
    *ret_workers = workers;
    *ret_count = count;
    return 0;
}

/* The living worker `name`, if there is one. */
static int find_worker(const char *name, pid_t *ret_pid, struct rewarm_error *err)
{
    struct rewarm_worker *workers = NULL;
    size_t count = 0;
    *ret_pid = 0;
    int result = rewarm_workers_list(&workers, &count, err);
    for (size_t i = 0; result == 0 && i < count; i++) {
        if (strcmp(workers[i].name, name) == 0)
            *ret_pid = workers[i].pid;
    }
    if (result == 0)
        rewarm_workers_free(workers, count);
    return result;
}

static int take_name(const char *name, struct rewarm_run_lock *lock, struct rewarm_error *err)
{
    rewarm_auto_free char *file = rewarm_str_format("worker-%s", name);
    pid_t pid = 0;
    int result = find_worker(name, &pid, err);
    if (result != 0)
        return result;
    result = rewarm_run_lock(file, lock, err);
    if (result == -REWARM_E_BUSY && pid == 0) {
        /* The worker has ended, its supervisor is about to. */
        rewarm_error_clear(err);
        rewarm_run_lock_await(file, rewarm_time_now_ns() + supervisor_end_ns);
        result = rewarm_run_lock(file, lock, err);
    }
    if (result == -REWARM_E_BUSY)
        return rewarm_error_wrap(err, "worker %s is running already ('rewarm ps' shows it)", name);
    /* A worker can outlive a killed supervisor: its name stays taken. */
    if (result == 0 && pid != 0)
        return rewarm_error_set(err, REWARM_E_BUSY, 0,
                                "worker %s still runs as process %d, although its supervisor was "
                                "killed: end it first (kill %d)",
                                name, (int)pid, (int)pid);
    return result;
}

int rewarm_register_claim(const char *name, struct rewarm_register *ret_register,
                          struct rewarm_error *err)
{
    struct rewarm_register reg = REWARM_REGISTER_INIT;
    int result = rewarm_str_check_name(name, err);
    if (result == 0)
        result = rewarm_run_dir("workers", &reg.dirfd, err);
    if (result != 0)
        return result;
    result = take_name(name, &reg.lock, err);
    if (result != 0) {
        rewarm_run_unlock(&reg.lock);
        rewarm_clean_fd(&reg.dirfd);
        return result;
    }
    reg.name = rewarm_str_dup(name);
    *ret_register = reg;
    return 0;
}

int rewarm_register_update(struct rewarm_register *reg, pid_t pid, const char *snapshot,
                           const char *state, const char *log, json_t *launch,
                           struct rewarm_error *err)
{
    struct rewarm_proc_stat worker = {0};
    struct rewarm_proc_stat own = {0};
    if (rewarm_proc_stat(pid, &worker, NULL) != 0)
        return 0; /* it has just ended: the supervisor is about to notice */
    int result = rewarm_proc_stat(getpid(), &own, err);
    if (result != 0)
        return result;
    json_t *object =
        json_pack("{s:s,s:i,s:I,s:i,s:I,s:s,s:s,s:I,s:s,s:O?}", "name", reg->name, "pid", (int)pid,
                  "starttime", (json_int_t)worker.starttime, "supervisor", (int)own.pid,
                  "supervisor_starttime", (json_int_t)own.starttime, "snapshot", snapshot, "state",
                  state, "started_ns", (json_int_t)rewarm_time_wall_ns(), "log",
                  log != NULL ? log : "", "launch", launch);
    rewarm_auto_free char *text = json_dumps(object, JSON_COMPACT);
    json_decref(object);
    rewarm_auto_free char *file = rewarm_str_format("%s.json", reg->name);
    return rewarm_fs_write_durable(reg->dirfd, file, 0600, text, strlen(text), err);
}

void rewarm_register_release(struct rewarm_register *reg)
{
    if (reg->name == NULL)
        return;
    rewarm_auto_free char *file = rewarm_str_format("%s.json", reg->name);
    unlinkat(reg->dirfd, file, 0);
    rewarm_run_unlock(&reg->lock);
    close(reg->dirfd);
    free(reg->name);
    *reg = (struct rewarm_register)REWARM_REGISTER_INIT;
}

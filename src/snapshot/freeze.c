/* The freeze pipeline. The table at the end is the whole of it; every stage's undo leaves the
 * source running.
 *
 * CRIU stops the tree and writes its skeleton; the memory is read into an arena that was populated
 * before (capture.c). Then the tree goes on, and hashing and writing happen beside it, unless it is
 * to be ended: then it stays stopped until the snapshot is durable, and is killed before CRIU would
 * let it go. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/clean.h"
#include "base/fs.h"
#include "base/str.h"
#include "base/time.h"
#include "base/trace.h"
#include "proc/criu.h"
#include "proc/criu_image.h"
#include "proc/dump.h"
#include "proc/host.h"
#include "proc/preflight.h"
#include "proc/procfs.h"
#include "snapshot/capture.h"
#include "snapshot/details.h"
#include "snapshot/limits.h"
#include "snapshot/links.h"
#include "snapshot/session.h"
#include "snapshot/snapshot.h"
#include "snapshot/stage.h"
#include "snapshot/traces.h"

struct freeze {
    struct rewarm_store *store;
    const struct rewarm_freeze_options *options;
    struct rewarm_session session;
    struct rewarm_run_lock target; /* one freeze of a tree at a time */
    struct rewarm_proc_stat root;
    uint64_t memory_bytes;
    json_t *details;
    struct rewarm_store_writer *writer;
    struct rewarm_limits limits;
    struct rewarm_capture *capture;
    struct rewarm_dump dump;
    int images_dirfd;
    int32_t *pids; /* with memory: no zombies */
    size_t pid_count, process_count;
    uint64_t stopped_ns, resumed_ns; /* of the tree */
    bool published;
    struct rewarm_stage_times times;
    struct rewarm_store_totals totals;
};

/* Far beyond what a healthy dump takes, CRIU's own part of it is seconds. */
static const uint64_t dump_timeout_ns = 300 * REWARM_NS_PER_S;

static int preflight(void *context, struct rewarm_error *err)
{
    struct freeze *f = context;
    const struct rewarm_criu *criu = NULL;
    int result = rewarm_str_check_name(f->options->name, err);
    if (result == 0)
        result = rewarm_proc_stat(f->options->root, &f->root, err);
    if (result == 0)
        result = rewarm_host_check_privileges(err);
    if (result == 0)
        result = rewarm_criu_find(&criu, err);
    if (result == 0)
        result = rewarm_preflight_tree(f->options->root, err);
    if (result == 0)
        result = rewarm_details_begin(f->options->root, f->options->launch, &f->details, err);
    if (result != 0)
        return result;
    struct rewarm_proc_stat *stats = NULL;
    size_t count = 0;
    result = rewarm_proc_tree(f->options->root, &stats, &count, err);
    for (size_t i = 0; i < count; i++) {
        uint64_t bytes = 0;
        if (rewarm_proc_rss_anon(stats[i].pid, &bytes, NULL) == 0)
            f->memory_bytes += bytes;
    }
    free(stats);
    return result;
}

static int claim(void *context, struct rewarm_error *err)
{
    struct freeze *f = context;
    rewarm_auto_free char *target = rewarm_str_format("target-%d", (int)f->root.pid);
    int result = rewarm_run_lock(target, &f->target, err);
    if (result == -REWARM_E_BUSY)
        return rewarm_error_wrap(err, "another freeze of process %d is under way",
                                 (int)f->root.pid);
    if (result == 0)
        result = rewarm_session_open("freeze", f->options->name, &f->session, err);
    if (result == 0)
        result = rewarm_store_writer_open(f->store, f->options->name, &f->writer, err);
    if (result == 0)
        result = rewarm_session_note_path(&f->session, "staging",
                                          rewarm_store_writer_staging(f->writer), err);
    if (result == 0)
        result =
            rewarm_session_note_process(&f->session, "target", f->root.pid, f->root.starttime, err);
    if (result == 0)
        result = rewarm_fs_open_dir(f->session.dirfd, "images", true, &f->images_dirfd, err);
    return result;
}

static void unclaim(void *context)
{
    struct freeze *f = context;
    if (f->writer != NULL)
        rewarm_store_writer_close(f->writer);
    f->writer = NULL;
    if (f->images_dirfd >= 0)
        close(f->images_dirfd);
    f->images_dirfd = -1;
    rewarm_session_close(&f->session);
    rewarm_run_unlock(&f->target);
}

static int prepare(void *context, struct rewarm_error *err)
{
    struct freeze *f = context;
    int result = rewarm_limits_raise(&f->limits, err);
    if (result == 0)
        result = rewarm_capture_new(f->memory_bytes, f->options->kill, &f->capture, err);
    return result;
}

static void unprepare(void *context)
{
    struct freeze *f = context;
    rewarm_capture_free(f->capture);
    f->capture = NULL;
    rewarm_limits_restore(&f->limits);
}

static int dump(void *context, struct rewarm_error *err)
{
    struct freeze *f = context;
    rewarm_auto_free char *images = rewarm_str_format("%s/images", f->session.path);
    f->stopped_ns = rewarm_time_now_ns();
    int result = rewarm_dump_start(&f->dump, f->root.pid, images, err);
    if (result != 0)
        return result;
    struct rewarm_proc_stat criu;
    if (rewarm_proc_stat(f->dump.criu.pid, &criu, NULL) == 0)
        rewarm_session_note_process(&f->session, "criu", criu.pid, criu.starttime, NULL);
    return rewarm_dump_wait_readable(&f->dump, rewarm_time_now_ns() + dump_timeout_ns, err);
}

static void undump(void *context)
{
    struct freeze *f = context;
    rewarm_dump_abort(&f->dump);
}

static int list_processes(struct freeze *f, struct rewarm_error *err)
{
    struct rewarm_image_process *processes = NULL;
    size_t count = 0;
    int result = rewarm_image_pstree(f->images_dirfd, &processes, &count, err);
    if (result != 0)
        return result;
    f->pids = rewarm_mem_new(count, sizeof(*f->pids));
    for (size_t i = 0; i < count; i++) {
        if (processes[i].threads != 0)
            f->pids[f->pid_count++] = processes[i].pid;
    }
    f->process_count = count;
    free(processes);
    return 0;
}

static int read_memory(void *context, struct rewarm_error *err)
{
    struct freeze *f = context;
    int result = list_processes(f, err);
    if (result == 0)
        result = rewarm_links_record(f->images_dirfd, f->details, err);
    if (result == 0)
        result = rewarm_capture_read(f->capture, f->images_dirfd, f->pids, f->pid_count, f->writer,
                                     f->options->progress, err);
    return result;
}

/* The source goes on from here, unless it is to be ended. */
static int release(void *context, struct rewarm_error *err)
{
    struct freeze *f = context;
    if (f->options->kill)
        return 0;
    int result = rewarm_dump_release(&f->dump, rewarm_time_now_ns() + dump_timeout_ns, err);
    f->resumed_ns = rewarm_time_now_ns();
    rewarm_trace_span("source", "paused", f->stopped_ns, f->resumed_ns, 0);
    rewarm_limits_restore(&f->limits);
    return result;
}

/* CRIU's images, but not its logs and statistics. */
static bool is_image(const char *name)
{
    return rewarm_str_ends(name, ".img") || rewarm_str_starts(name, "pages-");
}

static int store_images(struct freeze *f, struct rewarm_error *err)
{
    int fd = openat(f->images_dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    rewarm_auto_dir DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
    if (dir == NULL)
        return rewarm_error_errno(err, "listing CRIU's images");
    int result = 0;
    for (struct dirent *entry; result == 0 && (entry = readdir(dir)) != NULL;) {
        if (is_image(entry->d_name))
            result = rewarm_store_writer_put_blob(f->writer, f->images_dirfd, entry->d_name, err);
    }
    return result;
}

static int store_all(void *context, struct rewarm_error *err)
{
    struct freeze *f = context;
    int result = rewarm_capture_store(f->capture, f->writer, f->options->progress, err);
    if (result == 0)
        result = store_images(f, err);
    if (result == 0)
        result = rewarm_details_add_images(f->details, f->images_dirfd, err);
    return result;
}

static int publish(void *context, struct rewarm_error *err)
{
    struct freeze *f = context;
    uint64_t end = f->resumed_ns != 0 ? f->resumed_ns : rewarm_time_now_ns();
    rewarm_details_add_times(f->details, &f->times, end - f->stopped_ns);
    int result = rewarm_store_writer_publish(f->writer, f->details, &f->totals, err);
    f->published = result == 0;
    return result;
}

/* From here on the snapshot exists: nothing undoes that. */
static int finish(void *context, struct rewarm_error *err)
{
    struct freeze *f = context;
    if (!f->options->kill)
        return 0;
    /* Whoever repairs after us ends what is left of the source: a tree without its root is not
     * findable. */
    for (size_t i = 0; i < f->pid_count; i++) {
        struct rewarm_proc_stat stat;
        if (rewarm_proc_stat(f->pids[i], &stat, NULL) == 0)
            rewarm_session_note_process(&f->session, "source", stat.pid, stat.starttime, NULL);
    }
    /* Stopped by CRIU, a process still dies of SIGKILL: it never runs again. But its threads stay
     * zombies for as long as CRIU traces them, so the end can only be waited for once CRIU, with
     * nobody to let go, has left. */
    rewarm_proc_kill_tree(f->root.pid, f->root.starttime, rewarm_time_now_ns(), NULL);
    rewarm_dump_abort(&f->dump);
    f->resumed_ns = rewarm_time_now_ns();
    return rewarm_proc_kill_tree(f->root.pid, f->root.starttime,
                                 rewarm_time_now_ns() + 10 * REWARM_NS_PER_S, err);
}

static const struct rewarm_stage stages[] = {
    {"preflight", preflight, NULL}, {"claim", claim, unclaim},   {"prepare", prepare, unprepare},
    {"dump", dump, undump},         {"read", read_memory, NULL}, {"release", release, undump},
    {"store", store_all, NULL},     {"publish", publish, NULL},  {"finish", finish, NULL},
};

int rewarm_freeze(struct rewarm_store *store, const struct rewarm_freeze_options *options,
                  struct rewarm_freeze_result *ret_result, struct rewarm_error *err)
{
    struct freeze f = {.store = store,
                       .options = options,
                       .limits = REWARM_LIMITS_INIT,
                       .dump = REWARM_DUMP_INIT,
                       .images_dirfd = -1,
                       .target = REWARM_RUN_LOCK_INIT,
                       .session = {.dirfd = -1, .journal_fd = -1}};
    uint64_t start = rewarm_time_now_ns();
    rewarm_trace_begin(options->name, "freeze");
    int result = rewarm_stages_run("freeze", stages, sizeof(stages) / sizeof(stages[0]), &f.session,
                                   &f, &f.times, err);
    /* After success the same clean-up as after failure: what is durable stays. */
    undump(&f);
    unprepare(&f);
    unclaim(&f);
    json_decref(f.details);
    free(f.pids);
    rewarm_trace_close();
    if (result != 0)
        return rewarm_error_wrap(err, "freezing process %d as %s", (int)options->root,
                                 options->name);
    if (ret_result != NULL)
        *ret_result = (struct rewarm_freeze_result){.total_ns = rewarm_time_now_ns() - start,
                                                    .pause_ns = f.resumed_ns - f.stopped_ns,
                                                    .processes = (unsigned)f.process_count,
                                                    .totals = f.totals};
    return 0;
}

/* The restore pipeline. The table is below; `running` ends rewarm_restore_start(), while the filler
 * still works.
 *
 * This process is the supervisor: parent (or, isolated, grandparent) of the restored tree and
 * second holder of its userfaultfds (guard.h). The journal stays until the tree is complete; its
 * lock is held by supervisor and filler. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "base/clean.h"
#include "base/fs.h"
#include "base/log.h"
#include "base/str.h"
#include "base/time.h"
#include "base/trace.h"
#include "proc/criu_image.h"
#include "proc/host.h"
#include "proc/lazy.h"
#include "snapshot/details.h"
#include "snapshot/guard.h"
#include "snapshot/isolate.h"
#include "snapshot/links.h"
#include "snapshot/session.h"
#include "snapshot/skeleton.h"
#include "snapshot/snapshot.h"
#include "snapshot/stage.h"
#include "snapshot/traces.h"

struct rewarm_restore {
    struct rewarm_store *store;
    const struct rewarm_restore_options *options;
    struct rewarm_store_reader *reader;
    const json_t *details; /* of the reader's manifest */
    int32_t *pids;
    size_t pid_count;
    struct rewarm_lazy_wipe *wipes;
    size_t wipe_count;
    struct rewarm_session session;
    int images_dirfd;
    struct rewarm_skeleton skeleton;
    struct rewarm_lazy_options lazy;
    struct rewarm_guard guard;
    uint64_t start_ns;
    bool complete;
    struct rewarm_restore_result result;
};

static int open_snapshot(void *context, struct rewarm_error *err)
{
    struct rewarm_restore *r = context;
    int result = rewarm_isolate_check_publish(r->options->publish, err);
    if (result == 0 && r->options->publish != NULL && *r->options->publish != NULL &&
        (r->options->isolate & REWARM_ISOLATE_NET) == 0)
        result = rewarm_error_set(err, REWARM_E_USAGE, 0, "--publish needs --isolate pid,net");
    if (result == 0)
        result = rewarm_host_check_privileges(err);
    if (result == 0)
        result = rewarm_store_reader_open(r->store, r->options->snapshot, &r->reader, err);
    if (result != 0)
        return result;
    r->details = json_object_get(rewarm_store_reader_manifest(r->reader), "snapshot");
    result = rewarm_details_pids(r->details, &r->pids, &r->pid_count, err);
    if (result == 0)
        result = rewarm_details_wipes(r->details, &r->wipes, &r->wipe_count, err);
    if (result == 0)
        result = rewarm_details_check(r->details, r->options->any_kernel, err);
    return result;
}

static int claim(void *context, struct rewarm_error *err)
{
    struct rewarm_restore *r = context;
    int result = rewarm_session_open("restore", r->options->snapshot, &r->session, err);
    for (size_t i = 0; result == 0 && r->options->isolate == 0 && i < r->pid_count; i++)
        result = rewarm_session_note_process(&r->session, "member", r->pids[i], 0, err);
    if (result == 0)
        result = rewarm_fs_open_dir(r->session.dirfd, "images", true, &r->images_dirfd, err);
    return result;
}

static void unclaim(void *context)
{
    struct rewarm_restore *r = context;
    if (r->images_dirfd >= 0)
        close(r->images_dirfd);
    r->images_dirfd = -1;
    rewarm_session_close(&r->session);
}

/* Which of the worker's 0, 1 and 2 get a descriptor of ours; two with the same key are one. */
static void plan_stdio(struct rewarm_restore *r, char *keys[3], size_t *ret_count)
{
    size_t count = 0;
    for (int fd = 0; fd < 3; fd++) {
        const char *key = rewarm_details_stdio(r->details, fd);
        bool known = key == NULL || r->options->stdio[fd] < 0;
        for (size_t i = 0; !known && i < count; i++)
            known = strcmp(keys[i], key) == 0;
        if (known)
            continue;
        keys[count] = (char *)key; /* borrowed; never written through */
        r->skeleton.inherit[count] = (struct rewarm_inherit){r->options->stdio[fd], key};
        count++;
    }
    r->skeleton.inherit_count = count;
    *ret_count = count;
}

static int images(void *context, struct rewarm_error *err)
{
    struct rewarm_restore *r = context;
    const struct rewarm_memmap *map = rewarm_store_reader_memmap(r->reader);
    for (size_t i = 0; i < map->blob_count; i++) {
        int result = rewarm_store_reader_extract(r->reader, i, r->images_dirfd, err);
        if (result != 0)
            return result;
    }
    char *keys[3];
    size_t key_count = 0;
    plan_stdio(r, keys, &key_count);
    rewarm_auto_free char *suffix = rewarm_links_suffix(&r->session);
    const struct rewarm_image_edit_options options = {
        .skip_keys = keys,
        .skip_count = key_count,
        .fresh_ports = (r->options->isolate & REWARM_ISOLATE_NET) == 0,
        .link_suffix = suffix};
    struct rewarm_image_edits edits = {0};
    int result = rewarm_image_edit_for_restore(r->images_dirfd, &options, &edits, err);
    if (result == 0)
        rewarm_verbose("restore: %u TCP connections kept (%u pairs with a new port), %u closed; %u "
                       "files moved to their end, %u made anew",
                       edits.tcp_kept, edits.tcp_moved, edits.tcp_closed, edits.files_moved_to_end,
                       edits.files_created);
    if (result == 0)
        result = rewarm_links_make(r->details, &r->session, err);
    return result;
}

static void unlink_links(void *context)
{
    struct rewarm_restore *r = context;
    rewarm_links_remove(r->details, &r->session);
}

static int get_chunk(void *context, uint32_t chunk, void *buffer, struct rewarm_error *err)
{
    return rewarm_store_reader_get(context, chunk, buffer, err);
}

static const struct rewarm_lazy_source store_source = {.get = get_chunk};

static int filler(void *context, struct rewarm_error *err)
{
    struct rewarm_restore *r = context;
    /* Orphans of the tree are ours to reap, and to kill should it not become whole. */
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    r->lazy = (struct rewarm_lazy_options){.map = rewarm_store_reader_memmap(r->reader),
                                           .source = &store_source,
                                           .source_context = r->reader,
                                           .wipes = r->wipes,
                                           .wipe_count = r->wipe_count,
                                           .background = true};
    int result = rewarm_guard_start(&r->guard, &r->session, &r->lazy, err);
    r->skeleton.session = &r->session;
    r->skeleton.root_pid = r->pids[0];
    r->skeleton.filler_pidfd = r->guard.filler_pidfd;
    return result;
}

static void reap_all(const struct rewarm_restore *r)
{
    const pid_t pids[] = {r->result.init, r->result.root};
    for (size_t i = 0; i < 2; i++) {
        if (pids[i] > 0)
            waitpid(pids[i], NULL, 0);
    }
    while (waitpid(-1, NULL, WNOHANG) > 0)
        ;
}

static void unfill(void *context)
{
    struct rewarm_restore *r = context;
    rewarm_guard_kill_tree(&r->guard);
    rewarm_guard_fini(&r->guard);
    /* A killed root that nobody reaps would keep its PID from the next try. */
    reap_all(r);
}

/* Every thread has an image of its own, core-TID.img. */
static int32_t last_pid(const struct rewarm_memmap *map)
{
    int32_t last = 0;
    for (size_t i = 0; i < map->blob_count; i++) {
        int32_t tid = 0;
        if (sscanf(map->blobs[i].name, "core-%d.img", &tid) == 1 && tid > last)
            last = tid;
    }
    return last;
}

static int skeleton(void *context, struct rewarm_error *err)
{
    struct rewarm_restore *r = context;
    struct rewarm_guard_shared *shared = r->guard.shared;
    int result;
    if (r->options->isolate != 0) {
        struct rewarm_isolate isolate = {.net = (r->options->isolate & REWARM_ISOLATE_NET) != 0,
                                         .root_pid = r->pids[0],
                                         .last_pid =
                                             last_pid(rewarm_store_reader_memmap(r->reader)),
                                         .publish = r->options->publish,
                                         .skeleton = &r->skeleton,
                                         .shared = shared};
        result = rewarm_isolate_restore(&isolate, &r->result.init, &r->result.root, err);
    } else {
        atomic_store(&shared->root_pid, r->pids[0]);
        result = rewarm_skeleton_restore(&r->skeleton, shared, err);
        r->result.root = result == 0 ? r->pids[0] : 0;
    }
    siginfo_t filler = {0};
    bool ended = waitid(P_PID, (id_t)r->guard.filler, &filler, WEXITED | WNOHANG | WNOWAIT) == 0 &&
                 filler.si_pid != 0;
    if (result == 0 || (!ended && atomic_load(&shared->failed) == 0))
        return result;
    /* The filler ended first: its error is the cause, and CRIU's the consequence. Unless all it has
     * to say is that CRIU left. */
    struct rewarm_error cause = REWARM_ERROR_INIT;
    if (rewarm_guard_wait(&r->guard, &cause) != 0 && cause.code != REWARM_E_CRIU && err != NULL)
        *err = cause;
    return result;
}

static int running(void *context, struct rewarm_error *err)
{
    struct rewarm_restore *r = context;
    (void)err;
    r->result.running_ns = rewarm_time_now_ns() - r->start_ns;
    unlink_links(r); /* CRIU deletes those that it has opened */
    return 0;
}

static const struct rewarm_stage stages[] = {
    {"open", open_snapshot, NULL}, {"claim", claim, unclaim},    {"images", images, unlink_links},
    {"filler", filler, unfill},    {"skeleton", skeleton, NULL}, {"running", running, NULL},
};

int rewarm_restore_start(struct rewarm_store *store, const struct rewarm_restore_options *options,
                         struct rewarm_restore **ret_restore, struct rewarm_error *err)
{
    struct rewarm_restore *r = rewarm_mem_new(1, sizeof(*r));
    *r = (struct rewarm_restore){.store = store,
                                 .options = options,
                                 .images_dirfd = -1,
                                 .session = {.dirfd = -1, .journal_fd = -1},
                                 .guard = REWARM_GUARD_INIT,
                                 .start_ns = rewarm_time_now_ns()};
    rewarm_trace_begin(options->snapshot, "restore");
    int result = rewarm_stages_run("restore", stages, sizeof(stages) / sizeof(stages[0]),
                                   &r->session, r, NULL, err);
    if (result != 0) {
        r->complete = true; /* nothing is left to kill */
        rewarm_restore_free(r);
        return rewarm_error_wrap(err, "restoring %s", options->snapshot);
    }
    *ret_restore = r;
    return 0;
}

int rewarm_restore_fd(const struct rewarm_restore *restore)
{
    return restore->guard.filler_pidfd;
}

pid_t rewarm_restore_filler(const struct rewarm_restore *restore)
{
    return restore->guard.filler;
}

const json_t *rewarm_restore_details(const struct rewarm_restore *restore)
{
    return restore->details;
}

static void report(struct rewarm_restore *r)
{
    const struct rewarm_progress *progress = r->options->progress;
    if (progress != NULL)
        progress->update(progress->context, "fill", atomic_load(&r->guard.shared->done_bytes),
                         atomic_load(&r->guard.shared->total_bytes));
}

int rewarm_restore_complete(struct rewarm_restore *r, struct rewarm_error *err)
{
    if (r->complete)
        return 0;
    int result = rewarm_guard_wait(&r->guard, err);
    if (result != 0) {
        unfill(r);
        unclaim(r);
        r->complete = true;
        return rewarm_error_wrap(err, "restoring %s", r->options->snapshot);
    }
    const struct rewarm_lazy_stats *stats = &r->guard.shared->stats;
    r->result.complete_ns = stats->complete_ns - r->start_ns;
    if (r->result.complete_ns < r->result.running_ns)
        r->result.complete_ns = r->result.running_ns; /* CRIU's own end came later */
    r->result.supplied_bytes = stats->supplied_bytes;
    r->result.faults = stats->faults;
    report(r);
    rewarm_trace_span("worker", "runs while memory comes in", r->start_ns + r->result.running_ns,
                      r->start_ns + r->result.complete_ns, 0);
    r->complete = true;
    unclaim(r);
    rewarm_store_reader_close(rewarm_steal_ptr(&r->reader));
    rewarm_trace_close();
    return 0;
}

void rewarm_restore_report(struct rewarm_restore *r)
{
    if (!r->complete)
        report(r);
}

bool rewarm_restore_root_status(const struct rewarm_restore *r, int *ret_status)
{
    int status = r->guard.shared != NULL ? atomic_load(&r->guard.shared->root_status) : 0;
    if (status == 0)
        return false;
    *ret_status = status - 1;
    return true;
}

const struct rewarm_restore_result *rewarm_restore_result(const struct rewarm_restore *restore)
{
    return &restore->result;
}

void rewarm_restore_free(struct rewarm_restore *r)
{
    if (r == NULL)
        return;
    if (!r->complete) {
        unfill(r);
        unclaim(r);
    }
    rewarm_guard_fini(&r->guard);
    rewarm_store_reader_close(r->reader);
    rewarm_trace_close();
    free(r->pids);
    free(r->wipes);
    free(r);
}

/* Freeze and restore: the pipelines. Each is a table of stages with an undo (stage.h), journaled
 * before it runs (journal.h). ARCHITECTURE.md shows the tables. */
#ifndef REWARM_SNAPSHOT_SNAPSHOT_H
#define REWARM_SNAPSHOT_SNAPSHOT_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "store/store.h"

/* Bytes done of a stage that moves bytes: for a progress bar. From any one thread at a time. */
struct rewarm_progress {
    void (*update)(void *context, const char *stage, uint64_t done_bytes, uint64_t total_bytes);
    void *context;
};

struct rewarm_freeze_options {
    pid_t root;       /* of the tree */
    const char *name; /* of the snapshot */
    bool kill;        /* end the source once the snapshot is durable; else it goes on running */
    json_t *launch;   /* how `rewarm run` started it (launch.h), or NULL; borrowed */
    const struct rewarm_progress *progress; /* may be NULL */
};

struct rewarm_freeze_result {
    /* pause: from the start of CRIU, which stops the tree some 40 ms later, to the tree running
     * again: never less than what the worker felt. (CRIU 4.3 counts wrong itself when its pages are
     * lazy.) */
    uint64_t total_ns, pause_ns;
    unsigned processes;
    struct rewarm_store_totals totals;
};

int rewarm_freeze(struct rewarm_store *store, const struct rewarm_freeze_options *options,
                  struct rewarm_freeze_result *ret_result, struct rewarm_error *err);

enum { REWARM_ISOLATE_PID = 1, REWARM_ISOLATE_NET = 2 };

struct rewarm_restore_options {
    const char *snapshot;       /* name of the snapshot */
    const char *worker;         /* name of the worker it becomes (`rewarm ps`) */
    unsigned isolate;           /* REWARM_ISOLATE_* */
    const char *const *publish; /* "HOST:GUEST" ports, NULL-terminated, or NULL */
    bool any_kernel; /* accept what rewarm_host_check() refuses; mapped files are checked still */
    int stdio[3];    /* the worker's new 0, 1 and 2; -1: as CRIU finds them */
    const struct rewarm_progress *progress;
};

struct rewarm_restore_result {
    pid_t root;          /* as seen from here; a child of the caller (or of the namespace's init) */
    pid_t init;          /* init of its PID namespace, a child of the caller; 0 if not isolated */
    uint64_t running_ns; /* request to running */
    uint64_t complete_ns; /* request to all memory supplied; 0 until rewarm_restore_complete() */
    uint64_t supplied_bytes, faults;
};

/* A restore in flight. The caller must be a single-threaded process that may become a subreaper: it
 * is the second holder of the userfaultfds, and the parent of the restored tree. */
struct rewarm_restore;

/* Returns once the tree runs (on memory that is still coming in), or nothing of it is left. */
int rewarm_restore_start(struct rewarm_store *store, const struct rewarm_restore_options *options,
                         struct rewarm_restore **ret_restore, struct rewarm_error *err);

/* The filler process, a child of ours that only rewarm_restore_complete() reaps. */
pid_t rewarm_restore_filler(const struct rewarm_restore *restore);

/* The snapshot layer's part of the manifest; borrowed, valid until rewarm_restore_complete(). */
const json_t *rewarm_restore_details(const struct rewarm_restore *restore);

/* Tells options->progress how far the fill is. */
void rewarm_restore_report(struct rewarm_restore *restore);

/* Isolated: the root's wait status as its namespace's init left it; false while it runs. */
bool rewarm_restore_root_status(const struct rewarm_restore *restore, int *ret_status);

/* Readable when rewarm_restore_complete() would not block. */
int rewarm_restore_fd(const struct rewarm_restore *restore);

/* Waits until all memory is supplied. On failure the tree has been killed. */
int rewarm_restore_complete(struct rewarm_restore *restore, struct rewarm_error *err);
const struct rewarm_restore_result *rewarm_restore_result(const struct rewarm_restore *restore);

/* Frees; a tree that is not complete is killed first. */
void rewarm_restore_free(struct rewarm_restore *restore);

/* $REWARM_RUN, else /run/rewarm for root, else $XDG_RUNTIME_DIR/rewarm: journals, workers, traces
 * (0700). Free the result. */
char *rewarm_run_path(void);

/* Repairs what a killed rewarm left (journals whose owner is gone): resumes or ends trees, removes
 * staging, puts limits back. Every command calls it first. Returns how many were repaired, or a
 * negative code. */
int rewarm_repair(struct rewarm_store *store, struct rewarm_error *err);

/* --- workers: what `rewarm run` and `restore` started and still watch
 * -------------------------------- */

struct rewarm_worker {
    char *name;
    pid_t pid; /* root of the tree, as seen from here */
    uint64_t starttime;
    pid_t supervisor; /* the rewarm process that watches it; 0 when it has gone */
    char *snapshot;   /* restored from, or saved as; "" if none */
    char *state;      /* "starting", "cold", "filling", "restored" */
    uint64_t started_wall_ns;
    char *log;      /* path, or "" */
    json_t *launch; /* how `rewarm run` started it, or NULL: for the next freeze */
};
int rewarm_workers_list(struct rewarm_worker **ret_workers, size_t *ret_count,
                        struct rewarm_error *err);
void rewarm_workers_free(struct rewarm_worker *workers, size_t count);

/* The last freeze ("freeze") or restore ("restore") trace of a snapshot: text for
 * rewarm_trace_parse(). REWARM_E_NOT_FOUND when there is none. */
int rewarm_trace_load(const char *name, const char *verb, char **ret_text, size_t *ret_bytes,
                      struct rewarm_error *err);

#endif

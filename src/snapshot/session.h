/* A session: one freeze or restore in flight, with a journal on disk that outlives a kill -9.
 *
 * RUN/sessions/ID/ holds `journal` (flocked by the owner for as long as it lives), CRIU's images
 * and logs, and the lazy-pages socket. Facts are written to the journal *before* what they describe
 * is done, so rewarm_repair() can undo them when the owner is gone. */
#ifndef REWARM_SNAPSHOT_SESSION_H
#define REWARM_SNAPSHOT_SESSION_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

struct rewarm_session {
    char id[64];
    char *path; /* RUN/sessions/ID */
    int dirfd;
    int journal_fd; /* append-only, flocked */
};

/* Makes a session for `verb` ("freeze" or "restore") of snapshot `name`. */
int rewarm_session_open(const char *verb, const char *name, struct rewarm_session *ret_session,
                        struct rewarm_error *err);

/* Appends one line to the journal: what is about to be done, and what undoing it takes. */
int rewarm_session_note_stage(struct rewarm_session *session, const char *stage,
                              struct rewarm_error *err);
int rewarm_session_note_process(struct rewarm_session *session, const char *role, pid_t pid,
                                uint64_t starttime, struct rewarm_error *err);
int rewarm_session_note_path(struct rewarm_session *session, const char *role, const char *path,
                             struct rewarm_error *err);

/* The work is done or undone: the folder goes. Idempotent. */
void rewarm_session_close(struct rewarm_session *session);

/* What a journal says. Lines that do not parse end it (a crash may have cut the last one). */
#define REWARM_JOURNAL_PROCESSES 4096
struct rewarm_journal_process {
    char role[16]; /* "target", "criu", "member", "source" */
    pid_t pid;
    uint64_t starttime; /* 0: not known when it was written */
};
struct rewarm_journal {
    char verb[16];
    char name[129];
    char stage[32]; /* the last one begun */
    char *staging;  /* of the store, or NULL */
    char **links;   /* of links.h; unsorted */
    size_t link_count;
    struct rewarm_journal_process *processes;
    size_t process_count;
};
int rewarm_journal_parse(const char *text, size_t bytes, struct rewarm_journal *ret_journal,
                         struct rewarm_error *err);
void rewarm_journal_fini(struct rewarm_journal *journal);

/* A lock file RUN/locks/NAME, held exclusively for as long as this process (or who shares its
 * descriptor) lives. */
struct rewarm_run_lock {
    int dirfd, fd;
    char *file;
};
#define REWARM_RUN_LOCK_INIT {.dirfd = -1, .fd = -1}

/* REWARM_E_BUSY when somebody has it. */
int rewarm_run_lock(const char *name, struct rewarm_run_lock *lock, struct rewarm_error *err);
/* Waits until whoever has it has ended. */
void rewarm_run_lock_await(const char *name, uint64_t deadline_ns);
/* Lets go and removes the file. Idempotent. */
void rewarm_run_unlock(struct rewarm_run_lock *lock);

/* RUN, made when missing (0700); RUN/SUB when `sub` is not NULL. */
int rewarm_run_dir(const char *sub, int *ret_dirfd, struct rewarm_error *err);

#endif

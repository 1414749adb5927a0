/* Running `criu restore` for the skeleton: the same call in the supervisor, or in a namespace's
 * init. */
#ifndef REWARM_SNAPSHOT_SKELETON_H
#define REWARM_SNAPSHOT_SKELETON_H

#include <stdint.h>

#include "base/error.h"
#include "snapshot/guard.h"
#include "snapshot/session.h"

struct rewarm_inherit {
    int fd;          /* open in this process */
    const char *key; /* of the image */
};

struct rewarm_skeleton {
    struct rewarm_session *session; /* its folder has images/, and gets CRIU's log and pid file */
    struct rewarm_inherit inherit[3];
    size_t inherit_count;
    int32_t root_pid; /* as a child of the caller; gives up when it dies */
    int filler_pidfd; /* gives up when the filler ends; -1: do not look */
};

/* Restores; the tree's root becomes a child of the caller. Records CRIU's PID in `shared`. */
int rewarm_skeleton_restore(const struct rewarm_skeleton *skeleton,
                            struct rewarm_guard_shared *shared, struct rewarm_error *err);

#endif

/* Restoring into namespaces of its own: several copies of one snapshot on one host. */
#ifndef REWARM_SNAPSHOT_ISOLATE_H
#define REWARM_SNAPSHOT_ISOLATE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "snapshot/skeleton.h"

struct rewarm_isolate {
    bool net;                   /* a network namespace too; the PID namespace is always there */
    int32_t root_pid;           /* in the image */
    int32_t last_pid;           /* the highest of the image, threads included */
    const char *const *publish; /* "[ADDRESS:]HOST:GUEST", NULL-terminated, or NULL; wants net */
    const struct rewarm_skeleton *skeleton;
    struct rewarm_guard_shared *shared;
};

/* "[ADDRESS:]HOST:GUEST" port pairs, checked before anything is started. */
int rewarm_isolate_check_publish(const char *const *ports, struct rewarm_error *err);

/* Starts the init of the new namespaces and waits until it has restored the tree, or failed to:
 * then nothing of it is left but a zombie for the caller to reap. init becomes the tree's parent,
 * reaps, and ends with the root, whose wait status it leaves in shared->root_status. Killing it
 * ends everything inside, pasta (which forwards the published ports) included. PIDs are as seen
 * from here. */
int rewarm_isolate_restore(const struct rewarm_isolate *isolate, pid_t *ret_init, pid_t *ret_root,
                           struct rewarm_error *err);

#endif

/* The snapshot layer's part of the manifest (key "snapshot", docs/format.md): where the tree came
 * from, what it needs, how long the freeze took; and the check that all of it fits here, before
 * anything is touched. */
#ifndef REWARM_SNAPSHOT_DETAILS_H
#define REWARM_SNAPSHOT_DETAILS_H

#include <jansson.h>
#include <stdbool.h>
#include <sys/types.h>

#include "base/error.h"
#include "proc/lazy.h"
#include "proc/procfs.h"
#include "snapshot/stage.h"

/* Gathered while the tree still runs or is stopped: "command", "cwd", "user", "host". */
int rewarm_details_begin(pid_t root, json_t *launch, json_t **ret_details,
                         struct rewarm_error *err);

/* Added from CRIU's images: "tree", "stdio", "wipes", "mapped_files", "criu". Reads the mapped
 * files. */
int rewarm_details_add_images(json_t *details, int images_dirfd, struct rewarm_error *err);

/* Added last: "stages" and "pause_ns". */
void rewarm_details_add_times(json_t *details, const struct rewarm_stage_times *times,
                              uint64_t pause_ns);

/* REWARM_E_MISFIT, saying what differs, unless the snapshot can run here. `any_kernel` skips the
 * host part (kernel, CPU features), never the mapped files. */
int rewarm_details_check(const json_t *details, bool any_kernel, struct rewarm_error *err);

/* The image PIDs of the tree, root first. Free. */
int rewarm_details_pids(const json_t *details, int32_t **ret_pids, size_t *ret_count,
                        struct rewarm_error *err);

/* MADV_WIPEONFORK ranges. Free. */
int rewarm_details_wipes(const json_t *details, struct rewarm_lazy_wipe **ret_wipes,
                         size_t *ret_count, struct rewarm_error *err);

/* The --inherit-fd key of the root's descriptor `fd` (0, 1 or 2); NULL if it has none. Borrowed. */
const char *rewarm_details_stdio(const json_t *details, int fd);

#endif

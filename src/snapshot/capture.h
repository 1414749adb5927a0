/* Reading a stopped tree's memory into an arena, and from there into the store.
 *
 * The arena is filled while the tree is stopped; hashing and writing wait until it runs again,
 * unless there is not enough memory to hold everything: then both happen at once and the pause is
 * as long as the store needs. */
#ifndef REWARM_SNAPSHOT_CAPTURE_H
#define REWARM_SNAPSHOT_CAPTURE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "snapshot/snapshot.h"
#include "store/store.h"

struct rewarm_capture;

/* Populates an arena for about `estimate_bytes` of memory, or for less when `bounded` (the pause
 * does not matter) or when the host has not twice that much available. */
int rewarm_capture_new(uint64_t estimate_bytes, bool bounded, struct rewarm_capture **ret_capture,
                       struct rewarm_error *err);
void rewarm_capture_free(struct rewarm_capture *capture);

/* Reads every lazy page that CRIU's images list, of the processes `pids`, which must be stopped. */
int rewarm_capture_read(struct rewarm_capture *capture, int images_dirfd, const int32_t *pids,
                        size_t pid_count, struct rewarm_store_writer *writer,
                        const struct rewarm_progress *progress, struct rewarm_error *err);

/* Stores what was read and not stored yet, and hands the processes' windows to the writer. */
int rewarm_capture_store(struct rewarm_capture *capture, struct rewarm_store_writer *writer,
                         const struct rewarm_progress *progress, struct rewarm_error *err);

#endif

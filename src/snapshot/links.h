/* Open files that were deleted under the name by which they had been opened and have another name:
 * the semaphores of sem_open(), and whatever makes a file by link(2) and unlink(2).
 *
 * CRIU's image names such a file by a hard link of its own ("link_remap.N"), which is gone when its
 * dump ends. So the freeze records the file's other name, and each restore links that to a name
 * that only this restore has (rewarm_image_edit_options.link_suffix), for CRIU to open and delete.
 * All functions block on the file system. */
#ifndef REWARM_SNAPSHOT_LINKS_H
#define REWARM_SNAPSHOT_LINKS_H

#include <jansson.h>

#include "base/error.h"
#include "snapshot/session.h"

/* While the tree is stopped by CRIU: adds "links" to `details`, an array of
 * {"remap", "name", "bytes", "mode", "uid", "gid", "content"}: CRIU's name and the other one, and
 * the content as hex digits if it is small (else null). REWARM_E_REFUSED, with file and process
 * named, if a file has no other name in its own folder. */
int rewarm_links_record(int images_dirfd, json_t *details, struct rewarm_error *err);

/* What this session's names for the links of any snapshot end in. Free. */
char *rewarm_links_suffix(const struct rewarm_session *session);

/* Before CRIU restores: makes the links, each noted in the session's journal first. A name that has
 * gone (/dev/shm does not survive a reboot) is made anew with what was recorded; REWARM_E_MISFIT if
 * that was not recorded, or if the name is another file's now. */
int rewarm_links_make(const json_t *details, struct rewarm_session *session,
                      struct rewarm_error *err);

/* Removes what rewarm_links_make() made and CRIU has not deleted. Idempotent. */
void rewarm_links_remove(const json_t *details, const struct rewarm_session *session);

/* For rewarm_repair(): removes one link by its path in a journal. */
void rewarm_links_remove_path(const char *path);

#endif

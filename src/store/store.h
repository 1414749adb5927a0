/* The store: snapshots by name, each a manifest, a map and chunks in packs. docs/format.md is the
 * normative description of what is on disk.
 *
 * Readers and one writer a name work at the same time. Publication is one rename. rewarm_store_gc()
 * takes back what no published snapshot refers to and never runs beside a reader or writer. */
#ifndef REWARM_STORE_STORE_H
#define REWARM_STORE_STORE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "io/memmap.h"

struct rewarm_store;
struct rewarm_store_writer;
struct rewarm_store_reader;

/* $REWARM_STORE, else /var/lib/rewarm for root, else ~/.local/share/rewarm. Free the result. */
char *rewarm_store_default_path(void);

/* Opens the directory; with `create` it is made (0700) when missing. Refuses a format it does not
 * know and a directory that other users could enter. */
int rewarm_store_open(const char *path, bool create, struct rewarm_store **ret_store,
                      struct rewarm_error *err);
void rewarm_store_close(struct rewarm_store *store);
const char *rewarm_store_path(const struct rewarm_store *store);

/* --- writing: one freeze ------------------------------------------------------------------------
 */

struct rewarm_store_totals {
    uint64_t logical_bytes; /* memory pages of all processes, zero pages included, and blobs */
    uint64_t zero_bytes;    /* zero pages: nothing stored */
    uint64_t stored_bytes;  /* new bytes in packs for this snapshot */
    uint64_t shared_bytes;  /* raw bytes that were stored already (this snapshot or another) */
    uint64_t chunks, chunks_shared; /* puts, and those of them that found an equal chunk */
};

/* Takes the name's writer lock (REWARM_E_BUSY with the holder's PID when taken) and makes a staging
 * directory, whose path is `rewarm_store_writer_staging()`. Publishing over an existing snapshot
 * replaces it atomically. */
int rewarm_store_writer_open(struct rewarm_store *store, const char *name,
                             struct rewarm_store_writer **ret_writer, struct rewarm_error *err);
const char *rewarm_store_writer_staging(const struct rewarm_store_writer *writer);

/* Stores `bytes` (1 to REWARM_WINDOW_BYTES) of `data` as a chunk, unless an equal one is there
 * already (in this snapshot, or a published one), and returns its index in this snapshot's chunk
 * table. Equal chunks get the same index. Any thread; may block on the disk. */
int rewarm_store_writer_put(struct rewarm_store_writer *writer, const void *data, size_t bytes,
                            uint32_t *ret_chunk, struct rewarm_error *err);

/* Stores a file of `dirfd` as blob `name`. Any thread. */
int rewarm_store_writer_put_blob(struct rewarm_store_writer *writer, int dirfd, const char *name,
                                 struct rewarm_error *err);

/* Hands over one process's windows and runs (run indices count from 0 of `runs`; copied). Any
 * thread. */
int rewarm_store_writer_put_space(struct rewarm_store_writer *writer,
                                  const struct rewarm_space *space,
                                  const struct rewarm_window *windows, size_t window_count,
                                  const struct rewarm_run *runs, size_t run_count,
                                  struct rewarm_error *err);

/* Everything fsynced, then the manifest renamed into place. `details` is the snapshot layer's part
 * of the manifest (key "snapshot"). After success the writer only wants closing; after failure
 * nothing is published and what was published before is untouched. `ret_totals` may be NULL. */
int rewarm_store_writer_publish(struct rewarm_store_writer *writer, json_t *details,
                                struct rewarm_store_totals *ret_totals, struct rewarm_error *err);

/* Ends the writer; unpublished packs and staging are removed. */
void rewarm_store_writer_close(struct rewarm_store_writer *writer);

/* --- reading ------------------------------------------------------------------------------------
 */

/* Opens a snapshot: manifest and map are checked whole (their digests, and that every pack is there
 * and long enough). Holds a shared lock against gc until closed; a forked child that keeps the
 * reader's descriptors keeps the lock too. */
int rewarm_store_reader_open(struct rewarm_store *store, const char *name,
                             struct rewarm_store_reader **ret_reader, struct rewarm_error *err);
void rewarm_store_reader_close(struct rewarm_store_reader *reader);

/* Borrowed, valid until the reader is closed. The manifest is the whole document (docs/format.md).
 */
const json_t *rewarm_store_reader_manifest(const struct rewarm_store_reader *reader);
const struct rewarm_memmap *rewarm_store_reader_memmap(const struct rewarm_store_reader *reader);

/* Reads a chunk into `buffer` (raw_bytes of it), decodes and checks it: the bytes are either right
 * or REWARM_E_CORRUPT names chunk, pack and offset. Any thread. */
int rewarm_store_reader_get(struct rewarm_store_reader *reader, uint32_t chunk, void *buffer,
                            struct rewarm_error *err);

/* Writes blob `index` of the map as file `name` (0600) below `dirfd`. */
int rewarm_store_reader_extract(struct rewarm_store_reader *reader, size_t index, int dirfd,
                                struct rewarm_error *err);

/* --- the shelf ----------------------------------------------------------------------------------
 */

struct rewarm_store_entry {
    char *name;
    json_t *manifest; /* NULL when it can't be read: then `problem` says why */
    char *problem;
};
int rewarm_store_list(struct rewarm_store *store, struct rewarm_store_entry **ret_entries,
                      size_t *ret_count, struct rewarm_error *err);
void rewarm_store_entries_free(struct rewarm_store_entry *entries, size_t count);

/* Unpublishes NAME (its bytes stay until gc). REWARM_E_BUSY while a writer has the name. */
int rewarm_store_remove(struct rewarm_store *store, const char *name, struct rewarm_error *err);

struct rewarm_store_gc_result {
    uint64_t freed_bytes;
    uint64_t live_bytes;
    unsigned packs_removed, maps_removed, stagings_removed;
};
/* Reclaims packs, maps and stagings of dead writers. REWARM_E_BUSY when readers or writers are
 * active at `deadline_ns` (0: do not wait). REWARM_E_CORRUPT, with only stagings removed, while a
 * snapshot can't be read: what it needs is then unknown. With `dry_run` only counts. */
int rewarm_store_gc(struct rewarm_store *store, bool dry_run, uint64_t deadline_ns,
                    struct rewarm_store_gc_result *ret_result, struct rewarm_error *err);

/* Reads every chunk of NAME and checks XXH3 and SHA-256. `report` is called for each damaged object
 * and with progress (damage NULL). Returns REWARM_E_CORRUPT when anything is damaged. */
typedef void rewarm_store_verify_fn(void *context, const char *damage, uint64_t done_bytes,
                                    uint64_t total_bytes);
int rewarm_store_verify(struct rewarm_store *store, const char *name,
                        rewarm_store_verify_fn *report, void *context, struct rewarm_error *err);

#endif

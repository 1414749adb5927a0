/* What the files of this layer share: the open store, its locks, and a loaded snapshot. */
#ifndef REWARM_STORE_INTERNAL_H
#define REWARM_STORE_INTERNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "io/memmap.h"
#include "store/manifest.h"
#include "store/pack.h"
#include "store/store.h"

#define REWARM_STORE_NO_SPACE_HINT "`rewarm gc` takes back what no snapshot needs"

struct rewarm_store {
    char *path;
    int root_fd, snapshots_fd, maps_fd, packs_fd, staging_fd, locks_fd;
};

/* --- locks (store.c)
 * --------------------------------------------------------------------------------- Every reader
 * and writer holds locks/gc shared; gc holds it alone. Who wants a name's lock must hold locks/gc
 * already: gc removes the files of name locks. */

/* Waits while gc runs. */
int rewarm_store_lock_shared(struct rewarm_store *store, int *ret_fd, struct rewarm_error *err);

/* REWARM_E_BUSY when readers or writers are left at the deadline. */
int rewarm_store_lock_alone(struct rewarm_store *store, uint64_t deadline_ns, int *ret_fd,
                            struct rewarm_error *err);

/* The lock of one name's writer; REWARM_E_BUSY with the holder's PID. */
int rewarm_store_lock_name(struct rewarm_store *store, const char *name, int *ret_fd,
                           struct rewarm_error *err);

/* --- loading (load.c)
 * --------------------------------------------------------------------------------- */

/* A published snapshot: manifest and map, checked whole and against each other. Packs are not
 * touched. */
struct rewarm_loaded {
    struct rewarm_manifest manifest;
    struct rewarm_memmap map;
};

/* The caller holds locks/gc. REWARM_E_NOT_FOUND if there is no such snapshot. */
int rewarm_store_load(struct rewarm_store *store, const char *name,
                      struct rewarm_loaded *ret_loaded, struct rewarm_error *err);
int rewarm_store_load_manifest(struct rewarm_store *store, const char *name,
                               struct rewarm_manifest *ret_manifest, struct rewarm_error *err);
void rewarm_loaded_fini(struct rewarm_loaded *loaded);

/* --- directories (store.c)
 * ------------------------------------------------------------------------------ */

/* The names in a directory, sorted, without "." and "..". Free with rewarm_store_names_free(). */
int rewarm_store_names(int dirfd, const char *what, char ***ret_names, size_t *ret_count,
                       struct rewarm_error *err);
void rewarm_store_names_free(char **names, size_t count);

/* The names of published snapshots: NAME of every "NAME.json". */
int rewarm_store_snapshot_names(struct rewarm_store *store, char ***ret_names, size_t *ret_count,
                                struct rewarm_error *err);

/* Creates `name` (which must not exist), writes and fsyncs it. The directory is not fsynced. */
int rewarm_store_write_new(int dirfd, const char *name, const void *data, size_t bytes,
                           struct rewarm_error *err);

#endif

#include <fcntl.h>
#include <stdlib.h>

#include "base/clean.h"
#include "base/str.h"
#include "store/internal.h"

int rewarm_store_list(struct rewarm_store *store, struct rewarm_store_entry **ret_entries,
                      size_t *ret_count, struct rewarm_error *err)
{
    char **names;
    size_t count, kept = 0;
    int result = rewarm_store_snapshot_names(store, &names, &count, err);
    if (result < 0)
        return result;
    struct rewarm_store_entry *entries = rewarm_mem_new(count, sizeof(*entries));
    for (size_t i = 0; i < count; i++) {
        struct rewarm_manifest manifest;
        struct rewarm_error local = REWARM_ERROR_INIT;
        result = rewarm_store_load_manifest(store, names[i], &manifest, &local);
        if (result == -REWARM_E_NOT_FOUND) {
            free(names[i]); /* removed since the folder was read */
            continue;
        }
        struct rewarm_store_entry *entry = &entries[kept++];
        entry->name = names[i];
        if (result < 0) {
            entry->problem = rewarm_str_dup(local.message);
            continue;
        }
        entry->manifest = json_incref(manifest.document);
        rewarm_manifest_fini(&manifest);
    }
    free(names);
    *ret_entries = entries;
    *ret_count = kept;
    return 0;
}

void rewarm_store_entries_free(struct rewarm_store_entry *entries, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        free(entries[i].name);
        free(entries[i].problem);
        json_decref(entries[i].manifest);
    }
    free(entries);
}

int rewarm_store_remove(struct rewarm_store *store, const char *name, struct rewarm_error *err)
{
    int result = rewarm_str_check_name(name, err);
    if (result < 0)
        return result;
    rewarm_auto_free char *file = rewarm_str_format("%s.json", name);
    /* gc first, the name after it: see internal.h. Released in the opposite order. */
    rewarm_auto_fd int gc_fd = -1;
    rewarm_auto_fd int name_fd = -1;
    result = rewarm_store_lock_shared(store, &gc_fd, err);
    if (result == 0)
        result = rewarm_store_lock_name(store, name, &name_fd, err);
    if (result < 0)
        return result;
    if (unlinkat(store->snapshots_fd, file, 0) != 0) {
        if (errno == ENOENT)
            return rewarm_error_set(err, REWARM_E_NOT_FOUND, 0,
                                    "there is no snapshot \"%s\" in the store %s", name,
                                    store->path);
        return rewarm_error_errno(err, "cannot remove snapshot %s", name);
    }
    if (fsync(store->snapshots_fd) != 0)
        return rewarm_error_errno(err, "snapshot %s is removed, but not durably so", name);
    return 0;
}

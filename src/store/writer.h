/* The state of one writer, shared by writer.c (taking things in) and publish.c (making them a
 * snapshot). */
#ifndef REWARM_STORE_WRITER_H
#define REWARM_STORE_WRITER_H

#include <pthread.h>

#include "base/error.h"
#include "store/chunk_table.h"
#include "store/dedup.h"
#include "store/internal.h"

#define REWARM_WRITER_NO_PACK UINT32_MAX

/* Names in a staging directory (docs/format.md, "Staging"). */
#define REWARM_STAGING_FILES    "files"
#define REWARM_STAGING_OWNER    "owner"
#define REWARM_STAGING_PACK     "pack"
#define REWARM_STAGING_IDX      "idx"
#define REWARM_STAGING_MAP      "map"
#define REWARM_STAGING_MANIFEST "manifest"
#define REWARM_STAGING_OLD      "old"

struct rewarm_pending_space {
    struct rewarm_space space;
    struct rewarm_window *windows; /* first_run counts from 0 of runs, in order, without gaps */
    size_t window_count;
    struct rewarm_run *runs;
    size_t run_count;
    uint64_t pages;
};

struct rewarm_pending_blob {
    char *name;
    uint64_t bytes;
    uint32_t *chunks;
    size_t chunk_count;
};

struct rewarm_store_writer {
    struct rewarm_store *store;
    char *name;
    uint8_t id[REWARM_PACK_ID_BYTES]; /* of writer, staging, pack and snapshot */
    char hex[REWARM_PACK_ID_HEX];
    char *files_path;
    int gc_fd, name_fd, staging_fd, pack_fd;
    struct rewarm_dedup *dedup;

    pthread_mutex_t lock; /* guards what follows */
    struct rewarm_chunk_table table;
    struct rewarm_pack_ref
        *packs; /* that this snapshot refers to; bytes of our own are set at the end */
    size_t pack_count, pack_capacity;
    uint32_t own_pack;     /* index of ours in packs, or REWARM_WRITER_NO_PACK */
    uint32_t *dedup_packs; /* index in packs of each pack of dedup, or REWARM_WRITER_NO_PACK */
    uint64_t next_offset;  /* in our pack */
    struct rewarm_store_totals totals;
    struct rewarm_pending_space *spaces;
    size_t space_count, space_capacity;
    struct rewarm_pending_blob *blobs;
    size_t blob_count, blob_capacity;
    struct rewarm_error failure; /* the first; nothing is published after one */
    bool published;
};

#endif

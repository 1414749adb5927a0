#include "store/dedup.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/clean.h"
#include "base/log.h"
#include "base/str.h"
#include "store/digest.h"
#include "store/idx.h"

struct known_pack {
    struct rewarm_idx idx;
    uint8_t *data; /* of idx */
    int fd;        /* opened at the first hit; -1 before, -2 when that failed */
};

struct rewarm_dedup {
    int packs_fd; /* the store's */
    struct known_pack *packs;
    size_t count;
    pthread_mutex_t opening; /* guards every `fd` */
};

static int load_pack(struct rewarm_dedup *dedup, const uint8_t id[REWARM_PACK_ID_BYTES],
                     struct known_pack *ret_pack, struct rewarm_error *err)
{
    struct known_pack pack = {.fd = -1};
    int result = rewarm_idx_load(dedup->packs_fd, id, &pack.data, &pack.idx, err);
    if (result < 0)
        return result;
    char name[REWARM_PACK_NAME];
    struct stat st;
    rewarm_pack_name(id, ".pack", name);
    if (fstatat(dedup->packs_fd, name, &st, AT_SYMLINK_NOFOLLOW) != 0)
        result = rewarm_error_errno(err, "cannot examine packs/%s", name);
    else if ((uint64_t)st.st_size < pack.idx.pack.bytes)
        result = rewarm_error_set(err, REWARM_E_CORRUPT, 0, "packs/%s is cut short", name);
    if (result < 0) {
        free(pack.data);
        return result;
    }
    *ret_pack = pack;
    return 0;
}

int rewarm_dedup_open(struct rewarm_store *store, struct rewarm_dedup **ret_dedup,
                      struct rewarm_error *err)
{
    char **names;
    size_t count, capacity = 0;
    int result = rewarm_store_names(store->packs_fd, "packs", &names, &count, err);
    if (result < 0)
        return result;
    struct rewarm_dedup *dedup = rewarm_mem_new(1, sizeof(*dedup));
    dedup->packs_fd = store->packs_fd;
    pthread_mutex_init(&dedup->opening, NULL);
    for (size_t i = 0; i < count; i++) {
        uint8_t id[REWARM_PACK_ID_BYTES];
        struct rewarm_error local = REWARM_ERROR_INIT;
        if (!rewarm_pack_parse_name(names[i], ".idx", id))
            continue;
        REWARM_GROW(&dedup->packs, &capacity, dedup->count);
        if (load_pack(dedup, id, &dedup->packs[dedup->count], &local) < 0)
            rewarm_warn("nothing is shared with one pack: %s", local.message);
        else
            dedup->count++;
    }
    rewarm_store_names_free(names, count);
    *ret_dedup = dedup;
    return 0;
}

void rewarm_dedup_close(struct rewarm_dedup *dedup)
{
    if (dedup == NULL)
        return;
    for (size_t i = 0; i < dedup->count; i++) {
        free(dedup->packs[i].data);
        if (dedup->packs[i].fd >= 0)
            close(dedup->packs[i].fd);
    }
    pthread_mutex_destroy(&dedup->opening);
    free(dedup->packs);
    free(dedup);
}

size_t rewarm_dedup_packs(const struct rewarm_dedup *dedup)
{
    return dedup->count;
}

struct rewarm_pack_ref rewarm_dedup_pack(const struct rewarm_dedup *dedup, size_t index)
{
    return dedup->packs[index].idx.pack;
}

static int pack_fd(struct rewarm_dedup *dedup, struct known_pack *pack)
{
    pthread_mutex_lock(&dedup->opening);
    if (pack->fd == -1) {
        int fd = -1;
        struct rewarm_error local = REWARM_ERROR_INIT;
        int result = rewarm_pack_open(dedup->packs_fd, &pack->idx.pack, false, &fd, &local);
        if (result == 0)
            result = rewarm_pack_check(fd, &pack->idx.pack, &local);
        if (result < 0) {
            rewarm_warn("nothing is shared with one pack: %s", local.message);
            rewarm_clean_fd(&fd);
            fd = -2;
        }
        pack->fd = fd;
    }
    int fd = pack->fd;
    pthread_mutex_unlock(&dedup->opening);
    return fd;
}

bool rewarm_dedup_find(struct rewarm_dedup *dedup, const uint8_t digest[REWARM_DIGEST_BYTES],
                       const void *data, size_t bytes, struct rewarm_chunk *ret_chunk,
                       size_t *ret_pack)
{
    for (size_t i = 0; i < dedup->count; i++) {
        struct known_pack *pack = &dedup->packs[i];
        struct rewarm_chunk chunk;
        if (!rewarm_idx_find(&pack->idx, digest, &chunk) || chunk.codec != REWARM_CODEC_RAW ||
            chunk.raw_bytes != bytes)
            continue;
        int fd = pack_fd(dedup, pack);
        uint8_t *stored = rewarm_store_scratch(REWARM_SCRATCH_COMPARE);
        if (fd < 0 || rewarm_chunk_read(fd, &chunk, &pack->idx.pack, stored, NULL) < 0 ||
            memcmp(stored, data, bytes) != 0)
            continue;
        *ret_chunk = chunk;
        *ret_pack = i;
        return true;
    }
    return false;
}

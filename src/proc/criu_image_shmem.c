/* The edit of mm-PID.img for one restore: areas that map a memfd privately.
 *
 * CRIU 4.3 restores the bytes of shared memory with a helper process (its "async fill daemon"). A
 * lazy restore opens the file behind a private area earlier than that helper is there; when the
 * file is a memfd, the request for its bytes goes to the first descriptor of CRIU's store instead:
 * to the lazy-pages socket or to an inherited stdio. The restore fails, or the memfd stays empty.
 * Shared areas and descriptors of memfds are opened later and have no such fault.
 *
 * So such an area is described in pieces that CRIU opens later:
 * - pages that the process has written to are its own, anonymous memory: an anonymous area, whose
 *   bytes are in the page map as before;
 * - the pages between them still show the memfd: an area that CRIU takes for a shared one and so
 *   opens late. Its mmap flags, MAP_PRIVATE, stay, and they are what CRIU maps it with.
 * The process sees the same bytes and, in pages it has not written to, later changes of the memfd,
 * as before. */
#include <criu.pb-c.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/clean.h"
#include "base/fs.h"
#include "base/str.h"
#include "proc/criu_image.h"
#include "proc/criu_image_entry.h"

#define PAGE_SHIFT 12

/* Bits of vma_entry.status. */
enum {
    FILE_PRIVATE = 1 << 6,
    FILE_SHARED = 1 << 7,
    ANON_PRIVATE = 1 << 9,
    MEMFD = 1 << 14,
    GUARD = 1 << 16, /* lies inside another area */
};

struct areas {
    VmaEntry **list;
    size_t count, capacity;
};

static bool is_private_memfd(const VmaEntry *area)
{
    return (area->status & (FILE_PRIVATE | MEMFD)) == (FILE_PRIVATE | MEMFD) &&
           (area->status & GUARD) == 0;
}

/* With the fields that criu.proto does not name. */
static VmaEntry *copy_area(const VmaEntry *area)
{
    size_t bytes = vma_entry__get_packed_size(area);
    rewarm_auto_free uint8_t *packed = rewarm_mem_new(bytes, 1);
    vma_entry__pack(area, packed);
    return vma_entry__unpack(NULL, bytes, packed);
}

static void add_area(struct areas *areas, VmaEntry *area)
{
    REWARM_GROW(&areas->list, &areas->capacity, areas->count);
    areas->list[areas->count++] = area;
}

/* Adds what lies in [start, end) of `area`; false when there is no memory for it. */
static bool add_piece(struct areas *areas, const VmaEntry *area, uint64_t start, uint64_t end,
                      bool own)
{
    if (start >= end)
        return true;
    VmaEntry *piece = copy_area(area);
    if (piece == NULL)
        return false;
    piece->start = start;
    piece->end = end;
    if (own) {
        piece->pgoff = 0;
        piece->shmid = 0;
        piece->flags |= MAP_ANONYMOUS;
        piece->status = (area->status & ~(uint32_t)(FILE_PRIVATE | MEMFD)) | ANON_PRIVATE;
        piece->has_fdflags = false;
    } else {
        piece->pgoff += start - area->start;
        piece->status = (area->status & ~(uint32_t)FILE_PRIVATE) | FILE_SHARED;
    }
    add_area(areas, piece);
    return true;
}

/* `*at` is the first range that may reach into `area` or a later one. Ranges next to each other
 * make one piece. */
static bool split_area(struct areas *areas, const VmaEntry *area,
                       const struct rewarm_image_pages *pages, size_t page_count, size_t *at)
{
    uint64_t done = area->start;
    while (*at < page_count && pages[*at].vaddr < area->end) {
        uint64_t start = pages[*at].vaddr;
        uint64_t end = start + (pages[*at].pages << PAGE_SHIFT);
        while (end < area->end && *at + 1 < page_count && pages[*at + 1].vaddr == end)
            end += pages[++*at].pages << PAGE_SHIFT;
        uint64_t from = start > area->start ? start : area->start;
        uint64_t to = end < area->end ? end : area->end;
        if (!add_piece(areas, area, done, from, false) || !add_piece(areas, area, from, to, true))
            return false;
        done = to;
        if (end > area->end)
            break; /* the next area has a part in this range */
        ++*at;
    }
    return add_piece(areas, area, done, area->end, false);
}

/* NULL, or what is wrong. *ret_changed: an area was split. */
static const char *edit_areas(MmEntry *mm, const struct rewarm_image_pages *pages,
                              size_t page_count, bool *ret_changed)
{
    struct areas areas = {0};
    const char *wrong = NULL;
    uint64_t end = 0;
    size_t at = 0;
    *ret_changed = false;
    for (size_t i = 0; i < mm->n_vmas; i++) {
        VmaEntry *area = mm->vmas[i];
        if (!is_private_memfd(area) || wrong != NULL) {
            add_area(&areas, area);
            continue;
        }
        while (at < page_count && pages[at].vaddr + (pages[at].pages << PAGE_SHIFT) <= area->start)
            at++;
        if (area->start < end || area->end <= area->start)
            wrong = "areas overlap or are not in order";
        else if (!split_area(&areas, area, pages, page_count, &at))
            wrong = "an area can't be split";
        end = area->end;
        vma_entry__free_unpacked(area, NULL);
        *ret_changed = true;
    }
    free(mm->vmas);
    mm->vmas = areas.list;
    mm->n_vmas = areas.count;
    return wrong;
}

static bool has_private_memfd(const MmEntry *mm)
{
    for (size_t i = 0; i < mm->n_vmas; i++)
        if (is_private_memfd(mm->vmas[i]))
            return true;
    return false;
}

/* Unpacks the one entry of a memory image; *ret_head: bytes before the entry. */
static int unpack(const char *name, const void *data, size_t bytes, MmEntry **ret_mm,
                  size_t *ret_head, struct rewarm_error *err)
{
    struct rewarm_image_cursor cursor;
    int rc = rewarm_image_begin(name, data, bytes, REWARM_MAGIC_MM, &cursor, err);
    if (rc != 0)
        return rc;
    size_t head = cursor.at, message_bytes;
    const uint8_t *message;
    rc = rewarm_image_next(&cursor, &message, &message_bytes, err);
    if (rc < 0)
        return rc;
    MmEntry *mm = rc > 0 ? mm_entry__unpack(NULL, message_bytes, message) : NULL;
    if (mm == NULL)
        return rewarm_image_damaged(name, "no memory entry", err);
    *ret_mm = mm;
    *ret_head = head;
    return 0;
}

int rewarm_image_edit_mm(const char *name, const void *data, size_t bytes,
                         const struct rewarm_image_pages *pages, size_t page_count,
                         uint8_t **ret_data, size_t *ret_bytes, struct rewarm_error *err)
{
    MmEntry *mm = NULL;
    size_t head = 0;
    int rc = unpack(name, data, bytes, &mm, &head, err);
    if (rc != 0)
        return rc;
    bool changed;
    const char *wrong = edit_areas(mm, pages, page_count, &changed);
    if (wrong == NULL && changed) {
        size_t packed = mm_entry__get_packed_size(mm);
        uint8_t *out = rewarm_mem_new(head + 4 + packed, 1);
        uint32_t length = htole32((uint32_t)packed);
        memcpy(out, data, head);
        memcpy(out + head, &length, sizeof(length));
        mm_entry__pack(mm, out + head + 4);
        *ret_data = out;
        *ret_bytes = head + 4 + packed;
    } else if (wrong == NULL) {
        *ret_data = NULL;
        *ret_bytes = 0;
    }
    mm_entry__free_unpacked(mm, NULL);
    return wrong != NULL ? rewarm_image_damaged(name, wrong, err) : 0;
}

/* The page map is read only where it is needed: it can be long. */
static int edit_process(int dirfd, const char *name, int32_t pid, struct rewarm_error *err)
{
    rewarm_auto_free char *data = NULL;
    rewarm_auto_free struct rewarm_image_pages *pages = NULL;
    rewarm_auto_free uint8_t *edited = NULL;
    size_t bytes, head, page_count = 0, edited_bytes = 0;
    MmEntry *mm = NULL;
    int rc = rewarm_image_read(dirfd, name, &data, &bytes, err);
    if (rc == 0)
        rc = unpack(name, data, bytes, &mm, &head, err);
    if (rc != 0)
        return rc;
    bool needed = has_private_memfd(mm);
    mm_entry__free_unpacked(mm, NULL);
    if (!needed)
        return 0;
    rc = rewarm_image_pagemap(dirfd, pid, &pages, &page_count, err);
    if (rc == 0)
        rc =
            rewarm_image_edit_mm(name, data, bytes, pages, page_count, &edited, &edited_bytes, err);
    if (rc == 0 && edited != NULL)
        rc = rewarm_fs_write_durable(dirfd, name, 0600, edited, edited_bytes, err);
    return rc;
}

int rewarm_image_edit_shmem(int dirfd, struct rewarm_error *err)
{
    /* Only a tree that has a memfd has this image: most restores end here. */
    if (faccessat(dirfd, "memfd.img", F_OK, 0) != 0)
        return errno == ENOENT ? 0 : rewarm_error_errno(err, "look for memfd.img");
    rewarm_auto_fd int fd = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    rewarm_auto_dir DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
    if (dir == NULL)
        return rewarm_error_errno(err, "list CRIU's images");
    rewarm_steal_fd(&fd);
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        int32_t pid;
        if (!rewarm_str_ends(entry->d_name, ".img") || sscanf(entry->d_name, "mm-%d.", &pid) != 1)
            continue;
        int rc = edit_process(dirfd, entry->d_name, pid, err);
        if (rc != 0)
            return rc;
    }
    return 0;
}

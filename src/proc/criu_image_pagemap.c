/* pagemap-PID.img, decoded by hand: a worker with many small areas has 100,000 entries, and an
 * allocation for each (as protobuf-c does) would be most of the time. An entry is a protobuf
 * message of four numbers; fields that are not known are stepped over by their wire type. */
#include "proc/criu_image.h"

#include <stdio.h>
#include <string.h>

#include "base/clean.h"
#include "base/str.h"
#include "proc/criu_image_entry.h"

#define PAGE_SHIFT 12

enum { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5 };

/* Reads a base-128 number; false when it does not end in the message or does not fit. */
static bool read_varint(const uint8_t **at, const uint8_t *end, uint64_t *ret_value)
{
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 64 && *at < end; shift += 7) {
        uint8_t byte = *(*at)++;
        if (shift == 63 && byte > 1)
            return false;
        value |= (uint64_t)(byte & 0x7f) << shift;
        if ((byte & 0x80) == 0) {
            *ret_value = value;
            return true;
        }
    }
    return false;
}

/* Steps over a field that is not a number. */
static bool skip_field(const uint8_t **at, const uint8_t *end, unsigned wire)
{
    uint64_t bytes;
    switch (wire) {
    case WIRE_64:
        bytes = 8;
        break;
    case WIRE_32:
        bytes = 4;
        break;
    case WIRE_BYTES:
        if (!read_varint(at, end, &bytes))
            return false;
        break;
    default:
        return false;
    }
    if (bytes > (uint64_t)(end - *at))
        return false;
    *at += bytes;
    return true;
}

/* NULL, or what is wrong with the entry. */
static const char *parse_entry(const uint8_t *at, size_t bytes, struct rewarm_image_pages *ret)
{
    const uint8_t *end = at + bytes;
    uint64_t fields[6] = {0};
    bool seen[6] = {false};
    while (at < end) {
        uint64_t key, value;
        if (!read_varint(&at, end, &key))
            return "a field is cut off";
        if ((key & 7) != WIRE_VARINT) {
            if (!skip_field(&at, end, key & 7))
                return "a field is cut off";
            continue;
        }
        if (!read_varint(&at, end, &value))
            return "a number is cut off";
        if (key >> 3 < 6) {
            fields[key >> 3] = value;
            seen[key >> 3] = true;
        }
    }
    if (!seen[1] || !(seen[2] || seen[5]))
        return "an entry has no address or no length";
    if (seen[4] && fields[4] > UINT32_MAX)
        return "flags are out of range";
    ret->vaddr = fields[1];
    ret->pages = seen[5] ? fields[5] : fields[2];
    ret->flags = (uint32_t)fields[4];
    if (!seen[4]) /* as CRIU reads images from before there were flags */
        ret->flags = fields[3] != 0 ? REWARM_PE_PARENT : REWARM_PE_PRESENT;
    if ((ret->vaddr & ((1u << PAGE_SHIFT) - 1)) != 0 || ret->pages == 0 ||
        ret->pages > (UINT64_MAX - ret->vaddr) >> PAGE_SHIFT)
        return "a range is impossible";
    return NULL;
}

static int parse_pagemap(const char *name, const void *data, size_t bytes,
                         struct rewarm_image_pages **ret_pages, size_t *ret_count,
                         struct rewarm_error *err)
{
    struct rewarm_image_cursor cursor;
    int rc = rewarm_image_begin(name, data, bytes, REWARM_MAGIC_PAGEMAP, &cursor, err);
    if (rc != 0)
        return rc;
    const uint8_t *message;
    size_t message_bytes;
    rc = rewarm_image_next(&cursor, &message, &message_bytes, err); /* the head: pages-N.img */
    if (rc < 0)
        return rc;
    if (rc == 0)
        return rewarm_image_damaged(name, "it has no head", err);
    rewarm_auto_free struct rewarm_image_pages *pages = NULL;
    size_t count = 0, capacity = 0;
    uint64_t end = 0;
    while ((rc = rewarm_image_next(&cursor, &message, &message_bytes, err)) > 0) {
        REWARM_GROW(&pages, &capacity, count);
        const char *wrong = parse_entry(message, message_bytes, &pages[count]);
        if (wrong == NULL && pages[count].vaddr < end)
            wrong = "ranges overlap or are not in order";
        if (wrong != NULL)
            return rewarm_image_damaged(name, wrong, err);
        end = pages[count].vaddr + (pages[count].pages << PAGE_SHIFT);
        count++;
    }
    if (rc < 0)
        return rc;
    *ret_pages = rewarm_steal_ptr(&pages);
    *ret_count = count;
    return 0;
}

int rewarm_image_parse_pagemap(const void *data, size_t bytes,
                               struct rewarm_image_pages **ret_pages, size_t *ret_count,
                               struct rewarm_error *err)
{
    return parse_pagemap("the page map", data, bytes, ret_pages, ret_count, err);
}

int rewarm_image_pagemap(int dirfd, int32_t pid, struct rewarm_image_pages **ret_pages,
                         size_t *ret_count, struct rewarm_error *err)
{
    char name[32];
    snprintf(name, sizeof(name), "pagemap-%d.img", pid);
    rewarm_auto_free char *data = NULL;
    size_t bytes;
    int rc = rewarm_image_read(dirfd, name, &data, &bytes, err);
    return rc != 0 ? rc : parse_pagemap(name, data, bytes, ret_pages, ret_count, err);
}

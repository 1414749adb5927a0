/* The map file.
 *
 * header | section table | sections | XXH3 of everything before it. Each section is an array of
 * records of one kind and size, little-endian, so that decoding is one pass over each array that
 * copies fields and checks them. A reader refuses sections that it does not know when they are
 * marked as required, and skips them otherwise: that is where compression dictionaries, stripes,
 * keys, an access order and device memory go.
 *
 * Nothing is trusted: the trailer shows accidents, but a map may also have been made to do harm, so
 * every index and range is checked against the array that it points into before anybody uses it.
 * The arrays are required to be in one canonical order (windows by address, a window's runs right
 * after the previous window's), which makes those checks a running sum. */
#include "store/map.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/clean.h"
#include "base/str.h"
#include "store/digest.h"
#include "store/wire.h"

#define MAGIC         "\x89RWMAP\r\n"
#define VERSION       1
#define HEADER_BYTES  64
#define ENTRY_BYTES   32
#define TRAILER_BYTES 8
#define MAX_SECTIONS  64
#define REQUIRED      1u /* flag of a section */

enum {
    AT_MAGIC = 0,
    AT_VERSION = 8,
    AT_SECTIONS = 12,
    AT_BYTES = 16,
    AT_FEATURES = 24,
    AT_PAGE = 28,
    AT_WINDOW = 32
};
enum { ENTRY_TYPE = 0, ENTRY_FLAGS = 4, ENTRY_OFFSET = 8, ENTRY_LENGTH = 16, ENTRY_RECORD = 24 };

enum section_type { SPACES = 1, WINDOWS, RUNS, CHUNKS, BLOBS, NAMES, PACKS, SECTION_END };

static const uint32_t record_bytes[SECTION_END] = {
    [SPACES] = 32, [WINDOWS] = 24, [RUNS] = 16,  [CHUNKS] = REWARM_CHUNK_RECORD_BYTES,
    [BLOBS] = 32,  [NAMES] = 1,    [PACKS] = 32,
};
static const char *const section_names[SECTION_END] = {
    [SPACES] = "spaces", [WINDOWS] = "windows", [RUNS] = "runs",   [CHUNKS] = "chunks",
    [BLOBS] = "blobs",   [NAMES] = "names",     [PACKS] = "packs",
};

struct section {
    const uint8_t *data; /* NULL: not there */
    size_t count;
};

bool rewarm_map_blob_name_ok(const char *name, size_t bytes)
{
    if (bytes == 0 || bytes > 255 || memchr(name, '/', bytes) != NULL ||
        memchr(name, '\0', bytes) != NULL)
        return false;
    return !(name[0] == '.' && (bytes == 1 || (bytes == 2 && name[1] == '.')));
}

/* --- encoding
 * ------------------------------------------------------------------------------------- */

static size_t align8(size_t bytes)
{
    return (bytes + 7) & ~(size_t)7;
}

static void encode_spaces(uint8_t *out, const struct rewarm_memmap *map)
{
    for (size_t i = 0; i < map->space_count; i++, out += record_bytes[SPACES]) {
        const struct rewarm_space *space = &map->spaces[i];
        rewarm_wire_put32(out, (uint32_t)space->pid);
        rewarm_wire_put64(out + 8, space->first_window);
        rewarm_wire_put64(out + 16, space->windows);
        rewarm_wire_put64(out + 24, space->lazy_pages);
    }
}

static void encode_windows(uint8_t *out, const struct rewarm_memmap *map)
{
    for (size_t i = 0; i < map->window_count; i++, out += record_bytes[WINDOWS]) {
        const struct rewarm_window *window = &map->windows[i];
        rewarm_wire_put64(out, window->vaddr);
        rewarm_wire_put32(out + 8, window->first_run);
        rewarm_wire_put32(out + 12, window->runs);
        rewarm_wire_put32(out + 16, window->chunk);
    }
}

static void encode_runs(uint8_t *out, const struct rewarm_memmap *map)
{
    for (size_t i = 0; i < map->run_count; i++, out += record_bytes[RUNS]) {
        rewarm_wire_put64(out, map->runs[i].vaddr);
        rewarm_wire_put32(out + 8, map->runs[i].pages);
        rewarm_wire_put32(out + 12, map->runs[i].first_page);
    }
}

static void encode_blobs(uint8_t *out, uint8_t *names, const struct rewarm_memmap *map)
{
    uint32_t name_offset = 0;
    for (size_t i = 0; i < map->blob_count; i++, out += record_bytes[BLOBS]) {
        const struct rewarm_blob *blob = &map->blobs[i];
        uint32_t name_bytes = (uint32_t)strlen(blob->name);
        rewarm_wire_put32(out, name_offset);
        rewarm_wire_put32(out + 4, name_bytes);
        rewarm_wire_put64(out + 8, blob->bytes);
        rewarm_wire_put64(out + 16, blob->first_chunk);
        rewarm_wire_put64(out + 24, blob->chunks);
        memcpy(names + name_offset, blob->name, name_bytes);
        name_offset += name_bytes;
    }
}

int rewarm_map_encode(const struct rewarm_memmap *map, const struct rewarm_pack_ref *packs,
                      size_t pack_count, uint8_t **ret_data, size_t *ret_bytes,
                      struct rewarm_error *err)
{
    size_t name_bytes = 0;
    for (size_t i = 0; i < map->blob_count; i++)
        name_bytes += strlen(map->blobs[i].name);
    if (map->window_count > UINT32_MAX || map->run_count > UINT32_MAX ||
        map->chunk_count > UINT32_MAX || pack_count > UINT32_MAX || name_bytes > UINT32_MAX)
        return rewarm_error_set(err, REWARM_E_REFUSED, 0,
                                "too many chunks or runs for one snapshot (%zu, %zu)",
                                map->chunk_count, map->run_count);
    size_t counts[SECTION_END] = {
        [SPACES] = map->space_count, [WINDOWS] = map->window_count, [RUNS] = map->run_count,
        [CHUNKS] = map->chunk_count, [BLOBS] = map->blob_count,     [NAMES] = name_bytes,
        [PACKS] = pack_count,
    };
    size_t offsets[SECTION_END];
    size_t total = HEADER_BYTES + (SECTION_END - 1) * ENTRY_BYTES;
    for (size_t type = SPACES; type < SECTION_END; type++) {
        offsets[type] = total;
        total += align8(counts[type] * record_bytes[type]);
    }
    total += TRAILER_BYTES;

    uint8_t *data = rewarm_mem_new(total, 1);
    memcpy(data + AT_MAGIC, MAGIC, 8);
    rewarm_wire_put32(data + AT_VERSION, VERSION);
    rewarm_wire_put32(data + AT_SECTIONS, SECTION_END - 1);
    rewarm_wire_put64(data + AT_BYTES, total);
    rewarm_wire_put32(data + AT_FEATURES, 0);
    rewarm_wire_put32(data + AT_PAGE, REWARM_PAGE_BYTES);
    rewarm_wire_put32(data + AT_WINDOW, REWARM_WINDOW_BYTES);
    for (uint32_t type = SPACES; type < SECTION_END; type++) {
        uint8_t *entry = data + HEADER_BYTES + (type - 1) * ENTRY_BYTES;
        rewarm_wire_put32(entry + ENTRY_TYPE, type);
        rewarm_wire_put32(entry + ENTRY_FLAGS, REQUIRED);
        rewarm_wire_put64(entry + ENTRY_OFFSET, offsets[type]);
        rewarm_wire_put64(entry + ENTRY_LENGTH, counts[type] * record_bytes[type]);
        rewarm_wire_put32(entry + ENTRY_RECORD, record_bytes[type]);
    }
    encode_spaces(data + offsets[SPACES], map);
    encode_windows(data + offsets[WINDOWS], map);
    encode_runs(data + offsets[RUNS], map);
    for (size_t i = 0; i < map->chunk_count; i++)
        rewarm_chunk_encode(&map->chunks[i], data + offsets[CHUNKS] + i * record_bytes[CHUNKS]);
    encode_blobs(data + offsets[BLOBS], data + offsets[NAMES], map);
    for (size_t i = 0; i < pack_count; i++) {
        uint8_t *out = data + offsets[PACKS] + i * record_bytes[PACKS];
        memcpy(out, packs[i].id, REWARM_PACK_ID_BYTES);
        rewarm_wire_put64(out + REWARM_PACK_ID_BYTES, packs[i].bytes);
    }
    rewarm_wire_put64(data + total - TRAILER_BYTES, rewarm_store_xxh3(data, total - TRAILER_BYTES));
    *ret_data = data;
    *ret_bytes = total;
    return 0;
}

/* --- decoding
 * ------------------------------------------------------------------------------------- */

static int corrupt(struct rewarm_error *err, const char *what, const char *problem)
{
    return rewarm_error_set(err, REWARM_E_CORRUPT, 0, "%s is damaged: %s", what, problem);
}

static int decode_header(const uint8_t *data, size_t bytes, const char *what,
                         uint32_t *ret_sections, struct rewarm_error *err)
{
    if (bytes < HEADER_BYTES + TRAILER_BYTES || memcmp(data + AT_MAGIC, MAGIC, 8) != 0)
        return corrupt(err, what, "it is not a map");
    if (rewarm_wire_get64(data + AT_BYTES) != bytes)
        return corrupt(err, what, "it has not the length that it says");
    if (rewarm_wire_get64(data + bytes - TRAILER_BYTES) !=
        rewarm_store_xxh3(data, bytes - TRAILER_BYTES))
        return corrupt(err, what, "its checksum differs");
    /* Only now: a version that an accident made is damage, not news. */
    uint32_t version = rewarm_wire_get32(data + AT_VERSION);
    uint32_t features = rewarm_wire_get32(data + AT_FEATURES);
    if (version != VERSION || features != 0)
        return rewarm_error_set(err, REWARM_E_MISFIT, 0,
                                "%s was written by a newer rewarm (map version %u, features %#x)",
                                what, version, features);
    if (rewarm_wire_get32(data + AT_PAGE) != REWARM_PAGE_BYTES ||
        rewarm_wire_get32(data + AT_WINDOW) != REWARM_WINDOW_BYTES)
        return rewarm_error_set(
            err, REWARM_E_MISFIT, 0, "%s was made with pages of %u and windows of %u bytes", what,
            rewarm_wire_get32(data + AT_PAGE), rewarm_wire_get32(data + AT_WINDOW));
    *ret_sections = rewarm_wire_get32(data + AT_SECTIONS);
    if (*ret_sections > MAX_SECTIONS ||
        bytes - HEADER_BYTES - TRAILER_BYTES < (size_t)*ret_sections * ENTRY_BYTES)
        return corrupt(err, what, "its section table does not fit into it");
    return 0;
}

static int decode_sections(const uint8_t *data, size_t bytes, const char *what,
                           struct section sections[SECTION_END], struct rewarm_error *err)
{
    uint32_t count = 0;
    int result = decode_header(data, bytes, what, &count, err);
    if (result < 0)
        return result;
    uint64_t start = HEADER_BYTES + (uint64_t)count * ENTRY_BYTES, end = bytes - TRAILER_BYTES;
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *entry = data + HEADER_BYTES + (size_t)i * ENTRY_BYTES;
        uint32_t type = rewarm_wire_get32(entry + ENTRY_TYPE);
        uint64_t offset = rewarm_wire_get64(entry + ENTRY_OFFSET);
        uint64_t length = rewarm_wire_get64(entry + ENTRY_LENGTH);
        uint32_t record = rewarm_wire_get32(entry + ENTRY_RECORD);
        if (offset < start || offset > end || end - offset < length || offset % 8 != 0)
            return corrupt(err, what, "a section lies outside of it");
        if (type == 0 || type >= SECTION_END) {
            if ((rewarm_wire_get32(entry + ENTRY_FLAGS) & REQUIRED) != 0)
                return rewarm_error_set(err, REWARM_E_MISFIT, 0,
                                        "%s needs a newer rewarm (section %u)", what, type);
            continue;
        }
        if (sections[type].data != NULL)
            return corrupt(err, what, "a section is there twice");
        if (record != record_bytes[type] || length % record != 0 || length / record > UINT32_MAX)
            return corrupt(err, what, "a section has an impossible length");
        sections[type].data = data + offset;
        sections[type].count = (size_t)(length / record);
    }
    for (size_t type = SPACES; type < SECTION_END; type++)
        if (sections[type].data == NULL)
            return rewarm_error_set(err, REWARM_E_CORRUPT, 0, "%s is damaged: it has no %s", what,
                                    section_names[type]);
    return 0;
}

static int decode_packs(const struct section *section, const char *what,
                        struct rewarm_pack_ref *packs, struct rewarm_error *err)
{
    for (size_t i = 0; i < section->count; i++) {
        const uint8_t *in = section->data + i * record_bytes[PACKS];
        memcpy(packs[i].id, in, REWARM_PACK_ID_BYTES);
        packs[i].bytes = rewarm_wire_get64(in + REWARM_PACK_ID_BYTES);
        if (packs[i].bytes < REWARM_PACK_HEADER_BYTES || packs[i].bytes > INT64_MAX)
            return corrupt(err, what, "a pack has an impossible length");
    }
    return 0;
}

static int decode_chunks(const struct section *section, const char *what,
                         const struct rewarm_pack_ref *packs, size_t pack_count,
                         struct rewarm_memmap *map, struct rewarm_error *err)
{
    for (size_t i = 0; i < section->count; i++) {
        struct rewarm_chunk *chunk = &map->chunks[i];
        rewarm_chunk_decode(section->data + i * record_bytes[CHUNKS], chunk);
        const char *problem = chunk->pack >= pack_count
                                  ? "is in a pack that is not listed"
                                  : rewarm_chunk_problem(chunk, packs[chunk->pack].bytes);
        if (problem != NULL)
            return rewarm_error_set(err, REWARM_E_CORRUPT, 0, "%s is damaged: chunk %zu %s", what,
                                    i, problem);
    }
    return 0;
}

static void decode_windows(const struct section *section, struct rewarm_window *windows)
{
    for (size_t i = 0; i < section->count; i++) {
        const uint8_t *in = section->data + i * record_bytes[WINDOWS];
        windows[i].vaddr = rewarm_wire_get64(in);
        windows[i].first_run = rewarm_wire_get32(in + 8);
        windows[i].runs = rewarm_wire_get32(in + 12);
        windows[i].chunk = rewarm_wire_get32(in + 16);
    }
}

static void decode_runs(const struct section *section, struct rewarm_run *runs)
{
    for (size_t i = 0; i < section->count; i++) {
        const uint8_t *in = section->data + i * record_bytes[RUNS];
        runs[i].vaddr = rewarm_wire_get64(in);
        runs[i].pages = rewarm_wire_get32(in + 8);
        runs[i].first_page = rewarm_wire_get32(in + 12);
    }
}

/* Checks one window and returns its pages, or 0 and a problem. */
static uint32_t window_pages(const struct rewarm_window *window, const struct rewarm_run *runs,
                             const char **problem)
{
    uint64_t next = window->vaddr, end = window->vaddr + REWARM_WINDOW_BYTES;
    uint32_t pages = 0;
    for (uint32_t i = 0; i < window->runs; i++) {
        const struct rewarm_run *run = &runs[window->first_run + i];
        if (run->vaddr % REWARM_PAGE_BYTES != 0 || run->vaddr < next || run->vaddr >= end)
            *problem = "a run lies outside of its window or out of order";
        else if (run->pages == 0 || run->pages > (end - run->vaddr) / REWARM_PAGE_BYTES)
            *problem = "a run has an impossible length";
        else if (run->first_page != pages)
            *problem = "a run does not start where the one before it ended";
        if (*problem != NULL)
            return 0;
        next = run->vaddr + (uint64_t)run->pages * REWARM_PAGE_BYTES;
        pages += run->pages;
    }
    return pages;
}

const char *rewarm_map_space_problem(const struct rewarm_space *space,
                                     const struct rewarm_window *windows, size_t window_count,
                                     const struct rewarm_run *runs, size_t run_count,
                                     const struct rewarm_chunk *chunks, size_t chunk_count,
                                     uint64_t *ret_pages)
{
    if (space->pid <= 0)
        return "a process has no PID";
    if (space->lazy_pages > UINT64_MAX / REWARM_PAGE_BYTES)
        return "a process has too many pages";
    uint64_t total = 0;
    const char *problem = NULL;
    for (size_t i = 0; i < window_count; i++) {
        const struct rewarm_window *window = &windows[i];
        if (window->vaddr % REWARM_WINDOW_BYTES != 0 ||
            window->vaddr > UINT64_MAX - REWARM_WINDOW_BYTES)
            return "a window has an impossible address";
        if (i > 0 && window->vaddr <= windows[i - 1].vaddr)
            return "windows are not in the order of their addresses";
        if (window->runs == 0 || window->first_run > run_count ||
            window->runs > run_count - window->first_run)
            return "a window's runs are not in the table";
        uint32_t pages = window_pages(window, runs, &problem);
        if (problem != NULL)
            return problem;
        if (window->chunk >= chunk_count)
            return "a window's chunk is not in the table";
        if (chunks[window->chunk].raw_bytes != pages * REWARM_PAGE_BYTES)
            return "a window's chunk has not the length of its pages";
        total += pages;
    }
    if (total > space->lazy_pages)
        return "a process has more pages stored than it has";
    *ret_pages = total;
    return NULL;
}

static int decode_spaces(const struct section *section, const char *what, struct rewarm_memmap *map,
                         struct rewarm_error *err)
{
    uint64_t next_window = 0, next_run = 0;
    for (size_t i = 0; i < section->count; i++) {
        const uint8_t *in = section->data + i * record_bytes[SPACES];
        struct rewarm_space *space = &map->spaces[i];
        space->pid = (int32_t)rewarm_wire_get32(in);
        space->first_window = rewarm_wire_get64(in + 8);
        space->windows = rewarm_wire_get64(in + 16);
        space->lazy_pages = rewarm_wire_get64(in + 24);
        if (i > 0 && space->pid <= map->spaces[i - 1].pid)
            return corrupt(err, what, "processes are not in the order of their PIDs");
        if (space->first_window != next_window || space->windows > map->window_count - next_window)
            return corrupt(err, what, "a process's windows are not in the table");
        const struct rewarm_window *windows = map->windows + next_window;
        uint64_t pages;
        const char *problem =
            rewarm_map_space_problem(space, windows, (size_t)space->windows, map->runs,
                                     map->run_count, map->chunks, map->chunk_count, &pages);
        for (uint64_t w = 0; problem == NULL && w < space->windows; w++) {
            if (windows[w].first_run != next_run)
                problem = "a window's runs do not follow the ones before";
            next_run += windows[w].runs;
        }
        if (problem != NULL)
            return rewarm_error_set(err, REWARM_E_CORRUPT, 0, "%s is damaged: process %d: %s", what,
                                    space->pid, problem);
        next_window += space->windows;
    }
    if (next_window != map->window_count || next_run != map->run_count)
        return corrupt(err, what, "it has windows or runs that belong to no process");
    return 0;
}

static int decode_blobs(const struct section *section, const struct section *names,
                        const char *what, struct rewarm_memmap *map, struct rewarm_error *err)
{
    for (size_t i = 0; i < section->count; i++) {
        const uint8_t *in = section->data + i * record_bytes[BLOBS];
        struct rewarm_blob *blob = &map->blobs[i];
        uint32_t name_offset = rewarm_wire_get32(in), name_bytes = rewarm_wire_get32(in + 4);
        blob->bytes = rewarm_wire_get64(in + 8);
        blob->first_chunk = rewarm_wire_get64(in + 16);
        blob->chunks = rewarm_wire_get64(in + 24);
        if (name_offset > names->count || name_bytes > names->count - name_offset ||
            !rewarm_map_blob_name_ok((const char *)names->data + name_offset, name_bytes))
            return corrupt(err, what, "a blob has an impossible name");
        blob->name = rewarm_mem_new(name_bytes + 1, 1);
        memcpy(blob->name, names->data + name_offset, name_bytes);
        map->blob_count = i + 1; /* as far as names are allocated */
        if (i > 0 && strcmp(map->blobs[i - 1].name, blob->name) >= 0)
            return corrupt(err, what, "blobs are not in the order of their names");
        if (blob->first_chunk > map->chunk_count ||
            blob->chunks > map->chunk_count - blob->first_chunk)
            return corrupt(err, what, "a blob's chunks are not in the table");
        uint64_t sum = 0;
        for (uint64_t c = 0; c < blob->chunks; c++)
            sum += map->chunks[blob->first_chunk + c].raw_bytes;
        if (sum != blob->bytes)
            return corrupt(err, what, "a blob has not the length of its chunks");
    }
    return 0;
}

int rewarm_map_decode(const uint8_t *data, size_t bytes, const char *what,
                      struct rewarm_memmap *ret_map, struct rewarm_pack_ref **ret_packs,
                      size_t *ret_pack_count, struct rewarm_error *err)
{
    struct section sections[SECTION_END] = {{0}};
    int result = decode_sections(data, bytes, what, sections, err);
    if (result < 0)
        return result;

    /* Counts are bounded by the file's length, so a damaged one can't ask for more memory than
     * that. */
    rewarm_auto_free struct rewarm_pack_ref *packs =
        rewarm_mem_new(sections[PACKS].count + 1, sizeof(*packs));
    struct rewarm_memmap map = {
        .spaces = rewarm_mem_new(sections[SPACES].count + 1, sizeof(*map.spaces)),
        .space_count = sections[SPACES].count,
        .windows = rewarm_mem_new(sections[WINDOWS].count + 1, sizeof(*map.windows)),
        .window_count = sections[WINDOWS].count,
        .runs = rewarm_mem_new(sections[RUNS].count + 1, sizeof(*map.runs)),
        .run_count = sections[RUNS].count,
        .chunks = rewarm_mem_new(sections[CHUNKS].count + 1, sizeof(*map.chunks)),
        .chunk_count = sections[CHUNKS].count,
        .blobs = rewarm_mem_new(sections[BLOBS].count + 1, sizeof(*map.blobs)),
        .blob_count = 0,
    };
    decode_windows(&sections[WINDOWS], map.windows);
    decode_runs(&sections[RUNS], map.runs);
    result = decode_packs(&sections[PACKS], what, packs, err);
    if (result == 0)
        result = decode_chunks(&sections[CHUNKS], what, packs, sections[PACKS].count, &map, err);
    if (result == 0)
        result = decode_spaces(&sections[SPACES], what, &map, err);
    if (result == 0)
        result = decode_blobs(&sections[BLOBS], &sections[NAMES], what, &map, err);
    if (result < 0) {
        rewarm_memmap_fini(&map);
        return result;
    }
    *ret_map = map;
    *ret_packs = rewarm_steal_ptr(&packs);
    *ret_pack_count = sections[PACKS].count;
    return 0;
}

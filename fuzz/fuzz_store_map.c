/* The decoder of memory maps. The trailer is made right first, or nothing would ever get past it.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "store/digest.h"
#include "store/map.h"
#include "store/wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

/* Touches all that a reader of an accepted map would touch. */
static uint64_t walk(const struct rewarm_memmap *map, const struct rewarm_pack_ref *packs)
{
    uint64_t sum = 0;
    for (size_t s = 0; s < map->space_count; s++) {
        const struct rewarm_space *space = &map->spaces[s];
        for (uint64_t w = 0; w < space->windows; w++) {
            const struct rewarm_window *window = &map->windows[space->first_window + w];
            if (rewarm_memmap_window(map, space, window->vaddr) != window)
                abort();
            uint32_t pages = 0;
            for (uint32_t r = 0; r < window->runs; r++)
                pages += map->runs[window->first_run + r].pages;
            const struct rewarm_chunk *chunk = &map->chunks[window->chunk];
            if (chunk->raw_bytes != pages * REWARM_PAGE_BYTES)
                abort();
            sum += packs[chunk->pack].bytes;
        }
    }
    for (size_t b = 0; b < map->blob_count; b++)
        for (uint64_t c = 0; c < map->blobs[b].chunks; c++)
            sum +=
                map->chunks[map->blobs[b].first_chunk + c].raw_bytes + strlen(map->blobs[b].name);
    return sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct rewarm_error err = REWARM_ERROR_INIT;
    struct rewarm_memmap map, again;
    struct rewarm_pack_ref *packs, *packs_again;
    size_t count, count_again, encoded_bytes;
    uint8_t *encoded;
    uint8_t *copy = malloc(bytes != 0 ? bytes : 1);
    if (copy == NULL)
        return 0;
    if (bytes != 0)
        memcpy(copy, data, bytes);
    if (bytes >= 72) {
        rewarm_wire_put64(copy + 16, bytes);
        rewarm_wire_put64(copy + bytes - 8, rewarm_store_xxh3(copy, bytes - 8));
    }
    if (rewarm_map_decode(copy, bytes, "fuzz", &map, &packs, &count, &err) == 0) {
        uint64_t sum = walk(&map, packs);
        /* What is accepted can be written, and is the same again. */
        if (rewarm_map_encode(&map, packs, count, &encoded, &encoded_bytes, &err) < 0 ||
            rewarm_map_decode(encoded, encoded_bytes, "again", &again, &packs_again, &count_again,
                              &err) < 0 ||
            walk(&again, packs_again) != sum || count_again != count)
            abort();
        rewarm_memmap_fini(&again);
        rewarm_memmap_fini(&map);
        free(packs_again);
        free(packs);
        free(encoded);
    }
    free(copy);
    return 0;
}

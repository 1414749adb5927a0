#include "io/memmap.h"

#include <stdlib.h>
#include <string.h>

void rewarm_memmap_fini(struct rewarm_memmap *map)
{
    for (size_t i = 0; i < map->blob_count; i++)
        free(map->blobs[i].name);
    free(map->spaces);
    free(map->windows);
    free(map->runs);
    free(map->chunks);
    free(map->blobs);
    memset(map, 0, sizeof(*map));
}

const struct rewarm_space *rewarm_memmap_space(const struct rewarm_memmap *map, int32_t pid)
{
    /* Linear: a tree has few processes, and nothing says that the caller sorted them. */
    for (size_t i = 0; i < map->space_count; i++)
        if (map->spaces[i].pid == pid)
            return &map->spaces[i];
    return NULL;
}

const struct rewarm_window *rewarm_memmap_window(const struct rewarm_memmap *map,
                                                 const struct rewarm_space *space, uint64_t vaddr)
{
    uint64_t wanted = vaddr & ~(uint64_t)(REWARM_WINDOW_BYTES - 1);
    uint64_t low = space->first_window, high = low + space->windows;
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        if (map->windows[middle].vaddr < wanted)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == space->first_window + space->windows || map->windows[low].vaddr != wanted)
        return NULL;
    return &map->windows[low];
}

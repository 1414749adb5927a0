/* Where the pages of a snapshot's processes are: plain structures that the store writes and reads,
 * freeze builds, and the lazy-pages peer serves from. No behaviour here but look-up and freeing.
 *
 * Memory is cut into *windows*: the aligned REWARM_WINDOW_BYTES pieces of a process's address
 * space. The dumped, non-zero pages of one window, concatenated in address order, are one *chunk*.
 * Alignment by address (not by position in a stream) is what makes forked workers' chunks equal. A
 * page that is in no run of its window is a zero page. A chunk never exceeds REWARM_WINDOW_BYTES.
 */
#ifndef REWARM_IO_MEMMAP_H
#define REWARM_IO_MEMMAP_H

#include <stddef.h>
#include <stdint.h>

#define REWARM_PAGE_BYTES   4096u
#define REWARM_WINDOW_BYTES (256u * 1024u)
#define REWARM_DIGEST_BYTES 32

enum rewarm_codec { REWARM_CODEC_RAW = 0, REWARM_CODEC_LZ4 = 1, REWARM_CODEC_ZSTD = 2 };

/* A chunk as stored. */
struct rewarm_chunk {
    uint8_t digest[REWARM_DIGEST_BYTES]; /* SHA-256 of the raw bytes: the address */
    uint64_t xxh3;                       /* XXH3-64 of the raw bytes: checked on every read */
    uint64_t offset_bytes;               /* in the pack; a multiple of 4096 */
    uint32_t pack;                       /* index into the snapshot's list of packs */
    uint32_t stored_bytes;               /* in the pack */
    uint32_t raw_bytes;                  /* after decoding */
    uint32_t codec;                      /* enum rewarm_codec */
};

/* Pages [vaddr, vaddr + pages * 4096) are in the window's chunk from page `first_page` on. */
struct rewarm_run {
    uint64_t vaddr;
    uint32_t pages;
    uint32_t first_page;
};

struct rewarm_window {
    uint64_t vaddr; /* a multiple of REWARM_WINDOW_BYTES */
    uint32_t first_run, runs;
    uint32_t chunk; /* index into chunks */
    uint32_t reserved;
};

/* The lazy memory of one process. `pid` is the one in CRIU's images. Windows are in address order
 * and no two have the same vaddr; each space's windows are contiguous in memmap.windows. */
struct rewarm_space {
    int32_t pid;
    uint32_t reserved;
    uint64_t first_window, windows;
    uint64_t lazy_pages; /* as CRIU listed them, zero pages included */
};

/* A file of CRIU's image directory: raw bytes of its chunks in order. */
struct rewarm_blob {
    char *name; /* no '/' in it */
    uint64_t bytes;
    uint64_t first_chunk, chunks;
};

struct rewarm_memmap {
    struct rewarm_space *spaces;
    size_t space_count;
    struct rewarm_window *windows;
    size_t window_count;
    struct rewarm_run *runs;
    size_t run_count;
    struct rewarm_chunk *chunks;
    size_t chunk_count;
    struct rewarm_blob *blobs;
    size_t blob_count;
};

void rewarm_memmap_fini(struct rewarm_memmap *map);

/* The space of `pid`, or NULL. */
const struct rewarm_space *rewarm_memmap_space(const struct rewarm_memmap *map, int32_t pid);

/* The window of `space` that holds `vaddr`, or NULL when no page of that window was stored. */
const struct rewarm_window *rewarm_memmap_window(const struct rewarm_memmap *map,
                                                 const struct rewarm_space *space, uint64_t vaddr);

#endif

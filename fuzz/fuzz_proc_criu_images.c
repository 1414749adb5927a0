/* CRIU's images: the first byte picks the parser, the rest is the image. */
#include <stdlib.h>
#include <string.h>

#include "proc/criu_image.h"
#include "proc/criu_image_entry.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void parse_pagemap(const uint8_t *data, size_t bytes)
{
    struct rewarm_image_pages *pages = NULL;
    size_t count = 0;
    if (rewarm_image_parse_pagemap(data, bytes, &pages, &count, NULL) == 0)
        for (size_t i = 1; i < count; i++)
            if (pages[i].vaddr < pages[i - 1].vaddr + pages[i - 1].pages * 4096)
                abort();
    free(pages);
}

static void parse_pstree(const uint8_t *data, size_t bytes)
{
    struct rewarm_image_process *processes = NULL;
    size_t count = 0;
    if (rewarm_image_parse_pstree(data, bytes, &processes, &count, NULL) == 0 && count == 0)
        abort();
    free(processes);
}

static void parse_core(const uint8_t *data, size_t bytes)
{
    char comm[32];
    bool dead;
    if (rewarm_image_parse_core("core", data, bytes, comm, &dead, NULL) == 0 &&
        memchr(comm, '\0', sizeof(comm)) == NULL)
        abort();
}

static void parse_mm(const uint8_t *data, size_t bytes)
{
    struct rewarm_image_vma *vmas = NULL;
    size_t count = 0;
    uint32_t exe_id;
    if (rewarm_image_parse_mm("mm", data, bytes, &vmas, &count, &exe_id, NULL) == 0)
        for (size_t i = 0; i < count; i++)
            if (vmas[i].start >= vmas[i].end || (i != 0 && vmas[i].start < vmas[i - 1].end))
                abort();
    free(vmas);
}

static void parse_files(const uint8_t *data, size_t bytes)
{
    struct rewarm_image_file *files = NULL;
    size_t count = 0;
    if (rewarm_image_parse_files(data, bytes, &files, &count, NULL) == 0)
        for (size_t i = 0; i < count; i++)
            if (files[i].type == REWARM_FD_REG && files[i].path[0] != '/')
                abort();
    rewarm_image_files_free(files, count);
}

static void parse_remaps(const uint8_t *data, size_t bytes)
{
    uint32_t *ids = NULL;
    size_t count = 0;
    if (rewarm_image_parse_remaps(data, bytes, &ids, &count, NULL) == 0)
        for (size_t i = 1; i < count; i++)
            if (ids[i] < ids[i - 1])
                abort();
    free(ids);
}

/* Every file is there, with a size that depends on its name. */
static int look(void *context, const char *path, struct stat *ret_stat)
{
    (void)context;
    memset(ret_stat, 0, sizeof(*ret_stat));
    ret_stat->st_mode = S_IFREG | 0644;
    ret_stat->st_size = (off_t)strlen(path);
    return 0;
}

static int create(void *context, const char *path, mode_t mode)
{
    (void)context, (void)path, (void)mode;
    return 0;
}

static void edit_files(const uint8_t *data, size_t bytes)
{
    static char *const keys[] = {(char *)"pipe:[152150]", (char *)"tmp/rewarm-sample/data"};
    const struct rewarm_image_disk disk = {look, create, NULL};
    const struct rewarm_image_edit edit = {.skip_keys = keys, .skip_count = 2, .disk = &disk};
    struct rewarm_image_edited first, second;
    if (rewarm_image_edit_files(data, bytes, &edit, &first, NULL) != 0)
        return;
    if (first.data != NULL) { /* what was written is good, and needs no more edits */
        if (rewarm_image_edit_files(first.data, first.bytes, &edit, &second, NULL) != 0 ||
            second.data != NULL)
            abort();
        free(second.pipe_ids);
    }
    free(first.data);
    free(first.pipe_ids);
}

static int pick(void *context, const struct sockaddr *address, uint16_t *ret_port)
{
    (void)address;
    *ret_port = (*(uint16_t *)context)++;
    return 0;
}

static void forget(void *context, const struct sockaddr *address)
{
    (void)context, (void)address;
}

/* What was written is good, and is edited again without harm. */
static void edit_ports(const uint8_t *data, size_t bytes)
{
    static const uint32_t links[] = {11, 33};
    uint16_t next = 40000;
    const struct rewarm_image_disk disk = {look, create, NULL};
    const struct rewarm_image_ports ports = {pick, forget, &next};
    struct rewarm_image_edit edit = {
        .links = links, .link_count = 2, .link_suffix = ".1", .disk = &disk, .ports = &ports};
    struct rewarm_image_edited first, second;
    if (rewarm_image_edit_files(data, bytes, &edit, &first, NULL) != 0)
        return;
    if (first.data != NULL) {
        if (rewarm_image_edit_files(first.data, first.bytes, &edit, &second, NULL) != 0 ||
            first.report.tcp_moved > first.report.tcp_kept)
            abort();
        free(second.data);
        free(second.pipe_ids);
    }
    free(first.data);
    free(first.pipe_ids);
}

static void parse_relinks(const uint8_t *data, size_t bytes)
{
    struct rewarm_image_relink *relinks = NULL;
    size_t count = 0;
    if (rewarm_image_parse_relinks(data, bytes, &relinks, &count, NULL) == 0 && count > bytes)
        abort();
    free(relinks);
}

static void edit_fdinfo(const uint8_t *data, size_t bytes)
{
    static const uint32_t ids[] = {11, 33};
    uint8_t *edited = NULL, *again = NULL;
    size_t edited_bytes = 0, again_bytes = 0;
    if (rewarm_image_edit_fdinfo("fdinfo", data, bytes, ids, 2, &edited, &edited_bytes, NULL) ==
            0 &&
        edited != NULL)
        if (rewarm_image_edit_fdinfo("fdinfo", edited, edited_bytes, ids, 2, &again, &again_bytes,
                                     NULL) != 0 ||
            again != NULL)
            abort();
    free(edited);
}

static void edit_mm(const uint8_t *data, size_t bytes)
{
    /* In and over the end of the private area of corpus/10-mm-memfd. */
    static const struct rewarm_image_pages pages[] = {{0x1000, 1, 4},
                                                      {0x7f6b9e290000ull, 2, 6},
                                                      {0x7f6b9e292000ull, 1, 4},
                                                      {0x7f6b9e29d000ull, 1 << 20, 4}};
    uint8_t *edited = NULL, *again = NULL;
    size_t edited_bytes = 0, again_bytes = 0;
    if (rewarm_image_edit_mm("mm", data, bytes, pages, 4, &edited, &edited_bytes, NULL) == 0 &&
        edited != NULL)
        if (rewarm_image_edit_mm("mm", edited, edited_bytes, pages, 4, &again, &again_bytes,
                                 NULL) != 0 ||
            again != NULL)
            abort();
    free(edited);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static void (*const parsers[])(const uint8_t *, size_t) = {
        parse_pagemap, parse_pstree, parse_core, parse_mm,      parse_files, parse_remaps,
        edit_files,    edit_fdinfo,  edit_ports, parse_relinks, edit_mm,
    };
    if (bytes != 0)
        parsers[data[0] % (sizeof(parsers) / sizeof(parsers[0]))](data + 1, bytes - 1);
    return 0;
}

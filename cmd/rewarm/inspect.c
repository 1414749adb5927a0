/* `rewarm inspect`: what a snapshot is made of, from its manifest and map.
 *
 * "Inside" is counted from the map: the lazy memory of the processes by its pages, and CRIU's image
 * files by the kind that their name says. How much of CRIU's page images is shared memory is not in
 * a name: the page maps of the shared segments are read for it. */
#include <stdio.h>
#include <string.h>

#include "base/clean.h"
#include "base/str.h"
#include "commands.h"
#include "output.h"
#include "proc/criu_image.h"

enum kind {
    KIND_ANONYMOUS,
    KIND_ZERO,
    KIND_SHARED,
    KIND_PRIVATE,
    KIND_PROCESSES,
    KIND_FILES,
    KIND_DELETED,
    KIND_SOCKETS,
    KIND_PIPES,
    KIND_NAMESPACES,
    KIND_OTHER,
    KINDS,
};

static const struct {
    const char *name, *words, *unit;
} kinds[KINDS] = {
    [KIND_ANONYMOUS] = {"anonymous", "anonymous memory", "processes"},
    [KIND_ZERO] = {"zero", "zero pages, not stored", "pages"},
    [KIND_SHARED] = {"shared", "shared memory", "segments"},
    [KIND_PRIVATE] = {"private", "other memory (file mappings, stacks of threads)", "images"},
    [KIND_PROCESSES] = {"processes", "processes: registers, mappings, signals", "images"},
    [KIND_FILES] = {"files", "open files", "images"},
    [KIND_DELETED] = {"deleted", "deleted files, with their content", "images"},
    [KIND_SOCKETS] = {"sockets", "sockets and what is in them", "images"},
    [KIND_PIPES] = {"pipes", "pipes and what is in them", "images"},
    [KIND_NAMESPACES] = {"namespaces", "namespaces, mounts, cgroups", "images"},
    [KIND_OTHER] = {"other", "everything else", "images"},
};

/* The first prefix that fits decides. */
static const struct {
    const char *prefix;
    enum kind kind;
} prefixes[] = {
    {"pages-", KIND_PRIVATE},
    {"core-", KIND_PROCESSES},
    {"mm-", KIND_PROCESSES},
    {"ids-", KIND_PROCESSES},
    {"pagemap-", KIND_PROCESSES},
    {"pstree", KIND_PROCESSES},
    {"creds-", KIND_PROCESSES},
    {"sigacts-", KIND_PROCESSES},
    {"itimers-", KIND_PROCESSES},
    {"posix-timers-", KIND_PROCESSES},
    {"rlimit-", KIND_PROCESSES},
    {"seccomp", KIND_PROCESSES},
    {"files", KIND_FILES},
    {"fdinfo-", KIND_FILES},
    {"fs-", KIND_FILES},
    {"reg-files", KIND_FILES},
    {"remap-", KIND_FILES},
    {"filelocks", KIND_FILES},
    {"eventfd", KIND_FILES},
    {"eventpoll", KIND_FILES},
    {"signalfd", KIND_FILES},
    {"inotify", KIND_FILES},
    {"fanotify", KIND_FILES},
    {"tty", KIND_FILES},
    {"ghost-", KIND_DELETED},
    {"memfd", KIND_FILES},
    {"inetsk", KIND_SOCKETS},
    {"unixsk", KIND_SOCKETS},
    {"sk-queues", KIND_SOCKETS},
    {"tcp-stream-", KIND_SOCKETS},
    {"packetsk", KIND_SOCKETS},
    {"netlinksk", KIND_SOCKETS},
    {"pipes", KIND_PIPES},
    {"fifo", KIND_PIPES},
    {"mountpoints", KIND_NAMESPACES},
    {"tmpfs-", KIND_NAMESPACES},
    {"netns", KIND_NAMESPACES},
    {"netdev", KIND_NAMESPACES},
    {"ipcns", KIND_NAMESPACES},
    {"utsns", KIND_NAMESPACES},
    {"userns", KIND_NAMESPACES},
    {"timens", KIND_NAMESPACES},
    {"pidns", KIND_NAMESPACES},
    {"cgroup", KIND_NAMESPACES},
    {"ifaddr", KIND_NAMESPACES},
    {"route", KIND_NAMESPACES},
    {"rule", KIND_NAMESPACES},
    {"iptables", KIND_NAMESPACES},
    {"ip6tables", KIND_NAMESPACES},
    {"nftables", KIND_NAMESPACES},
};

struct inside {
    uint64_t count[KINDS];
    uint64_t bytes[KINDS];
    uint64_t chunks, chunk_bytes; /* distinct, as stored */
};

static enum kind kind_of(const char *blob)
{
    for (size_t i = 0; i < sizeof(prefixes) / sizeof(prefixes[0]); i++) {
        if (rewarm_str_starts(blob, prefixes[i].prefix))
            return prefixes[i].kind;
    }
    return KIND_OTHER;
}

/* Adds a shared segment's bytes, from its page map. */
static int count_segment(struct rewarm_store_reader *reader, const struct rewarm_blob *blob,
                         struct inside *inside, struct rewarm_error *err)
{
    const struct rewarm_memmap *map = rewarm_store_reader_memmap(reader);
    rewarm_auto_free char *data = rewarm_mem_new(blob->chunks, REWARM_WINDOW_BYTES);
    size_t used = 0;
    for (uint64_t i = 0; i < blob->chunks; i++) {
        uint32_t chunk = (uint32_t)(blob->first_chunk + i);
        int rc = rewarm_store_reader_get(reader, chunk, data + used, err);
        if (rc < 0)
            return rc;
        used += map->chunks[chunk].raw_bytes;
    }
    rewarm_auto_free struct rewarm_image_pages *pages = NULL;
    size_t count;
    int rc = rewarm_image_parse_pagemap(data, used, &pages, &count, err);
    if (rc < 0)
        return rewarm_error_wrap(err, "%s", blob->name);
    inside->count[KIND_SHARED]++;
    for (size_t i = 0; i < count; i++) {
        if ((pages[i].flags & REWARM_PE_PRESENT) != 0)
            inside->bytes[KIND_SHARED] += pages[i].pages * REWARM_PAGE_BYTES;
    }
    return 0;
}

static int count_inside(struct rewarm_store_reader *reader, struct inside *inside,
                        struct rewarm_error *err)
{
    const struct rewarm_memmap *map = rewarm_store_reader_memmap(reader);
    uint64_t lazy_pages = 0, stored_pages = 0;
    for (size_t i = 0; i < map->space_count; i++)
        lazy_pages += map->spaces[i].lazy_pages;
    for (size_t i = 0; i < map->run_count; i++)
        stored_pages += map->runs[i].pages;
    inside->count[KIND_ANONYMOUS] = map->space_count;
    inside->bytes[KIND_ANONYMOUS] = stored_pages * REWARM_PAGE_BYTES;
    inside->count[KIND_ZERO] = lazy_pages - stored_pages;
    inside->bytes[KIND_ZERO] = inside->count[KIND_ZERO] * REWARM_PAGE_BYTES;
    for (size_t i = 0; i < map->blob_count; i++) {
        const struct rewarm_blob *blob = &map->blobs[i];
        enum kind kind = kind_of(blob->name);
        inside->count[kind]++;
        inside->bytes[kind] += blob->bytes;
        int rc = 0;
        if (rewarm_str_starts(blob->name, "pagemap-shmem-"))
            rc = count_segment(reader, blob, inside, err);
        if (rc < 0)
            return rc;
    }
    /* The pages of shared segments are in the pages images. */
    uint64_t shared = inside->bytes[KIND_SHARED];
    inside->bytes[KIND_PRIVATE] -=
        shared < inside->bytes[KIND_PRIVATE] ? shared : inside->bytes[KIND_PRIVATE];
    inside->chunks = map->chunk_count;
    for (size_t i = 0; i < map->chunk_count; i++)
        inside->chunk_bytes += map->chunks[i].stored_bytes;
    return 0;
}

static void print_json(struct rewarm_cli *cli, const json_t *manifest, const struct inside *inside)
{
    json_t *answer = json_deep_copy(manifest);
    json_t *array = json_array();
    for (size_t i = 0; i < KINDS; i++) {
        if (inside->count[i] > 0)
            json_array_append_new(array, json_pack("{s:s, s:I, s:I}", "kind", kinds[i].name,
                                                   "count", (json_int_t)inside->count[i], "bytes",
                                                   (json_int_t)inside->bytes[i]));
    }
    json_object_set_new(answer, "inside", array);
    rewarm_output_json(cli, answer);
}

static void print_line(const char *what, char *text)
{
    printf("%-10s %s\n", what, rewarm_output_clean(text));
}

static char *join_words(const json_t *list)
{
    char *line = rewarm_str_dup("");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *word = json_string_value(json_array_get(list, i));
        char *longer =
            rewarm_str_format("%s%s%s", line, i > 0 ? " " : "", word != NULL ? word : "?");
        free(line);
        line = longer;
    }
    return line;
}

static void print_summary(const json_t *manifest, const struct inside *inside)
{
    const json_t *details = json_object_get(manifest, "snapshot");
    const json_t *host = json_object_get(details, "host");
    const json_t *totals = json_object_get(manifest, "totals");
    rewarm_auto_free char *name = rewarm_str_dup(rewarm_json_text(manifest, "name", "?"));
    rewarm_auto_free char *created = rewarm_str_dup(rewarm_json_text(manifest, "created", "?"));
    rewarm_auto_free char *command = join_words(json_object_get(details, "command"));
    rewarm_auto_free char *folder = rewarm_str_dup(rewarm_json_text(details, "cwd", "?"));
    rewarm_auto_free char *machine = rewarm_str_format(
        "Linux %s, %s, %s", rewarm_json_text(host, "kernel", "?"),
        rewarm_json_text(host, "machine", "?"), rewarm_json_text(host, "cpu_model", "CPU unknown"));
    uint64_t criu = rewarm_json_u64(details, "criu");
    char logical[REWARM_STR_HUMAN], zero[REWARM_STR_HUMAN], stored[REWARM_STR_HUMAN],
        shared[REWARM_STR_HUMAN], chunks[REWARM_STR_HUMAN], pause[REWARM_STR_HUMAN];
    print_line("name", name);
    print_line("created", created);
    print_line("command", command);
    print_line("folder", folder);
    print_line("host", machine);
    printf("%-10s %llu.%llu\n", "criu", (unsigned long long)(criu / 10000),
           (unsigned long long)(criu / 100 % 100));
    printf("%-10s %s: %s zero, %s stored by this freeze, %s shared with what was there\n", "size",
           rewarm_str_bytes(rewarm_json_u64(totals, "logical_bytes"), logical),
           rewarm_str_bytes(rewarm_json_u64(totals, "zero_bytes"), zero),
           rewarm_str_bytes(rewarm_json_u64(totals, "stored_bytes"), stored),
           rewarm_str_bytes(rewarm_json_u64(totals, "shared_bytes"), shared));
    printf("%-10s %llu, %s on disk\n", "chunks", (unsigned long long)inside->chunks,
           rewarm_str_bytes(inside->chunk_bytes, chunks));
    printf("%-10s %s\n", "pause", rewarm_str_seconds(rewarm_json_u64(details, "pause_ns"), pause));
}

static void print_tree(const json_t *details)
{
    static const char *const heads[] = {">PID", ">PARENT", ">THREADS", "NAME", NULL};
    const json_t *tree = json_object_get(details, "tree");
    struct rewarm_table *table = rewarm_table_new(heads);
    for (size_t i = 0; i < json_array_size(tree); i++) {
        const json_t *process = json_array_get(tree, i);
        uint64_t threads = rewarm_json_u64(process, "threads");
        rewarm_table_cell(table, "%llu", (unsigned long long)rewarm_json_u64(process, "pid"));
        rewarm_table_cell(table, "%llu", (unsigned long long)rewarm_json_u64(process, "ppid"));
        rewarm_table_cell(table, "%llu", (unsigned long long)threads);
        rewarm_table_cell(table, "%s%s", rewarm_json_text(process, "comm", "?"),
                          threads == 0 ? " (zombie)" : "");
    }
    puts("\nprocesses");
    rewarm_table_print(table);
    rewarm_table_free(table);
}

static void print_stages(const json_t *details)
{
    static const char *const heads[] = {"STAGE", ">TIME", NULL};
    const json_t *stages = json_object_get(details, "stages");
    struct rewarm_table *table = rewarm_table_new(heads);
    for (size_t i = 0; i < json_array_size(stages); i++) {
        const json_t *stage = json_array_get(stages, i);
        rewarm_table_cell(table, "%s", rewarm_json_text(stage, "stage", "?"));
        rewarm_table_seconds(table, rewarm_json_u64(stage, "ns"));
    }
    puts("\nstages of the freeze");
    rewarm_table_print(table);
    rewarm_table_free(table);
}

static void print_inside(const struct inside *inside)
{
    static const char *const heads[] = {"KIND", ">COUNT", "", ">BYTES", NULL};
    struct rewarm_table *table = rewarm_table_new(heads);
    for (size_t i = 0; i < KINDS; i++) {
        if (inside->count[i] == 0)
            continue;
        rewarm_table_cell(table, "%s", kinds[i].words);
        rewarm_table_cell(table, "%llu", (unsigned long long)inside->count[i]);
        rewarm_table_cell(table, "%s", kinds[i].unit);
        rewarm_table_bytes(table, inside->bytes[i]);
    }
    puts("\ninside");
    rewarm_table_print(table);
    rewarm_table_free(table);
}

static int inspect_run(struct rewarm_cli *cli, const void *values, char **operands, size_t count)
{
    (void)values, (void)count;
    struct rewarm_error err = REWARM_ERROR_INIT;
    rewarm_auto_store struct rewarm_store *store = NULL;
    struct rewarm_store_reader *reader;
    if (rewarm_cli_open_store(cli, false, &store, &err) < 0 ||
        rewarm_store_reader_open(store, operands[0], &reader, &err) < 0)
        return rewarm_cli_fail(cli, &err);
    struct inside inside = {0};
    int rc = count_inside(reader, &inside, &err);
    const json_t *manifest = rewarm_store_reader_manifest(reader);
    if (rc == 0 && cli->json) {
        print_json(cli, manifest, &inside);
    } else if (rc == 0) {
        const json_t *details = json_object_get(manifest, "snapshot");
        print_summary(manifest, &inside);
        print_tree(details);
        print_stages(details);
        print_inside(&inside);
    }
    rewarm_store_reader_close(reader);
    return rc < 0 ? rewarm_cli_fail(cli, &err) : 0;
}

const struct rewarm_cli_command rewarm_command_inspect = {
    .name = "inspect",
    .operands = "NAME",
    .summary = "Show what a snapshot is made of",
    .details =
        "Command, host, processes, times of the freeze's stages, and what is inside by kind. "
        "--json prints the manifest whole, with \"inside\" added.",
    .operands_min = 1,
    .operands_max = 1,
    .word = REWARM_WORD_SNAPSHOT,
    .json = true,
    .run = inspect_run,
};

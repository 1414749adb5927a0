/* Prints what rewarm reads in a folder of CRIU images, and makes its edits: for
 * tests/e2e/test_images.py.
 *
 *   image_dump show DIR            everything, as JSON
 *   image_dump key DIR PID FD      the key for --inherit-fd, or an empty line
 *   image_dump edit DIR [--fresh-ports] [KEY...]
 *                                  edits for a restore; the report as JSON
 *   image_dump time FILE           parses a page map 20 times; the best time in microseconds */
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "base/clean.h"
#include "base/fs.h"
#include "base/time.h"
#include "proc/criu_image.h"

static json_t *pagemap_json(int dirfd, int32_t pid, struct rewarm_error *err)
{
    rewarm_auto_free struct rewarm_image_pages *pages = NULL;
    size_t count;
    if (rewarm_image_pagemap(dirfd, pid, &pages, &count, err) != 0)
        return NULL;
    json_t *list = json_array();
    for (size_t i = 0; i < count; i++)
        json_array_append_new(list, json_pack("[IIi]", (json_int_t)pages[i].vaddr,
                                              (json_int_t)pages[i].pages, (int)pages[i].flags));
    return list;
}

static json_t *mm_json(int dirfd, int32_t pid, struct rewarm_error *err)
{
    rewarm_auto_free struct rewarm_image_vma *vmas = NULL;
    size_t count;
    if (rewarm_image_mm(dirfd, pid, &vmas, &count, err) != 0)
        return NULL;
    json_t *list = json_array();
    for (size_t i = 0; i < count; i++)
        json_array_append_new(
            list, json_pack("{sIsIsIsIsIsIsIsI}", "start", (json_int_t)vmas[i].start, "end",
                            (json_int_t)vmas[i].end, "pgoff", (json_int_t)vmas[i].offset_bytes,
                            "shmid", (json_int_t)vmas[i].shmid, "status",
                            (json_int_t)vmas[i].status, "flags", (json_int_t)vmas[i].flags, "prot",
                            (json_int_t)vmas[i].prot, "madv", (json_int_t)vmas[i].madv));
    return list;
}

static int show(int dirfd, struct rewarm_error *err)
{
    rewarm_auto_free struct rewarm_image_process *processes = NULL;
    size_t count, path_count;
    char **paths;
    int rc = rewarm_image_pstree(dirfd, &processes, &count, err);
    if (rc != 0)
        return rc;
    json_t *list = json_array();
    for (size_t i = 0; i < count; i++) {
        const struct rewarm_image_process *process = &processes[i];
        json_t *object = json_pack("{si si si si si ss}", "pid", process->pid, "ppid",
                                   process->ppid, "pgid", process->pgid, "sid", process->sid,
                                   "threads", (int)process->threads, "comm", process->comm);
        if (process->threads != 0) {
            json_object_set_new(object, "pagemap", pagemap_json(dirfd, process->pid, err));
            json_object_set_new(object, "mm", mm_json(dirfd, process->pid, err));
        }
        json_array_append_new(list, object);
    }
    json_t *mapped = json_array();
    rc = rewarm_image_mapped_files(dirfd, &paths, &path_count, err);
    if (rc == 0) {
        for (size_t i = 0; i < path_count; i++)
            json_array_append_new(mapped, json_string(paths[i]));
        rewarm_image_paths_free(paths, path_count);
    }
    json_t *all = json_pack("{so so}", "processes", list, "mapped", mapped);
    if (err->code == 0)
        json_dumpf(all, stdout, JSON_COMPACT);
    json_decref(all);
    puts("");
    return -err->code;
}

static int edit(int dirfd, char **keys, size_t count, struct rewarm_error *err)
{
    struct rewarm_image_edits edits;
    struct rewarm_image_edit_options options = {.skip_keys = keys, .skip_count = count};
    if (count != 0 && strcmp(keys[0], "--fresh-ports") == 0) {
        options.fresh_ports = true;
        options.skip_keys++;
        options.skip_count--;
    }
    int rc = rewarm_image_edit_for_restore(dirfd, &options, &edits, err);
    if (rc == 0)
        printf("{\"tcp_kept\": %u, \"tcp_moved\": %u, \"tcp_closed\": %u, \"listeners\": %u, "
               "\"files_moved_to_end\": %u, \"files_created\": %u, \"pipes_inherited\": %u}\n",
               edits.tcp_kept, edits.tcp_moved, edits.tcp_closed, edits.listeners,
               edits.files_moved_to_end, edits.files_created, edits.pipes_inherited);
    return rc;
}

static int key(int dirfd, const char *pid, const char *fd, struct rewarm_error *err)
{
    rewarm_auto_free char *name = NULL;
    int rc = rewarm_image_inherit_key(dirfd, atoi(pid), atoi(fd), &name, err);
    if (rc == 0)
        puts(name != NULL ? name : "");
    return rc;
}

static int time_parse(const char *path, struct rewarm_error *err)
{
    rewarm_auto_free char *data = NULL;
    size_t bytes, count = 0;
    int rc = rewarm_fs_read_file(AT_FDCWD, path, 1u << 30, &data, &bytes, err);
    uint64_t best_ns = UINT64_MAX;
    for (int i = 0; rc == 0 && i < 20; i++) {
        rewarm_auto_free struct rewarm_image_pages *pages = NULL;
        uint64_t start_ns = rewarm_time_now_ns();
        rc = rewarm_image_parse_pagemap(data, bytes, &pages, &count, err);
        uint64_t took_ns = rewarm_time_now_ns() - start_ns;
        best_ns = took_ns < best_ns ? took_ns : best_ns;
    }
    if (rc == 0)
        printf("{\"entries\": %zu, \"microseconds\": %" PRIu64 "}\n", count, best_ns / 1000);
    return rc;
}

int main(int argc, char **argv)
{
    struct rewarm_error err = REWARM_ERROR_INIT;
    int rc = -REWARM_E_USAGE;
    if (argc == 3 && strcmp(argv[1], "time") == 0) {
        rc = time_parse(argv[2], &err);
    } else if (argc >= 3) {
        rewarm_auto_fd int dirfd = -1;
        rc = rewarm_fs_open_dir(AT_FDCWD, argv[2], false, &dirfd, &err);
        if (rc == 0 && strcmp(argv[1], "show") == 0)
            rc = show(dirfd, &err);
        else if (rc == 0 && strcmp(argv[1], "edit") == 0)
            rc = edit(dirfd, argv + 3, (size_t)argc - 3, &err);
        else if (rc == 0 && argc == 5 && strcmp(argv[1], "key") == 0)
            rc = key(dirfd, argv[3], argv[4], &err);
    }
    if (rc != 0)
        fprintf(stderr, "image_dump: %s\n", err.message);
    return -rc;
}

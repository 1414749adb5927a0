#include "snapshot/details.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clean.h"
#include "base/str.h"
#include "proc/criu.h"
#include "proc/criu_image.h"
#include "proc/host.h"

static json_t *read_link(pid_t pid, const char *name)
{
    char path[64];
    char target[4096];
    snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, name);
    ssize_t n = readlink(path, target, sizeof(target) - 1);
    if (n < 0)
        return json_null();
    target[n] = '\0';
    json_t *text = json_string(target);
    return text != NULL ? text : json_null(); /* not UTF-8 */
}

static json_t *command_of(pid_t pid)
{
    char **argv = NULL;
    json_t *list = json_array();
    if (rewarm_proc_vector(pid, "cmdline", &argv, NULL) != 0)
        return list;
    for (size_t i = 0; argv[i] != NULL; i++) {
        json_t *text = json_string(argv[i]);
        json_array_append_new(list, text != NULL ? text : json_string("(not UTF-8)"));
    }
    rewarm_proc_vector_free(argv);
    return list;
}

int rewarm_details_begin(pid_t root, json_t *launch, json_t **ret_details, struct rewarm_error *err)
{
    json_t *host = NULL;
    int result = rewarm_host_describe(&host, err);
    if (result != 0)
        return result;
    json_t *details = json_object();
    json_object_set_new(details, "command", command_of(root));
    json_object_set_new(details, "exe", read_link(root, "exe"));
    json_object_set_new(details, "cwd", read_link(root, "cwd"));
    json_object_set_new(details, "host", host);
    if (launch != NULL)
        json_object_set(details, "launch", launch);
    else
        json_object_set_new(details, "launch", json_null());
    *ret_details = details;
    return 0;
}

static int add_tree(json_t *details, int images_dirfd, struct rewarm_error *err)
{
    struct rewarm_image_process *processes = NULL;
    size_t count = 0;
    int result = rewarm_image_pstree(images_dirfd, &processes, &count, err);
    if (result != 0)
        return result;
    json_t *tree = json_array();
    json_t *wipes = json_array();
    for (size_t i = 0; result == 0 && i < count; i++) {
        const struct rewarm_image_process *p = &processes[i];
        json_t *comm = json_string(p->comm);
        json_array_append_new(tree, json_pack("{s:i,s:i,s:i,s:i,s:i,s:o}", "pid", (int)p->pid,
                                              "ppid", (int)p->ppid, "pgid", (int)p->pgid, "sid",
                                              (int)p->sid, "threads", (int)p->threads, "comm",
                                              comm != NULL ? comm : json_string("?")));
        struct rewarm_image_vma *vmas = NULL;
        size_t vma_count = 0;
        if (p->threads == 0)
            continue; /* a zombie has no memory */
        result = rewarm_image_mm(images_dirfd, p->pid, &vmas, &vma_count, err);
        for (size_t v = 0; result == 0 && v < vma_count; v++) {
            if ((vmas[v].madv & (1ull << MADV_WIPEONFORK)) != 0)
                json_array_append_new(wipes,
                                      json_pack("[i,I,I]", (int)p->pid, (json_int_t)vmas[v].start,
                                                (json_int_t)vmas[v].end));
        }
        free(vmas);
    }
    int32_t root = count != 0 ? processes[0].pid : 0;
    free(processes);
    json_object_set_new(details, "tree", tree);
    json_object_set_new(details, "wipes", wipes);
    if (result == 0 && root == 0)
        result = rewarm_error_set(err, REWARM_E_CORRUPT, 0, "CRIU's images hold no process");
    return result;
}

static int add_stdio(json_t *details, int images_dirfd, struct rewarm_error *err)
{
    json_t *root = json_array_get(json_object_get(details, "tree"), 0);
    int32_t pid = (int32_t)json_integer_value(json_object_get(root, "pid"));
    json_t *stdio = json_array();
    json_object_set_new(details, "stdio", stdio);
    for (int fd = 0; fd < 3; fd++) {
        rewarm_auto_free char *key = NULL;
        int result = rewarm_image_inherit_key(images_dirfd, pid, fd, &key, err);
        if (result != 0)
            return result;
        json_array_append_new(stdio, key != NULL ? json_string(key) : json_null());
    }
    return 0;
}

static int add_mapped_files(json_t *details, int images_dirfd, struct rewarm_error *err)
{
    char **paths = NULL;
    size_t count = 0;
    int result = rewarm_image_mapped_files(images_dirfd, &paths, &count, err);
    if (result != 0)
        return result;
    json_t *files = json_array();
    json_object_set_new(details, "mapped_files", files);
    for (size_t i = 0; result == 0 && i < count; i++) {
        json_t *identity = NULL;
        result = rewarm_host_file_identity(paths[i], &identity, err);
        if (result == 0) {
            json_array_append_new(files, identity);
        } else if (result == -REWARM_E_NOT_FOUND) {
            /* Deleted since it was mapped: its content is in CRIU's images (a ghost file). */
            rewarm_error_clear(err);
            result = 0;
        }
    }
    rewarm_image_paths_free(paths, count);
    return result;
}

int rewarm_details_add_images(json_t *details, int images_dirfd, struct rewarm_error *err)
{
    const struct rewarm_criu *criu = NULL;
    int result = rewarm_criu_find(&criu, err);
    if (result == 0)
        result = add_tree(details, images_dirfd, err);
    if (result == 0)
        result = add_stdio(details, images_dirfd, err);
    if (result == 0)
        result = add_mapped_files(details, images_dirfd, err);
    if (result == 0)
        json_object_set_new(details, "criu", json_integer(criu->version));
    return result;
}

void rewarm_details_add_times(json_t *details, const struct rewarm_stage_times *times,
                              uint64_t pause_ns)
{
    json_t *stages = json_array();
    for (size_t i = 0; i < times->count; i++) {
        const struct rewarm_stage_time *stage = &times->stages[i];
        json_array_append_new(stages, json_pack("{s:s,s:I}", "stage", stage->name, "ns",
                                                (json_int_t)(stage->end_ns - stage->start_ns)));
    }
    json_object_set_new(details, "stages", stages);
    json_object_set_new(details, "pause_ns", json_integer((json_int_t)pause_ns));
}

int rewarm_details_check(const json_t *details, bool any_kernel, struct rewarm_error *err)
{
    const struct rewarm_criu *criu = NULL;
    int result = rewarm_criu_find(&criu, err);
    if (result != 0)
        return result;
    json_int_t made_by = json_integer_value(json_object_get(details, "criu"));
    if (made_by > (json_int_t)criu->version)
        return rewarm_error_set(err, REWARM_E_MISFIT, 0,
                                "the snapshot was made by CRIU %d.%d, here is %s (%s): use that "
                                "version or a newer one",
                                (int)(made_by / 10000), (int)(made_by / 100 % 100),
                                criu->version_text, criu->path);
    if (!any_kernel) {
        json_t *here = NULL;
        result = rewarm_host_describe(&here, err);
        if (result == 0)
            result = rewarm_host_check(json_object_get(details, "host"), here, err);
        json_decref(here);
    }
    size_t i;
    json_t *identity;
    const json_t *files = json_object_get(details, "mapped_files");
    for (i = 0; result == 0 && (identity = json_array_get(files, i)) != NULL; i++)
        result = rewarm_host_file_check(identity, err);
    return result;
}

static int bad(struct rewarm_error *err, const char *key)
{
    return rewarm_error_set(err, REWARM_E_CORRUPT, 0,
                            "the manifest's \"snapshot\" part has no valid \"%s\"", key);
}

int rewarm_details_pids(const json_t *details, int32_t **ret_pids, size_t *ret_count,
                        struct rewarm_error *err)
{
    const json_t *tree = json_object_get(details, "tree");
    size_t count = json_array_size(tree);
    if (count == 0)
        return bad(err, "tree");
    rewarm_auto_free int32_t *pids = rewarm_mem_new(count, sizeof(*pids));
    for (size_t i = 0; i < count; i++) {
        json_int_t pid = json_integer_value(json_object_get(json_array_get(tree, i), "pid"));
        if (pid <= 0 || pid > INT32_MAX)
            return bad(err, "tree");
        pids[i] = (int32_t)pid;
    }
    *ret_pids = rewarm_steal_ptr(&pids);
    *ret_count = count;
    return 0;
}

int rewarm_details_wipes(const json_t *details, struct rewarm_lazy_wipe **ret_wipes,
                         size_t *ret_count, struct rewarm_error *err)
{
    const json_t *list = json_object_get(details, "wipes");
    size_t count = json_array_size(list);
    rewarm_auto_free struct rewarm_lazy_wipe *wipes = rewarm_mem_new(count, sizeof(*wipes));
    for (size_t i = 0; i < count; i++) {
        const json_t *entry = json_array_get(list, i);
        json_int_t pid = json_integer_value(json_array_get(entry, 0));
        json_int_t start = json_integer_value(json_array_get(entry, 1));
        json_int_t end = json_integer_value(json_array_get(entry, 2));
        if (pid <= 0 || pid > INT32_MAX || start < 0 || end <= start)
            return bad(err, "wipes");
        wipes[i] = (struct rewarm_lazy_wipe){(int32_t)pid, (uint64_t)start, (uint64_t)end};
    }
    *ret_wipes = rewarm_steal_ptr(&wipes);
    *ret_count = count;
    return 0;
}

const char *rewarm_details_stdio(const json_t *details, int fd)
{
    return json_string_value(json_array_get(json_object_get(details, "stdio"), (size_t)fd));
}

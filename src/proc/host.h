/* What this host is: recorded in every snapshot, compared before every restore, shown by `doctor`.
 */
#ifndef REWARM_PROC_HOST_H
#define REWARM_PROC_HOST_H

#include <jansson.h>
#include <stdbool.h>

#include "base/error.h"

/* {"kernel":"6.18.44","machine":"x86_64","cpu_model":"...","cpu_features":["avx2",...],
 *  "page_bytes":4096}: only features that user code can depend on (ifunc, JIT, kernels). */
int rewarm_host_describe(json_t **ret_host, struct rewarm_error *err);

/* REWARM_E_MISFIT, saying what differs and what to do, when memory frozen on `then` can't run on
 * `now`: another machine type or page size, a CPU feature that is missing now, an older kernel
 * series. */
int rewarm_host_check(const json_t *then, const json_t *now, struct rewarm_error *err);

/* What identifies a mapped file: {"path","bytes","mtime_ns","build_id"} or with "xxh3" of the whole
 * content where there is no build-id. */
int rewarm_host_file_identity(const char *path, json_t **ret_identity, struct rewarm_error *err);

/* REWARM_E_MISFIT naming the file when it is not what it was. Equal size and mtime are believed;
 * else build-id, or the digest, decides. */
int rewarm_host_file_check(const json_t *identity, struct rewarm_error *err);

/* One line of `rewarm doctor`. */
enum rewarm_doctor_state { REWARM_DOCTOR_OK, REWARM_DOCTOR_WARN, REWARM_DOCTOR_BAD };
struct rewarm_doctor_line {
    const char *check; /* "userfaultfd" */
    enum rewarm_doctor_state state;
    char detail[256]; /* what was found */
    char advice[256]; /* what to do; "" when ok */
};
/* Kernel, privileges (names of the missing capabilities), CRIU and its features, userfaultfd, pipe
 * limits, io_uring, store (path, free space, file system). Returns lines in *ret_lines (free). */
int rewarm_host_doctor(const char *store_path, struct rewarm_doctor_line **ret_lines,
                       size_t *ret_count, struct rewarm_error *err);

/* REWARM_E_PERMISSION naming exactly what is missing, when this process can't freeze or restore. */
int rewarm_host_check_privileges(struct rewarm_error *err);

#endif

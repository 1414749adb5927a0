/* The dump side of CRIU's lazy pages: CRIU stops the tree and writes its skeleton; we are its
 * page-server client, which reads the memory itself and then says that it has everything. */
#ifndef REWARM_PROC_DUMP_H
#define REWARM_PROC_DUMP_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "proc/criu.h"

struct rewarm_dump {
    struct rewarm_criu_child criu;
    bool running;  /* CRIU has not been waited for */
    int images_fd; /* where its log is */
    int client_fd; /* our end of CRIU's page-server socket */
    int status_fd; /* gets a byte once the tree is stopped and readable */
};
#define REWARM_DUMP_INIT {.images_fd = -1, .client_fd = -1, .status_fd = -1}

/* Starts `criu dump` of the tree `root` into `images_path`. The tree goes on running when the dump
 * ends, however it ends: whoever wants it dead kills it while it is stopped. */
int rewarm_dump_start(struct rewarm_dump *dump, pid_t root, const char *images_path,
                      struct rewarm_error *err);

/* Waits until the tree is stopped, its images are complete and its memory can be read. */
int rewarm_dump_wait_readable(struct rewarm_dump *dump, uint64_t deadline_ns,
                              struct rewarm_error *err);

/* Tells CRIU that all memory has been read, and waits for its end: the tree runs again. */
int rewarm_dump_release(struct rewarm_dump *dump, uint64_t deadline_ns, struct rewarm_error *err);

/* Breaks off: CRIU gives up and lets the tree go on. Idempotent, waits for CRIU's end. */
void rewarm_dump_abort(struct rewarm_dump *dump);

#endif

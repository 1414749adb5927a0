/* Locks on files of the store: OFD locks, which belong to the open file and so end with the last
 * process that holds it, however it ends. They work between threads, between processes and over
 * NFS. */
#ifndef REWARM_STORE_LOCK_H
#define REWARM_STORE_LOCK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

/* Takes a lock on all of `fd` (open for reading when shared, for writing when exclusive). Waits
 * until `deadline_ns` (0: not at all, REWARM_NEVER_NS: for ever). `*ret_taken` tells whether it was
 * to be had. Closing the last copy of the descriptor releases it. */
int rewarm_lock_take(int fd, bool exclusive, uint64_t deadline_ns, bool *ret_taken,
                     struct rewarm_error *err);

#endif

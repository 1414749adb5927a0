/* What can't be frozen is refused before anything is changed, with process and descriptor named. */
#ifndef REWARM_PROC_PREFLIGHT_H
#define REWARM_PROC_PREFLIGHT_H

#include <stddef.h>
#include <sys/types.h>

#include "base/error.h"

/* Checks a whole tree: io_uring rings, terminals, devices other than the harmless ones, unsupported
 * sockets (vsock, netlink with data, raw packet), semaphore eventfds, /dev/nvidia*, a process
 * traced by somebody, members in other namespaces, the caller itself or an ancestor of it in the
 * tree, kernel threads. Returns 0, or REWARM_E_REFUSED with "process 12 (python3), descriptor 7
 * (anon_inode:[io_uring]): WHY; WHAT TO DO". Other codes, in the same words: REWARM_E_BUSY while
 * another freeze holds the tree or its memory is still coming in from a restore,
 * REWARM_E_PERMISSION where a capability is missing, REWARM_E_NOT_FOUND. Reads what /proc has,
 * which costs some 17 ms for each GiB of the tree. */
int rewarm_preflight_tree(pid_t root, struct rewarm_error *err);

#endif

/* What a worker gets before it starts, so that it can be frozen later. */
#ifndef REWARM_PROC_LAUNCH_H
#define REWARM_PROC_LAUNCH_H

#include "base/error.h"

/* Makes io_uring_setup, io_uring_enter and io_uring_register answer ENOSYS in this process and all
 * that it forks or executes, for ever: rings can't be dumped, and programs fall back to epoll or
 * threads as on an older kernel. For the child between fork() and exec(): it holds for the calling
 * thread. Sets no_new_privs only when the filter is not allowed without it (no CAP_SYS_ADMIN). */
int rewarm_launch_deny_io_uring(struct rewarm_error *err);

#endif

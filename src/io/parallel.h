/* Runs one function on several threads and gathers the first error. */
#ifndef REWARM_IO_PARALLEL_H
#define REWARM_IO_PARALLEL_H

#include "base/error.h"

/* The number of threads that moving bytes is worth on this machine: CPUs of the affinity mask, at
 * most 16: beyond that memory bandwidth is the limit (measured: UFFDIO_COPY 3 GB/s with one thread,
 * 31 with 16). */
unsigned rewarm_parallel_width(void);

/* Calls work(context, index, err) for index 0..threads-1, each on its own thread (index 0 on the
 * caller's), and waits for all. Returns 0, or the first failure, copied into err. */
typedef int rewarm_parallel_fn(void *context, unsigned index, struct rewarm_error *err);
int rewarm_parallel_run(unsigned threads, rewarm_parallel_fn *work, void *context,
                        struct rewarm_error *err);

#endif

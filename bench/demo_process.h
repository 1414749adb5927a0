/* Programs that the demo starts, and their end on every path: `rewarm` itself, the server that is
 * started cold, and the worker that rewarm started or restored. */
#ifndef REWARM_BENCH_DEMO_PROCESS_H
#define REWARM_BENCH_DEMO_PROCESS_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* Becomes the parent of whatever loses its own, so that demo_process_end_all() finds it, and makes
 * signals set what demo_stopped() says. */
void demo_process_init(void);

/* Starts `argv` in a session of its own, with its output appended to the file `log`. -1 on failure.
 */
pid_t demo_process_start(const char *const argv[], const char *log);

/* Starts a command of rewarm; its stdout goes to *ret_output, a memory file. -1 on failure. */
pid_t demo_process_command(const char *const argv[], int *ret_output);

/* True once `pid`, a child, has ended, or has ended with anything but success. It is not reaped. */
bool demo_process_ended(pid_t pid);
bool demo_process_failed(pid_t pid);

/* Waits for a command and parses its stdout, which is closed, as JSON (an empty one as null). NULL
 * when it failed or was not JSON; with a message. */
json_t *demo_process_finish(pid_t pid, int output, const char *what);

/* demo_process_command() and demo_process_finish(). */
json_t *demo_process_run(const char *const argv[], const char *what);

/* Waits ten seconds for a process to go by itself, then asks it to, ten seconds later kills it;
 * returns once it has gone. demo_process_end() asks at once. Any process, not only a child. */
void demo_process_let_end(pid_t pid);
void demo_process_end(pid_t pid);

/* Ends every descendant. */
void demo_process_end_all(void);

/* Resident memory. */
uint64_t demo_process_memory_bytes(pid_t pid);

#endif

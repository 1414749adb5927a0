/* The contract between a test program and its test (after CRIU's zdtm).
 *
 * `PROGRAM DIR [ARG...]` sets a state up, writes DIR/pid and DIR/ready and waits. SIGUSR1 makes it
 * check that the state is still right: it writes DIR/pass, or DIR/fail with words, and waits again,
 * so that a source that goes on after a freeze and a restored copy can both be checked, and more
 * than once. SIGTERM ends it with exit code 42. A state that this machine cannot have: DIR/skip
 * with words, exit code 77. A set-up that goes wrong: DIR/fail with words, exit code 1. Files
 * appear whole (rename).
 */
#ifndef REWARM_TEST_PROGRAM_H
#define REWARM_TEST_PROGRAM_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define PROGRAM_PAGE 4096u

/* Words when something is wrong, NULL when all is right. */
typedef const char *program_check(void);

/* Opens DIR and blocks SIGUSR1 and SIGTERM (threads and children inherit that). First call of main.
 */
void program_begin(int argc, char **argv);

/* DIR as a descriptor, and as an absolute path. */
extern int program_dir_fd;
extern char program_dir[4096];

/* argv[index] (the first one after DIR is 2), or `otherwise`. */
const char *program_arg(int index, const char *otherwise);
size_t program_arg_size(int index, size_t otherwise);

/* An absolute path below DIR; allocated and never freed. */
char *program_path(const char *name);

/* Ready, then checks on SIGUSR1 until SIGTERM. Last call of main. */
__attribute__((noreturn)) void program_serve(program_check *check);

/* Words for a check to return, in a buffer of the calling thread. */
const char *program_words(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Returns words from a check, with the place, unless `condition` holds. */
#define PROGRAM_EXPECT(condition, ...)                                                             \
    do {                                                                                           \
        if (!(condition))                                                                          \
            return program_words(__VA_ARGS__);                                                     \
    } while (0)

/* Ends a set-up that failed, or that this machine can't have. */
__attribute__((noreturn, format(printf, 1, 2))) void program_die(const char *format, ...);
__attribute__((noreturn, format(printf, 1, 2))) void program_skip(const char *format, ...);

/* `value` unless it is negative: then the set-up failed with errno. */
long program_ok(long value, const char *what);

/* Whole files below DIR. */
void program_write(const char *name, const char *text);
bool program_exists(const char *name);

/* A page whose every word depends on `seed`; false when it is not that page. */
void program_fill(void *page, uint64_t seed);
bool program_filled(const void *page, uint64_t seed);
bool program_zero(const void *page);

/* mmap(MAP_PRIVATE | MAP_ANONYMOUS), read and write; dies on failure. */
void *program_map(size_t bytes);

/* A child that answers checks of its own until its parent's end of the pipes closes. `start` (may
 * be NULL) runs first in the child. */
struct program_child {
    pid_t pid;
    int to, from;
};
void program_fork(struct program_child *ret_child, void (*start)(void), program_check *check);

/* The child's words (copied), or NULL. */
const char *program_ask(const struct program_child *child);

/* Ends and reaps a child. */
void program_end(struct program_child *child);

/* Milliseconds of the monotonic clock. */
uint64_t program_now_ms(void);

#endif

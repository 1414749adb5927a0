/* See program.h. Children are asked over a pair of pipes each: one byte for a check, a line back.
 */
#include "program.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { EXIT_ASKED = 42, EXIT_SKIP = 77, CHILDREN_MAX = 64 };

int program_dir_fd = -1;
char program_dir[4096];
static int arg_count;
static char **args;
static struct program_child children[CHILDREN_MAX];
static unsigned child_count;

const char *program_words(const char *format, ...)
{
    static _Thread_local char words[512];
    int saved = errno;
    va_list list;
    va_start(list, format);
    int length = vsnprintf(words, sizeof(words), format, list);
    va_end(list);
    if (length > 0 && (size_t)length < sizeof(words) && saved != 0)
        snprintf(words + length, sizeof(words) - (size_t)length, " (errno %d: %s)", saved,
                 strerror(saved));
    return words;
}

void program_write(const char *name, const char *text)
{
    char temporary[NAME_MAX + 1];
    snprintf(temporary, sizeof(temporary), ".%s.%d", name, getpid());
    int fd = openat(program_dir_fd, temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    size_t length = strlen(text);
    if (fd < 0 || write(fd, text, length) != (ssize_t)length || close(fd) != 0 ||
        renameat(program_dir_fd, temporary, program_dir_fd, name) != 0)
        _exit(1);
}

bool program_exists(const char *name)
{
    return faccessat(program_dir_fd, name, F_OK, 0) == 0;
}

__attribute__((noreturn, format(printf, 3, 0))) static void
end_with(const char *file, int status, const char *format, va_list list)
{
    char words[512];
    int saved = errno;
    vsnprintf(words, sizeof(words), format, list);
    size_t length = strlen(words);
    if (saved != 0)
        snprintf(words + length, sizeof(words) - length, " (errno %d: %s)", saved, strerror(saved));
    fprintf(stderr, "%s: %s\n", file, words);
    if (program_dir_fd >= 0)
        program_write(file, words);
    for (unsigned i = 0; i < child_count; i++)
        if (children[i].pid > 0)
            kill(children[i].pid, SIGKILL);
    exit(status);
}

void program_die(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    end_with("fail", 1, format, list);
}

void program_skip(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    end_with("skip", EXIT_SKIP, format, list);
}

long program_ok(long value, const char *what)
{
    if (value < 0)
        program_die("%s", what);
    return value;
}

void program_begin(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: %s DIR [ARG...]\n", argv[0]);
        exit(2);
    }
    arg_count = argc;
    args = argv;
    program_dir_fd = open(argv[1], O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (program_dir_fd < 0 || realpath(argv[1], program_dir) == NULL)
        program_die("cannot open %s", argv[1]);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGTERM);
    sigprocmask(SIG_BLOCK, &set, NULL);
    errno = 0;
}

const char *program_arg(int index, const char *otherwise)
{
    return index < arg_count ? args[index] : otherwise;
}

size_t program_arg_size(int index, size_t otherwise)
{
    return index < arg_count ? (size_t)strtoull(args[index], NULL, 10) : otherwise;
}

char *program_path(const char *name)
{
    char *path = NULL;
    if (asprintf(&path, "%s/%s", program_dir, name) < 0)
        abort();
    return path;
}

static int wait_for_signal(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGTERM);
    for (;;) {
        int number = sigwaitinfo(&set, NULL);
        if (number > 0)
            return number;
    }
}

void program_serve(program_check *check)
{
    char text[32];
    snprintf(text, sizeof(text), "%d\n", getpid());
    program_write("pid", text);
    program_write("ready", "");
    while (wait_for_signal() == SIGUSR1) {
        errno = 0;
        const char *words = check();
        program_write(words == NULL ? "pass" : "fail", words == NULL ? "" : words);
    }
    while (child_count > 0) {
        struct program_child child = children[0];
        program_end(&child);
    }
    exit(EXIT_ASKED);
}

static uint64_t word_of(uint64_t seed, uint64_t index)
{
    uint64_t value = (seed + 1) * 0x9E3779B97F4A7C15u ^ index * 0xBF58476D1CE4E5B9u;
    return value ^ (value >> 29);
}

void program_fill(void *page, uint64_t seed)
{
    uint64_t *words = page;
    for (uint64_t i = 0; i < PROGRAM_PAGE / 8; i++)
        words[i] = word_of(seed, i);
}

bool program_filled(const void *page, uint64_t seed)
{
    const uint64_t *words = page;
    for (uint64_t i = 0; i < PROGRAM_PAGE / 8; i++)
        if (words[i] != word_of(seed, i))
            return false;
    return true;
}

bool program_zero(const void *page)
{
    const uint64_t *words = page;
    for (uint64_t i = 0; i < PROGRAM_PAGE / 8; i++)
        if (words[i] != 0)
            return false;
    return true;
}

void *program_map(size_t bytes)
{
    void *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED)
        program_die("mmap of %zu bytes", bytes);
    return map;
}

static void answer(int in, int out, program_check *check)
{
    char byte;
    while (read(in, &byte, 1) == 1) {
        errno = 0;
        const char *words = check != NULL ? check() : NULL;
        dprintf(out, "%s\n", words == NULL ? "" : words);
    }
    _exit(0);
}

/* A line from the child, as words; NULL when it is empty. */
static const char *read_answer(const struct program_child *child)
{
    char line[512] = "";
    size_t used = 0;
    while (used < sizeof(line) - 1) {
        ssize_t got = read(child->from, line + used, 1);
        if (got != 1)
            return program_words("child %d gave no answer", child->pid);
        if (line[used] == '\n')
            break;
        used++;
    }
    line[used] = '\0';
    errno = 0;
    return used == 0 ? NULL : program_words("child %d: %s", child->pid, line);
}

void program_fork(struct program_child *ret_child, void (*start)(void), program_check *check)
{
    int to[2], from[2];
    if (child_count == CHILDREN_MAX)
        program_die("too many children");
    program_ok(pipe2(to, O_CLOEXEC), "pipe");
    program_ok(pipe2(from, O_CLOEXEC), "pipe");
    pid_t pid = (pid_t)program_ok(fork(), "fork");
    if (pid == 0) {
        for (unsigned i = 0; i < child_count; i++) {
            close(children[i].to);
            close(children[i].from);
        }
        child_count = 0;
        close(to[1]);
        close(from[0]);
        if (start != NULL)
            start();
        dprintf(from[1], "\n");
        answer(to[0], from[1], check);
    }
    close(to[0]);
    close(from[1]);
    *ret_child = (struct program_child){.pid = pid, .to = to[1], .from = from[0]};
    children[child_count++] = *ret_child;
    const char *words = read_answer(ret_child); /* its start has been run */
    if (words != NULL)
        program_die("a child: %s", words);
}

const char *program_ask(const struct program_child *child)
{
    if (write(child->to, "?", 1) != 1)
        return program_words("child %d is not there", child->pid);
    return read_answer(child);
}

void program_end(struct program_child *child)
{
    pid_t pid = child->pid;
    if (pid <= 0)
        return;
    for (unsigned i = 0; i < child_count; i++)
        if (children[i].pid == pid) {
            close(children[i].to);
            close(children[i].from);
            children[i] = children[--child_count];
            break;
        }
    kill(pid, SIGKILL);
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR) {
    }
    errno = 0;
}

uint64_t program_now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

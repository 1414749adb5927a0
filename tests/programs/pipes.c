/* pipes DIR [packet]: a full pipe, one with little in it, an enlarged one, an empty one whose
 * writer is closed, and a fifo; if asked, one in packet mode. What is read is written again, so
 * that every check finds the same. */
#include "program.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { FULL, LITTLE, PACKET, LARGE, FIFO, KINDS };
static int pipes[KINDS][2], closed;
static size_t sizes[KINDS];

static void make(char *data, size_t bytes, int kind)
{
    for (size_t i = 0; i < bytes; i++)
        data[i] = (char)(i * 7 + (size_t)kind + i / 251);
}

static const char *check_kind(int kind)
{
    char *expected = malloc(sizes[kind]), *got = malloc(sizes[kind]);
    size_t used = 0;
    make(expected, sizes[kind], kind);
    while (used < sizes[kind]) {
        ssize_t part = read(pipes[kind][0], got + used, sizes[kind] - used);
        if (part <= 0)
            break;
        used += (size_t)part;
        if (kind == PACKET)
            break;
    }
    bool right = used == sizes[kind] && memcmp(expected, got, used) == 0;
    char byte;
    bool empty = read(pipes[kind][0], &byte, 1) < 0 && errno == EAGAIN;
    bool refilled = write(pipes[kind][1], expected, sizes[kind]) == (ssize_t)sizes[kind];
    free(expected);
    free(got);
    errno = 0;
    PROGRAM_EXPECT(right, "pipe %d: %zu of %zu bytes, or wrong ones", kind, used, sizes[kind]);
    PROGRAM_EXPECT(empty, "pipe %d holds more than was written", kind);
    PROGRAM_EXPECT(refilled, "pipe %d can't be filled again", kind);
    return NULL;
}

static const char *check(void)
{
    const char *words = NULL;
    for (int kind = 0; kind < KINDS && words == NULL; kind++)
        words = check_kind(kind);
    if (words != NULL)
        return words;
    PROGRAM_EXPECT(fcntl(pipes[LARGE][0], F_GETPIPE_SZ) == 256 * 1024, "the size is lost");
    char byte;
    PROGRAM_EXPECT(read(closed, &byte, 1) == 0, "no end of file on a pipe with no writer");
    return NULL;
}

int main(int argc, char **argv)
{
    program_begin(argc, argv);
    bool packet = strcmp(program_arg(2, ""), "packet") == 0;
    for (int kind = 0; kind < FIFO; kind++)
        program_ok(pipe2(pipes[kind], O_NONBLOCK | (kind == PACKET && packet ? O_DIRECT : 0)),
                   "pipe2");
    program_ok(fcntl(pipes[LARGE][1], F_SETPIPE_SZ, 256 * 1024), "F_SETPIPE_SZ");
    char *path = program_path("fifo");
    program_ok(mkfifo(path, 0600), "mkfifo");
    pipes[FIFO][0] = (int)program_ok(open(path, O_RDONLY | O_NONBLOCK), "open fifo");
    pipes[FIFO][1] = (int)program_ok(open(path, O_WRONLY | O_NONBLOCK), "open fifo");
    sizes[FULL] = (size_t)fcntl(pipes[FULL][0], F_GETPIPE_SZ);
    sizes[LITTLE] = 10;
    sizes[PACKET] = 1000;
    sizes[LARGE] = 200000;
    sizes[FIFO] = 5000;
    for (int kind = 0; kind < KINDS; kind++) {
        char *data = malloc(sizes[kind]);
        make(data, sizes[kind], kind);
        program_ok(write(pipes[kind][1], data, sizes[kind]) == (ssize_t)sizes[kind] ? 0 : -1,
                   "write");
        free(data);
    }
    int ends[2];
    program_ok(pipe(ends), "pipe");
    close(ends[1]);
    closed = ends[0];
    program_serve(check);
}

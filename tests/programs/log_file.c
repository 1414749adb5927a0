/* log_file DIR [append|plain]: a log that a thread writes a numbered line to every 5 ms. Lines must
 * go on in order after a restore, behind what was written in between, and never over it. */
#include "program.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int file;
static atomic_ulong lines;

static void *writer(void *argument)
{
    (void)argument;
    for (;;) {
        if (dprintf(file, "line %lu\n", atomic_load(&lines) + 1) < 0)
            _exit(9);
        atomic_fetch_add(&lines, 1);
        usleep(5000);
    }
    return NULL;
}

/* The last whole line of the file must be one of the last that this process wrote, and no byte of
 * the file may be a hole. */
static const char *check(void)
{
    unsigned long before = atomic_load(&lines);
    uint64_t end = program_now_ms() + 3000;
    while (atomic_load(&lines) < before + 5 && program_now_ms() < end)
        usleep(1000);
    PROGRAM_EXPECT(atomic_load(&lines) >= before + 5, "the writer stands still");
    int fd = open(program_path("log"), O_RDONLY);
    struct stat info;
    PROGRAM_EXPECT(fd >= 0 && fstat(fd, &info) == 0, "the log cannot be opened");
    size_t bytes = (size_t)info.st_size;
    char *text = calloc(1, bytes + 1);
    ssize_t got = read(fd, text, bytes);
    close(fd);
    bool whole = got == (ssize_t)bytes && memchr(text, 0, bytes) == NULL;
    unsigned long last = 0;
    for (char *line = text; line != NULL && *line != '\0';) {
        sscanf(line, "line %lu\n", &last);
        line = strchr(line, '\n');
        line = line != NULL ? line + 1 : NULL;
    }
    free(text);
    PROGRAM_EXPECT(whole, "the log has a hole or can't be read whole");
    PROGRAM_EXPECT(last >= before, "the log ends with line %lu, the writer is at %lu", last,
                   before);
    return NULL;
}

int main(int argc, char **argv)
{
    program_begin(argc, argv);
    int append = strcmp(program_arg(2, "append"), "append") == 0 ? O_APPEND : 0;
    file = (int)program_ok(open(program_path("log"), O_WRONLY | O_CREAT | append, 0600), "open");
    pthread_t thread;
    if (pthread_create(&thread, NULL, writer, NULL) != 0)
        program_die("pthread_create");
    while (atomic_load(&lines) < 3)
        usleep(1000);
    program_serve(check);
}

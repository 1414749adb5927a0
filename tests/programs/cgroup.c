/* cgroup DIR: says in DIR/cgroup which cgroups it is in, at the start and at every check. The test
 * decides what is right. */
#include "program.h"

#include <fcntl.h>
#include <unistd.h>

static void report(void)
{
    char text[4096];
    int fd = open("/proc/self/cgroup", O_RDONLY | O_CLOEXEC);
    ssize_t got = fd >= 0 ? read(fd, text, sizeof(text) - 1) : 0;
    close(fd);
    text[got > 0 ? got : 0] = '\0';
    program_write("cgroup", text);
}

static const char *check(void)
{
    report();
    return NULL;
}

int main(int argc, char **argv)
{
    program_begin(argc, argv);
    report();
    program_serve(check);
}

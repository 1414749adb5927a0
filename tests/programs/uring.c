/* uring DIR [child]: opens an io_uring ring (in a child, if asked); DIR/uring says "open" or
 * "enosys". */
#include "program.h"

#include <errno.h>
#include <linux/io_uring.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static struct program_child child;

static void open_ring(void)
{
    struct io_uring_params parameters = {0};
    long fd = syscall(SYS_io_uring_setup, 4, &parameters);
    if (fd < 0 && errno != ENOSYS)
        program_skip("io_uring_setup");
    program_write("uring", fd >= 0 ? "open" : "enosys");
    errno = 0;
}

static const char *check(void)
{
    return NULL;
}

int main(int argc, char **argv)
{
    program_begin(argc, argv);
    if (strcmp(program_arg(2, ""), "child") == 0)
        program_fork(&child, open_ring, NULL);
    else
        open_ring();
    program_serve(check);
}

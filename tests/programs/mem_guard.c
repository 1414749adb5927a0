/* mem_guard DIR: pages that were written and then protected (PROT_NONE), read-only pages, and a
 * guard page that was never written: the content must be there once the protection is lifted, and
 * protection must hold. */
#include "program.h"

#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGES = 192 };
static const int protections[] = {PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE};
static char *memory;
static int pipes[2];

static const char *check(void)
{
    for (size_t i = 0; i < PAGES; i++) {
        char *page = memory + i * PROGRAM_PAGE;
        int protection = protections[i % 3];
        char byte;
        errno = 0;
        if (protection == PROT_NONE)
            PROGRAM_EXPECT(write(pipes[1], page, 1) < 0 && errno == EFAULT, "page %zu is readable",
                           i);
        else
            PROGRAM_EXPECT(write(pipes[1], page, 1) == 1 && read(pipes[0], &byte, 1) == 1,
                           "page %zu is not readable", i);
        if (protection == PROT_READ) {
            PROGRAM_EXPECT(write(pipes[1], "x", 1) == 1, "pipe");
            PROGRAM_EXPECT(read(pipes[0], page, 1) < 0 && errno == EFAULT, "page %zu is writable",
                           i);
            PROGRAM_EXPECT(read(pipes[0], &byte, 1) == 1, "pipe");
        }
        errno = 0;
        PROGRAM_EXPECT(mprotect(page, PROGRAM_PAGE, PROT_READ) == 0, "mprotect");
        bool right = i % 6 < 3 ? program_filled(page, i) : program_zero(page);
        PROGRAM_EXPECT(right, "page %zu (protection %d) is wrong", i, protection);
        PROGRAM_EXPECT(mprotect(page, PROGRAM_PAGE, protection) == 0, "mprotect");
    }
    return NULL;
}

int main(int argc, char **argv)
{
    program_begin(argc, argv);
    program_ok(pipe(pipes), "pipe");
    memory = program_map(PAGES * PROGRAM_PAGE);
    for (size_t i = 0; i < PAGES; i++) {
        char *page = memory + i * PROGRAM_PAGE;
        if (i % 6 < 3)
            program_fill(page, i);
        program_ok(mprotect(page, PROGRAM_PAGE, protections[i % 3]), "mprotect");
    }
    program_serve(check);
}

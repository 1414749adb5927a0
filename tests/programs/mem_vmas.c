/* mem_vmas DIR [COUNT]: thousands of small areas, every third one read-only and every third one
 * with a gap behind it. */
#include "program.h"

#include <sys/mman.h>

static char *memory;
static size_t count;

static const char *check(void)
{
    for (size_t i = 0; i < count; i++)
        PROGRAM_EXPECT(program_filled(memory + 2 * i * PROGRAM_PAGE, i), "area %zu is wrong", i);
    return NULL;
}

int main(int argc, char **argv)
{
    program_begin(argc, argv);
    count = program_arg_size(2, 3000);
    memory = program_map(2 * count * PROGRAM_PAGE);
    for (size_t i = 0; i < count; i++) {
        char *page = memory + 2 * i * PROGRAM_PAGE;
        program_fill(page, i);
        if (i % 3 == 0)
            program_ok(mprotect(page, PROGRAM_PAGE, PROT_READ), "mprotect");
        if (i % 3 == 1)
            program_ok(munmap(page + PROGRAM_PAGE, PROGRAM_PAGE), "munmap");
        if (i % 3 == 2)
            program_ok(mprotect(page + PROGRAM_PAGE, PROGRAM_PAGE, PROT_NONE), "mprotect");
    }
    program_serve(check);
}

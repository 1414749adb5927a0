/* mem_anon DIR [MIB]: private anonymous memory. Of every eight pages five hold content, one was
 * written with zeros, one was written and discarded, one was never touched. */
#include "program.h"

#include <sys/mman.h>

static char *memory;
static size_t page_count;

static const char *check(void)
{
    for (size_t i = 0; i < page_count; i++) {
        const char *page = memory + i * PROGRAM_PAGE;
        bool right = i % 8 < 5 ? program_filled(page, i) : program_zero(page);
        PROGRAM_EXPECT(right, "page %zu of %zu is wrong", i, page_count);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    program_begin(argc, argv);
    page_count = program_arg_size(2, 16) * 256;
    memory = program_map(page_count * PROGRAM_PAGE);
    for (size_t i = 0; i < page_count; i++) {
        char *page = memory + i * PROGRAM_PAGE;
        if (i % 8 < 5 || i % 8 == 6)
            program_fill(page, i);
        if (i % 8 == 5)
            *(volatile char *)page = 0;
        if (i % 8 == 6)
            program_ok(madvise(page, PROGRAM_PAGE, MADV_DONTNEED), "madvise");
    }
    program_serve(check);
}

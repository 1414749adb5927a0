/* mem_shared DIR [MIB]: shared anonymous memory of a parent and a child. What one writes the other
 * must see, after a restore too. */
#include "program.h"

#include <sys/mman.h>

static char *memory;
static size_t page_count;
static struct program_child child;

/* Page 0 holds the next seed of the last page: the parent sets it, the child fills. */
static const char *child_check(void)
{
    uint64_t seed = *(uint64_t *)(void *)memory;
    for (size_t i = 1; i < page_count - 1; i++)
        PROGRAM_EXPECT(program_filled(memory + i * PROGRAM_PAGE, i), "page %zu is wrong", i);
    program_fill(memory + (page_count - 1) * PROGRAM_PAGE, seed);
    return NULL;
}

static const char *check(void)
{
    uint64_t *seed = (void *)memory;
    ++*seed;
    const char *words = program_ask(&child);
    if (words != NULL)
        return words;
    PROGRAM_EXPECT(program_filled(memory + (page_count - 1) * PROGRAM_PAGE, *seed),
                   "what the child wrote is not seen: no longer shared");
    return NULL;
}

int main(int argc, char **argv)
{
    program_begin(argc, argv);
    page_count = program_arg_size(2, 4) * 256;
    memory = mmap(NULL, page_count * PROGRAM_PAGE, PROT_READ | PROT_WRITE,
                  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        program_die("mmap");
    for (size_t i = 1; i < page_count; i++)
        program_fill(memory + i * PROGRAM_PAGE, i);
    program_fork(&child, NULL, child_check);
    program_serve(check);
}

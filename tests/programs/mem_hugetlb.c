/* mem_hugetlb DIR: private memory of 2 MiB pages, half of it written. */
#include "program.h"

#include <sys/mman.h>

enum { PAGES = 2 * 512 };
static char *memory;

static const char *check(void)
{
    for (size_t i = 0; i < PAGES; i++) {
        const char *page = memory + i * PROGRAM_PAGE;
        PROGRAM_EXPECT(i < PAGES / 2 ? program_filled(page, i) : program_zero(page),
                       "page %zu is wrong", i);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    program_begin(argc, argv);
    memory = mmap(NULL, PAGES * PROGRAM_PAGE, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
    if (memory == MAP_FAILED)
        program_skip("no 2 MiB pages are reserved (vm.nr_hugepages)");
    for (size_t i = 0; i < PAGES / 2; i++)
        program_fill(memory + i * PROGRAM_PAGE, i);
    program_serve(check);
}

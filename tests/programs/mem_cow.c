/* mem_cow DIR: a private mapping of a file, every other page of it modified; the file itself must
 * stay as it was. */
#include "program.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGES = 256 };
static char *memory;
static int file;

static const char *check(void)
{
    char page[PROGRAM_PAGE] __attribute__((aligned(8)));
    for (size_t i = 0; i < PAGES; i++) {
        uint64_t seed = i % 2 == 0 ? i : i + 1000000;
        PROGRAM_EXPECT(program_filled(memory + i * PROGRAM_PAGE, seed), "page %zu is wrong", i);
        PROGRAM_EXPECT(pread(file, page, sizeof(page), (off_t)(i * PROGRAM_PAGE)) == sizeof(page),
                       "the file can't be read at page %zu", i);
        PROGRAM_EXPECT(program_filled(page, i), "page %zu of the file has changed", i);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    program_begin(argc, argv);
    char page[PROGRAM_PAGE] __attribute__((aligned(8)));
    file =
        (int)program_ok(open(program_path("mapped"), O_RDWR | O_CREAT | O_CLOEXEC, 0600), "open");
    for (size_t i = 0; i < PAGES; i++) {
        program_fill(page, i);
        program_ok(write(file, page, sizeof(page)), "write");
    }
    memory = mmap(NULL, PAGES * PROGRAM_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
    if (memory == MAP_FAILED)
        program_die("mmap");
    for (size_t i = 1; i < PAGES; i += 2)
        program_fill(memory + i * PROGRAM_PAGE, i + 1000000);
    program_serve(check);
}

/* mem_memfd DIR: a sealed memfd, mapped shared and private, with a file position. */
#include "program.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGES = 256, POSITION = 12345 };
static char *shared, *private;
static int file;

static const char *check(void)
{
    static uint64_t round;
    for (size_t i = 1; i < PAGES; i++) {
        uint64_t seed = i % 2 == 0 ? i : i + 1000000;
        PROGRAM_EXPECT(program_filled(shared + i * PROGRAM_PAGE, i), "shared page %zu", i);
        PROGRAM_EXPECT(program_filled(private + i * PROGRAM_PAGE, seed), "private page %zu", i);
    }
    char page[PROGRAM_PAGE] __attribute__((aligned(8)));
    program_fill(shared, ++round);
    PROGRAM_EXPECT(pread(file, page, sizeof(page), 0) == sizeof(page), "pread");
    PROGRAM_EXPECT(program_filled(page, round), "mapping and file are no longer one");
    PROGRAM_EXPECT(lseek(file, 0, SEEK_CUR) == POSITION, "the position is lost");
    PROGRAM_EXPECT(fcntl(file, F_GET_SEALS) == (F_SEAL_SHRINK | F_SEAL_GROW), "seals are lost");
    PROGRAM_EXPECT(ftruncate(file, PROGRAM_PAGE) < 0, "seals do not hold");
    return NULL;
}

int main(int argc, char **argv)
{
    program_begin(argc, argv);
    size_t bytes = PAGES * PROGRAM_PAGE;
    file = (int)program_ok(memfd_create("worker", MFD_CLOEXEC | MFD_ALLOW_SEALING), "memfd_create");
    program_ok(ftruncate(file, (off_t)bytes), "ftruncate");
    shared = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    private = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
    if (shared == MAP_FAILED || private == MAP_FAILED)
        program_die("mmap");
    for (size_t i = 1; i < PAGES; i++)
        program_fill(shared + i * PROGRAM_PAGE, i);
    for (size_t i = 1; i < PAGES; i += 2)
        program_fill(private + i * PROGRAM_PAGE, i + 1000000);
    program_ok(fcntl(file, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), "F_ADD_SEALS");
    program_ok(lseek(file, POSITION, SEEK_SET), "lseek");
    program_serve(check);
}

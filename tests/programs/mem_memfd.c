/* mem_memfd DIR [open|closed|child|program]: a sealed memfd, mapped shared and private, with a file
 * position. Another private area is read-only and starts in the middle. `closed`: the areas only;
 * `child`: also a child with private pages of its own. `program`: runs from a memfd itself. */
#include "program.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGES = 256, HALF = PAGES / 2, POSITION = 12345 };
static char *shared, *private, *half;
static int file;
static bool is_child;
static struct program_child child;

/* The private area: odd pages are the process's own, and of a child every fourth too. */
static uint64_t private_seed(size_t page)
{
    if (is_child && page % 4 == 0)
        return page + 2000000;
    return page % 2 == 0 ? page : page + 1000000;
}

static const char *check_areas(void)
{
    for (size_t i = 1; i < PAGES; i++) {
        PROGRAM_EXPECT(program_filled(shared + i * PROGRAM_PAGE, i), "shared page %zu", i);
        PROGRAM_EXPECT(program_filled(private + i * PROGRAM_PAGE, private_seed(i)),
                       "private page %zu", i);
    }
    for (size_t i = HALF; i < PAGES; i++)
        PROGRAM_EXPECT(program_filled(half + (i - HALF) * PROGRAM_PAGE, i), "read-only page %zu",
                       i);
    return NULL;
}

static const char *child_check(void)
{
    PROGRAM_EXPECT(memcmp(private, shared, PROGRAM_PAGE) == 0,
                   "what the parent wrote to the file is not seen");
    return check_areas();
}

static const char *check_file(uint64_t round)
{
    char page[PROGRAM_PAGE] __attribute__((aligned(8)));
    PROGRAM_EXPECT(pread(file, page, sizeof(page), 0) == sizeof(page), "pread");
    PROGRAM_EXPECT(program_filled(page, round), "mapping and file are no longer one");
    PROGRAM_EXPECT(lseek(file, 0, SEEK_CUR) == POSITION, "the position is lost");
    PROGRAM_EXPECT(fcntl(file, F_GET_SEALS) == (F_SEAL_SHRINK | F_SEAL_GROW), "seals are lost");
    PROGRAM_EXPECT(ftruncate(file, PROGRAM_PAGE) < 0, "seals do not hold");
    return NULL;
}

static const char *check(void)
{
    static uint64_t round;
    const char *words = check_areas();
    program_fill(shared, ++round);
    /* Linux shows it in a private page that was not written to. */
    if (words == NULL && !program_filled(private, round))
        words = program_words("the private mapping no longer shows the file");
    if (words == NULL && file >= 0)
        words = check_file(round);
    if (words == NULL && child.pid > 0)
        words = program_ask(&child);
    return words;
}

static void child_start(void)
{
    is_child = true;
    for (size_t i = 4; i < PAGES; i += 4)
        program_fill(private + i * PROGRAM_PAGE, private_seed(i));
}

/* Returns in the copy. */
static void run_from_memfd(char **argv)
{
    char target[64] = "", block[4096];
    program_ok(readlink("/proc/self/exe", target, sizeof(target) - 1), "readlink");
    if (strncmp(target, "/memfd:", 7) == 0)
        return;
    int from = (int)program_ok(open("/proc/self/exe", O_RDONLY | O_CLOEXEC), "open");
    int to = (int)program_ok(memfd_create("program", MFD_CLOEXEC), "memfd_create");
    ssize_t got;
    while ((got = read(from, block, sizeof(block))) > 0)
        program_ok(write(to, block, (size_t)got) == got ? 0 : -1, "write");
    fexecve(to, argv, environ);
    program_die("fexecve");
}

static void *map(size_t pages, int prot, int flags, size_t first)
{
    void *area = mmap(NULL, pages * PROGRAM_PAGE, prot, flags, file, (off_t)(first * PROGRAM_PAGE));
    if (area == MAP_FAILED)
        program_die("mmap");
    return area;
}

int main(int argc, char **argv)
{
    if (argc > 2 && strcmp(argv[2], "program") == 0)
        run_from_memfd(argv);
    program_begin(argc, argv);
    const char *mode = program_arg(2, "open");
    file = (int)program_ok(memfd_create("worker", MFD_CLOEXEC | MFD_ALLOW_SEALING), "memfd_create");
    program_ok(ftruncate(file, PAGES * PROGRAM_PAGE), "ftruncate");
    shared = map(PAGES, PROT_READ | PROT_WRITE, MAP_SHARED, 0);
    private = map(PAGES, PROT_READ | PROT_WRITE, MAP_PRIVATE, 0);
    half = map(PAGES - HALF, PROT_READ, MAP_PRIVATE, HALF);
    for (size_t i = 1; i < PAGES; i++)
        program_fill(shared + i * PROGRAM_PAGE, i);
    for (size_t i = 1; i < PAGES; i += 2)
        program_fill(private + i * PROGRAM_PAGE, private_seed(i));
    program_ok(fcntl(file, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), "F_ADD_SEALS");
    program_ok(lseek(file, POSITION, SEEK_SET), "lseek");
    if (strcmp(mode, "closed") == 0) {
        close(file);
        file = -1;
    } else if (strcmp(mode, "child") == 0) {
        program_fork(&child, child_start, child_check);
    }
    program_serve(check);
}

/* mem_locked DIR: MAP_LOCKED, mlock and mlock2(MLOCK_ONFAULT) memory: not lazy, content and lock
 * must survive. */
#include "program.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

enum { PAGES = 256 };
static char *areas[3];

static unsigned long locked_kib(void)
{
    char line[256];
    unsigned long kib = 0;
    FILE *file = fopen("/proc/self/status", "re");
    while (file != NULL && fgets(line, sizeof(line), file) != NULL)
        sscanf(line, "VmLck: %lu", &kib);
    if (file != NULL)
        fclose(file);
    return kib;
}

static const char *check(void)
{
    for (unsigned area = 0; area < 3; area++)
        for (size_t i = 0; i < PAGES; i++)
            PROGRAM_EXPECT(program_filled(areas[area] + i * PROGRAM_PAGE, i + area * 1000),
                           "area %u, page %zu is wrong", area, i);
    PROGRAM_EXPECT(locked_kib() >= 3 * PAGES * 4, "only %lu KiB are locked", locked_kib());
    return NULL;
}

int main(int argc, char **argv)
{
    program_begin(argc, argv);
    size_t bytes = PAGES * PROGRAM_PAGE;
    areas[0] =
        mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED, -1, 0);
    if (areas[0] == MAP_FAILED)
        program_skip("MAP_LOCKED memory is not allowed here");
    areas[1] = program_map(bytes);
    areas[2] = program_map(bytes);
    for (unsigned area = 0; area < 3; area++)
        for (size_t i = 0; i < PAGES; i++)
            program_fill(areas[area] + i * PROGRAM_PAGE, i + area * 1000);
    program_ok(mlock(areas[1], bytes), "mlock");
    program_ok(mlock2(areas[2], bytes, MLOCK_ONFAULT), "mlock2");
    program_serve(check);
}

/* deleted DIR [BYTES] [KEEP]: an open file, written and mapped, that has been deleted; with KEEP =
 * 1 it keeps a second (hard link) name, with KEEP = 2 it had one and lost both. */
#include "program.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static int file;
static size_t page_count;
static char *memory;
static nlink_t links;

static const char *check(void)
{
    char page[PROGRAM_PAGE] __attribute__((aligned(8)));
    struct stat info;
    PROGRAM_EXPECT(fstat(file, &info) == 0 && info.st_nlink == links, "%lu links instead of %lu",
                   (unsigned long)info.st_nlink, (unsigned long)links);
    PROGRAM_EXPECT(!program_exists("doomed"), "the deleted file has a name again");
    for (size_t i = 0; i < page_count; i++) {
        PROGRAM_EXPECT(pread(file, page, sizeof(page), (off_t)(i * PROGRAM_PAGE)) == sizeof(page),
                       "page %zu can't be read", i);
        PROGRAM_EXPECT(program_filled(page, i), "page %zu of the file is wrong", i);
        PROGRAM_EXPECT(program_filled(memory + i * PROGRAM_PAGE, i), "mapped page %zu is wrong", i);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    program_begin(argc, argv);
    char page[PROGRAM_PAGE] __attribute__((aligned(8)));
    page_count = program_arg_size(2, 8192) / PROGRAM_PAGE;
    size_t keep = program_arg_size(3, 0);
    char *path = program_path("doomed"), *other = program_path("other");
    file = (int)program_ok(open(path, O_RDWR | O_CREAT | O_EXCL, 0600), "open");
    for (size_t i = 0; i < page_count; i++) {
        program_fill(page, i);
        program_ok(write(file, page, sizeof(page)), "write");
    }
    memory = mmap(NULL, page_count * PROGRAM_PAGE, PROT_READ, MAP_SHARED, file, 0);
    if (memory == MAP_FAILED)
        program_die("mmap");
    if (keep != 0)
        program_ok(link(path, other), "link");
    program_ok(unlink(path), "unlink");
    if (keep == 2)
        program_ok(unlink(other), "unlink");
    links = keep == 1 ? 1 : 0;
    program_serve(check);
}

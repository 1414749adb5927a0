/* cow_workers DIR [MIB]: three forked workers over memory of their parent; each has changed every
 * tenth page of the first half of its own copy, and the parent another one. */
#include "program.h"

enum { WORKERS = 3 };
static char *memory;
static size_t page_count, worker = WORKERS;
static struct program_child children[WORKERS];

static const char *check_pages(void)
{
    for (size_t i = 0; i < page_count; i++) {
        uint64_t seed = i % 10 == worker && i < page_count / 2 ? i + (worker + 1) * 1000000 : i;
        PROGRAM_EXPECT(program_filled(memory + i * PROGRAM_PAGE, seed),
                       "worker %zu: page %zu is wrong", worker, i);
    }
    return NULL;
}

static void change(void)
{
    for (size_t i = worker; i < page_count / 2; i += 10)
        program_fill(memory + i * PROGRAM_PAGE, i + (worker + 1) * 1000000);
}

static const char *check(void)
{
    const char *words = check_pages();
    for (int i = 0; i < WORKERS && words == NULL; i++)
        words = program_ask(&children[i]);
    return words;
}

int main(int argc, char **argv)
{
    program_begin(argc, argv);
    page_count = program_arg_size(2, 8) * 256;
    memory = program_map(page_count * PROGRAM_PAGE);
    for (size_t i = 0; i < page_count; i++)
        program_fill(memory + i * PROGRAM_PAGE, i);
    for (size_t i = 0; i < WORKERS; i++) {
        worker = i;
        program_fork(&children[i], change, check_pages);
    }
    worker = WORKERS;
    change();
    program_serve(check);
}

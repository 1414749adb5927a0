/* mem_wipeonfork DIR: a MADV_WIPEONFORK and a MADV_DONTFORK area. A child forked after the restore
 * must see zeros in the first and have no second, while the parent keeps both. */
#include "program.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGES = 512 };
static char *wiped, *unforked, *plain;

static int child_main(void)
{
    int random = open("/dev/null", O_WRONLY);
    for (size_t i = 0; i < PAGES; i++) {
        if (!program_zero(wiped + i * PROGRAM_PAGE))
            return 2;
        if (!program_filled(plain + i * PROGRAM_PAGE, i + 2000))
            return 3;
    }
    /* A copy by the kernel from memory that is not there fails instead of ending the process. */
    int pipes[2];
    if (pipe(pipes) != 0 || random < 0)
        return 4;
    if (write(pipes[1], unforked, 1) != -1 || errno != EFAULT)
        return 5;
    return 0;
}

static const char *check(void)
{
    pid_t pid = fork();
    PROGRAM_EXPECT(pid >= 0, "fork");
    if (pid == 0)
        _exit(child_main());
    int status;
    PROGRAM_EXPECT(waitpid(pid, &status, 0) == pid, "waitpid");
    static const char *const causes[] = {"nothing",
                                         "ended",
                                         "the wiped area is not zero",
                                         "plain memory is wrong",
                                         "pipe",
                                         "the DONTFORK area is there"};
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : 1;
    PROGRAM_EXPECT(code == 0, "child: %s (status %x)", code < 6 ? causes[code] : "?", status);
    for (size_t i = 0; i < PAGES; i++) {
        PROGRAM_EXPECT(program_filled(wiped + i * PROGRAM_PAGE, i), "wiped page %zu", i);
        PROGRAM_EXPECT(program_filled(unforked + i * PROGRAM_PAGE, i + 1000), "unforked page %zu",
                       i);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    program_begin(argc, argv);
    size_t bytes = PAGES * PROGRAM_PAGE;
    wiped = program_map(bytes);
    unforked = program_map(bytes);
    plain = program_map(bytes);
    for (size_t i = 0; i < PAGES; i++) {
        program_fill(wiped + i * PROGRAM_PAGE, i);
        program_fill(unforked + i * PROGRAM_PAGE, i + 1000);
        program_fill(plain + i * PROGRAM_PAGE, i + 2000);
    }
    program_ok(madvise(wiped, bytes, MADV_WIPEONFORK), "MADV_WIPEONFORK");
    program_ok(madvise(unforked, bytes, MADV_DONTFORK), "MADV_DONTFORK");
    program_serve(check);
}

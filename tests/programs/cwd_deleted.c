/* cwd_deleted DIR: the working directory has been removed. */
#include "program.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *check(void)
{
    char cwd[4096];
    PROGRAM_EXPECT(getcwd(cwd, sizeof(cwd)) == NULL && errno == ENOENT, "working directory %s",
                   cwd);
    errno = 0;
    PROGRAM_EXPECT(!program_exists("gone"), "the directory is there again");
    return NULL;
}

int main(int argc, char **argv)
{
    program_begin(argc, argv);
    char *path = program_path("gone");
    program_ok(mkdir(path, 0700), "mkdir");
    program_ok(chdir(path), "chdir");
    program_ok(rmdir(path), "rmdir");
    program_serve(check);
}

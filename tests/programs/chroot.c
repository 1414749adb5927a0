/* chroot DIR: a process whose root is a folder below DIR; the contract's descriptor to DIR is
 * closed for the time being (a descriptor outside the root cannot be restored), DIR/root/ holds
 * pass and fail. */
#include "program.h"

#include <dirent.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *check(void)
{
    char cwd[256];
    struct stat info;
    PROGRAM_EXPECT(stat("/inside", &info) == 0, "the root has changed");
    PROGRAM_EXPECT(stat("/proc", &info) != 0, "the root is the host's");
    PROGRAM_EXPECT(getcwd(cwd, sizeof(cwd)) != NULL && strcmp(cwd, "/sub") == 0, "cwd %s", cwd);
    return NULL;
}

int main(int argc, char **argv)
{
    program_begin(argc, argv);
    mkdirat(program_dir_fd, "root", 0755);
    mkdirat(program_dir_fd, "root/sub", 0755);
    close(openat(program_dir_fd, "root/inside", O_CREAT | O_WRONLY, 0600));
    if (chroot(program_path("root")) != 0)
        program_skip("chroot is not allowed");
    program_ok(chdir("/sub"), "chdir");
    close(program_dir_fd);
    program_dir_fd = (int)program_ok(open("/", O_PATH | O_DIRECTORY | O_CLOEXEC), "open /");
    program_serve(check);
}

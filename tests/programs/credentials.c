/* credentials DIR [user|groups]: a process that has given up root for another user, supplementary
 * groups and one capability; or that has only changed its supplementary groups and capabilities. */
#include "program.h"

#include <errno.h>
#include <grp.h>
#include <linux/capability.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { OTHER = 54321, GROUP = 54322 };
static uid_t user = OTHER;
static gid_t group = GROUP;
static const gid_t groups[] = {54323, 54324, 54325};

static const char *check(void)
{
    uid_t uids[3];
    gid_t gids[3], list[8];
    getresuid(&uids[0], &uids[1], &uids[2]);
    getresgid(&gids[0], &gids[1], &gids[2]);
    for (int i = 0; i < 3; i++)
        PROGRAM_EXPECT(uids[i] == user && gids[i] == group, "user %d, group %d", uids[i], gids[i]);
    PROGRAM_EXPECT(getgroups(8, list) == 3, "%d supplementary groups", getgroups(8, list));
    for (int i = 0; i < 3; i++)
        PROGRAM_EXPECT(list[i] == groups[i], "group %d is %d", i, list[i]);
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2] = {{0}};
    PROGRAM_EXPECT(syscall(SYS_capget, &header, data) == 0, "capget");
    PROGRAM_EXPECT(data[0].effective == 1u << CAP_NET_BIND_SERVICE && data[1].effective == 0,
                   "capabilities %x", data[0].effective);
    PROGRAM_EXPECT(user == 0 || (setuid(0) != 0 && errno == EPERM), "root can be had again");
    errno = 0;
    return NULL;
}

int main(int argc, char **argv)
{
    program_begin(argc, argv);
    if (geteuid() != 0)
        program_skip("needs root to begin with");
    if (strcmp(program_arg(2, "user"), "groups") == 0)
        user = 0, group = 0;
    program_ok(chown(program_dir, user, group), "chown");
    program_ok(setgroups(3, groups), "setgroups");
    program_ok(setresgid(group, group, group), "setresgid");
    prctl(PR_SET_KEEPCAPS, 1);
    program_ok(setresuid(user, user, user), "setresuid");
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2] = {
        {.effective = 1u << CAP_NET_BIND_SERVICE, .permitted = 1u << CAP_NET_BIND_SERVICE}};
    program_ok(syscall(SYS_capset, &header, data), "capset");
    program_ok(prctl(PR_SET_DUMPABLE, 1), "PR_SET_DUMPABLE");
    program_serve(check);
}

/* Who may freeze and restore.
 *
 * Found by trying with CRIU 4.3, taking capabilities away one by one. Root needs what restoring a
 * process exactly as it was needs: namespaces and masks (SYS_ADMIN), the network state (NET_ADMIN),
 * the bounding set (SETPCAP), the root folder (SYS_CHROOT), the clocks (SYS_TIME), and other
 * processes' memory and page faults (SYS_PTRACE). Another user gets along with CHECKPOINT_RESTORE,
 * for its own processes, and SYS_PTRACE for the page faults; but CRIU then can't cut the restored
 * process's bounding set, so the set must not be cut to begin with (containers cut it). */
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clean.h"
#include "base/fs.h"
#include "proc/host.h"
#include "proc/host_private.h"

#ifndef CAP_CHECKPOINT_RESTORE
#define CAP_CHECKPOINT_RESTORE 40
#endif

struct capability {
    int number;
    const char *name;
};

static const struct capability root_needs[] = {
    {CAP_SYS_ADMIN, "CAP_SYS_ADMIN"},   {CAP_SYS_PTRACE, "CAP_SYS_PTRACE"},
    {CAP_NET_ADMIN, "CAP_NET_ADMIN"},   {CAP_SETPCAP, "CAP_SETPCAP"},
    {CAP_SYS_CHROOT, "CAP_SYS_CHROOT"}, {CAP_SYS_TIME, "CAP_SYS_TIME"},
};
static const struct capability user_needs[] = {
    {CAP_CHECKPOINT_RESTORE, "CAP_CHECKPOINT_RESTORE"},
    {CAP_SYS_PTRACE, "CAP_SYS_PTRACE"},
};
/* For workers of other users, and for limits above the hard ones. */
static const struct capability root_optional[] = {
    {CAP_SYS_RESOURCE, "CAP_SYS_RESOURCE"},
    {CAP_DAC_OVERRIDE, "CAP_DAC_OVERRIDE"},
    {CAP_SETUID, "CAP_SETUID"},
    {CAP_SETGID, "CAP_SETGID"},
    {CAP_KILL, "CAP_KILL"},
    {CAP_CHOWN, "CAP_CHOWN"},
    {CAP_FOWNER, "CAP_FOWNER"},
    {CAP_NET_RAW, "CAP_NET_RAW"},
};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* The effective set as bits. */
static uint64_t effective(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2] = {{0}};
    if (syscall(SYS_capget, &header, data) != 0)
        return 0;
    return (uint64_t)data[1].effective << 32 | data[0].effective;
}

static void list_missing(uint64_t set, const struct capability *wanted, size_t count, char *out,
                         size_t size)
{
    size_t used = 0;
    out[0] = '\0';
    for (size_t i = 0; i < count; i++)
        if ((set >> wanted[i].number & 1) == 0 && used + strlen(wanted[i].name) + 3 < size)
            used += (size_t)snprintf(out + used, size - used, "%s%s", used != 0 ? ", " : "",
                                     wanted[i].name);
}

void rewarm_host_privileges(struct rewarm_privileges *ret_privileges)
{
    uint64_t set = effective();
    struct rewarm_privileges privileges = {
        .root = geteuid() == 0,
        .resource = set >> CAP_SYS_RESOURCE & 1,
        .trace = set >> CAP_SYS_PTRACE & 1,
    };
    /* SYS_ADMIN includes CHECKPOINT_RESTORE. */
    if (set >> CAP_SYS_ADMIN & 1)
        set |= 1ull << CAP_CHECKPOINT_RESTORE;
    if (privileges.root)
        list_missing(set, root_needs, COUNT(root_needs), privileges.missing,
                     sizeof(privileges.missing));
    else
        list_missing(set, user_needs, COUNT(user_needs), privileges.missing,
                     sizeof(privileges.missing));
    if (privileges.root)
        list_missing(set, root_optional, COUNT(root_optional), privileges.optional,
                     sizeof(privileges.optional));
    for (unsigned long number = 0;; number++) {
        int present = prctl(PR_CAPBSET_READ, number, 0, 0, 0);
        if (present < 0)
            break; /* the kernel knows no more */
        privileges.bounding_cut = privileges.bounding_cut || present == 0;
    }
    *ret_privileges = privileges;
}

bool rewarm_host_read_number(const char *path, uint64_t *ret_value)
{
    rewarm_auto_free char *text = NULL;
    if (rewarm_fs_read_file(AT_FDCWD, path, 4096, &text, NULL, NULL) != 0)
        return false;
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (end == text || errno != 0)
        return false;
    *ret_value = value;
    return true;
}

int rewarm_host_check_privileges(struct rewarm_error *err)
{
    struct rewarm_privileges privileges;
    rewarm_host_privileges(&privileges);
    if (privileges.root && privileges.missing[0] != '\0')
        return rewarm_error_set(err, REWARM_E_PERMISSION, 0,
                                "root lacks %s here (a container?), which freezing and restoring "
                                "need: run rewarm with them",
                                privileges.missing);
    if (privileges.missing[0] != '\0')
        return rewarm_error_set(
            err, REWARM_E_PERMISSION, 0,
            "user %u lacks %s, which freezing and restoring need: run rewarm as "
            "root, or with them (setpriv --inh-caps and --ambient-caps)",
            (unsigned)geteuid(), privileges.missing);
    if (!privileges.root && privileges.bounding_cut)
        return rewarm_error_set(err, REWARM_E_PERMISSION, 0,
                                "the capability bounding set here is cut, and CRIU can't "
                                "restore under it for user %u: run rewarm as root",
                                (unsigned)geteuid());
    uint64_t pipe_bytes = 0;
    if (!privileges.root && !privileges.resource &&
        (!rewarm_host_read_number("/proc/sys/fs/pipe-max-size", &pipe_bytes) ||
         pipe_bytes < REWARM_PIPE_BYTES))
        return rewarm_error_set(
            err, REWARM_E_PERMISSION, 0,
            "user %u lacks CAP_SYS_RESOURCE and pipes may have only %llu bytes: "
            "have root set `sysctl fs.pipe-max-size=%u`, or run rewarm as root",
            (unsigned)geteuid(), (unsigned long long)pipe_bytes, REWARM_PIPE_BYTES);
    return 0;
}

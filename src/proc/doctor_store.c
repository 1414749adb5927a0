/* What `rewarm doctor` says about the store's folder, which need not exist yet: then the nearest
 * folder above it is looked at, where it would be made. */
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/clean.h"
#include "base/str.h"
#include "proc/doctor_private.h"

enum {
    DIRECT_BYTES = 4096,
    OTHERS_BITS = 077,
};

#define XFS_MAGIC    0x58465342
#define FUSE_MAGIC   0x65735546
#define ZFS_MAGIC    0x2fc12fc1
#define CIFS_MAGIC   0xff534d42
#define SMB2_MAGIC   0xfe534d42
#define EROFS_MAGIC  0xe0f5e1e2
#define BCACHE_MAGIC 0xca451a4e

/* The store's folder, or the nearest one above it that exists. Free it. */
static char *nearest_folder(const char *store_path)
{
    char *path = rewarm_str_dup(store_path);
    struct stat st;
    while (stat(path, &st) != 0) {
        char *slash = strrchr(path, '/');
        if (slash == NULL)
            strcpy(path, ".");
        else if (slash == path)
            path[1] = '\0';
        else
            *slash = '\0';
        if (slash == NULL || slash == path)
            break;
    }
    return path;
}

void rewarm_doctor_check_store(const char *store_path, struct rewarm_doctor_line *line)
{
    rewarm_auto_free char *folder = nearest_folder(store_path);
    bool exists = strcmp(folder, store_path) == 0;
    struct stat st;
    if (stat(folder, &st) != 0 || !S_ISDIR(st.st_mode)) {
        rewarm_doctor_say(line, REWARM_DOCTOR_BAD, "%.200s is not a folder", folder);
        rewarm_doctor_advise(line, "name another with REWARM_STORE");
    } else if (faccessat(AT_FDCWD, folder, W_OK | X_OK, AT_EACCESS) != 0) {
        rewarm_doctor_say(line, REWARM_DOCTOR_BAD, "%.160s: %s", folder, strerror(errno));
        rewarm_doctor_advise(line, "make it writable for this user, or name another with "
                                   "REWARM_STORE");
    } else if (!exists) {
        rewarm_doctor_say(line, REWARM_DOCTOR_OK, "%.200s (will be made)", store_path);
    } else if (st.st_uid != geteuid()) {
        rewarm_doctor_say(line, REWARM_DOCTOR_WARN, "%.160s belongs to user %u", folder,
                          (unsigned)st.st_uid);
        rewarm_doctor_advise(line, "its owner can read and change what is restored from it");
    } else if ((st.st_mode & OTHERS_BITS) != 0) {
        rewarm_doctor_say(line, REWARM_DOCTOR_WARN, "%.160s has mode %04o", folder,
                          (unsigned)st.st_mode & 07777);
        rewarm_doctor_advise(line, "snapshots are memory, secrets included: chmod 700");
    } else {
        rewarm_doctor_say(line, REWARM_DOCTOR_OK, "%.200s, mode %04o", folder,
                          (unsigned)st.st_mode & 07777);
    }
}

static const char *file_system_name(unsigned long type)
{
    static const struct {
        unsigned long type;
        const char *name;
    } names[] = {
        {EXT4_SUPER_MAGIC, "ext4"},   {XFS_MAGIC, "xfs"},
        {BTRFS_SUPER_MAGIC, "btrfs"}, {TMPFS_MAGIC, "tmpfs"},
        {RAMFS_MAGIC, "ramfs"},       {OVERLAYFS_SUPER_MAGIC, "overlayfs"},
        {NFS_SUPER_MAGIC, "nfs"},     {CIFS_MAGIC, "cifs"},
        {SMB2_MAGIC, "smb"},          {FUSE_MAGIC, "fuse"},
        {ZFS_MAGIC, "zfs"},           {F2FS_SUPER_MAGIC, "f2fs"},
        {EROFS_MAGIC, "erofs"},       {BCACHE_MAGIC, "bcachefs"},
    };
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (names[i].type == type)
            return names[i].name;
    return NULL;
}

void rewarm_doctor_check_space(const char *store_path, struct rewarm_doctor_line *line)
{
    rewarm_auto_free char *folder = nearest_folder(store_path);
    struct statfs fs;
    if (statfs(folder, &fs) != 0) {
        rewarm_doctor_say(line, REWARM_DOCTOR_BAD, "%.160s: %s", folder, strerror(errno));
        rewarm_doctor_advise(line, "name another folder with REWARM_STORE");
        return;
    }
    unsigned long type = (unsigned long)fs.f_type;
    uint64_t free_bytes = (uint64_t)fs.f_bavail * (uint64_t)fs.f_bsize;
    char human[REWARM_STR_HUMAN], number[32];
    const char *name = file_system_name(type);
    if (name == NULL) {
        snprintf(number, sizeof(number), "type 0x%lx", type);
        name = number;
    }
    bool volatile_memory = type == TMPFS_MAGIC || type == RAMFS_MAGIC;
    bool little = free_bytes < 1ull << 30;
    rewarm_doctor_say(line, volatile_memory || little ? REWARM_DOCTOR_WARN : REWARM_DOCTOR_OK,
                      "%s free on %s", rewarm_str_bytes(free_bytes, human), name);
    if (little)
        rewarm_doctor_advise(line, "a snapshot takes up to what its worker has in memory");
    else if (volatile_memory)
        rewarm_doctor_advise(line, "snapshots here end with the machine: name a disk with "
                                   "REWARM_STORE to keep them");
}

/* Writes and reads a block of a file without a name, past the page cache. Returns 0 or errno. */
static int try_direct(const char *folder)
{
    rewarm_auto_fd int fd = open(folder, O_TMPFILE | O_RDWR | O_DIRECT | O_CLOEXEC, 0600);
    if (fd < 0)
        return errno;
    void *block =
        mmap(NULL, DIRECT_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block == MAP_FAILED)
        return errno;
    memset(block, 1, DIRECT_BYTES);
    int result = 0;
    if (pwrite(fd, block, DIRECT_BYTES, 0) != DIRECT_BYTES ||
        pread(fd, block, DIRECT_BYTES, 0) != DIRECT_BYTES)
        result = errno != 0 ? errno : EIO;
    munmap(block, DIRECT_BYTES);
    return result;
}

void rewarm_doctor_check_direct(const char *store_path, struct rewarm_doctor_line *line)
{
    rewarm_auto_free char *folder = nearest_folder(store_path);
    errno = 0;
    int result = try_direct(folder);
    if (result == 0) {
        rewarm_doctor_say(line, REWARM_DOCTOR_OK, "O_DIRECT works");
        return;
    }
    if (result == EACCES || result == EPERM || result == EROFS) {
        rewarm_doctor_say(line, REWARM_DOCTOR_WARN, "could not be tried (%s)", strerror(result));
        rewarm_doctor_advise(line, "see the line about the store");
        return;
    }
    rewarm_doctor_say(line, REWARM_DOCTOR_WARN, "no O_DIRECT (%s)", strerror(result));
    rewarm_doctor_advise(line, "reads and writes go through the page cache: more memory and CPU "
                               "time for the same bytes");
}

#include "snapshot/limits.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/syscall.h>

#include "base/clean.h"
#include "base/fs.h"
#include "base/log.h"
#include "base/str.h"

#define PIPE_MAX_SIZE "/proc/sys/fs/pipe-max-size"
#define OLD_VALUE     "/run/rewarm-pipe-max-size"

/* CRIU sets one pipe per 32768 pages or so; 8 MiB is refused in practice, 32 MiB never was (tried
 * with CRIU 4.3).
 */
static const uint64_t wanted_bytes = 32u << 20;

/* CAP_SYS_RESOURCE lifts the limit for a process: then nothing is to be raised. */
static bool may_exceed(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2] = {0};
    return syscall(SYS_capget, &header, data) == 0 &&
           (data[0].effective & CAP_TO_MASK(CAP_SYS_RESOURCE)) != 0;
}

static bool read_number(int dirfd, const char *path, uint64_t *ret_value)
{
    char *text = NULL;
    if (rewarm_fs_read_file(dirfd, path, 64, &text, NULL, NULL) != 0)
        return false;
    text[strcspn(text, "\n")] = '\0';
    bool good = rewarm_str_to_u64(text, ret_value);
    free(text);
    return good;
}

static bool write_number(const char *path, uint64_t value)
{
    rewarm_auto_fd int fd = open(path, O_WRONLY | O_CLOEXEC);
    rewarm_auto_free char *text = rewarm_str_format("%llu", (unsigned long long)value);
    return fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
}

/* The limit is the host's, whatever RUN folder a freeze works in: so is the lock, which is on the
 * file of the limit itself, and the note of what it was before. */
static int open_lock(void)
{
    return open(PIPE_MAX_SIZE, O_RDONLY | O_CLOEXEC);
}

/* With the lock held exclusively: notes the old value, unless one is noted, and raises. */
static int raise_locked(uint64_t now, struct rewarm_error *err)
{
    uint64_t noted = 0;
    if (!read_number(AT_FDCWD, OLD_VALUE, &noted)) {
        /* In place, as we have the lock: one that was cut short says that nothing was raised yet.
         */
        rewarm_auto_free char *text = rewarm_str_format("%llu\n", (unsigned long long)now);
        rewarm_auto_fd int fd =
            open(OLD_VALUE, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (fd < 0)
            return rewarm_error_errno(err, "creating %s", OLD_VALUE);
        int result = rewarm_fs_write_full(fd, text, strlen(text), OLD_VALUE, err);
        if (result != 0)
            return result;
    }
    if (!write_number(PIPE_MAX_SIZE, wanted_bytes)) {
        rewarm_error_errno(err, "raising %s from %llu to %llu", PIPE_MAX_SIZE,
                           (unsigned long long)now, (unsigned long long)wanted_bytes);
        return rewarm_error_wrap(err, "CRIU's pipes need it, or CAP_SYS_RESOURCE");
    }
    return 0;
}

int rewarm_limits_raise(struct rewarm_limits *limits, struct rewarm_error *err)
{
    uint64_t now = 0;
    if (may_exceed())
        return 0;
    rewarm_auto_fd int fd = open_lock();
    if (fd < 0)
        return rewarm_error_errno(err, "opening the lock of %s", PIPE_MAX_SIZE);
    /* Turning an exclusive flock into a shared one is not atomic: look again once it is shared. */
    for (;;) {
        if (flock(fd, LOCK_SH) != 0)
            return rewarm_error_errno(err, "locking the limit %s", PIPE_MAX_SIZE);
        if (!read_number(AT_FDCWD, PIPE_MAX_SIZE, &now))
            return rewarm_error_set(err, REWARM_E_SYSTEM, 0, "can't read %s", PIPE_MAX_SIZE);
        if (now >= wanted_bytes)
            break;
        if (flock(fd, LOCK_EX) != 0)
            return rewarm_error_errno(err, "locking the limit %s", PIPE_MAX_SIZE);
        int result = raise_locked(now, err);
        if (result != 0)
            return result;
    }
    limits->lock_fd = rewarm_steal_fd(&fd);
    return 0;
}

static int put_back(int fd)
{
    uint64_t old = 0;
    if (flock(fd, LOCK_EX | LOCK_NB) != 0)
        return 0; /* others still need it raised */
    if (read_number(AT_FDCWD, OLD_VALUE, &old) && !write_number(PIPE_MAX_SIZE, old))
        rewarm_warn("can't set %s back to %llu", PIPE_MAX_SIZE, (unsigned long long)old);
    return unlink(OLD_VALUE) == 0;
}

void rewarm_limits_restore(struct rewarm_limits *limits)
{
    if (limits->lock_fd < 0)
        return;
    put_back(limits->lock_fd);
    close(limits->lock_fd);
    limits->lock_fd = -1;
}

int rewarm_limits_repair(void)
{
    if (access(OLD_VALUE, F_OK) != 0)
        return 0;
    rewarm_auto_fd int fd = open_lock();
    return fd >= 0 ? put_back(fd) : 0;
}

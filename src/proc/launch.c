#include "proc/launch.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The three calls have these numbers on every architecture that Linux numbers alike from 424 on:
 * x86-64, its 32-bit mode, arm64, riscv, so the filter does not ask which. x32 adds a bit, taken
 * off first. */
enum { IO_URING_FIRST = 425, IO_URING_LAST = 427 };
#define X32_BIT 0x40000000u

_Static_assert(SYS_io_uring_setup == IO_URING_FIRST, "the common system call number");
_Static_assert(SYS_io_uring_register == IO_URING_LAST, "the common system call number");

int rewarm_launch_deny_io_uring(struct rewarm_error *err)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_STMT(BPF_ALU | BPF_AND | BPF_K, ~X32_BIT),
        BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, IO_URING_FIRST, 0, 2),
        BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, IO_URING_LAST, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    const struct sock_fprog program = {sizeof(code) / sizeof(code[0]), code};
    /* SPEC_ALLOW: before Linux 5.16 a filter otherwise turns on a mitigation (SSBD) that slows down
     * everything the worker does, for a filter that isn't there to confine it. */
    unsigned flags = SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program) == 0)
        return 0;
    if (errno == EACCES && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
        syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program) == 0)
        return 0;
    return rewarm_error_errno(err, "can't turn io_uring off for the worker");
}

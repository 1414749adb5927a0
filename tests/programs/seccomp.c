/* seccomp DIR: a filter that answers one call with ENOSYS (as `rewarm run` does for io_uring), put
 * on two threads, and no_new_privs. It must hold after a restore. */
#include "program.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static atomic_ulong rounds;
static atomic_int thread_errno;

static int blocked_call(void)
{
    errno = 0;
    syscall(SYS_io_uring_setup, 1, NULL);
    int code = errno;
    errno = 0;
    return code;
}

static void *run(void *argument)
{
    (void)argument;
    for (;;) {
        atomic_store(&thread_errno, blocked_call());
        atomic_fetch_add(&rounds, 1);
        usleep(2000);
    }
    return NULL;
}

static const char *check(void)
{
    int code = blocked_call();
    PROGRAM_EXPECT(code == ENOSYS, "the main thread got errno %d", code);
    unsigned long before = atomic_load(&rounds);
    uint64_t end = program_now_ms() + 3000;
    while (atomic_load(&rounds) < before + 2 && program_now_ms() < end)
        usleep(1000);
    code = atomic_load(&thread_errno);
    errno = 0;
    PROGRAM_EXPECT(atomic_load(&rounds) >= before + 2, "the other thread stands still");
    PROGRAM_EXPECT(code == ENOSYS, "the other thread got errno %d", code);
    PROGRAM_EXPECT(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1, "no_new_privs is lost");
    return NULL;
}

int main(int argc, char **argv)
{
    program_begin(argc, argv);
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = {.len = sizeof(code) / sizeof(code[0]), .filter = code};
    program_ok(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS");
    pthread_t thread;
    if (pthread_create(&thread, NULL, run, NULL) != 0)
        program_die("pthread_create");
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &filter) != 0)
        program_skip("no seccomp filters");
    program_serve(check);
}

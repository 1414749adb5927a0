/* Preflight: a real process in each state that is refused, and in each that is not. */
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/perf_event.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <mqueue.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/shm.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "base/clean.h"
#include "base/time.h"
#include "proc/preflight_private.h"
#include "proc/procfs.h"

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif

/* Each brings a fresh process into a state; false when this machine can't do it (errno says why).
 * What is opened stays open on purpose. */

static pid_t tester;              /* the test program, outside the tree */
static char outer_pty[64];        /* a terminal whose master side only the test program holds */
static struct sockaddr_un keeper; /* where the test program listens and accepts nobody: what is sent
                                     there stays in the queue, descriptors too */
static socklen_t keeper_bytes;

static bool nothing(void)
{
    return true;
}

static bool harmless_objects(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    int watch = inotify_init1(0);
    return eventfd(1, 0) >= 0 && epoll_create1(0) >= 0 && timerfd_create(CLOCK_MONOTONIC, 0) >= 0 &&
           signalfd(-1, &set, 0) >= 0 && inotify_add_watch(watch, "/tmp", IN_CREATE) >= 0 &&
           memfd_create("x", 0) >= 0 && pidfd_open(getpid(), 0) >= 0;
}

static bool harmless_files(void)
{
    static const char *const devices[] = {"/dev/null", "/dev/zero", "/dev/full", "/dev/random",
                                          "/dev/urandom"};
    int ends[2];
    for (size_t i = 0; i < sizeof(devices) / sizeof(devices[0]); i++)
        if (open(devices[i], O_RDONLY) < 0)
            return false;
    return pipe(ends) == 0 && open("/tmp", O_RDONLY | O_DIRECTORY) >= 0 &&
           open("/dev/zero", O_PATH) >= 0 && open("/proc/self/status", O_RDONLY) >= 0 &&
           open("/proc/self/ns/net", O_RDONLY) >= 0 && open("/tmp", O_TMPFILE | O_RDWR, 0600) >= 0;
}

static bool harmless_sockets(void)
{
    int pair[2];
    return socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0 &&
           socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) == 0 &&
           socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) == 0 &&
           socket(AF_INET, SOCK_STREAM, 0) >= 0 && socket(AF_INET6, SOCK_STREAM, 0) >= 0 &&
           socket(AF_INET, SOCK_DGRAM, 0) >= 0 && socket(AF_NETLINK, SOCK_RAW, 0) >= 0;
}

static bool raw_sockets(void)
{
    return socket(AF_INET, SOCK_RAW, IPPROTO_ICMP) >= 0 && socket(AF_PACKET, SOCK_RAW, 0) >= 0;
}

static bool own_pty(void)
{
    int master = posix_openpt(O_RDWR | O_NOCTTY);
    if (master < 0 || grantpt(master) != 0 || unlockpt(master) != 0)
        return false;
    int slave = open(ptsname(master), O_RDWR | O_NOCTTY);
    return slave >= 0 && ioctl(slave, TIOCSCTTY, 0) == 0 && open("/dev/tty", O_RDWR) >= 0;
}

static bool foreign_pty(void)
{
    return open(outer_pty, O_RDWR | O_NOCTTY) >= 0;
}

static bool foreign_controlling_tty(void)
{
    int slave = open(outer_pty, O_RDWR | O_NOCTTY);
    if (slave < 0 || ioctl(slave, TIOCSCTTY, 0) != 0)
        return false;
    close(slave);
    return open("/dev/tty", O_RDWR) >= 0;
}

static bool zombie_child(void)
{
    pid_t pid = fork();
    if (pid == 0)
        _exit(0);
    siginfo_t info;
    return waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT) == 0;
}

static long setup_ring(void)
{
    char params[120] = {0};
    return syscall(SYS_io_uring_setup, 4, params);
}

static bool io_uring(void)
{
    return setup_ring() >= 0;
}

/* The descriptor is closed, the mapping stays. */
static bool io_uring_mapping(void)
{
    int ring = (int)setup_ring();
    if (ring < 0)
        return false;
    void *map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, 0);
    close(ring);
    return map != MAP_FAILED;
}

static bool io_uring_in_grandchild(void)
{
    pid_t pid = fork();
    if (pid != 0) {
        siginfo_t info; /* it stops itself when it is ready */
        return pid > 0 && waitid(P_PID, (id_t)pid, &info, WSTOPPED | WEXITED | WNOWAIT) == 0 &&
               info.si_code == CLD_STOPPED;
    }
    if (setup_ring() < 0)
        _exit(1);
    raise(SIGSTOP);
    for (;;)
        pause();
}

static bool user_faults(void)
{
    return syscall(SYS_userfaultfd, 0) >= 0;
}

/* Sends a descriptor to the test program and forgets it. */
static bool give_away(int fd)
{
    int connection = socket(AF_UNIX, SOCK_STREAM, 0);
    char byte = 0;
    struct iovec part = {&byte, 1};
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {{0}};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof(control)};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &fd, sizeof(fd));
    return connection >= 0 && connect(connection, (struct sockaddr *)&keeper, keeper_bytes) == 0 &&
           sendmsg(connection, &message, 0) == 1 && close(connection) == 0 && close(fd) == 0;
}

/* What the worker of a lazy restore looks like: somebody else answers its page faults. */
static bool memory_comes_in(void)
{
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
    struct uffdio_api api = {.api = UFFD_API};
    void *memory = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct uffdio_register range = {.range = {(uintptr_t)memory, 1 << 20},
                                    .mode = UFFDIO_REGISTER_MODE_MISSING};
    return fd >= 0 && memory != MAP_FAILED && ioctl(fd, UFFDIO_API, &api) == 0 &&
           ioctl(fd, UFFDIO_REGISTER, &range) == 0 && give_away(fd);
}

static bool semaphore_eventfd(void)
{
    return eventfd(1, EFD_SEMAPHORE) >= 0;
}

/* This program again, as `criu dump` that holds its parent. */
static bool held_by_criu(void)
{
    int ends[2];
    if (pipe(ends) != 0)
        return false;
    pid_t pid = fork();
    if (pid == 0) {
        dup2(ends[1], 3);
        execl("/proc/self/exe", "/lib/ld.so", "/opt/criu", "dump", (char *)NULL);
        _exit(70);
    }
    close(ends[1]);
    char ok = 0;
    bool held = pid > 0 && read(ends[0], &ok, 1) == 1 && ok;
    close(ends[0]);
    return held;
}

static int play_criu(void)
{
    char ok = ptrace(PTRACE_SEIZE, getppid(), NULL, NULL) == 0;
    if (write(3, &ok, 1) != 1)
        return 70;
    close(3);
    for (;;)
        pause();
}

static bool own_time_namespace(void)
{
    if (unshare(CLONE_NEWTIME) != 0)
        return false;
    pid_t pid = fork(); /* the child is in it; the parent's children will be */
    if (pid == 0)
        for (;;)
            pause();
    return pid > 0;
}

static bool other_user(void)
{
    return setresgid(54322, 54322, 54322) == 0 && setresuid(54321, 54321, 54321) == 0;
}

static bool perf(void)
{
    struct perf_event_attr attr = {
        .type = PERF_TYPE_SOFTWARE, .size = sizeof(attr), .config = PERF_COUNT_SW_TASK_CLOCK};
    return syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0) >= 0;
}

static bool bpf_map(void)
{
    union bpf_attr attr = {
        .map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 8, .max_entries = 1};
    return syscall(SYS_bpf, BPF_MAP_CREATE, &attr, sizeof(attr)) >= 0;
}

static bool seccomp_listener(void)
{
    struct sock_filter code = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = {1, &code};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER,
                   &program) >= 0;
}

static bool foreign_pidfd(void)
{
    return pidfd_open(tester, 0) >= 0;
}

static bool packet_pipe(void)
{
    int ends[2];
    return pipe2(ends, O_DIRECT) == 0;
}

static bool fuse_device(void)
{
    return open("/dev/fuse", O_RDWR) >= 0;
}

static bool loop_device(void)
{
    return open("/dev/loop-control", O_RDWR) >= 0;
}

static bool block_device(void)
{
    return open("/dev/loop0", O_RDONLY) >= 0;
}

static bool vsock(void)
{
    return socket(AF_VSOCK, SOCK_STREAM, 0) >= 0;
}

static bool xdp(void)
{
    return socket(AF_XDP, SOCK_RAW, 0) >= 0;
}

static bool mptcp(void)
{
    return socket(AF_INET, SOCK_STREAM, IPPROTO_MPTCP) >= 0;
}

static bool netlink_data(void)
{
    int fd = socket(AF_NETLINK, SOCK_RAW, 0);
    struct {
        unsigned length;
        unsigned short type, flags;
        unsigned sequence, pid;
        unsigned char body[16];
    } request = {.length = sizeof(request), .type = 18 /* RTM_GETLINK */, .flags = 0x301};
    struct pollfd item = {.fd = fd, .events = POLLIN};
    return fd >= 0 && send(fd, &request, sizeof(request), 0) > 0 && poll(&item, 1, 5000) == 1;
}

static bool message_queue(void)
{
    char name[64];
    snprintf(name, sizeof(name), "/rewarm-test-%d", (int)getpid());
    mqd_t queue = mq_open(name, O_CREAT | O_RDWR, 0600, NULL);
    if (queue == (mqd_t)-1)
        return false;
    mq_unlink(name);
    return true;
}

static bool secret_memory(void)
{
    return syscall(SYS_memfd_secret, 0) >= 0;
}

static bool system_v_memory(void)
{
    int id = shmget(IPC_PRIVATE, 8192, IPC_CREAT | 0600);
    if (id < 0)
        return false;
    bool attached = shmat(id, NULL, 0) != (void *)-1;
    shmctl(id, IPC_RMID, NULL);
    return attached;
}

static bool traced_child(void)
{
    pid_t pid = fork();
    if (pid == 0)
        for (;;)
            pause();
    return ptrace(PTRACE_SEIZE, pid, NULL, NULL) == 0;
}

static bool other_mount_namespace(void)
{
    return unshare(CLONE_NEWNS) == 0;
}

static bool other_network_namespace(void)
{
    return unshare(CLONE_NEWNET) == 0;
}

static bool other_user_namespace(void)
{
    return unshare(CLONE_NEWUSER) == 0;
}

static bool nested_uts_namespace(void)
{
    int ends[2];
    if (pipe(ends) != 0)
        return false;
    pid_t pid = fork();
    if (pid == 0) {
        char ok = unshare(CLONE_NEWUTS) == 0;
        if (write(ends[1], &ok, 1) != 1)
            _exit(70);
        for (;;)
            pause();
    }
    char ok = 0;
    return read(ends[0], &ok, 1) == 1 && ok;
}

static void *sleep_in_thread(void *context)
{
    (void)context;
    for (;;)
        pause();
    return NULL;
}

static bool main_thread_ended(void)
{
    pid_t pid = fork();
    if (pid == 0) {
        pthread_t thread;
        pthread_create(&thread, NULL, sleep_in_thread, NULL);
        syscall(SYS_exit, 0);
    }
    struct rewarm_proc_stat stat;
    for (int i = 0; i < 10000 && pid > 0; i++) {
        if (rewarm_proc_stat(pid, &stat, NULL) == 0 && stat.state == 'Z' && stat.threads > 1)
            return true;
        sched_yield();
    }
    return false;
}

struct trial {
    const char *name;
    bool (*set_up)(void);
    const char *words; /* NULL: must pass; else must be refused with these words */
};

static const struct trial trials[] = {
    {"nothing", nothing, NULL},
    {"harmless objects", harmless_objects, NULL},
    {"harmless files", harmless_files, NULL},
    {"harmless sockets", harmless_sockets, NULL},
    {"raw sockets", raw_sockets, NULL},
    {"own pty", own_pty, NULL},
    {"zombie", zombie_child, NULL},
    {"time namespace", own_time_namespace, NULL},
    {"semaphore eventfd", semaphore_eventfd, "EFD_SEMAPHORE"},
    {"foreign pty", foreign_pty, "terminal"},
    {"foreign /dev/tty", foreign_controlling_tty, "terminal"},
    {"io_uring", io_uring, "descriptor 4 (anon_inode:[io_uring])"},
    {"io_uring mapping", io_uring_mapping, "mapping anon_inode:[io_uring]"},
    {"io_uring in a grandchild", io_uring_in_grandchild, "rewarm run"},
    {"userfaultfd", user_faults, "page faults"},
    {"perf", perf, "perf events"},
    {"bpf", bpf_map, "BPF"},
    {"seccomp listener", seccomp_listener, "seccomp listener"},
    {"foreign pidfd", foreign_pidfd, "outside the tree"},
    {"packet pipe", packet_pipe, "packet mode"},
    {"fuse", fuse_device, "(/dev/fuse): this device"},
    {"loop control", loop_device, "this device"},
    {"block device", block_device, "block device"},
    {"vsock", vsock, "vsock"},
    {"xdp", xdp, "AF_XDP"},
    {"mptcp", mptcp, "Multipath"},
    {"netlink data", netlink_data, "unread data"},
    {"message queue", message_queue, "message queues"},
    {"secret memory", secret_memory, "secret memory"},
    {"SysV shared memory", system_v_memory, "System V"},
    {"traced child", traced_child, "traced by"},
    {"mount namespace", other_mount_namespace, "another mnt namespace"},
    {"network namespace", other_network_namespace, "another net namespace"},
    {"user namespace", other_user_namespace, "another user namespace"},
    {"nested uts namespace", nested_uts_namespace, "another uts namespace"},
    {"main thread ended", main_thread_ended, "main thread has ended"},
};

static pid_t start(const struct trial *trial, int *ret_errno)
{
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    pid_t pid = fork();
    if (pid == 0) {
        setsid();
        int null_fd = open("/dev/null", O_RDWR);
        for (int fd = 0; fd < 3; fd++)
            dup2(null_fd, fd);
        dup2(ends[1], 3); /* the only other descriptor, so that numbers are known */
        syscall(SYS_close_range, 4u, ~0u, 0);
        errno = 0;
        int code = trial->set_up() ? 0 : (errno != 0 ? errno : -1);
        if (write(3, &code, sizeof(code)) != sizeof(code))
            _exit(70);
        for (;;)
            pause();
    }
    close(ends[1]);
    assert_int_equal(read(ends[0], ret_errno, sizeof(*ret_errno)), sizeof(*ret_errno));
    close(ends[0]);
    return pid;
}

static void end(pid_t pid)
{
    struct rewarm_proc_stat stat;
    assert_int_equal(rewarm_proc_stat(pid, &stat, NULL), 0);
    assert_int_equal(rewarm_proc_kill_tree(pid, stat.starttime,
                                           rewarm_time_now_ns() + 10 * REWARM_NS_PER_S, NULL),
                     0);
    while (waitpid(-1, NULL, 0) > 0) /* the tree's orphans are ours (subreaper) */
        ;
}

enum verdict { RIGHT, WRONG, SKIPPED };

static enum verdict judge(const struct trial *trial, enum rewarm_code refusal)
{
    int code;
    pid_t pid = start(trial, &code);
    if (code != 0) {
        print_message("skipped, not possible here: %s (%s)\n", trial->name, strerror(code));
        end(pid);
        return SKIPPED;
    }
    struct rewarm_error err = REWARM_ERROR_INIT;
    int result = rewarm_preflight_tree(pid, &err);
    bool right = trial->words == NULL
                     ? result == 0
                     : result == -(int)refusal && strstr(err.message, trial->words) != NULL;
    if (!right)
        print_message("%s: %d, %s\n", trial->name, result, err.message);
    end(pid);
    return right ? RIGHT : WRONG;
}

static void judges_real_processes(void **state)
{
    (void)state;
    unsigned verdicts[3] = {0};
    for (size_t i = 0; i < sizeof(trials) / sizeof(trials[0]); i++)
        verdicts[judge(&trials[i], REWARM_E_REFUSED)]++;
    assert_int_equal(verdicts[WRONG], 0);
    assert_true(verdicts[RIGHT] >= 10);
}

static void waits_for_others(void **state)
{
    (void)state;
    static const struct trial busy[] = {
        {"memory still coming in", memory_comes_in, "its memory is still coming in from a restore"},
        {"another freeze", held_by_criu, "another freeze of it is under way"},
    };
    for (size_t i = 0; i < sizeof(busy) / sizeof(busy[0]); i++)
        assert_int_not_equal(judge(&busy[i], REWARM_E_BUSY), WRONG);
}

static void names_the_missing_capability(void **state)
{
    (void)state;
    static const struct trial trial = {"another user", other_user, "CAP_SYS_RESOURCE"};
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct before[2], without[2];
    assert_int_equal(syscall(SYS_capget, &header, before), 0);
    memcpy(without, before, sizeof(before));
    without[0].effective &= ~(1u << CAP_SYS_RESOURCE);
    assert_int_equal(syscall(SYS_capset, &header, without), 0);
    enum verdict verdict = judge(&trial, REWARM_E_PERMISSION);
    assert_int_equal(syscall(SYS_capset, &header, before), 0);
    assert_int_not_equal(verdict, WRONG);
}

static void knows_the_flag_of_missing_memory(void **state)
{
    (void)state;
    static const char *const yes[] = {"VmFlags: rd wr mr um sd ", "VmFlags: um", "VmFlags: rd um"};
    static const char *const no[] = {
        "",          "VmFlags:",         "VmFlags: rd wr mr mw",
        "VmFlag",    "VmFlags: umx rd ", "VmFlags: rdum ",
        "VmFlagsum", "Rss: um",          "7f00-7f01 r--p /VmFlags: um "};
    for (size_t i = 0; i < sizeof(yes) / sizeof(yes[0]); i++)
        assert_true(rewarm_preflight_is_missing(yes[i], strlen(yes[i])));
    for (size_t i = 0; i < sizeof(no) / sizeof(no[0]); i++)
        assert_false(rewarm_preflight_is_missing(no[i], strlen(no[i])));
    assert_false(rewarm_preflight_is_missing(yes[1], strlen(yes[1]) - 1));
}

static void refuses_its_own_tree(void **state)
{
    (void)state;
    struct rewarm_error err = REWARM_ERROR_INIT;
    assert_int_equal(rewarm_preflight_tree(getpid(), &err), -REWARM_E_REFUSED);
    assert_non_null(strstr(err.message, "rewarm itself"));
    rewarm_error_clear(&err);
    assert_int_equal(rewarm_preflight_tree(getppid(), &err), -REWARM_E_REFUSED);
}

static void refuses_kernel_threads(void **state)
{
    (void)state;
    struct rewarm_proc_stat stat;
    if (rewarm_proc_stat(2, &stat, NULL) != 0 || strcmp(stat.comm, "kthreadd") != 0)
        skip(); /* a PID namespace without kernel threads */
    struct rewarm_error err = REWARM_ERROR_INIT;
    assert_int_equal(rewarm_preflight_tree(2, &err), -REWARM_E_REFUSED);
    assert_non_null(strstr(err.message, "kernel thread"));
}

static void misses_the_dead(void **state)
{
    (void)state;
    assert_int_equal(rewarm_preflight_tree(999999999, NULL), -REWARM_E_NOT_FOUND);
    pid_t pid = fork();
    if (pid == 0)
        _exit(0);
    siginfo_t info;
    assert_int_equal(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT), 0);
    assert_int_equal(rewarm_preflight_tree(pid, NULL), -REWARM_E_NOT_FOUND);
    waitpid(pid, NULL, 0);
}

static bool listen_as_keeper(void)
{
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    keeper_bytes = sizeof(keeper);
    keeper.sun_family = AF_UNIX; /* a name alone of this kind asks the kernel for a free one */
    return listener >= 0 &&
           bind(listener, (struct sockaddr *)&keeper, sizeof(keeper.sun_family)) == 0 &&
           listen(listener, 8) == 0 &&
           getsockname(listener, (struct sockaddr *)&keeper, &keeper_bytes) == 0;
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[2], "dump") == 0)
        return play_criu();
    tester = getpid();
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    int master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (master < 0 || grantpt(master) != 0 || unlockpt(master) != 0 ||
        ptsname_r(master, outer_pty, sizeof(outer_pty)) != 0 || !listen_as_keeper())
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(judges_real_processes),
        cmocka_unit_test(waits_for_others),
        cmocka_unit_test(names_the_missing_capability),
        cmocka_unit_test(knows_the_flag_of_missing_memory),
        cmocka_unit_test(refuses_its_own_tree),
        cmocka_unit_test(refuses_kernel_threads),
        cmocka_unit_test(misses_the_dead),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

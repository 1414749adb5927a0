/* Free ports, and ports that the kernel remembers, with real sockets on the loopback. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>
#include <linux/capability.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "proc/tcp_port.h"

static struct sockaddr_storage loopback(int family, uint16_t port)
{
    struct sockaddr_storage address = {0};
    if (family == AF_INET) {
        struct sockaddr_in *v4 = (void *)&address;
        *v4 = (struct sockaddr_in){.sin_family = AF_INET,
                                   .sin_port = htons(port),
                                   .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    } else {
        struct sockaddr_in6 *v6 = (void *)&address;
        *v6 = (struct sockaddr_in6){
            .sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    }
    return address;
}

static socklen_t size_of(const struct sockaddr_storage *address)
{
    return address->ss_family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
}

static uint16_t port_of(int fd)
{
    struct sockaddr_storage address;
    socklen_t bytes = sizeof(address);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&address, &bytes), 0);
    return ntohs(address.ss_family == AF_INET
                     ? ((struct sockaddr_in *)(void *)&address)->sin_port
                     : ((struct sockaddr_in6 *)(void *)&address)->sin6_port);
}

/* Bound as CRIU binds; -1 with errno. */
static int bound(const struct sockaddr_storage *address)
{
    int on = 1;
    int fd = socket(address->ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)), 0);
    if (bind(fd, (const struct sockaddr *)address, size_of(address)) == 0)
        return fd;
    int saved = errno;
    close(fd);
    errno = saved;
    return -1;
}

static bool has_family(int family)
{
    struct sockaddr_storage address = loopback(family, 0);
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool has = fd >= 0 && bind(fd, (struct sockaddr *)&address, size_of(&address)) == 0;
    if (fd >= 0)
        close(fd);
    return has;
}

/* A server without SO_REUSEADDR that closed its one connection first and then ended, or lives on.
 */
static struct sockaddr_storage remembered(int family, int *ret_listener)
{
    struct sockaddr_storage address = loopback(family, 0);
    int listener = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(listener >= 0);
    assert_int_equal(bind(listener, (struct sockaddr *)&address, size_of(&address)), 0);
    assert_int_equal(listen(listener, 1), 0);
    address = loopback(family, port_of(listener));
    int client = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(client, (struct sockaddr *)&address, size_of(&address)), 0);
    int server = accept(listener, NULL, NULL);
    assert_true(server >= 0);
    close(server);
    close(client);
    if (ret_listener != NULL)
        *ret_listener = listener;
    else
        close(listener);
    return address;
}

static void check_pick(int family)
{
    struct sockaddr_storage address = loopback(family, 1);
    uint16_t port = 0;
    assert_int_equal(rewarm_tcp_port_pick((struct sockaddr *)&address, &port), 0);
    assert_true(port > 1);
    address = loopback(family, port);
    int fd = bound(&address);
    assert_true(fd >= 0);
    close(fd);
}

static void test_pick(void **state)
{
    (void)state;
    check_pick(AF_INET);
    if (has_family(AF_INET6))
        check_pick(AF_INET6);
}

static void test_pick_foreign_address(void **state)
{
    (void)state;
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_addr.s_addr = htonl(0xC0000201)}; /* 192.0.2.1 */
    uint16_t port = 0;
    assert_int_equal(rewarm_tcp_port_pick((struct sockaddr *)&address, &port), 0);
    assert_true(port != 0);
    struct sockaddr unknown = {.sa_family = AF_NETLINK};
    assert_true(rewarm_tcp_port_pick(&unknown, &port) < 0);
}

/* Older kernels, and callers without CAP_NET_ADMIN, can't destroy what is remembered. */
static bool can_forget(void)
{
    struct utsname name;
    unsigned major = 0, minor = 0;
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2] = {{0}};
    assert_int_equal(uname(&name), 0);
    assert_int_equal(syscall(SYS_capget, &header, data), 0);
    return sscanf(name.release, "%u.%u", &major, &minor) == 2 && major * 100 + minor >= 612 &&
           (data[0].effective & CAP_TO_MASK(CAP_NET_ADMIN)) != 0;
}

static void check_forget(int family)
{
    struct sockaddr_storage address = remembered(family, NULL);
    assert_int_equal(bound(&address), -1);
    assert_int_equal(errno, EADDRINUSE);
    unsigned forgotten = rewarm_tcp_port_forget((struct sockaddr *)&address);
    if (forgotten == 0 && !can_forget())
        skip();
    assert_int_equal(forgotten, 1);
    int fd = bound(&address);
    assert_true(fd >= 0);
    close(fd);
    assert_int_equal(rewarm_tcp_port_forget((struct sockaddr *)&address), 0); /* nothing to do */
}

static void test_forget(void **state)
{
    (void)state;
    check_forget(AF_INET);
}

static void test_forget_v6(void **state)
{
    (void)state;
    if (!has_family(AF_INET6))
        skip();
    check_forget(AF_INET6);
}

/* What somebody uses is left as it is, with all that the kernel remembers of it. */
static void test_forget_not_the_living(void **state)
{
    (void)state;
    int listener = -1;
    struct sockaddr_storage address = remembered(AF_INET, &listener);
    assert_int_equal(rewarm_tcp_port_forget((struct sockaddr *)&address), 0);
    assert_int_equal(bound(&address), -1);
    close(listener);
    assert_int_equal(bound(&address), -1); /* the connection is still remembered */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pick),
        cmocka_unit_test(test_pick_foreign_address),
        cmocka_unit_test(test_forget),
        cmocka_unit_test(test_forget_v6),
        cmocka_unit_test(test_forget_not_the_living),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

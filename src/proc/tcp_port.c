/* Ports are tried by binding to them. Ended connections are found and destroyed through sock_diag
 * (what `ss -K` uses): the sockets of both families that have the port are listed, and unless one
 * of them has an owner (an inode), those without are destroyed one by one. */
#include "proc/tcp_port.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/clean.h"
#include "base/str.h"

static socklen_t size_of(const struct sockaddr *address)
{
    return address->sa_family == AF_INET6 ? sizeof(struct sockaddr_in6)
                                          : sizeof(struct sockaddr_in);
}

static uint16_t port_of(const struct sockaddr_storage *address)
{
    return ntohs(address->ss_family == AF_INET6
                     ? ((const struct sockaddr_in6 *)(const void *)address)->sin6_port
                     : ((const struct sockaddr_in *)(const void *)address)->sin_port);
}

/* A socket bound to `address`, or a negative errno. */
static int bound_socket(const struct sockaddr *address, bool share)
{
    rewarm_auto_fd int fd = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_TCP);
    static const int on = 1, off = 0;
    if (fd < 0)
        return -errno;
    if (address->sa_family == AF_INET6) /* for mapped addresses */
        (void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
    if (share) { /* as CRIU sets them before it binds */
        (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
        (void)setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof(on));
    }
    if (bind(fd, address, size_of(address)) != 0)
        return -errno;
    return rewarm_steal_fd(&fd);
}

int rewarm_tcp_port_pick(const struct sockaddr *address, uint16_t *ret_port)
{
    struct sockaddr_storage any = {.ss_family = address->sa_family};
    struct sockaddr_storage wanted = {0};
    memcpy(&wanted, address, size_of(address));
    if (address->sa_family == AF_INET6)
        ((struct sockaddr_in6 *)(void *)&wanted)->sin6_port = 0;
    else
        ((struct sockaddr_in *)(void *)&wanted)->sin_port = 0;
    int bound = bound_socket((struct sockaddr *)&wanted, false);
    if (bound < 0) /* link-local without its interface, or an address of another host */
        bound = bound_socket((struct sockaddr *)&any, false);
    if (bound < 0)
        return bound;
    rewarm_auto_fd int fd = bound;
    socklen_t bytes = sizeof(wanted);
    if (getsockname(fd, (struct sockaddr *)&wanted, &bytes) != 0)
        return -errno;
    *ret_port = port_of(&wanted);
    return 0;
}

/* --- what the kernel remembers
 * ----------------------------------------------------------------------------------------------
 */

struct leftovers {
    struct inet_diag_req_v2 *requests; /* one for each ended connection */
    size_t count, capacity;
    bool owned; /* a socket with an owner has the port */
};

struct diag_request {
    struct nlmsghdr head;
    struct inet_diag_req_v2 body;
};

static bool send_request(int netlink, uint16_t type, uint16_t flags,
                         const struct inet_diag_req_v2 *body)
{
    struct diag_request request = {
        .head = {.nlmsg_len = sizeof(request), .nlmsg_type = type, .nlmsg_flags = flags},
        .body = *body};
    ssize_t sent;
    do {
        sent = send(netlink, &request, sizeof(request), 0);
    } while (sent < 0 && errno == EINTR);
    return sent == (ssize_t)sizeof(request);
}

static void note_socket(struct leftovers *found, const struct inet_diag_msg *socket)
{
    if (socket->idiag_inode != 0) {
        found->owned = true;
        return;
    }
    REWARM_GROW(&found->requests, &found->capacity, found->count);
    found->requests[found->count++] =
        (struct inet_diag_req_v2){.sdiag_family = socket->idiag_family,
                                  .sdiag_protocol = IPPROTO_TCP,
                                  .idiag_states = 1u << socket->idiag_state,
                                  .id = socket->id};
}

/* 1: more to come, 0: the end, -1: failed. */
static int take_answers(const char *buffer, size_t bytes, uint16_t port, struct leftovers *found)
{
    size_t left = bytes;
    for (const struct nlmsghdr *head = (const void *)buffer;
         left >= sizeof(*head) && head->nlmsg_len >= sizeof(*head) && head->nlmsg_len <= left;) {
        if (head->nlmsg_type == NLMSG_DONE)
            return 0;
        if (head->nlmsg_type == NLMSG_ERROR)
            return -1;
        const struct inet_diag_msg *socket = (const void *)(head + 1);
        if (head->nlmsg_len >= sizeof(*head) + sizeof(*socket) &&
            socket->id.idiag_sport == htons(port))
            note_socket(found, socket);
        size_t step = (head->nlmsg_len + 3u) & ~(size_t)3;
        if (step >= left)
            break;
        left -= step;
        head = (const void *)((const char *)head + step);
    }
    return 1;
}

static bool list_family(int netlink, uint8_t family, uint16_t port, struct leftovers *found)
{
    struct inet_diag_req_v2 all = {
        .sdiag_family = family, .sdiag_protocol = IPPROTO_TCP, .idiag_states = UINT32_MAX};
    if (!send_request(netlink, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, &all))
        return false;
    char buffer[32768] __attribute__((aligned(8)));
    int more = 1;
    while (more > 0) {
        ssize_t got = recv(netlink, buffer, sizeof(buffer), 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return false;
        more = take_answers(buffer, (size_t)got, port, found);
    }
    return more == 0;
}

static bool destroy(int netlink, const struct inet_diag_req_v2 *socket)
{
    struct {
        struct nlmsghdr head;
        struct nlmsgerr body;
    } answer;
    if (!send_request(netlink, SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK, socket))
        return false;
    ssize_t got;
    do {
        got = recv(netlink, &answer, sizeof(answer), MSG_TRUNC);
    } while (got < 0 && errno == EINTR);
    return got >= (ssize_t)sizeof(answer) && answer.head.nlmsg_type == NLMSG_ERROR &&
           answer.body.error == 0;
}

unsigned rewarm_tcp_port_forget(const struct sockaddr *address)
{
    int bound = bound_socket(address, true);
    if (bound >= 0)
        close(bound);
    if (bound != -EADDRINUSE)
        return 0;
    rewarm_auto_fd int netlink = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
    if (netlink < 0)
        return 0;
    struct sockaddr_storage copy = {0};
    memcpy(&copy, address, size_of(address));
    struct leftovers found = {0};
    unsigned forgotten = 0;
    bool listed = list_family(netlink, AF_INET, port_of(&copy), &found);
    listed = listed && list_family(netlink, AF_INET6, port_of(&copy), &found);
    for (size_t i = 0; listed && !found.owned && i < found.count; i++)
        forgotten += destroy(netlink, &found.requests[i]);
    free(found.requests);
    return forgotten;
}

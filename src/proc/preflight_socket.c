/* Which sockets can be frozen. A socket is asked itself, through a copy of the descriptor taken
 * with pidfd_getfd(): nothing else tells family and protocol of every kind. Only options are read
 * and the copy is closed at once, so the worker notices nothing. */
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <sys/pidfd.h>
#include <sys/socket.h>

#include "base/clean.h"
#include "base/log.h"
#include "proc/preflight_private.h"

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif

static int get_option(int socket, int option)
{
    int value = -1;
    socklen_t size = sizeof(value);
    return getsockopt(socket, SOL_SOCKET, option, &value, &size) == 0 ? value : -1;
}

static int check_inet(int socket, const struct rewarm_proc_stat *member,
                      const struct rewarm_proc_fd *fd, struct rewarm_error *err)
{
    int type = get_option(socket, SO_TYPE);
    int protocol = get_option(socket, SO_PROTOCOL);
    if (protocol == IPPROTO_MPTCP)
        return rewarm_preflight_refuse_fd(
            member, fd, "a Multipath TCP socket can't be dumped",
            "turn Multipath TCP off (Go programs: GODEBUG=multipathtcp=0)", err);
    if (type == SOCK_RAW || protocol == IPPROTO_TCP || protocol == IPPROTO_UDP ||
        protocol == IPPROTO_UDPLITE)
        return 0;
    char why[64];
    snprintf(why, sizeof(why), "an IP socket of protocol %d can't be dumped", protocol);
    return rewarm_preflight_refuse_fd(member, fd, why, "close it before the freeze", err);
}

/* Whoever is at the other end outside the tree sees the connection end at the restore. */
static void note_outside_peer(int socket, const struct rewarm_preflight *preflight,
                              const struct rewarm_proc_stat *member,
                              const struct rewarm_proc_fd *fd)
{
    struct ucred peer = {0};
    socklen_t size = sizeof(peer);
    if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.pid > 0 &&
        !rewarm_preflight_has(preflight, peer.pid))
        rewarm_verbose("process %d (%s), descriptor %d: a unix socket that process %d, outside the "
                       "tree, made or is connected to; a restored copy may find it closed",
                       (int)member->pid, member->comm, fd->fd, (int)peer.pid);
}

int rewarm_preflight_socket(const struct rewarm_preflight *preflight,
                            const struct rewarm_proc_stat *member, const struct rewarm_proc_fd *fd,
                            struct rewarm_error *err)
{
    rewarm_auto_fd int pidfd = pidfd_open(member->pid, 0);
    rewarm_auto_fd int socket = pidfd >= 0 ? pidfd_getfd(pidfd, fd->fd, 0) : -1;
    int family = socket >= 0 ? get_option(socket, SO_DOMAIN) : -1;
    if (family < 0)
        return 0; /* it has gone, or this user may not ask: CRIU will tell */
    switch (family) {
    case AF_UNIX:
        note_outside_peer(socket, preflight, member, fd);
        return 0;
    case AF_INET:
    case AF_INET6:
        return check_inet(socket, member, fd, err);
    case AF_PACKET:
        return 0;
    case AF_NETLINK: {
        struct pollfd item = {.fd = socket, .events = POLLIN};
        if (poll(&item, 1, 0) <= 0)
            return 0;
        return rewarm_preflight_refuse_fd(member, fd,
                                          "a netlink socket with unread data can't be dumped",
                                          "try again when the worker is idle", err);
    }
    default: {
        char why[64];
        const char *name = family == AF_VSOCK ? "vsock" : family == AF_XDP ? "AF_XDP" : NULL;
        if (name != NULL)
            snprintf(why, sizeof(why), "a %s socket can't be dumped", name);
        else
            snprintf(why, sizeof(why), "a socket of family %d can't be dumped", family);
        return rewarm_preflight_refuse_fd(member, fd, why, "close it before the freeze", err);
    }
    }
}

/* CRIU's side of the lazy-pages socket. One stream connection, shared by all tasks of the restore
 * (CRIU serialises them): for each process a 4-byte pid (negative: a zombie, nothing follows) and
 * then one byte that carries its userfaultfd; at the end the 4 bytes RESTORE_FINISHED. Reads ask
 * for exactly what is missing of the current message, so a descriptor is never read with the wrong
 * bytes. */
#include "proc/lazy_private.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clean.h"
#include "base/time.h"

#define RESTORE_FINISHED 0x52535446

int rewarm_lazy_peer_accept(struct lazy_service *service, struct rewarm_error *err)
{
    int listen_fd = service->options->listen_fd;
    rewarm_auto_fd int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0 && (errno == EAGAIN || errno == ECONNABORTED || errno == EINTR)) {
        rewarm_lazy_rewatch(service, listen_fd, LAZY_EVENT_LISTEN);
        return 0;
    }
    if (fd < 0)
        return rewarm_error_errno(err, "can't accept CRIU's connection");
    rewarm_lazy_unwatch(service, listen_fd);
    /* Set first: from the next line on another thread may receive from it. */
    service->peer.fd = rewarm_steal_fd(&fd);
    return rewarm_lazy_watch(service, service->peer.fd, LAZY_EVENT_PEER, err);
}

/* Returns the bytes received (0: the connection has ended), or -1 with errno. `ret_uffd` is set to
 * the descriptor that came along, or -1. */
static ssize_t receive(int fd, void *buffer, size_t bytes, int *ret_uffd)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec part = {.iov_base = buffer, .iov_len = bytes};
    struct msghdr message = {
        .msg_iov = &part,
        .msg_iovlen = 1,
        .msg_control = control.bytes,
        .msg_controllen = sizeof(control.bytes),
    };
    ssize_t got = recvmsg(fd, &message, MSG_CMSG_CLOEXEC);
    *ret_uffd = -1;
    if (got <= 0)
        return got;
    const struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    if (header != NULL && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS &&
        header->cmsg_len == CMSG_LEN(sizeof(int)))
        memcpy(ret_uffd, CMSG_DATA(header), sizeof(int));
    return got;
}

static void take_pid(struct lazy_service *service)
{
    struct lazy_peer *peer = &service->peer;
    peer->have_bytes = 0;
    if (peer->pid == RESTORE_FINISHED)
        rewarm_lazy_set_running(service);
    else
        peer->descriptor_next = peer->pid >= 0;
}

static int take_descriptor(struct lazy_service *service, int uffd, struct rewarm_error *err)
{
    struct lazy_peer *peer = &service->peer;
    peer->descriptor_next = false;
    if (uffd < 0)
        return rewarm_error_set(err, REWARM_E_CRIU, 0,
                                "CRIU sent no userfaultfd with process %d (raise the open file "
                                "limit if it is low)",
                                peer->pid);
    return rewarm_lazy_process_add(service, peer->pid, uffd, NULL, err);
}

/* The connection has ended: fine once the tree runs. */
static int hang_up(struct lazy_service *service, int failure, struct rewarm_error *err)
{
    if (!rewarm_lazy_is_running(service))
        return rewarm_error_set(err, REWARM_E_CRIU, failure,
                                "CRIU ended its connection before the tree ran");
    rewarm_lazy_unwatch(service, service->peer.fd);
    close(service->peer.fd);
    service->peer.fd = -1;
    return 0;
}

int rewarm_lazy_peer_receive(struct lazy_service *service, struct rewarm_error *err)
{
    struct lazy_peer *peer = &service->peer;
    for (;;) {
        char byte;
        int uffd;
        ssize_t got = peer->descriptor_next
                          ? receive(peer->fd, &byte, 1, &uffd)
                          : receive(peer->fd, (char *)&peer->pid + peer->have_bytes,
                                    sizeof(peer->pid) - peer->have_bytes, &uffd);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && errno == EAGAIN) {
            rewarm_lazy_rewatch(service, peer->fd, LAZY_EVENT_PEER);
            return 0;
        }
        if (got <= 0)
            return hang_up(service, got < 0 ? errno : 0, err);

        int result = 0;
        if (peer->descriptor_next) {
            result = take_descriptor(service, uffd, err);
        } else {
            peer->have_bytes += (size_t)got;
            if (peer->have_bytes == sizeof(peer->pid))
                take_pid(service);
        }
        if (result != 0)
            return result;
    }
}

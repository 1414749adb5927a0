/* unix_rights DIR: a descriptor of a pipe in flight (SCM_RIGHTS) inside a socket pair: nobody has
 * it open but the socket. */
#include "program.h"

#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int sockets[2], reader;

static bool send_fd(int fd)
{
    char control[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8))) = {0};
    char byte = 'f';
    struct iovec vector = {.iov_base = &byte, .iov_len = 1};
    struct msghdr message = {.msg_iov = &vector,
                             .msg_iovlen = 1,
                             .msg_control = control,
                             .msg_controllen = sizeof(control)};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &fd, sizeof(fd));
    return sendmsg(sockets[0], &message, 0) == 1;
}

static int receive_fd(void)
{
    char control[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8))), byte;
    struct iovec vector = {.iov_base = &byte, .iov_len = 1};
    struct msghdr message = {.msg_iov = &vector,
                             .msg_iovlen = 1,
                             .msg_control = control,
                             .msg_controllen = sizeof(control)};
    int fd = -1;
    if (recvmsg(sockets[1], &message, MSG_DONTWAIT) == 1 && CMSG_FIRSTHDR(&message) != NULL)
        memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(fd));
    return fd;
}

static const char *check(void)
{
    char byte = 0;
    int writer = receive_fd();
    PROGRAM_EXPECT(writer >= 0, "no descriptor is in flight");
    PROGRAM_EXPECT(write(writer, "z", 1) == 1 && read(reader, &byte, 1) == 1 && byte == 'z',
                   "it is not the pipe that was sent");
    PROGRAM_EXPECT(send_fd(writer), "send");
    close(writer);
    return NULL;
}

int main(int argc, char **argv)
{
    program_begin(argc, argv);
    int pipes[2];
    program_ok(pipe(pipes), "pipe");
    program_ok(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets), "socketpair");
    reader = pipes[0];
    program_ok(send_fd(pipes[1]) ? 0 : -1, "sendmsg");
    close(pipes[1]);
    program_serve(check);
}

/* tcp_listen DIR [4|6] [PORT]: a TCP listener on the loopback address (DIR/port says which port);
 * answers one connection a check, and those of the test by a thread. */
#include "program.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static union {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
} address;
static socklen_t address_bytes;
static int family, listener;

/* Echoes what each connection sends, one at a time. */
static void *serve(void *argument)
{
    (void)argument;
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        char text[64];
        ssize_t got;
        while (fd >= 0 && (got = read(fd, text, sizeof(text))) > 0)
            if (write(fd, text, (size_t)got) != got)
                break;
        close(fd);
    }
    return NULL;
}

static const char *check(void)
{
    char text[8] = "";
    int fd = socket(family, SOCK_STREAM, 0);
    PROGRAM_EXPECT(connect(fd, &address.any, address_bytes) == 0, "cannot connect to the listener");
    PROGRAM_EXPECT(write(fd, "ping", 4) == 4 && read(fd, text, 4) == 4 &&
                       memcmp(text, "ping", 4) == 0,
                   "no echo");
    close(fd);
    int on = 0;
    socklen_t bytes = sizeof(on);
    PROGRAM_EXPECT(getsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, &bytes) == 0 && on != 0,
                   "SO_REUSEADDR is lost");
    return NULL;
}

int main(int argc, char **argv)
{
    program_begin(argc, argv);
    family = program_arg_size(2, 4) == 4 ? AF_INET : AF_INET6;
    in_port_t port = htons((in_port_t)program_arg_size(3, 0));
    int on = 1;
    if (family == AF_INET) {
        address.v4 = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = port};
        address.v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        address_bytes = sizeof(address.v4);
    } else {
        address.v6 = (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_port = port};
        address.v6.sin6_addr = in6addr_loopback;
        address_bytes = sizeof(address.v6);
    }
    listener = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0 || setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) != 0 ||
        bind(listener, &address.any, address_bytes) != 0)
        program_skip("no IPv%c loopback", family == AF_INET ? '4' : '6');
    program_ok(listen(listener, 16), "listen");
    program_ok(getsockname(listener, &address.any, &address_bytes), "getsockname");
    char text[16];
    snprintf(text, sizeof(text), "%u\n",
             ntohs(family == AF_INET ? address.v4.sin_port : address.v6.sin6_port));
    program_write("port", text);
    pthread_t thread;
    if (pthread_create(&thread, NULL, serve, NULL) != 0)
        program_die("pthread_create");
    program_serve(check);
}

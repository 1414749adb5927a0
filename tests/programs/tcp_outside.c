/* tcp_outside DIR PORT [4|6]: a connection to a server outside the tree (the test). A check echoes
 * over it: in the source it must work; a restored copy must see it closed, not hang. DIR/state says
 * "open" or "closed". */
#include "program.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

static int connection;

static const char *check(void)
{
    char text[8] = "";
    bool open = send(connection, "ping", 4, MSG_NOSIGNAL) == 4 &&
                recv(connection, text, 4, MSG_WAITALL) == 4 && memcmp(text, "ping", 4) == 0;
    program_write("state", open ? "open" : "closed");
    return NULL;
}

int main(int argc, char **argv)
{
    program_begin(argc, argv);
    int family = program_arg_size(3, 4) == 4 ? AF_INET : AF_INET6;
    in_port_t port = htons((in_port_t)program_arg_size(2, 0));
    struct sockaddr_in v4 = {
        .sin_family = AF_INET, .sin_port = port, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_in6 v6 = {
        .sin6_family = AF_INET6, .sin6_port = port, .sin6_addr = in6addr_loopback};
    connection = (int)program_ok(socket(family, SOCK_STREAM, 0), "socket");
    program_ok(family == AF_INET ? connect(connection, (struct sockaddr *)&v4, sizeof(v4))
                                 : connect(connection, (struct sockaddr *)&v6, sizeof(v6)),
               "connect");
    struct timeval limit = {.tv_sec = 10};
    program_ok(setsockopt(connection, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)),
               "SO_RCVTIMEO");
    program_serve(check);
}

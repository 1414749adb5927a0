/* udp DIR [4|6]: a bound UDP socket and one connected to it. */
#include "program.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int bound, connected;

static const char *check(void)
{
    char text[16] = "";
    struct pollfd poller = {.fd = bound, .events = POLLIN};
    PROGRAM_EXPECT(send(connected, "datagram", 8, 0) == 8, "send");
    PROGRAM_EXPECT(poll(&poller, 1, 2000) == 1, "no datagram came");
    PROGRAM_EXPECT(recv(bound, text, sizeof(text), 0) == 8 && memcmp(text, "datagram", 8) == 0,
                   "a wrong datagram");
    return NULL;
}

int main(int argc, char **argv)
{
    program_begin(argc, argv);
    int family = program_arg_size(2, 4) == 4 ? AF_INET : AF_INET6;
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_addr = in6addr_loopback};
    struct sockaddr *address = family == AF_INET ? (struct sockaddr *)&v4 : (struct sockaddr *)&v6;
    socklen_t bytes = family == AF_INET ? sizeof(v4) : sizeof(v6);
    bound = socket(family, SOCK_DGRAM, 0);
    if (bound < 0 || bind(bound, address, bytes) != 0)
        program_skip("no IPv%c loopback", family == AF_INET ? '4' : '6');
    program_ok(getsockname(bound, address, &bytes), "getsockname");
    connected = (int)program_ok(socket(family, SOCK_DGRAM, 0), "socket");
    program_ok(connect(connected, address, bytes), "connect");
    program_serve(check);
}

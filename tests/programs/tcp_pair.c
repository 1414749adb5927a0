/* tcp_pair DIR [4|6] [closed]: a TCP connection of the process with itself (as torch's TCPStore
 * has), over which two threads exchange sequence numbers all the time, and a second one with unread
 * data in it. No number may be lost or doubled. "closed": the listener has been closed. */
#include "program.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct pair {
    int client, server;
};
static int family, listener;
static struct pair busy, loaded;
static atomic_ulong sent, received;
static const char *_Atomic trouble;

static struct pair connect_pair(void)
{
    struct sockaddr_storage address;
    socklen_t bytes = sizeof(address);
    struct pair pair;
    program_ok(getsockname(listener, (struct sockaddr *)&address, &bytes), "getsockname");
    pair.client = (int)program_ok(socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
    program_ok(connect(pair.client, (struct sockaddr *)&address, bytes), "connect");
    pair.server = (int)program_ok(accept(listener, NULL, NULL), "accept");
    return pair;
}

static void *sender(void *argument)
{
    (void)argument;
    for (;;) {
        uint64_t number = atomic_load(&sent) + 1;
        if (send(busy.client, &number, sizeof(number), MSG_NOSIGNAL) != sizeof(number)) {
            atomic_store(&trouble, "send failed");
            return NULL;
        }
        atomic_store(&sent, number);
        usleep(200);
    }
}

static void *receiver(void *argument)
{
    (void)argument;
    for (;;) {
        uint64_t number = 0;
        if (recv(busy.server, &number, sizeof(number), MSG_WAITALL) != sizeof(number)) {
            atomic_store(&trouble, "the connection was cut");
            return NULL;
        }
        if (number != atomic_load(&received) + 1)
            atomic_store(&trouble, "a number was lost or came twice");
        atomic_store(&received, number);
    }
}

static const char *check(void)
{
    unsigned long before = atomic_load(&received);
    uint64_t end = program_now_ms() + 5000;
    while (atomic_load(&received) < before + 20 && program_now_ms() < end && trouble == NULL)
        usleep(1000);
    PROGRAM_EXPECT(trouble == NULL, "%s", trouble);
    PROGRAM_EXPECT(atomic_load(&received) >= before + 20, "numbers stand still at %lu", before);
    char text[16] = "";
    PROGRAM_EXPECT(recv(loaded.server, text, sizeof(text), MSG_DONTWAIT) == 6 &&
                       memcmp(text, "queued", 6) == 0,
                   "unread data is lost");
    PROGRAM_EXPECT(send(loaded.client, "queued", 6, MSG_NOSIGNAL) == 6, "send");
    return NULL;
}

int main(int argc, char **argv)
{
    program_begin(argc, argv);
    family = program_arg_size(2, 4) == 4 ? AF_INET : AF_INET6;
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_addr = in6addr_loopback};
    listener = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0 ||
        (family == AF_INET ? bind(listener, (struct sockaddr *)&v4, sizeof(v4))
                           : bind(listener, (struct sockaddr *)&v6, sizeof(v6))) != 0)
        program_skip("no IPv%c loopback", family == AF_INET ? '4' : '6');
    program_ok(listen(listener, 4), "listen");
    busy = connect_pair();
    loaded = connect_pair();
    program_ok(send(loaded.client, "queued", 6, 0), "send");
    if (strcmp(program_arg(3, ""), "closed") == 0)
        close(listener);
    pthread_t threads[2];
    if (pthread_create(&threads[0], NULL, sender, NULL) != 0 ||
        pthread_create(&threads[1], NULL, receiver, NULL) != 0)
        program_die("pthread_create");
    program_serve(check);
}

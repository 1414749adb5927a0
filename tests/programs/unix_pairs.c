/* unix_pairs DIR: socket pairs (stream, datagram, seqpacket) with data queued both ways, and one
 * that is shut down. */
#include "program.h"

#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static const int types[] = {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET};
static int sockets[3][2], shut[2];

/* Sends two messages from end to end. */
static bool feed(int kind, int from)
{
    char text[64];
    int length = snprintf(text, sizeof(text), "kind %d from %d;", kind, from);
    return send(sockets[kind][from], text, (size_t)length, 0) == length &&
           send(sockets[kind][from], "second;", 7, 0) == 7;
}

static const char *check_end(int kind, int from)
{
    char expected[64], got[64];
    int length = snprintf(expected, sizeof(expected), "kind %d from %d;", kind, from);
    size_t first = kind == 0 ? (size_t)length : sizeof(got);
    ssize_t bytes = recv(sockets[kind][1 - from], got, first, MSG_DONTWAIT);
    PROGRAM_EXPECT(bytes == length && memcmp(got, expected, (size_t)length) == 0,
                   "kind %d from %d: first message is %zd bytes or wrong", kind, from, bytes);
    bytes = recv(sockets[kind][1 - from], got, sizeof(got), MSG_DONTWAIT);
    PROGRAM_EXPECT(bytes == 7 && memcmp(got, "second;", 7) == 0,
                   "kind %d from %d: second message is %zd bytes or wrong", kind, from, bytes);
    PROGRAM_EXPECT(feed(kind, from), "send");
    return NULL;
}

static const char *check(void)
{
    for (int kind = 0; kind < 3; kind++)
        for (int from = 0; from < 2; from++) {
            const char *words = check_end(kind, from);
            if (words != NULL)
                return words;
        }
    char byte;
    PROGRAM_EXPECT(recv(shut[0], &byte, 1, MSG_DONTWAIT) == 0, "the shut-down end is open again");
    PROGRAM_EXPECT(send(shut[0], "x", 1, 0) == 1 && recv(shut[1], &byte, 1, 0) == 1,
                   "the other way is shut");
    return NULL;
}

int main(int argc, char **argv)
{
    program_begin(argc, argv);
    for (int kind = 0; kind < 3; kind++) {
        program_ok(socketpair(AF_UNIX, types[kind], 0, sockets[kind]), "socketpair");
        for (int from = 0; from < 2; from++)
            program_ok(feed(kind, from) ? 0 : -1, "send");
    }
    program_ok(socketpair(AF_UNIX, SOCK_STREAM, 0, shut), "socketpair");
    program_ok(shutdown(shut[1], SHUT_WR), "shutdown");
    program_serve(check);
}

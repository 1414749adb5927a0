/* unix_named DIR [abstract|path]: a listening unix socket with a name, one established connection
 * of the process with itself, and new connections after the restore. */
#include "program.h"

#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static struct sockaddr_un address = {.sun_family = AF_UNIX};
static socklen_t address_bytes;
static int listener, client, server;

static int connect_to_self(void)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&address, address_bytes) != 0) {
        close(fd);
        fd = -1;
    }
    return fd;
}

static const char *check(void)
{
    char text[8] = "";
    PROGRAM_EXPECT(write(client, "abc", 3) == 3 && read(server, text, 8) == 3 &&
                       memcmp(text, "abc", 3) == 0,
                   "the old connection is dead");
    int fd = connect_to_self();
    PROGRAM_EXPECT(fd >= 0, "cannot connect to the listener");
    int accepted = accept(listener, NULL, NULL);
    PROGRAM_EXPECT(accepted >= 0 && write(fd, "def", 3) == 3 && read(accepted, text, 8) == 3,
                   "a new connection does not work");
    close(fd);
    close(accepted);
    return NULL;
}

int main(int argc, char **argv)
{
    program_begin(argc, argv);
    bool abstract = strcmp(program_arg(2, "abstract"), "abstract") == 0;
    int length;
    if (abstract)
        length = 1 + snprintf(address.sun_path + 1, sizeof(address.sun_path) - 1, "rewarm-test-%d",
                              getpid());
    else
        length =
            1 + snprintf(address.sun_path, sizeof(address.sun_path), "%s", program_path("socket"));
    address_bytes = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + (size_t)length);
    listener = (int)program_ok(socket(AF_UNIX, SOCK_STREAM, 0), "socket");
    program_ok(bind(listener, (struct sockaddr *)&address, address_bytes), "bind");
    program_ok(listen(listener, 8), "listen");
    client = (int)program_ok(connect_to_self(), "connect");
    server = (int)program_ok(accept(listener, NULL, NULL), "accept");
    program_serve(check);
}

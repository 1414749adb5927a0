#include "proc/dump.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>

#include "base/clean.h"
#include "base/fs.h"
#include "base/str.h"
#include "base/time.h"

/* What a page-server client says when it wants nothing more (CRIU's PS_IOV_CLOSE). */
struct page_server_request {
    uint32_t command;
    uint32_t padding;
    uint64_t pages, vaddr, destination;
};
#define PAGE_SERVER_CLOSE 0x1023u

/* Leaves the tree to CRIU for this long after breaking off before we stop waiting. */
static const uint64_t abort_ns = 60 * REWARM_NS_PER_S;

static int start_criu(struct rewarm_dump *dump, pid_t root, const char *images_path, int server_fd,
                      int status_fd, struct rewarm_error *err)
{
    const struct rewarm_criu *criu = NULL;
    int result = rewarm_criu_find(&criu, err);
    if (result != 0)
        return result;
    rewarm_auto_free char *pid = rewarm_str_format("%d", (int)root);
    rewarm_auto_free char *server = rewarm_str_format("%d", server_fd);
    rewarm_auto_free char *status = rewarm_str_format("%d", status_fd);
    const char *args[] = {
        "--tree", pid, "--images-dir", images_path, "--lazy-pages", "--ps-socket", server,
        "--status-fd", status,
        /* Always: connections are unlocked before the memory is read, whatever happens then. */
        "--leave-running",
        /* Which connection lives is decided at restore: CRIU's one switch is for all. */
        "--tcp-established", "--network-lock", "skip", "--skip-in-flight", "--shell-job",
        "--ext-unix-sk", "--file-locks", "--link-remap", "--ghost-limit", "1073741824",
        "--manage-cgroups=ignore", "--force-irmap", NULL};
    int keep[] = {server_fd, status_fd};
    result = rewarm_fs_open_dir(AT_FDCWD, images_path, false, &dump->images_fd, err);
    if (result != 0)
        return result;
    return rewarm_criu_start(criu, "dump", args, keep, 2, dump->images_fd, &dump->criu, err);
}

int rewarm_dump_start(struct rewarm_dump *dump, pid_t root, const char *images_path,
                      struct rewarm_error *err)
{
    int sockets[2];
    int pipes[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) != 0)
        return rewarm_error_errno(err, "making CRIU's page-server socket");
    dump->client_fd = sockets[0];
    rewarm_auto_fd int server = sockets[1];
    if (pipe2(pipes, O_CLOEXEC) != 0)
        return rewarm_error_errno(err, "making CRIU's status pipe");
    dump->status_fd = pipes[0];
    rewarm_auto_fd int status = pipes[1];
    int result = start_criu(dump, root, images_path, server, status, err);
    dump->running = result == 0;
    return result;
}

static int finish(struct rewarm_dump *dump, uint64_t deadline_ns, struct rewarm_error *err)
{
    if (dump->client_fd >= 0)
        close(dump->client_fd);
    if (dump->status_fd >= 0)
        close(dump->status_fd);
    dump->client_fd = -1;
    dump->status_fd = -1;
    int result = 0;
    if (dump->running) {
        struct pollfd poll_fd = {.fd = dump->criu.pidfd, .events = POLLIN};
        /* Not reaped yet, its PID is still the name of its group: helpers that a killed CRIU left,
         * stopped for good, go with it. One that ended by itself leaves none. */
        if (poll(&poll_fd, 1, rewarm_time_poll_ms(deadline_ns)) > 0)
            kill(-dump->criu.pid, SIGKILL);
        result = rewarm_criu_wait(&dump->criu, deadline_ns, err);
    }
    dump->running = false;
    if (dump->images_fd >= 0)
        close(dump->images_fd);
    dump->images_fd = -1;
    return result;
}

int rewarm_dump_wait_readable(struct rewarm_dump *dump, uint64_t deadline_ns,
                              struct rewarm_error *err)
{
    struct pollfd fds[2] = {{.fd = dump->status_fd, .events = POLLIN},
                            {.fd = dump->criu.pidfd, .events = POLLIN}};
    int ready;
    do {
        ready = poll(fds, 2, rewarm_time_poll_ms(deadline_ns));
    } while (ready < 0 && errno == EINTR);
    if (ready == 0)
        return rewarm_error_set(err, REWARM_E_TIMEOUT, 0,
                                "CRIU did not stop the tree in time; the dump was broken off");
    char byte = 1;
    /* Without a byte CRIU is dead; somebody it left behind may hold the other end of the pipe. */
    if (fds[0].revents != 0 && read(dump->status_fd, &byte, 1) == 1 && byte == 0)
        return 0;
    /* CRIU ended: its log says why. */
    int result = finish(dump, deadline_ns, err);
    return result != 0 ? result
                       : rewarm_error_set(err, REWARM_E_CRIU, 0,
                                          "CRIU ended without waiting for its memory to be read");
}

int rewarm_dump_release(struct rewarm_dump *dump, uint64_t deadline_ns, struct rewarm_error *err)
{
    struct page_server_request request = {.command = PAGE_SERVER_CLOSE};
    int32_t answer = -1;
    int result = rewarm_fs_write_full(dump->client_fd, &request, sizeof(request),
                                      "to CRIU's page server", err);
    if (result == 0)
        result = rewarm_fs_read_full(dump->client_fd, &answer, sizeof(answer),
                                     "the answer of CRIU's page server", err);
    /* If it does not listen any more, it has said why in its log: that is the cause. */
    struct rewarm_error criu = REWARM_ERROR_INIT;
    if (finish(dump, deadline_ns, &criu) != 0 && err != NULL)
        *err = criu;
    return err != NULL ? -err->code : result != 0 ? result : -criu.code;
}

void rewarm_dump_abort(struct rewarm_dump *dump)
{
    struct rewarm_error ignored = REWARM_ERROR_INIT;
    finish(dump, rewarm_time_now_ns() + abort_ns, &ignored);
}

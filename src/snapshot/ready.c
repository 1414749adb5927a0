/* Readiness. HTTP is a bare GET over a socket: linking libcurl for one status line would cost every
 * command of the tool several milliseconds of dynamic linking. For https or anything cleverer there
 * is --ready-exec. */
#include "snapshot/ready.h"

#include <netdb.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clean.h"
#include "base/str.h"

static const unsigned look_timeout_s = 5;

/* HOST:PORT, [V6]:PORT or, with a default, HOST. */
static bool split_address(const char *text, const char *default_port, char host[256], char port[16])
{
    const char *end = text + strlen(text);
    const char *colon = strrchr(text, ':');
    if (text[0] == '[') {
        const char *close = strchr(text, ']');
        if (close == NULL || (close[1] != ':' && close[1] != '\0'))
            return false;
        colon = close[1] == ':' ? close + 1 : NULL;
        text++;
        end = close;
    } else if (colon != NULL) {
        end = colon;
    }
    if (colon == NULL && default_port == NULL)
        return false;
    size_t length = (size_t)(end - text);
    uint64_t number = 0;
    const char *digits = colon != NULL ? colon + 1 : default_port;
    if (length == 0 || length >= 256 || !rewarm_str_to_u64(digits, &number) || number == 0 ||
        number > 65535)
        return false;
    memcpy(host, text, length);
    host[length] = '\0';
    snprintf(port, 16, "%s", digits);
    return true;
}

static bool split_url(const char *url, char host[256], char port[16], const char **ret_path)
{
    if (!rewarm_str_starts(url, "http://"))
        return false;
    const char *start = url + strlen("http://");
    size_t length = strcspn(start, "/?#");
    rewarm_auto_free char *address = rewarm_str_format("%.*s", (int)length, start);
    *ret_path = start[length] == '/' ? start + length : "/";
    return split_address(address, "80", host, port);
}

int rewarm_ready_check(const struct rewarm_ready *ready, struct rewarm_error *err)
{
    char host[256];
    char port[16];
    const char *path = NULL;
    int count = (ready->http != NULL) + (ready->tcp != NULL) + (ready->file != NULL) +
                (ready->exec != NULL) + (ready->log != NULL);
    if (count > 1)
        return rewarm_error_set(err, REWARM_E_USAGE, 0, "more than one --ready-... option");
    if (ready->http != NULL && !split_url(ready->http, host, port, &path))
        return rewarm_error_set(err, REWARM_E_USAGE, 0,
                                "--ready-http %s: write http://HOST[:PORT]/PATH (for https, "
                                "--ready-exec 'curl -fs URL')",
                                ready->http);
    if (ready->tcp != NULL && !split_address(ready->tcp, NULL, host, port))
        return rewarm_error_set(err, REWARM_E_USAGE, 0, "--ready-tcp %s: write HOST:PORT",
                                ready->tcp);
    return 0;
}

static int connect_to(const char *host, const char *port)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    struct addrinfo *list = NULL;
    if (getaddrinfo(host, port, &hints, &list) != 0)
        return -1;
    int fd = -1;
    for (struct addrinfo *a = list; a != NULL && fd < 0; a = a->ai_next) {
        fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd >= 0 && connect(fd, a->ai_addr, a->ai_addrlen) != 0)
            rewarm_clean_fd(&fd), fd = -1;
    }
    freeaddrinfo(list);
    return fd;
}

static bool http_ready(const char *url)
{
    char host[256];
    char port[16];
    const char *path = "/";
    if (!split_url(url, host, port, &path))
        return false;
    rewarm_auto_fd int fd = connect_to(host, port);
    rewarm_auto_free char *request =
        rewarm_str_format("GET %s HTTP/1.1\r\nHost: %s:%s\r\nUser-Agent: rewarm\r\nAccept: */*\r\n"
                          "Connection: close\r\n\r\n",
                          path, host, port);
    if (fd < 0 || send(fd, request, strlen(request), MSG_NOSIGNAL) != (ssize_t)strlen(request))
        return false;
    char answer[13] = "";
    size_t used = 0;
    while (used < 12) {
        ssize_t n = recv(fd, answer + used, 12 - used, 0);
        if (n <= 0)
            return false;
        used += (size_t)n;
    }
    /* "HTTP/1.1 200" */
    return rewarm_str_starts(answer, "HTTP/1.") && answer[9] == '2';
}

static bool tcp_ready(const char *address)
{
    char host[256];
    char port[16];
    if (!split_address(address, NULL, host, port))
        return false;
    rewarm_auto_fd int fd = connect_to(host, port);
    return fd >= 0;
}

static _Noreturn void look(const struct rewarm_ready *ready)
{
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    alarm(look_timeout_s); /* kept over exec */
    if (ready->exec != NULL) {
        execl("/bin/sh", "sh", "-c", ready->exec, (char *)NULL);
        _exit(127);
    }
    bool is_ready = ready->http != NULL  ? http_ready(ready->http)
                    : ready->tcp != NULL ? tcp_ready(ready->tcp)
                                         : access(ready->file, F_OK) == 0;
    _exit(is_ready ? 0 : 1);
}

int rewarm_ready_look(const struct rewarm_ready *ready, pid_t *ret_child, struct rewarm_error *err)
{
    pid_t pid = fork();
    if (pid < 0)
        return rewarm_error_errno(err, "starting a readiness check");
    if (pid == 0)
        look(ready);
    *ret_child = pid;
    return 0;
}

const char *rewarm_ready_words(const struct rewarm_ready *ready)
{
    const char *words[] = {ready->http, ready->tcp, ready->file, ready->exec, ready->log};
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        if (words[i] != NULL)
            return words[i];
    }
    return "a second without ending";
}

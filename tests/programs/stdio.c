/* stdio DIR: echoes each line of its standard input to standard output ("echo: LINE") and standard
 * error ("error: LINE"). "exit N" ends it with that code, "kill N" by that signal; the end of input
 * is only noted in DIR/eof. SIGINT and SIGHUP are noted in DIR/signal-N. */
#include "program.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void note(int number)
{
    char name[32];
    snprintf(name, sizeof(name), "signal-%d", number);
    program_write(name, "");
}

static void *echo(void *argument)
{
    (void)argument;
    char line[256];
    int number;
    while (fgets(line, sizeof(line), stdin) != NULL) {
        dprintf(1, "echo: %s", line);
        dprintf(2, "error: %s", line);
        if (sscanf(line, "exit %d", &number) == 1)
            _exit(number);
        if (sscanf(line, "kill %d", &number) == 1)
            kill(getpid(), number);
    }
    program_write("eof", "");
    return NULL;
}

static const char *check(void)
{
    dprintf(1, "checked\n");
    return NULL;
}

int main(int argc, char **argv)
{
    program_begin(argc, argv);
    signal(SIGINT, note);
    signal(SIGHUP, note);
    pthread_t thread;
    if (pthread_create(&thread, NULL, echo, NULL) != 0)
        program_die("pthread_create");
    program_serve(check);
}

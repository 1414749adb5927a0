/* orphan DIR: leaves a process in its session and group that is no longer its descendant
 * (DIR/orphan has its PID). */
#include "program.h"

#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *check(void)
{
    return NULL;
}

int main(int argc, char **argv)
{
    program_begin(argc, argv);
    pid_t middle = (pid_t)program_ok(fork(), "fork");
    if (middle == 0) {
        pid_t orphan = fork();
        if (orphan == 0) {
            signal(SIGHUP, SIG_IGN);
            for (;;)
                pause();
        }
        char text[16];
        snprintf(text, sizeof(text), "%d\n", orphan);
        program_write("orphan", text);
        _exit(0);
    }
    program_ok(waitpid(middle, NULL, 0), "waitpid");
    program_serve(check);
}

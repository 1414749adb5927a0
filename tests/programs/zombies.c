/* zombies DIR: children that have ended and were not waited for, by exit and by signal. */
#include "program.h"

#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static pid_t pids[3];
static const int codes[3] = {0, 7, SIGKILL};

static const char *check(void)
{
    for (int i = 0; i < 3; i++) {
        siginfo_t info = {0};
        PROGRAM_EXPECT(waitid(P_PID, (id_t)pids[i], &info, WEXITED | WNOHANG | WNOWAIT) == 0,
                       "zombie %d is gone", i);
        PROGRAM_EXPECT(info.si_pid == pids[i], "zombie %d is no zombie", i);
        PROGRAM_EXPECT(info.si_code == (i == 2 ? CLD_KILLED : CLD_EXITED), "zombie %d: si_code %d",
                       i, info.si_code);
        PROGRAM_EXPECT(info.si_status == codes[i], "zombie %d: status %d instead of %d", i,
                       info.si_status, codes[i]);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    program_begin(argc, argv);
    for (int i = 0; i < 3; i++) {
        pids[i] = (pid_t)program_ok(fork(), "fork");
        if (pids[i] == 0) {
            if (i == 2)
                raise(SIGKILL);
            _exit(codes[i]);
        }
        siginfo_t info;
        program_ok(waitid(P_PID, (id_t)pids[i], &info, WEXITED | WNOWAIT), "waitid");
    }
    program_serve(check);
}

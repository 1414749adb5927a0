/* signalfd DIR: a signalfd, with a signal queued (value and all) before the freeze. */
#include "program.h"

#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

static int reader;

static const char *check(void)
{
    struct signalfd_siginfo info = {0};
    PROGRAM_EXPECT(read(reader, &info, sizeof(info)) == sizeof(info), "nothing is queued");
    PROGRAM_EXPECT(info.ssi_signo == (uint32_t)SIGRTMIN + 2, "signal %u", info.ssi_signo);
    PROGRAM_EXPECT(info.ssi_int == 4711, "value %d instead of 4711", info.ssi_int);
    PROGRAM_EXPECT(sigqueue(getpid(), SIGRTMIN + 2, (union sigval){.sival_int = 4711}) == 0,
                   "sigqueue");
    return NULL;
}

int main(int argc, char **argv)
{
    program_begin(argc, argv);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 2);
    sigprocmask(SIG_BLOCK, &set, NULL);
    reader = (int)program_ok(signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK), "signalfd");
    program_ok(sigqueue(getpid(), SIGRTMIN + 2, (union sigval){.sival_int = 4711}), "sigqueue");
    program_serve(check);
}

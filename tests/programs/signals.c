/* signals DIR: handlers, masks, an alternate stack, ignored signals, and pending ones with their
 * values: two queued real-time signals for the process and one for a thread. */
#include "program.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t handled, on_stack;
static char *stack;

static void handler(int number, siginfo_t *info, void *context)
{
    (void)number;
    (void)context;
    char here;
    on_stack = &here >= stack && &here < stack + SIGSTKSZ;
    handled = info->si_value.sival_int;
}

static void queue_signals(void)
{
    for (int i = 0; i < 2; i++)
        program_ok(sigqueue(getpid(), SIGRTMIN + 5, (union sigval){.sival_int = 100 + i}),
                   "sigqueue");
    pthread_sigqueue(pthread_self(), SIGRTMIN + 6, (union sigval){.sival_int = 200});
}

static const char *expect(int number, int value)
{
    const struct timespec now = {0};
    siginfo_t info = {0};
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, number);
    errno = 0;
    PROGRAM_EXPECT(sigtimedwait(&set, &info, &now) == number, "signal %d is not pending", number);
    PROGRAM_EXPECT(info.si_value.sival_int == value && info.si_pid == getpid(),
                   "signal %d has value %d instead of %d", number, info.si_value.sival_int, value);
    return NULL;
}

static const char *check(void)
{
    const char *words = expect(SIGRTMIN + 5, 100);
    if (words == NULL)
        words = expect(SIGRTMIN + 5, 101);
    if (words == NULL)
        words = expect(SIGRTMIN + 6, 200);
    if (words != NULL)
        return words;
    queue_signals();
    handled = 0;
    PROGRAM_EXPECT(sigqueue(getpid(), SIGRTMIN + 3, (union sigval){.sival_int = 55}) == 0,
                   "sigqueue");
    PROGRAM_EXPECT(handled == 55, "the handler saw %d", handled);
    PROGRAM_EXPECT(on_stack == 1, "the handler ran on the wrong stack");
    struct sigaction action;
    PROGRAM_EXPECT(sigaction(SIGHUP, NULL, &action) == 0 && action.sa_handler == SIG_IGN,
                   "SIGHUP is not ignored any more");
    return NULL;
}

int main(int argc, char **argv)
{
    program_begin(argc, argv);
    stack = malloc((size_t)SIGSTKSZ);
    stack_t alternate = {.ss_sp = stack, .ss_size = (size_t)SIGSTKSZ};
    program_ok(sigaltstack(&alternate, NULL), "sigaltstack");
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    program_ok(sigaction(SIGRTMIN + 3, &action, NULL), "sigaction");
    signal(SIGHUP, SIG_IGN);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 5);
    sigaddset(&set, SIGRTMIN + 6);
    sigprocmask(SIG_BLOCK, &set, NULL);
    queue_signals();
    program_serve(check);
}

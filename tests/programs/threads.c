/* threads DIR [COUNT]: threads, each with a name, a signal mask, a thread-local counter that must
 * go on from where it was, and one of them waiting on a condition variable. */
#include "program.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

enum { MAX = 64, WAIT_MS = 5000 };
struct slot {
    pthread_t thread;
    pid_t tid;
    atomic_ulong published, tls_seen;
    const char *_Atomic words;
};
static struct slot slots[MAX];
static size_t count;
static _Thread_local unsigned long counter;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static unsigned long wanted, woken;

static const char *check_self(size_t index)
{
    char expected[16], name[16];
    snprintf(expected, sizeof(expected), "worker-%zu", index);
    prctl(PR_GET_NAME, name);
    if (strcmp(name, expected) != 0)
        return "a thread lost its name";
    sigset_t mask;
    pthread_sigmask(SIG_BLOCK, NULL, &mask);
    if (sigismember(&mask, SIGRTMIN + (int)(index % 8)) != 1)
        return "a thread lost its signal mask";
    if (gettid() != slots[index].tid)
        return "a thread has another id";
    return NULL;
}

static void *run(void *argument)
{
    struct slot *slot = argument;
    size_t index = (size_t)(slot - slots);
    char name[16];
    sigset_t mask;
    snprintf(name, sizeof(name), "worker-%zu", index);
    prctl(PR_SET_NAME, name);
    sigemptyset(&mask);
    sigaddset(&mask, SIGRTMIN + (int)(index % 8));
    pthread_sigmask(SIG_BLOCK, &mask, NULL);
    slot->tid = gettid();
    for (;;) {
        const struct timespec pause = {.tv_nsec = 2000000};
        if (counter != atomic_load(&slot->published))
            atomic_store(&slot->words, "a thread-local counter went back or forth");
        counter++;
        atomic_store(&slot->published, counter);
        const char *words = check_self(index);
        if (words != NULL)
            atomic_store(&slot->words, words);
        clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL);
    }
    return NULL;
}

static void *wait_for_wake(void *argument)
{
    (void)argument;
    pthread_mutex_lock(&mutex);
    for (;;) {
        while (woken == wanted)
            pthread_cond_wait(&wake, &mutex);
        woken = wanted;
        pthread_cond_broadcast(&wake);
    }
    return NULL;
}

static const char *check(void)
{
    unsigned long before[MAX];
    for (size_t i = 0; i < count; i++)
        before[i] = atomic_load(&slots[i].published);
    uint64_t end = program_now_ms() + WAIT_MS;
    for (size_t i = 0; i < count; i++) {
        while (atomic_load(&slots[i].published) < before[i] + 3 && program_now_ms() < end)
            usleep(1000);
        PROGRAM_EXPECT(atomic_load(&slots[i].published) >= before[i] + 3, "thread %zu stands still",
                       i);
        PROGRAM_EXPECT(atomic_load(&slots[i].words) == NULL, "thread %zu: %s", i,
                       atomic_load(&slots[i].words));
    }
    struct timespec deadline;
    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += 5;
    pthread_mutex_lock(&mutex);
    wanted++;
    pthread_cond_broadcast(&wake);
    while (woken != wanted && pthread_cond_timedwait(&wake, &mutex, &deadline) == 0) {
    }
    bool right = woken == wanted;
    pthread_mutex_unlock(&mutex);
    PROGRAM_EXPECT(right, "the thread that waits on a condition was not woken");
    return NULL;
}

int main(int argc, char **argv)
{
    program_begin(argc, argv);
    count = program_arg_size(2, 32);
    pthread_t waiter;
    if (count > MAX || pthread_create(&waiter, NULL, wait_for_wake, NULL) != 0)
        program_die("pthread_create");
    for (size_t i = 0; i < count; i++)
        if (pthread_create(&slots[i].thread, NULL, run, &slots[i]) != 0)
            program_die("pthread_create %zu", i);
    for (size_t i = 0; i < count; i++)
        while (atomic_load(&slots[i].published) == 0)
            usleep(1000);
    program_serve(check);
}

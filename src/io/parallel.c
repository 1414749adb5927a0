#include "io/parallel.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "base/clean.h"
#include "base/str.h"

#define WIDTH_LIMIT 16

/* Threads wait at the gate until all of them exist: a work function may count on its peers. */
enum gate { GATE_CLOSED, GATE_OPEN, GATE_GIVEN_UP };

struct team {
    rewarm_parallel_fn *work;
    void *context;
    pthread_mutex_t lock;
    pthread_cond_t moved;
    enum gate gate;
    int result;
    struct rewarm_error error; /* of the first failure */
};

struct member {
    struct team *team;
    unsigned index;
    pthread_t thread;
};

unsigned rewarm_parallel_width(void)
{
    cpu_set_t mask;
    long count;
    if (sched_getaffinity(0, sizeof(mask), &mask) == 0)
        count = CPU_COUNT(&mask);
    else
        count = sysconf(_SC_NPROCESSORS_ONLN); /* more CPUs than the mask can name */
    if (count < 1)
        return 1;
    return count > WIDTH_LIMIT ? WIDTH_LIMIT : (unsigned)count;
}

static void run_one(struct team *team, unsigned index)
{
    struct rewarm_error error = REWARM_ERROR_INIT;
    int result = team->work(team->context, index, &error);
    if (result == 0)
        return;
    pthread_mutex_lock(&team->lock);
    if (team->result == 0) {
        team->result = result;
        team->error = error;
    }
    pthread_mutex_unlock(&team->lock);
}

static void *member_main(void *argument)
{
    struct member *member = argument;
    struct team *team = member->team;
    pthread_mutex_lock(&team->lock);
    while (team->gate == GATE_CLOSED)
        pthread_cond_wait(&team->moved, &team->lock);
    bool go = team->gate == GATE_OPEN;
    pthread_mutex_unlock(&team->lock);
    if (go)
        run_one(team, member->index);
    return NULL;
}

/* Starts the members with all signals blocked: a signal meant for the program goes to the caller's
 * thread. Returns 0 or an errno value; `ret_started` members exist either way. */
static int start_members(struct member *members, unsigned count, unsigned *ret_started)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failure = 0;
    unsigned started = 0;
    while (started < count && failure == 0) {
        struct member *member = &members[started];
        failure = pthread_create(&member->thread, NULL, member_main, member);
        if (failure == 0)
            started++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    *ret_started = started;
    return failure;
}

int rewarm_parallel_run(unsigned threads, rewarm_parallel_fn *work, void *context,
                        struct rewarm_error *err)
{
    if (threads == 0)
        return rewarm_error_set(err, REWARM_E_USAGE, 0, "no threads to run on");
    struct team team = {
        .work = work,
        .context = context,
        .lock = PTHREAD_MUTEX_INITIALIZER,
        .moved = PTHREAD_COND_INITIALIZER,
    };
    rewarm_auto_free struct member *members = rewarm_mem_new(threads, sizeof(*members));
    for (unsigned i = 0; i + 1 < threads; i++)
        members[i] = (struct member){.team = &team, .index = i + 1};
    unsigned started;
    int failure = start_members(members, threads - 1, &started);

    pthread_mutex_lock(&team.lock);
    team.gate = failure == 0 ? GATE_OPEN : GATE_GIVEN_UP;
    pthread_cond_broadcast(&team.moved);
    pthread_mutex_unlock(&team.lock);
    if (failure == 0)
        run_one(&team, 0);
    for (unsigned i = 0; i < started; i++)
        pthread_join(members[i].thread, NULL);
    pthread_cond_destroy(&team.moved);
    pthread_mutex_destroy(&team.lock);

    if (failure != 0)
        return rewarm_error_set(err, REWARM_E_NO_SPACE, failure,
                                "can't start thread %u of %u (raise the process limit)",
                                started + 2, threads);
    if (team.result != 0 && err != NULL && err->code == 0)
        *err = team.error;
    return team.result;
}

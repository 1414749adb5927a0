#include "store/lock.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <time.h>

#include "base/time.h"

static int lock_call(int fd, bool exclusive, bool wait)
{
    struct flock lock = {.l_type = exclusive ? F_WRLCK : F_RDLCK, .l_whence = SEEK_SET};
    int result;
    do
        result = fcntl(fd, wait ? F_OFD_SETLKW : F_OFD_SETLK, &lock);
    while (result != 0 && errno == EINTR);
    return result == 0 ? 0 : errno;
}

struct waiter {
    int fd;
    bool exclusive;
    int result; /* errno of the lock call */
};

static void *wait_for_lock(void *pointer)
{
    struct waiter *waiter = pointer;
    waiter->result = lock_call(waiter->fd, waiter->exclusive, true);
    return NULL;
}

/* The kernel has no lock call with a time limit. A thread waits instead, and is cancelled when the
 * time is over: F_OFD_SETLKW is a cancellation point, and an OFD lock belongs to the file, not to
 * the thread. */
static int lock_until(int fd, bool exclusive, uint64_t deadline_ns, int *ret_result)
{
    struct waiter waiter = {.fd = fd, .exclusive = exclusive};
    pthread_t thread;
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all,
                    &old); /* the caller's signals are for the caller's threads */
    int failure = pthread_create(&thread, NULL, wait_for_lock, &waiter);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (failure != 0)
        return failure;
    struct timespec until = {.tv_sec = (time_t)(deadline_ns / REWARM_NS_PER_S),
                             .tv_nsec = (long)(deadline_ns % REWARM_NS_PER_S)};
    void *end = NULL;
    failure = pthread_clockjoin_np(thread, &end, CLOCK_MONOTONIC, &until);
    if (failure != 0) {
        pthread_cancel(thread);
        failure = pthread_join(thread, &end);
    }
    if (failure == 0 && end == PTHREAD_CANCELED) {
        /* It may have got the lock in the very moment. */
        struct flock unlock = {.l_type = F_UNLCK, .l_whence = SEEK_SET};
        fcntl(fd, F_OFD_SETLK, &unlock);
        *ret_result = EAGAIN;
    } else {
        *ret_result = waiter.result;
    }
    return failure;
}

int rewarm_lock_take(int fd, bool exclusive, uint64_t deadline_ns, bool *ret_taken,
                     struct rewarm_error *err)
{
    int native = lock_call(fd, exclusive, deadline_ns == REWARM_NEVER_NS);
    if ((native == EAGAIN || native == EACCES) && deadline_ns > rewarm_time_now_ns()) {
        int failure = lock_until(fd, exclusive, deadline_ns, &native);
        if (failure != 0)
            return rewarm_error_set(err, REWARM_E_SYSTEM, failure,
                                    "cannot start a thread to wait for a lock");
    }
    if (native != 0 && native != EAGAIN && native != EACCES)
        return rewarm_error_set(err, REWARM_E_SYSTEM, native, "cannot lock a file of the store");
    *ret_taken = native == 0;
    return 0;
}

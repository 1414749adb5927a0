#include "store/lock.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>

#include "base/clean.h"
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
    int done_fd; /* an eventfd that counts 1 when the lock call has returned */
    int result;  /* errno of the lock call */
};

static void *wait_for_lock(void *pointer)
{
    struct waiter *waiter = pointer;
    waiter->result = lock_call(waiter->fd, waiter->exclusive, true);
    eventfd_write(waiter->done_fd, 1);
    return NULL;
}

/* The kernel has no lock call with a time limit. A thread waits instead, and is cancelled when the
 * time is over: F_OFD_SETLKW is a cancellation point, and an OFD lock belongs to the file, not to
 * the thread. */
static int lock_until(int fd, bool exclusive, uint64_t deadline_ns, int *ret_result)
{
    rewarm_auto_fd int done_fd = eventfd(0, EFD_CLOEXEC);
    if (done_fd < 0)
        return errno;
    struct waiter waiter = {.fd = fd, .exclusive = exclusive, .done_fd = done_fd};
    pthread_t thread;
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all,
                    &old); /* the caller's signals are for the caller's threads */
    int failure = pthread_create(&thread, NULL, wait_for_lock, &waiter);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (failure != 0)
        return failure;
    struct pollfd done = {.fd = done_fd, .events = POLLIN};
    int ready;
    do
        ready = poll(&done, 1, rewarm_time_poll_ms(deadline_ns));
    while (ready < 0 && errno == EINTR);
    if (ready != 1)
        pthread_cancel(thread);
    void *end = NULL;
    failure = pthread_join(thread, &end);
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
                                    "cannot wait for a lock of the store");
    }
    if (native != 0 && native != EAGAIN && native != EACCES)
        return rewarm_error_set(err, REWARM_E_SYSTEM, native, "cannot lock a file of the store");
    *ret_taken = native == 0;
    return 0;
}

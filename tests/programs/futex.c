/* futex DIR: a robust process-shared mutex in shared memory, held by a child. When the child ends
 * after the restore, its parent must get the mutex with EOWNERDEAD, not wait for ever. */
#include "program.h"

#include <errno.h>
#include <pthread.h>
#include <sys/mman.h>
#include <time.h>

static pthread_mutex_t *mutex;
static struct program_child child;

static void hold(void)
{
    pthread_mutex_lock(mutex);
}

static const char *check(void)
{
    PROGRAM_EXPECT(pthread_mutex_trylock(mutex) == EBUSY, "the child does not hold the mutex");
    const char *words = program_ask(&child);
    if (words != NULL)
        return words;
    program_end(&child);
    struct timespec deadline;
    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += 3;
    int code = pthread_mutex_timedlock(mutex, &deadline);
    PROGRAM_EXPECT(code == EOWNERDEAD, "lock gives %d instead of EOWNERDEAD", code);
    pthread_mutex_consistent(mutex);
    pthread_mutex_unlock(mutex);
    program_fork(&child, hold, NULL);
    return NULL;
}

int main(int argc, char **argv)
{
    program_begin(argc, argv);
    mutex = mmap(NULL, PROGRAM_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (mutex == MAP_FAILED)
        program_die("mmap");
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(mutex, &attributes);
    program_fork(&child, hold, NULL);
    program_serve(check);
}

/* shm_posix DIR: POSIX shared memory with a name and without (unlinked), and semaphores likewise;
 * torch's and multiprocessing's way of sharing. */
#include "program.h"

#include <fcntl.h>
#include <semaphore.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGES = 64 };
static char *named, *unlinked;
static sem_t *semaphores[2];
static struct program_child child;
static char shm_name[64], sem_name[64];

static const char *check_memory(void)
{
    for (size_t i = 1; i < PAGES; i++) {
        PROGRAM_EXPECT(program_filled(named + i * PROGRAM_PAGE, i), "named page %zu", i);
        PROGRAM_EXPECT(program_filled(unlinked + i * PROGRAM_PAGE, i + 1000), "unlinked page %zu",
                       i);
    }
    return NULL;
}

/* The child adds one to both first words and posts both semaphores. */
static const char *child_check(void)
{
    const char *words = check_memory();
    if (words != NULL)
        return words;
    ++*(uint64_t *)(void *)named;
    ++*(uint64_t *)(void *)unlinked;
    for (int i = 0; i < 2; i++)
        PROGRAM_EXPECT(sem_post(semaphores[i]) == 0, "sem_post");
    return NULL;
}

static const char *check(void)
{
    uint64_t before[2] = {*(uint64_t *)(void *)named, *(uint64_t *)(void *)unlinked};
    const char *words = program_ask(&child);
    if (words == NULL)
        words = check_memory();
    if (words != NULL)
        return words;
    PROGRAM_EXPECT(*(uint64_t *)(void *)named == before[0] + 1, "named memory is not shared");
    PROGRAM_EXPECT(*(uint64_t *)(void *)unlinked == before[1] + 1, "unlinked memory is not shared");
    for (int i = 0; i < 2; i++) {
        int value = -1;
        sem_getvalue(semaphores[i], &value);
        PROGRAM_EXPECT(value == 4, "semaphore %d has %d instead of 4", i, value);
        PROGRAM_EXPECT(sem_trywait(semaphores[i]) == 0, "sem_trywait");
    }
    int again = shm_open(shm_name, O_RDONLY, 0);
    PROGRAM_EXPECT(again >= 0, "%s is no longer in /dev/shm", shm_name);
    close(again);
    return NULL;
}

static void *shared(const char *name)
{
    int fd = (int)program_ok(shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600), "shm_open");
    program_ok(ftruncate(fd, PAGES * PROGRAM_PAGE), "ftruncate");
    void *map = mmap(NULL, PAGES * PROGRAM_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED)
        program_die("mmap");
    close(fd);
    return map;
}

/* The test removes what has a name: DIR/names lists it. */
int main(int argc, char **argv)
{
    program_begin(argc, argv);
    snprintf(shm_name, sizeof(shm_name), "/rewarm-test-%d", getpid());
    snprintf(sem_name, sizeof(sem_name), "/rewarm-test-%d-sem", getpid());
    char names[256];
    snprintf(names, sizeof(names), "/dev/shm%s\n/dev/shm/sem.%s\n", shm_name, sem_name + 1);
    program_write("names", names);
    named = shared(shm_name);
    semaphores[0] = sem_open(sem_name, O_CREAT | O_EXCL, 0600, 3);
    char name[80];
    snprintf(name, sizeof(name), "%s-gone", shm_name);
    unlinked = shared(name);
    program_ok(shm_unlink(name), "shm_unlink");
    semaphores[1] = sem_open(name, O_CREAT | O_EXCL, 0600, 3);
    program_ok(sem_unlink(name), "sem_unlink");
    if (semaphores[0] == SEM_FAILED || semaphores[1] == SEM_FAILED)
        program_die("sem_open");
    for (size_t i = 1; i < PAGES; i++) {
        program_fill(named + i * PROGRAM_PAGE, i);
        program_fill(unlinked + i * PROGRAM_PAGE, i + 1000);
    }
    program_fork(&child, NULL, child_check);
    program_serve(check);
}

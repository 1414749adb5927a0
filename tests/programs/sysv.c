/* sysv DIR shm|sem|msg: System V shared memory, a semaphore or a message queue. */
#include "program.h"

#include <stdio.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>

enum { PAGES = 64, VALUE = 7 };
struct message {
    long type;
    char text[16];
};
static char *memory;
static int id;

static const char *check_shm(void)
{
    for (size_t i = 0; i < PAGES; i++)
        PROGRAM_EXPECT(program_filled(memory + i * PROGRAM_PAGE, i), "page %zu is wrong", i);
    struct shmid_ds info;
    PROGRAM_EXPECT(shmctl(id, IPC_STAT, &info) == 0, "IPC_STAT");
    return NULL;
}

static const char *check_sem(void)
{
    int value = semctl(id, 0, GETVAL);
    PROGRAM_EXPECT(value == VALUE, "the semaphore has %d instead of %d", value, VALUE);
    return NULL;
}

static const char *check_msg(void)
{
    struct message message;
    ssize_t got = msgrcv(id, &message, sizeof(message.text), 0, IPC_NOWAIT);
    PROGRAM_EXPECT(got == 6 && memcmp(message.text, "queued", 6) == 0, "message of %zd bytes", got);
    PROGRAM_EXPECT(msgsnd(id, &message, 6, 0) == 0, "msgsnd");
    return NULL;
}

/* DIR/ipc tells the test what to remove. */
int main(int argc, char **argv)
{
    program_begin(argc, argv);
    const char *kind = program_arg(2, "shm");
    char text[64];
    program_check *check = check_shm;
    if (strcmp(kind, "shm") == 0) {
        id = (int)program_ok(shmget(IPC_PRIVATE, PAGES * PROGRAM_PAGE, IPC_CREAT | 0600), "shmget");
        memory = shmat(id, NULL, 0);
        if (memory == (void *)-1)
            program_die("shmat");
        for (size_t i = 0; i < PAGES; i++)
            program_fill(memory + i * PROGRAM_PAGE, i);
    } else if (strcmp(kind, "sem") == 0) {
        check = check_sem;
        id = (int)program_ok(semget(IPC_PRIVATE, 1, IPC_CREAT | 0600), "semget");
        program_ok(semctl(id, 0, SETVAL, VALUE), "SETVAL");
    } else {
        check = check_msg;
        struct message message = {.type = 1, .text = "queued"};
        id = (int)program_ok(msgget(IPC_PRIVATE, IPC_CREAT | 0600), "msgget");
        program_ok(msgsnd(id, &message, 6, 0), "msgsnd");
    }
    snprintf(text, sizeof(text), "%s %d\n", kind, id);
    program_write("ipc", text);
    program_serve(check);
}

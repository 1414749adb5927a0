/* Shared by host_privileges.c and doctor.c; nobody else includes it. */
#ifndef REWARM_PROC_HOST_PRIVATE_H
#define REWARM_PROC_HOST_PRIVATE_H

#include <stdbool.h>
#include <stdint.h>

/* What this process may do, as far as freezing and restoring go. */
struct rewarm_privileges {
    bool root;          /* effective user 0 */
    bool bounding_cut;  /* the capability bounding set lacks something that the kernel knows */
    bool resource;      /* CAP_SYS_RESOURCE */
    bool trace;         /* CAP_SYS_PTRACE */
    char missing[256];  /* names of needed capabilities, ", " between; "" when none */
    char optional[256]; /* names of capabilities that only some workers need, missing */
};
void rewarm_host_privileges(struct rewarm_privileges *ret_privileges);

/* The pipe that CRIU makes at a freeze must be allowed to grow to this. */
#define REWARM_PIPE_BYTES 33554432u

/* A number in a file of one line (a sysctl); false when there is none. */
bool rewarm_host_read_number(const char *path, uint64_t *ret_value);

#endif

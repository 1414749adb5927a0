/* tracer DIR PID: traces that process (without stopping it). */
#include "program.h"

#include <sys/ptrace.h>

static const char *check(void)
{
    return NULL;
}

int main(int argc, char **argv)
{
    program_begin(argc, argv);
    program_ok(ptrace(PTRACE_SEIZE, (pid_t)program_arg_size(2, 0), NULL, NULL), "PTRACE_SEIZE");
    program_serve(check);
}

/* rlimits DIR: lowered resource limits. */
#include "program.h"

#include <sys/resource.h>

static const struct {
    int resource;
    rlim_t soft, hard;
} limits[] = {
    {RLIMIT_NOFILE, 1000, 2000},   {RLIMIT_STACK, 4 << 20, 16 << 20},
    {RLIMIT_CORE, 0, 0},           {RLIMIT_NPROC, 20000, 30000},
    {RLIMIT_SIGPENDING, 500, 600}, {RLIMIT_FSIZE, 1 << 30, 1 << 30},
    {RLIMIT_MSGQUEUE, 1000, 2000},
};

static const char *check(void)
{
    for (size_t i = 0; i < sizeof(limits) / sizeof(limits[0]); i++) {
        struct rlimit now;
        PROGRAM_EXPECT(getrlimit((__rlimit_resource_t)limits[i].resource, &now) == 0, "getrlimit");
        PROGRAM_EXPECT(now.rlim_cur == limits[i].soft && now.rlim_max == limits[i].hard,
                       "limit %d is %lu:%lu", limits[i].resource, (unsigned long)now.rlim_cur,
                       (unsigned long)now.rlim_max);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    program_begin(argc, argv);
    for (size_t i = 0; i < sizeof(limits) / sizeof(limits[0]); i++) {
        const struct rlimit limit = {.rlim_cur = limits[i].soft, .rlim_max = limits[i].hard};
        program_ok(setrlimit((__rlimit_resource_t)limits[i].resource, &limit), "setrlimit");
    }
    program_serve(check);
}

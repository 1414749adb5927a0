/* attributes DIR [affinity]: what a process carries with it: name, umask, working directory,
 * niceness, OOM score, dumpable flag, timer slack, child subreaper, environment, and, if asked, CPU
 * affinity. */
#include "program.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static cpu_set_t affinity;
static bool with_affinity;

static long read_number(const char *path)
{
    long value = -1;
    FILE *file = fopen(path, "re");
    if (file != NULL && fscanf(file, "%ld", &value) != 1)
        value = -1;
    if (file != NULL)
        fclose(file);
    return value;
}

static const char *check(void)
{
    char name[16], cwd[4096];
    prctl(PR_GET_NAME, name);
    PROGRAM_EXPECT(strcmp(name, "a-name") == 0, "name %s", name);
    mode_t mask = umask(027);
    PROGRAM_EXPECT(mask == 027, "umask %o", mask);
    PROGRAM_EXPECT(getcwd(cwd, sizeof(cwd)) != NULL && strcmp(cwd, program_path("cwd")) == 0,
                   "working directory %s", cwd);
    PROGRAM_EXPECT(getpriority(PRIO_PROCESS, 0) == 5, "niceness %d", getpriority(PRIO_PROCESS, 0));
    cpu_set_t now;
    PROGRAM_EXPECT(sched_getaffinity(0, sizeof(now), &now) == 0, "sched_getaffinity");
    PROGRAM_EXPECT(!with_affinity || CPU_EQUAL(&now, &affinity), "CPU affinity differs");
    PROGRAM_EXPECT(read_number("/proc/self/oom_score_adj") == 300, "oom_score_adj %ld",
                   read_number("/proc/self/oom_score_adj"));
    PROGRAM_EXPECT(prctl(PR_GET_TIMERSLACK) == 123456, "timer slack %d", prctl(PR_GET_TIMERSLACK));
    int subreaper = 0;
    prctl(PR_GET_CHILD_SUBREAPER, &subreaper);
    PROGRAM_EXPECT(subreaper == 1, "child subreaper is lost");
    PROGRAM_EXPECT(prctl(PR_GET_DUMPABLE) == 1, "dumpable %d", prctl(PR_GET_DUMPABLE));
    PROGRAM_EXPECT(strcmp(getenv("REWARM_TEST_VARIABLE"), "a value") == 0, "environment differs");
    return NULL;
}

int main(int argc, char **argv)
{
    program_begin(argc, argv);
    prctl(PR_SET_NAME, "a-name");
    umask(027);
    mkdirat(program_dir_fd, "cwd", 0700);
    program_ok(chdir(program_path("cwd")), "chdir");
    program_ok(setpriority(PRIO_PROCESS, 0, 5), "setpriority");
    CPU_ZERO(&affinity);
    CPU_SET(0, &affinity);
    with_affinity = strcmp(program_arg(2, ""), "affinity") == 0;
    if (with_affinity)
        program_ok(sched_setaffinity(0, sizeof(affinity), &affinity), "sched_setaffinity");
    FILE *file = fopen("/proc/self/oom_score_adj", "we");
    if (file == NULL || fprintf(file, "300") != 3 || fclose(file) != 0)
        program_die("oom_score_adj");
    prctl(PR_SET_TIMERSLACK, 123456);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    setenv("REWARM_TEST_VARIABLE", "a value", 1);
    program_serve(check);
}

/* `rewarm ps`: the workers that `rewarm run` and `rewarm restore` started and still watch. */
#include <stdio.h>

#include "base/time.h"
#include "commands.h"
#include "output.h"
#include "snapshot/snapshot.h"

static json_t *worker_json(const struct rewarm_worker *worker)
{
    char started[32];
    return json_pack("{s:s, s:i, s:i, s:s, s:s, s:s, s:s}", "name", worker->name, "pid",
                     (int)worker->pid, "supervisor", (int)worker->supervisor, "snapshot",
                     worker->snapshot, "state", worker->state, "started",
                     rewarm_time_iso(worker->started_wall_ns, started), "log", worker->log);
}

static void print_table(const struct rewarm_worker *workers, size_t count)
{
    static const char *const heads[] = {"NAME", ">PID", "STATE", "SNAPSHOT", ">AGE", "LOG", NULL};
    struct rewarm_table *table = rewarm_table_new(heads);
    uint64_t now_ns = rewarm_time_wall_ns();
    for (size_t i = 0; i < count; i++) {
        char age[32];
        uint64_t started_ns = workers[i].started_wall_ns;
        rewarm_table_cell(table, "%s", workers[i].name);
        rewarm_table_cell(table, "%d", (int)workers[i].pid);
        rewarm_table_cell(table, "%s%s", workers[i].state,
                          workers[i].supervisor == 0 ? " (unwatched)" : "");
        rewarm_table_cell(table, "%s", workers[i].snapshot[0] != '\0' ? workers[i].snapshot : "-");
        rewarm_table_cell(table, "%s",
                          rewarm_output_age(now_ns > started_ns ? now_ns - started_ns : 0, age));
        rewarm_table_cell(table, "%s", workers[i].log[0] != '\0' ? workers[i].log : "-");
    }
    rewarm_table_print(table);
    rewarm_table_free(table);
}

static int ps_run(struct rewarm_cli *cli, const void *values, char **operands, size_t count)
{
    (void)values, (void)operands, (void)count;
    struct rewarm_error err = REWARM_ERROR_INIT;
    rewarm_auto_store struct rewarm_store *store = NULL;
    /* With no store there is nothing to repair; that the store can't be read must not hide workers.
     */
    if (rewarm_cli_open_store(cli, false, &store, NULL) == 0)
        rewarm_cli_repair(store);

    struct rewarm_worker *workers;
    size_t worker_count;
    if (rewarm_workers_list(&workers, &worker_count, &err) < 0)
        return rewarm_cli_fail(cli, &err);
    if (cli->json) {
        json_t *array = json_array();
        for (size_t i = 0; i < worker_count; i++)
            json_array_append_new(array, worker_json(&workers[i]));
        rewarm_output_json(cli, array);
    } else if (cli->quiet) {
        for (size_t i = 0; i < worker_count; i++)
            puts(workers[i].name);
    } else {
        print_table(workers, worker_count);
    }
    rewarm_workers_free(workers, worker_count);
    return 0;
}

const struct rewarm_cli_command rewarm_command_ps = {
    .name = "ps",
    .operands = "",
    .summary = "List the workers that run and restore started",
    .json = true,
    .run = ps_run,
};

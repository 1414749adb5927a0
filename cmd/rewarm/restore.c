/* `rewarm restore`: one worker or several from a snapshot, in the foreground or with a supervisor.
 */
#include <stdio.h>
#include <string.h>

#include "base/clean.h"
#include "base/str.h"
#include "commands.h"
#include "output.h"
#include "progress.h"
#include "snapshot/run.h"

enum { COPIES_MAX = 1024 };

struct restore_values {
    const char *as;
    const char *isolate;
    struct rewarm_cli_list publish;
    uint64_t copies;
    bool detach, no_wait, any_kernel;
};

static const struct restore_values restore_defaults = {.copies = 1};

static const struct rewarm_cli_option restore_options[] = {
    {.name = "detach",
     .help = "Return once the worker is whole and leave it to a supervisor in the background",
     .kind = REWARM_CLI_FLAG,
     .offset = offsetof(struct restore_values, detach)},
    {.name = "no-wait",
     .help = "With --detach: return once it runs, while its memory is still coming in",
     .kind = REWARM_CLI_FLAG,
     .offset = offsetof(struct restore_values, no_wait)},
    {.name = "isolate",
     .argument = "WHAT",
     .help = "Give each worker namespaces of its own: pid, net, or pid,net",
     .choices = "pid net pid,net net,pid",
     .word = REWARM_WORD_CHOICE,
     .kind = REWARM_CLI_TEXT,
     .offset = offsetof(struct restore_values, isolate)},
    {.name = "publish",
     .argument = "HOST:GUEST",
     .help = "With --isolate net: forward this port of the host to the worker's; repeatable; with "
             "--copies the host's port counts up",
     .kind = REWARM_CLI_LIST,
     .offset = offsetof(struct restore_values, publish)},
    {.name = "copies",
     .argument = "N",
     .help = "Restore N workers side by side, named WORKER.1 and so on",
     .kind = REWARM_CLI_NUMBER,
     .offset = offsetof(struct restore_values, copies)},
    {.name = "as",
     .argument = "WORKER",
     .help = "The worker's name (default: the snapshot's)",
     .kind = REWARM_CLI_TEXT,
     .word = REWARM_WORD_WORKER,
     .offset = offsetof(struct restore_values, as)},
    {.name = "any-kernel",
     .help = "Restore although the snapshot was made on another kernel or CPU",
     .kind = REWARM_CLI_FLAG,
     .offset = offsetof(struct restore_values, any_kernel)},
    {0},
};

static int check_publish(const char *text, uint64_t copies, struct rewarm_error *err)
{
    rewarm_auto_free char *host_text = rewarm_str_dup(text);
    char *guest_text = strchr(host_text, ':');
    uint64_t host = 0, guest = 0;
    if (guest_text != NULL)
        *guest_text++ = '\0';
    if (guest_text == NULL || !rewarm_str_to_u64(host_text, &host) ||
        !rewarm_str_to_u64(guest_text, &guest) || host < 1 || guest < 1 || guest > 65535 ||
        host > 65535)
        return rewarm_error_set(err, REWARM_E_USAGE, 0,
                                "--publish wants HOST:GUEST, two ports, not '%s'", text);
    if (host + copies - 1 > 65535)
        return rewarm_error_set(err, REWARM_E_USAGE, 0,
                                "--publish %s: port %s and %llu copies go beyond port 65535", text,
                                host_text, (unsigned long long)copies);
    return 0;
}

static int check_values(const struct restore_values *restore, unsigned isolate,
                        struct rewarm_error *err)
{
    if (restore->copies < 1 || restore->copies > COPIES_MAX)
        return rewarm_error_set(err, REWARM_E_USAGE, 0, "--copies wants 1 to %d", COPIES_MAX);
    if (restore->copies > 1 && (isolate & REWARM_ISOLATE_PID) == 0)
        return rewarm_error_set(err, REWARM_E_USAGE, 0,
                                "--copies needs --isolate pid: two workers can't have the same "
                                "PIDs (and --isolate pid,net when they listen)");
    if (restore->publish.count > 0 && (isolate & REWARM_ISOLATE_NET) == 0)
        return rewarm_error_set(err, REWARM_E_USAGE, 0, "--publish needs --isolate net");
    if (restore->no_wait && !restore->detach)
        return rewarm_error_set(err, REWARM_E_USAGE, 0, "--no-wait needs --detach");
    for (size_t i = 0; i < restore->publish.count; i++) {
        int rc = check_publish(restore->publish.items[i], restore->copies, err);
        if (rc < 0)
            return rc;
    }
    return restore->as != NULL ? rewarm_str_check_name(restore->as, err) : 0;
}

static unsigned isolate_bits(const char *isolate)
{
    unsigned bits = 0;
    if (isolate != NULL && strstr(isolate, "pid") != NULL)
        bits |= REWARM_ISOLATE_PID;
    if (isolate != NULL && strstr(isolate, "net") != NULL)
        bits |= REWARM_ISOLATE_NET;
    return bits;
}

static json_t *restored_json(const struct rewarm_restored *restored)
{
    const struct rewarm_restore_result *result = &restored->result;
    return json_pack("{s:s, s:i, s:I, s:I, s:I, s:I}", "worker", restored->worker, "pid",
                     (int)result->root, "running_ns", (json_int_t)result->running_ns, "complete_ns",
                     (json_int_t)result->complete_ns, "supplied_bytes",
                     (json_int_t)result->supplied_bytes, "faults", (json_int_t)result->faults);
}

static void print_restored(struct rewarm_cli *cli, const struct rewarm_restored *restored,
                           unsigned count, bool many)
{
    if (cli->json) {
        json_t *answer = many ? json_array() : restored_json(&restored[0]);
        for (unsigned i = 0; many && i < count; i++)
            json_array_append_new(answer, restored_json(&restored[i]));
        rewarm_output_json(cli, answer);
        return;
    }
    for (unsigned i = 0; i < count && !cli->quiet; i++) {
        const struct rewarm_restore_result *result = &restored[i].result;
        char running[REWARM_STR_HUMAN], whole[REWARM_STR_HUMAN], bytes[REWARM_STR_HUMAN];
        printf("%s: process %d, running after %s", restored[i].worker, (int)result->root,
               rewarm_str_seconds(result->running_ns, running));
        if (result->complete_ns > 0)
            printf(", whole after %s (%s)", rewarm_str_seconds(result->complete_ns, whole),
                   rewarm_str_bytes(result->supplied_bytes, bytes));
        putchar('\n');
    }
}

static int restore_run(struct rewarm_cli *cli, const void *values, char **operands, size_t count)
{
    (void)count;
    const struct restore_values *restore = values;
    struct rewarm_error err = REWARM_ERROR_INIT;
    unsigned isolate = isolate_bits(restore->isolate);
    rewarm_auto_store struct rewarm_store *store = NULL;
    if (check_values(restore, isolate, &err) < 0 || rewarm_str_check_name(operands[0], &err) < 0 ||
        rewarm_cli_open_store(cli, false, &store, &err) < 0)
        return rewarm_cli_fail(cli, &err);
    rewarm_cli_repair(store);

    struct rewarm_cli_progress *progress =
        rewarm_cli_progress_new(cli, operands[0], !restore->detach);
    struct rewarm_restore_run_options options = {
        .snapshot = operands[0],
        .worker = restore->as,
        .detach = restore->detach,
        .no_wait = restore->no_wait,
        .copies = (unsigned)restore->copies,
        .isolate = isolate,
        .publish = restore->publish.items,
        .any_kernel = restore->any_kernel,
        .progress = rewarm_cli_progress_hook(progress),
    };
    rewarm_auto_free struct rewarm_restored *restored = NULL;
    unsigned restored_count = 0;
    int status = 0;
    int rc = rewarm_restore_run(store, &options, &restored, &restored_count, &status, &err);
    rewarm_cli_progress_free(progress);
    if (rc < 0)
        return rewarm_cli_fail(cli, &err);
    if (restore->detach && restored_count > 0)
        print_restored(cli, restored, restored_count, restore->copies > 1);
    return status;
}

const struct rewarm_cli_command rewarm_command_restore = {
    .name = "restore",
    .operands = "NAME",
    .summary = "Bring a worker back from a snapshot, or several copies of it",
    .details = "Stays in the foreground as the worker's parent: signals and the exit status pass "
               "through. With --detach it prints what came back and returns.",
    .options = restore_options,
    .values_bytes = sizeof(struct restore_values),
    .defaults = &restore_defaults,
    .operands_min = 1,
    .operands_max = 1,
    .word = REWARM_WORD_SNAPSHOT,
    .json = true,
    .run = restore_run,
};

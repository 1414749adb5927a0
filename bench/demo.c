/* rewarm-demo: what rewarm is for, measured on a real LLM server and a real small model.
 *
 * It drives the `rewarm` command as a person would, and links nothing of it:
 *  1. cold: llama-server is started ROUNDS times for each of two questions; the clock stops at the
 * first token of the answer;
 *  2. warm: it is started once more through `rewarm run`, and answers the long question;
 *  3. `rewarm freeze` while it goes on; it must still give the same answer; then it is ended;
 *  4. restored: `rewarm restore` ROUNDS times for each question; the clock runs from the request to
 * the first token; every answer to the long question is compared, token by token, with the warm
 * one. Both starts find their files in the page cache. Store, run folder and logs are in --work,
 * which is emptied first. Ends with 0 only if all answers are equal. Every process is ended on
 * every path. */
#include <curl/curl.h>
#include <errno.h>
#include <ftw.h>
#include <getopt.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "demo_ask.h"
#include "demo_process.h"

enum { ANSWER_TOKENS = 32, ROUNDS_MAX = 20 };

/* The shortest thing to ask: no prefill to speak of, so what is timed is the start. */
static const char word_prompt[] = "Hello";

struct times {
    uint64_t ns[ROUNDS_MAX];
    unsigned count;
};

struct demo {
    char *rewarm, *llama, *work; /* absolute paths */
    unsigned rounds;
    bool bar; /* machine-readable: only the bar line on stdout */
    char url[64], health[64], port[8];
    const char *server[32]; /* argv of llama-server */
    char *long_prompt, *log;

    struct times cold_long, cold_word, restored_long, restored_word;
    struct demo_answer warm;
    unsigned prompt_tokens, cached_tokens;
    uint64_t memory_bytes, disk_bytes;
    uint64_t freeze_ns, pause_ns, logical_bytes, zero_bytes;
    unsigned equal, compared;
};

static bool fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
static bool fail(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fputs("rewarm-demo: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    return false;
}

static char *join(const char *a, const char *b)
{
    char *text = NULL;
    if (asprintf(&text, "%s%s", a, b) < 0)
        abort();
    return text;
}

static void say(const char *text)
{
    fprintf(stderr, "demo: %s\n", text);
}

/* --- set-up
 * ----------------------------------------------------------------------------------------- */

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st, (void)type, (void)ftw;
    return remove(path);
}

static bool make_empty(const char *path)
{
    if (nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS | FTW_MOUNT) != 0 && errno != ENOENT)
        return fail("%s can't be emptied: %s", path, strerror(errno));
    if (mkdir(path, 0700) != 0)
        return fail("%s can't be made: %s", path, strerror(errno));
    return true;
}

static int free_port(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t bytes = sizeof(address);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int port = -1;
    if (fd >= 0 && bind(fd, (struct sockaddr *)&address, bytes) == 0 &&
        getsockname(fd, (struct sockaddr *)&address, &bytes) == 0)
        port = ntohs(address.sin_port);
    if (fd >= 0)
        close(fd);
    return port;
}

static bool prepare(struct demo *demo)
{
    int port = free_port();
    if (port < 0)
        return fail("no free port: %s", strerror(errno));
    snprintf(demo->port, sizeof(demo->port), "%d", port);
    snprintf(demo->url, sizeof(demo->url), "http://127.0.0.1:%d/completion", port);
    snprintf(demo->health, sizeof(demo->health), "http://127.0.0.1:%d/health", port);
    demo->long_prompt = demo_long_prompt();
    demo->log = join(demo->work, "/server.log");

    /* Straight through the bundle's own loader: no shell stays in between. */
    const char *const argv[] = {join(demo->llama, "/lib/ld-linux-x86-64.so.2"),
                                "--library-path",
                                join(demo->llama, "/lib"),
                                "--argv0",
                                "llama-server",
                                join(demo->llama, "/bin/llama-server"),
                                "-m",
                                join(demo->llama, "/model.gguf"),
                                "--host",
                                "127.0.0.1",
                                "--port",
                                demo->port,
                                "-c",
                                "4096",
                                "-np",
                                "1",
                                "-t",
                                "2",
                                "--no-webui",
                                NULL};
    memcpy(demo->server, argv, sizeof(argv));
    if (access(argv[7], R_OK) != 0)
        return fail("%s is missing: tools/fetch-model makes that folder", argv[7]);
    if (access(demo->rewarm, X_OK) != 0)
        return fail("%s: %s", demo->rewarm, strerror(errno));

    /* OpenMP threads that spin at barriers are many times slower on two busy cores than ones that
     * sleep. */
    setenv("OMP_WAIT_POLICY", "passive", 1);
    setenv("GOMP_SPINCOUNT", "0", 1);
    return true;
}

/* A worker that an earlier demo left, because it was killed itself, would keep its name. */
static bool end_workers(struct demo *demo)
{
    const char *const argv[] = {demo->rewarm, "ps", "--json", NULL};
    json_t *list = demo_process_run(argv, "rewarm ps");
    if (list == NULL)
        return false;
    size_t i;
    json_t *worker;
    json_array_foreach(list, i, worker)
    {
        pid_t pid = (pid_t)json_integer_value(json_object_get(worker, "pid"));
        pid_t supervisor = (pid_t)json_integer_value(json_object_get(worker, "supervisor"));
        if (pid > 0)
            demo_process_end(pid);
        if (supervisor > 0)
            demo_process_let_end(supervisor);
    }
    json_decref(list);
    return true;
}

/* --- measuring
 * -------------------------------------------------------------------------------------- */

static bool server_ended(void *context)
{
    return demo_process_ended(*(pid_t *)context);
}

static bool cold_once(struct demo *demo, const char *prompt, struct times *times)
{
    uint64_t start_ns = demo_now_ns();
    pid_t pid = demo_process_start(demo->server, demo->log);
    if (pid < 0)
        return fail("llama-server can't be started: %s", strerror(errno));
    struct demo_answer answer = {0};
    bool up = demo_ask_until_up(demo->url, prompt, 1, start_ns + 180000000000u, server_ended, &pid,
                                &answer);
    times->ns[times->count++] = demo_now_ns() - start_ns;
    if (prompt == demo->long_prompt)
        demo->prompt_tokens = answer.prompt_tokens;
    demo_answer_fini(&answer);
    demo_process_end(pid);
    return up || demo_stopped() || fail("llama-server gave no answer: see %s", demo->log);
}

static uint64_t integer(const json_t *object, const char *key)
{
    return (uint64_t)json_integer_value(json_object_get(object, key));
}

static bool warm_and_freeze(struct demo *demo)
{
    const char *run[8 + 32] = {demo->rewarm, "run",          "llama",      "--no-save",
                               "--detach",   "--ready-http", demo->health, "--"};
    memcpy(run + 8, demo->server, sizeof(demo->server));
    say("starting it through rewarm run, and asking the long question");
    json_t *answer = demo_process_run(run, "rewarm run");
    if (answer == NULL)
        return false;
    json_decref(answer);
    struct demo_answer again = {0};
    if (!demo_ask(demo->url, demo->long_prompt, 1, &again))
        return fail("the warm server gave no answer");
    demo_answer_fini(&again);
    if (!demo_ask(demo->url, demo->long_prompt, ANSWER_TOKENS, &demo->warm))
        return fail("the warm server gave no answer");

    say("freezing it while it goes on");
    const char *const freeze[] = {demo->rewarm, "freeze", "llama", "--json", NULL};
    json_t *frozen = demo_process_run(freeze, "rewarm freeze");
    if (frozen == NULL)
        return false;
    const json_t *totals = json_object_get(frozen, "totals");
    demo->freeze_ns = integer(frozen, "total_ns");
    demo->pause_ns = integer(frozen, "pause_ns");
    demo->logical_bytes = integer(totals, "logical_bytes");
    demo->zero_bytes = integer(totals, "zero_bytes");
    json_decref(frozen);
    if (!demo_ask(demo->url, demo->long_prompt, ANSWER_TOKENS, &again))
        return fail("the server gives no answer after the freeze");
    bool equal = demo_answer_equal(&again, &demo->warm);
    demo_answer_fini(&again);
    return equal || fail("the server's answer has changed after the freeze");
}

static bool restore_failed(void *context)
{
    return demo_process_failed(*(pid_t *)context);
}

static bool restore_once(struct demo *demo, const char *prompt, struct times *times)
{
    const char *const argv[] = {demo->rewarm, "restore", "llama", "--detach", "--json", "-q", NULL};
    int output = -1;
    uint64_t start_ns = demo_now_ns();
    pid_t pid = demo_process_command(argv, &output);
    if (pid < 0)
        return fail("rewarm can't be started: %s", strerror(errno));
    struct demo_answer answer = {0};
    bool up = demo_ask_until_up(demo->url, prompt, 1, start_ns + 60000000000u, restore_failed, &pid,
                                &answer);
    times->ns[times->count++] = demo_now_ns() - start_ns;
    json_t *restored = demo_process_finish(pid, output, "rewarm restore");
    if (restored == NULL || !up) {
        json_decref(restored);
        demo_answer_fini(&answer);
        return demo_stopped() || fail("the restored server gave no answer");
    }
    json_decref(restored);
    if (prompt == demo->long_prompt) {
        demo->cached_tokens = answer.cached_tokens;
        struct demo_answer whole = {0};
        bool answered = demo_ask(demo->url, prompt, ANSWER_TOKENS, &whole);
        demo->compared++;
        demo->equal += answered && demo_answer_equal(&whole, &demo->warm);
        demo_answer_fini(&whole);
    }
    demo_answer_fini(&answer);
    return end_workers(demo);
}

/* --- result
 * ----------------------------------------------------------------------------------------- */

static int by_time(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a;
    uint64_t y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static double median_s(struct times *times)
{
    qsort(times->ns, times->count, sizeof(times->ns[0]), by_time);
    return times->count != 0 ? (double)times->ns[times->count / 2] / 1e9 : 0;
}

static uint64_t disk_sum;

static int add_blocks(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)path, (void)type, (void)ftw;
    disk_sum += (uint64_t)st->st_blocks * 512;
    return 0;
}

static void print_row(const char *what, double cold_s, double restored_s)
{
    printf("  %-38s %9.3f s %9.3f s %8.1f x\n", what, cold_s, restored_s, cold_s / restored_s);
}

static void print_table(struct demo *demo)
{
    const double mib = 1024.0 * 1024.0;
    double cold = median_s(&demo->cold_long), restored = median_s(&demo->restored_long);
    double cold_word = median_s(&demo->cold_word), word = median_s(&demo->restored_word);
    char text[64];
    printf("\nllama-server and SmolLM2-135M, medians of %u, files in the page cache\n\n",
           demo->rounds);
    printf("  %-38s %11s %11s %10s\n", "", "cold start", "restored", "ratio");
    snprintf(text, sizeof(text), "first token, prompt of %u tokens", demo->prompt_tokens);
    print_row(text, cold, restored);
    print_row("first token, prompt of one word", cold_word, word);
    printf("\n  freeze           %.3f s, the server was paused for %.3f s of it and went on\n",
           (double)demo->freeze_ns / 1e9, (double)demo->pause_ns / 1e9);
    printf("  memory           %.0f MiB resident in the server\n",
           (double)demo->memory_bytes / mib);
    printf("  disk             %.0f MiB (%.0f MiB frozen, %.0f MiB of them zeros)\n",
           (double)demo->disk_bytes / mib, (double)demo->logical_bytes / mib,
           (double)demo->zero_bytes / mib);
    printf("  tokens           %s: %u of %u answers of %u tokens, at temperature 0\n\n",
           demo->equal == demo->compared ? "equal" : "NOT EQUAL", demo->equal, demo->compared,
           (unsigned)ANSWER_TOKENS);
    printf(
        "What the gain is made of: of the long prompt, %u tokens are restored as computed, so the\n"
        "%.1f s that a cold server needs to read it are saved, besides its start. The one-word\n"
        "prompt has no such work behind it: there the gain is that of the start alone.\n",
        demo->cached_tokens, cold - cold_word);
}

static bool rounds(struct demo *demo, bool (*once)(struct demo *, const char *, struct times *),
                   struct times *long_times, struct times *word_times)
{
    for (unsigned i = 0; i < demo->rounds; i++) {
        if (demo_stopped() || !once(demo, word_prompt, word_times) || demo_stopped() ||
            !once(demo, demo->long_prompt, long_times))
            return false;
    }
    return !demo_stopped();
}

static bool measure(struct demo *demo)
{
    say("cold starts");
    if (!rounds(demo, cold_once, &demo->cold_long, &demo->cold_word))
        return false;
    if (!warm_and_freeze(demo) || demo_stopped())
        return false;
    const char *const ps[] = {demo->rewarm, "ps", "--json", NULL};
    json_t *workers = demo_process_run(ps, "rewarm ps");
    pid_t pid = (pid_t)integer(json_array_get(workers, 0), "pid");
    json_decref(workers);
    if (pid <= 0)
        return fail("rewarm ps does not show the worker");
    demo->memory_bytes = demo_process_memory_bytes(pid);
    char *store = join(demo->work, "/store");
    nftw(store, add_blocks, 16, FTW_PHYS);
    free(store);
    demo->disk_bytes = disk_sum;
    if (!end_workers(demo))
        return false;

    say("restores");
    return rounds(demo, restore_once, &demo->restored_long, &demo->restored_word);
}

static _Noreturn void usage(int status)
{
    fputs("usage: rewarm-demo --rewarm PROGRAM --llama FOLDER --work FOLDER [--rounds N] [--bar]\n",
          status == 0 ? stdout : stderr);
    exit(status);
}

static void parse(struct demo *demo, int argc, char **argv)
{
    static const struct option options[] = {
        {"rewarm", required_argument, NULL, 'r'},
        {"llama", required_argument, NULL, 'l'},
        {"work", required_argument, NULL, 'w'},
        {"rounds", required_argument, NULL, 'n'},
        {"bar", no_argument, NULL, 'b'},
        {"help", no_argument, NULL, 'h'},
        {0},
    };
    const char *work = NULL;
    for (int option; (option = getopt_long(argc, argv, "h", options, NULL)) != -1;) {
        if (option == 'r')
            demo->rewarm = realpath(optarg, NULL);
        else if (option == 'l')
            demo->llama = realpath(optarg, NULL);
        else if (option == 'w')
            work = optarg;
        else if (option == 'n')
            demo->rounds = (unsigned)strtoul(optarg, NULL, 10);
        else if (option == 'b')
            demo->bar = true;
        else
            usage(option == 'h' ? 0 : 2);
    }
    if (demo->rewarm == NULL || demo->llama == NULL || work == NULL || optind != argc ||
        demo->rounds < 1 || demo->rounds > ROUNDS_MAX)
        usage(2);
    mkdir(work, 0700);
    demo->work = realpath(work, NULL);
    if (demo->work == NULL)
        usage(2);
}

int main(int argc, char **argv)
{
    struct demo demo = {.rounds = 3};
    parse(&demo, argc, argv);
    demo_process_init();
    curl_global_init(CURL_GLOBAL_DEFAULT);
    char *store = join(demo.work, "/store"), *run = join(demo.work, "/run");
    setenv("REWARM_STORE", store, 1);
    setenv("REWARM_RUN", run, 1);
    bool good = end_workers(&demo) && make_empty(demo.work) && prepare(&demo) && measure(&demo);
    if (demo_stopped())
        fail("stopped by a signal");
    demo_process_end_all();
    if (!good || demo_stopped())
        return 1;
    if (!demo.bar)
        print_table(&demo);
    else
        printf("bar llama_cold_over_restore %.1f x at-least 20\n",
               median_s(&demo.cold_long) / median_s(&demo.restored_long));
    if (demo.equal != demo.compared)
        return fail("a restored answer differs from the warm one"), 1;
    return 0;
}

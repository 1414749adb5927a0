/* The lazy-pages peer: contents, protocol, faults by others, failure and cancelling. */
#include "lazy_scene.h"

#include <sys/uio.h>

#define PID   4242
#define BYTES (24ull << 20)

static void check_all(void)
{
    CHECK_SNAPSHOT(PID, BASE, BASE, BYTES);
}

static void check_backwards(void)
{
    for (uint64_t offset = BYTES; offset > 0; offset -= PAGE)
        CHECK_SNAPSHOT(PID, BASE + offset - PAGE, BASE + offset - PAGE, PAGE);
}

static void *touch_at_random(void *argument)
{
    uint64_t seed = (uint64_t)(uintptr_t)argument;
    for (int i = 0; i < 4000; i++) {
        uint64_t at = BASE + scene_random(&seed) % (BYTES / PAGE) * PAGE;
        CHECK_SNAPSHOT(PID, at, at, PAGE);
    }
    return NULL;
}

static void check_with_threads(void)
{
    pthread_t threads[4];
    for (uintptr_t i = 0; i < 4; i++)
        CHECK(pthread_create(&threads[i], NULL, touch_at_random, (void *)(i + 1)) == 0);
    for (int i = 0; i < 4; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    check_all();
}

static void wait_for_the_end(void)
{
    for (;;)
        pause();
}

static void fills_without_a_fault(void **state)
{
    (void)state;
    static struct scene scene;
    scene_init(&scene);
    scene_add_space(&scene, PID, BASE, BYTES);
    scene_spawn(&scene, PID, BASE, BYTES, NULL, check_all);
    scene_start(&scene);
    scene_finish_restore(&scene);
    assert_int_equal(scene_join(&scene), 0); /* nobody has touched anything */
    assert_int_equal(scene.stats.supplied_bytes, scene_stored_bytes(&scene));
    assert_int_equal(scene.stats.dropped_bytes, 0);
    assert_int_equal(scene.stats.faults, 0);
    assert_int_equal(scene.running_calls, 1);
    assert_int_equal(scene.progress_done, scene_stored_bytes(&scene));
    assert_true(scene.stats.running_ns <= scene.stats.complete_ns);
    scene_let_go(&scene);
    assert_int_equal(scene_wait(&scene, 0), 0);
    scene_fini(&scene);
    assert_int_equal(scene_count_fds(), scene.fds_before);
}

static void answers_faults_before_the_tree_runs(void **state)
{
    (void)state;
    static struct scene scene;
    scene_init(&scene);
    scene_add_space(&scene, PID, BASE, BYTES);
    scene_spawn(&scene, PID, BASE, BYTES, NULL, check_backwards);
    scene_start(&scene);
    scene_let_go(&scene);
    assert_int_equal(scene_wait(&scene, 0), 0); /* all of it by faults */
    assert_int_equal(scene.running_calls, 0);
    scene_finish_restore(&scene);
    assert_int_equal(scene_join(&scene), 0);
    assert_int_equal(scene.stats.supplied_bytes, scene_stored_bytes(&scene));
    assert_true(scene.stats.faults >= BYTES / WINDOW);
    assert_true(scene.stats.zero_faults > 0);
    scene_fini(&scene);
    assert_int_equal(scene_count_fds(), scene.fds_before);
}

static void waits_for_late_registration(void **state)
{
    (void)state;
    static struct scene scene;
    scene_init(&scene);
    scene_add_space(&scene, PID, BASE, 2 * WINDOW);
    int sent[2], go[2];
    assert_int_equal(pipe2(sent, O_CLOEXEC), 0);
    assert_int_equal(pipe2(go, O_CLOEXEC), 0);
    pid_t child = fork();
    if (child == 0) {
        char byte;
        scene_map(BASE, 2 * WINDOW);
        int uffd = scene_open_uffd();
        scene_send_pid(scene.criu_fd, PID);
        scene_send_descriptor(scene.criu_fd, uffd);
        scene_register(uffd, BASE, 5 * PAGE);
        CHECK_SNAPSHOT(PID, BASE, BASE, PAGE); /* supplies what is registered of the window */
        scene_register(uffd, BASE + 5 * PAGE, 2 * WINDOW - 5 * PAGE);
        close(uffd);
        CHECK(write(sent[1], "s", 1) == 1);
        CHECK(read(go[0], &byte, 1) == 1);
        CHECK_SNAPSHOT(PID, BASE, BASE, 2 * WINDOW);
        _exit(0);
    }
    scene.targets[scene.target_count] = child;
    scene.go[scene.target_count++] = go[1];
    scene_start(&scene);
    char byte;
    assert_int_equal(read(sent[0], &byte, 1), 1);
    scene_finish_restore(&scene);
    scene_let_go(&scene);
    scene_expect_success(&scene);
    assert_int_equal(scene.stats.dropped_bytes, 0);
    scene_fini(&scene);
    close(sent[0]);
    close(sent[1]);
    close(go[0]);
    assert_int_equal(scene_count_fds(), scene.fds_before);
}

static void answers_threads_during_the_fill(void **state)
{
    (void)state;
    for (unsigned threads = 1; threads <= 4; threads += 3) {
        static struct scene scene;
        scene_init(&scene);
        scene.options.threads = threads;
        scene.source_delay_us = 50;
        scene_add_space(&scene, PID, BASE, BYTES);
        scene_spawn(&scene, PID, BASE, BYTES, NULL, check_with_threads);
        scene_run(&scene);
        scene_expect_success(&scene);
        assert_int_equal(scene.stats.supplied_bytes, scene_stored_bytes(&scene));
        assert_true(scene.stats.faults > 0);
        scene_fini(&scene);
    }
}

static void answers_faults_alone(void **state)
{
    (void)state;
    static struct scene scene;
    scene_init(&scene);
    scene.options.background = false;
    scene_add_space(&scene, PID, BASE, BYTES);
    scene_spawn(&scene, PID, BASE, BYTES, NULL, check_with_threads);
    scene_run(&scene);
    scene_expect_success(&scene);
    scene_fini(&scene);
}

static void check_second(void)
{
    CHECK_SNAPSHOT(PID + 1, BASE, BASE, BYTES / 2);
}

static void check_zeros(void)
{
    CHECK_ZERO(BASE, BYTES / 4);
}

/* A tree: two processes with memory, one that the map does not know, a zombie; and the pid of one
 * in two pieces, as a stream may deliver it. */
static void serves_a_tree(void **state)
{
    (void)state;
    static struct scene scene;
    scene_init(&scene);
    scene_add_space(&scene, PID, BASE, BYTES);
    scene_add_space(&scene, PID + 1, BASE, BYTES / 2);
    scene_spawn(&scene, PID, BASE, BYTES, NULL, check_with_threads);
    int32_t zombie = -1;
    assert_int_equal(send(scene.criu_fd, &zombie, sizeof(zombie), MSG_NOSIGNAL), 4);
    scene_spawn(&scene, PID + 1, BASE, BYTES / 2, NULL, check_second);
    scene_spawn(&scene, 77, BASE, BYTES / 4, NULL, check_zeros);
    scene_start(&scene);
    scene_let_go(&scene);
    uint32_t finished = FINISHED;
    assert_int_equal(send(scene.criu_fd, &finished, 3, MSG_NOSIGNAL), 3);
    struct timespec pause = {.tv_nsec = 20000000};
    nanosleep(&pause, NULL);
    assert_int_equal(send(scene.criu_fd, (char *)&finished + 3, 1, MSG_NOSIGNAL), 1);
    scene_expect_success(&scene);
    assert_int_equal(scene.stats.supplied_bytes, scene_stored_bytes(&scene));
    scene_fini(&scene);
    assert_int_equal(scene_count_fds(), scene.fds_before);
}

static void lets_others_read_the_memory(void **state)
{
    (void)state;
    static struct scene scene;
    scene_init(&scene);
    scene.options.background = false;
    scene_add_space(&scene, PID, BASE, BYTES);
    scene_spawn(&scene, PID, BASE, BYTES, NULL, check_all);
    scene_start(&scene);
    static uint64_t pages[16][512];
    for (uint64_t offset = 0; offset < BYTES; offset += sizeof(pages)) {
        struct iovec local = {pages, sizeof(pages)};
        struct iovec remote = {scene_at(BASE + offset), sizeof(pages)};
        assert_int_equal(process_vm_readv(scene.targets[0], &local, 1, &remote, 1, 0),
                         sizeof(pages));
        for (uint64_t page = 0; page < 16; page++)
            assert_true(scene_page_is(PID, pages[page], BASE + offset + page * PAGE));
    }
    scene_finish_restore(&scene);
    scene_let_go(&scene);
    scene_expect_success(&scene);
    scene_fini(&scene);
}

/* --- many small mappings: every third page has another protection, so no two are one mapping */

#define SMALL_MAPPINGS 2000

static void map_small(void)
{
    scene_map(BASE, SMALL_MAPPINGS * PAGE);
    for (uint64_t i = 0; i < SMALL_MAPPINGS; i += 2)
        CHECK(mprotect(scene_at(BASE + i * PAGE), PAGE, PROT_READ) == 0);
}

static void check_small(void)
{
    CHECK_SNAPSHOT(PID, BASE, BASE, SMALL_MAPPINGS * PAGE);
}

static void fills_many_small_mappings(void **state)
{
    (void)state;
    for (int background = 0; background < 2; background++) {
        static struct scene scene;
        scene_init(&scene);
        scene.options.background = background != 0;
        scene_add_space(&scene, PID, BASE, SMALL_MAPPINGS * PAGE);
        scene_spawn(&scene, PID, BASE, SMALL_MAPPINGS * PAGE, map_small, check_small);
        scene_run(&scene);
        scene_expect_success(&scene);
        assert_int_equal(scene.stats.supplied_bytes, scene_stored_bytes(&scene));
        assert_int_equal(scene.stats.dropped_bytes, 0);
        scene_fini(&scene);
    }
}

/* --- ends of processes */

static void exit_early(void)
{
    CHECK_SNAPSHOT(PID, BASE, BASE, 2 * WINDOW);
}

static void survives_exit_in_the_middle(void **state)
{
    (void)state;
    static struct scene scene;
    scene_init(&scene);
    scene.source_delay_us = 500;
    scene_add_space(&scene, PID, BASE, BYTES);
    scene_spawn(&scene, PID, BASE, BYTES, NULL, exit_early);
    scene_run(&scene);
    scene_expect_success(&scene);
    assert_true(scene.stats.dropped_bytes > 0);
    assert_true(scene.stats.supplied_bytes + scene.stats.dropped_bytes >=
                scene_stored_bytes(&scene));
    scene_fini(&scene);
    assert_int_equal(scene_count_fds(), scene.fds_before);
}

static void survives_kill_in_the_middle(void **state)
{
    (void)state;
    for (unsigned round = 0; round < 20; round++) {
        static struct scene scene;
        scene_init(&scene);
        scene.source_delay_us = 50;
        scene_add_space(&scene, PID, BASE, BYTES);
        scene_add_space(&scene, PID + 1, BASE, BYTES / 2);
        scene_spawn(&scene, PID, BASE, BYTES, NULL, check_with_threads);
        scene_spawn(&scene, PID + 1, BASE, BYTES / 2, NULL, check_second);
        scene_run(&scene);
        struct timespec pause = {.tv_nsec = 1000 * (long)(round * round * 20)};
        nanosleep(&pause, NULL);
        assert_int_equal(kill(scene.targets[0], SIGKILL), 0);
        int status = scene_wait(&scene, 0);
        assert_true(status == 0 || WTERMSIG(status) == SIGKILL);
        scene_expect_success(&scene); /* the other one is whole */
        scene_fini(&scene);
        assert_int_equal(scene_count_fds(), scene.fds_before);
    }
}

static void exec_something(void)
{
    CHECK_SNAPSHOT(PID, BASE, BASE, WINDOW);
    execl("/bin/true", "true", NULL);
    CHECK(false);
}

static void survives_exec_in_the_middle(void **state)
{
    (void)state;
    static struct scene scene;
    scene_init(&scene);
    scene.source_delay_us = 500;
    scene_add_space(&scene, PID, BASE, BYTES);
    scene_spawn(&scene, PID, BASE, BYTES, NULL, exec_something);
    scene_run(&scene);
    scene_expect_success(&scene);
    assert_true(scene.stats.dropped_bytes > 0);
    scene_fini(&scene);
}

/* --- failure: the descriptors stay open, so that the tree waits instead of seeing zeros */

static int count_userfaultfds(void)
{
    int count = 0;
    for (int fd = 0; fd < 1024; fd++) {
        char path[64], target[64];
        snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
        ssize_t length = readlink(path, target, sizeof(target) - 1);
        if (length > 0) {
            target[length] = '\0';
            count += strstr(target, "userfaultfd") != NULL;
        }
    }
    return count;
}

static void expect_failure(struct scene *scene, int code)
{
    assert_int_equal(scene_join(scene), -code);
    assert_int_equal(scene->err.code, code);
    assert_true(scene->err.message[0] != '\0');
    assert_int_equal(count_userfaultfds(), 1);
    /* The target is alive and stuck on a page, not wrong. */
    int status;
    assert_int_equal(waitpid(scene->targets[0], &status, WNOHANG), 0);
    assert_int_equal(kill(scene->targets[0], SIGKILL), 0);
    assert_int_equal(waitpid(scene->targets[0], &status, 0), scene->targets[0]);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    assert_int_equal(scene->shared->failed_line, 0);
    scene->targets[0] = 0;
    scene_close_userfaultfds();
    scene_fini(scene);
    assert_int_equal(scene_count_fds(), scene->fds_before);
}

static void fails_with_a_damaged_chunk(void **state)
{
    (void)state;
    for (int background = 0; background < 2; background++) {
        static struct scene scene;
        scene_init(&scene);
        scene.options.background = background != 0;
        scene.corrupt_chunk = 40;
        scene_add_space(&scene, PID, BASE, BYTES);
        scene_spawn(&scene, PID, BASE, BYTES, NULL, check_all);
        scene_run(&scene);
        expect_failure(&scene, REWARM_E_CORRUPT);
    }
}

static void fails_when_criu_hangs_up(void **state)
{
    (void)state;
    static struct scene scene;
    scene_init(&scene);
    scene_add_space(&scene, PID, BASE, BYTES);
    scene_spawn(&scene, PID, BASE, BYTES, NULL, wait_for_the_end);
    scene_start(&scene);
    close(rewarm_steal_fd(&scene.criu_fd));
    scene.criu_fd = fcntl(scene.options.listen_fd, F_DUPFD_CLOEXEC, 0); /* closed by scene_fini */
    /* The target has CRIU's end too: it goes with it. */
    assert_int_equal(kill(scene.targets[0], SIGKILL), 0);
    assert_int_equal(scene_join(&scene), -REWARM_E_CRIU);
    assert_int_equal(scene.running_calls, 0);
    assert_int_equal(count_userfaultfds(), 1);
    scene_close_userfaultfds();
    scene_fini(&scene);
    assert_int_equal(scene_count_fds(), scene.fds_before);
}

static void stops_when_cancelled(void **state)
{
    (void)state;
    for (int when = 0; when < 3; when++) {
        static struct scene scene;
        scene_init(&scene);
        scene.source_delay_us = when == 2 ? 20000 : 0;
        scene_add_space(&scene, PID, BASE, BYTES);
        scene_spawn(&scene, PID, BASE, BYTES, NULL, when == 2 ? check_all : wait_for_the_end);
        scene_start(&scene);
        struct timespec pause = {.tv_nsec = 30000000};
        if (when > 0)
            nanosleep(&pause, NULL);
        if (when == 2) {
            scene_finish_restore(&scene);
            scene_let_go(&scene);
            nanosleep(&pause, NULL);
        }
        uint64_t one = 1;
        assert_int_equal(write(scene.options.cancel_fd, &one, sizeof(one)), sizeof(one));
        if (when > 0) {
            expect_failure(&scene, REWARM_E_CANCELLED);
            continue;
        }
        /* At once: the descriptor may or may not have arrived. */
        assert_int_equal(scene_join(&scene), -REWARM_E_CANCELLED);
        scene_close_userfaultfds();
        scene_fini(&scene);
        assert_int_equal(scene_count_fds(), scene.fds_before);
    }
}

/* A full memory cgroup is not at hand everywhere; a process without memory of its own, and a
 * snapshot without any, are. */
static void serves_nothing(void **state)
{
    (void)state;
    static struct scene scene;
    scene_init(&scene);
    scene_run(&scene);
    scene_expect_success(&scene);
    assert_int_equal(scene.stats.supplied_bytes, 0);
    scene_fini(&scene);
}

/* Small and often: a wake-up that gets lost shows here, as a test that does not end. */
static void starts_and_ends_quickly(void **state)
{
    (void)state;
    uint64_t best_ns = UINT64_MAX;
    for (int round = 0; round < 300; round++) {
        static struct scene scene;
        scene_init(&scene);
        scene_add_space(&scene, PID, BASE, 16 * WINDOW);
        scene_spawn(&scene, PID, BASE, 16 * WINDOW, NULL, check_small);
        scene_start(&scene);
        struct timespec pause = {.tv_nsec = round % 3 * 100000};
        nanosleep(&pause, NULL);
        scene_finish_restore(&scene);
        assert_int_equal(scene_join(&scene), 0);
        best_ns = scene.serve_ns < best_ns ? scene.serve_ns : best_ns;
        scene_fini(&scene);
    }
    print_message("16 windows: served in %.3f ms\n", (double)best_ns / 1e6);
    assert_true(best_ns < 100 * REWARM_NS_PER_MS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SCENE_TEST(fills_without_a_fault),
        SCENE_TEST(answers_faults_before_the_tree_runs),
        SCENE_TEST(waits_for_late_registration),
        SCENE_TEST(answers_threads_during_the_fill),
        SCENE_TEST(answers_faults_alone),
        SCENE_TEST(serves_a_tree),
        SCENE_TEST(lets_others_read_the_memory),
        SCENE_TEST(fills_many_small_mappings),
        SCENE_TEST(survives_exit_in_the_middle),
        SCENE_TEST(survives_kill_in_the_middle),
        SCENE_TEST(survives_exec_in_the_middle),
        SCENE_TEST(fails_with_a_damaged_chunk),
        SCENE_TEST(fails_when_criu_hangs_up),
        SCENE_TEST(stops_when_cancelled),
        SCENE_TEST(serves_nothing),
        SCENE_TEST(starts_and_ends_quickly),
    };
    if (!scene_possible())
        return 0;
    return cmocka_run_group_tests(tests, NULL, NULL);
}

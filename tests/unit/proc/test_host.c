/* What a snapshot remembers of its host and of the files it maps. */
#include <elf.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/utsname.h>

#include <cmocka.h>

#include "base/clean.h"
#include "base/fs.h"
#include "base/str.h"
#include "proc/host.h"

static json_t *host_of(const char *kernel, const char *machine, int page_bytes,
                       const char *features)
{
    json_t *list = json_loads(features, 0, NULL);
    assert_non_null(list);
    return json_pack("{s:s, s:s, s:s, s:o, s:i}", "kernel", kernel, "machine", machine, "cpu_model",
                     "Brand 9000", "cpu_features", list, "page_bytes", page_bytes);
}

static void describes_this_host(void **state)
{
    (void)state;
    json_t *host = NULL;
    assert_int_equal(rewarm_host_describe(&host, NULL), 0);
    struct utsname name;
    uname(&name);
    assert_string_equal(json_string_value(json_object_get(host, "kernel")), name.release);
    assert_string_equal(json_string_value(json_object_get(host, "machine")), name.machine);
    assert_int_equal(json_integer_value(json_object_get(host, "page_bytes")),
                     sysconf(_SC_PAGESIZE));
#ifdef __x86_64__
    const json_t *features = json_object_get(host, "cpu_features");
    bool sse2 = false;
    for (size_t i = 0; i < json_array_size(features); i++)
        sse2 = sse2 || strcmp(json_string_value(json_array_get(features, i)), "sse2") == 0;
    assert_true(sse2);
#endif
    assert_int_equal(rewarm_host_check(host, host, NULL), 0);
    json_decref(host);
}

static int check(json_t *then, json_t *now, struct rewarm_error *err)
{
    rewarm_error_clear(err);
    int result = rewarm_host_check(then, now, err);
    json_decref(then);
    json_decref(now);
    return result;
}

static void accepts_newer_hosts(void **state)
{
    (void)state;
    struct rewarm_error err = REWARM_ERROR_INIT;
    assert_int_equal(check(host_of("6.1.0-44", "x86_64", 4096, "[\"avx2\"]"),
                           host_of("6.18.1", "x86_64", 4096, "[\"avx2\", \"avx512f\"]"), &err),
                     0);
    /* Another patch level of the series, older or newer. */
    assert_int_equal(check(host_of("6.18.44", "x86_64", 4096, "[]"),
                           host_of("6.18.2", "x86_64", 4096, "[]"), &err),
                     0);
    assert_int_equal(check(host_of("6.18.44", "x86_64", 4096, "[]"),
                           host_of("7.0.0", "x86_64", 4096, "[]"), &err),
                     0);
}

static void tells_what_does_not_fit(void **state)
{
    (void)state;
    struct rewarm_error err = REWARM_ERROR_INIT;
    assert_int_equal(check(host_of("6.18.44", "x86_64", 4096, "[]"),
                           host_of("6.12.1", "x86_64", 4096, "[]"), &err),
                     -REWARM_E_MISFIT);
    assert_non_null(strstr(err.message, "6.12.1"));
    assert_int_equal(check(host_of("7.0.0", "x86_64", 4096, "[]"),
                           host_of("6.18.1", "x86_64", 4096, "[]"), &err),
                     -REWARM_E_MISFIT);
    assert_int_equal(check(host_of("6.18.1", "x86_64", 4096, "[]"),
                           host_of("6.18.1", "aarch64", 4096, "[]"), &err),
                     -REWARM_E_MISFIT);
    assert_int_equal(check(host_of("6.18.1", "aarch64", 65536, "[]"),
                           host_of("6.18.1", "aarch64", 4096, "[]"), &err),
                     -REWARM_E_MISFIT);
    assert_int_equal(
        check(host_of("6.1.0", "x86_64", 4096, "[\"avx2\", \"avx512f\", \"amx_tile\"]"),
              host_of("6.1.0", "x86_64", 4096, "[\"avx2\"]"), &err),
        -REWARM_E_MISFIT);
    assert_non_null(strstr(err.message, "avx512f, amx_tile"));
    assert_int_equal(check(json_object(), host_of("6.1.0", "x86_64", 4096, "[]"), &err),
                     -REWARM_E_CORRUPT);
}

/* --- files
 * ---------------------------------------------------------------------------------------- */

struct sandbox {
    char folder[64];
    char file[96];
};

static int set_up(void **state)
{
    struct sandbox *sandbox = rewarm_mem_new(1, sizeof(*sandbox));
    strcpy(sandbox->folder, "/tmp/rewarm-host-XXXXXX");
    if (mkdtemp(sandbox->folder) == NULL)
        return -1;
    snprintf(sandbox->file, sizeof(sandbox->file), "%s/file", sandbox->folder);
    *state = sandbox;
    return 0;
}

static int tear_down(void **state)
{
    struct sandbox *sandbox = *state;
    rewarm_fs_remove_tree(AT_FDCWD, sandbox->folder, NULL);
    free(sandbox);
    return 0;
}

/* Writes the file with a modification time of `seconds`. */
static void put(const struct sandbox *sandbox, const void *data, size_t bytes, time_t seconds)
{
    rewarm_auto_fd int fd = open(sandbox->file, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0700);
    assert_int_equal(rewarm_fs_write_full(fd, data, bytes, sandbox->file, NULL), 0);
    const struct timespec times[2] = {{.tv_sec = seconds}, {.tv_sec = seconds, .tv_nsec = 5}};
    assert_int_equal(futimens(fd, times), 0);
}

static json_t *identify(const struct sandbox *sandbox)
{
    json_t *identity = NULL;
    struct rewarm_error err = REWARM_ERROR_INIT;
    assert_int_equal(rewarm_host_file_identity(sandbox->file, &identity, &err), 0);
    return identity;
}

static void knows_files_by_content(void **state)
{
    const struct sandbox *sandbox = *state;
    put(sandbox, "some model", 10, 1000);
    json_t *identity = identify(sandbox);
    assert_int_equal(json_integer_value(json_object_get(identity, "bytes")), 10);
    assert_int_equal(json_integer_value(json_object_get(identity, "mtime_ns")), 1000000000005);
    assert_null(json_object_get(identity, "build_id"));
    assert_int_equal(strlen(json_string_value(json_object_get(identity, "xxh3"))), 32);
    assert_int_equal(rewarm_host_file_check(identity, NULL), 0);

    put(sandbox, "some model", 10, 2000); /* copied again */
    assert_int_equal(rewarm_host_file_check(identity, NULL), 0);
    struct rewarm_error err = REWARM_ERROR_INIT;
    put(sandbox, "some modem", 10, 2000);
    assert_int_equal(rewarm_host_file_check(identity, &err), -REWARM_E_MISFIT);
    assert_non_null(strstr(err.message, sandbox->file));
    put(sandbox, "some modem", 10, 1000); /* size and time are believed */
    assert_int_equal(rewarm_host_file_check(identity, NULL), 0);
    put(sandbox, "some model, longer", 18, 1000);
    assert_int_equal(rewarm_host_file_check(identity, NULL), -REWARM_E_MISFIT);
    unlink(sandbox->file);
    assert_int_equal(rewarm_host_file_check(identity, NULL), -REWARM_E_MISFIT);
    mkdir(sandbox->file, 0700);
    assert_int_equal(rewarm_host_file_check(identity, NULL), -REWARM_E_MISFIT);
    rmdir(sandbox->file);
    json_decref(identity);
    json_t *empty = json_object();
    assert_int_equal(rewarm_host_file_check(empty, NULL), -REWARM_E_CORRUPT);
    json_decref(empty);
}

/* A small ELF file: header, one note segment with an ABI tag and a build-id, a tail. */
struct image {
    Elf64_Ehdr header;
    Elf64_Phdr segment;
    struct {
        Elf64_Nhdr tag;
        char tag_name[4];
        uint32_t tag_value[4];
        Elf64_Nhdr id;
        char id_name[4];
        uint8_t id_value[20];
    } notes;
    char tail[64];
};

static struct image make_image(uint8_t id)
{
    struct image image = {
        .header = {.e_ident = {0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB},
                   .e_phoff = offsetof(struct image, segment),
                   .e_phentsize = sizeof(Elf64_Phdr),
                   .e_phnum = 1},
        .segment = {.p_type = PT_NOTE,
                    .p_offset = offsetof(struct image, notes),
                    .p_filesz = sizeof(image.notes),
                    .p_align = 4},
        .notes = {.tag = {4, 16, NT_GNU_ABI_TAG},
                  .tag_name = "GNU",
                  .id = {4, 20, NT_GNU_BUILD_ID},
                  .id_name = "GNU"},
    };
    memset(image.notes.id_value, id, sizeof(image.notes.id_value));
    return image;
}

static void knows_programs_by_build_id(void **state)
{
    const struct sandbox *sandbox = *state;
    struct image image = make_image(0xab);
    put(sandbox, &image, sizeof(image), 1000);
    json_t *identity = identify(sandbox);
    assert_string_equal(json_string_value(json_object_get(identity, "build_id")),
                        "abababababababababababababababababababab");
    assert_null(json_object_get(identity, "xxh3"));

    image.tail[3] = 1; /* a signature, say: the build is the same */
    put(sandbox, &image, sizeof(image), 2000);
    assert_int_equal(rewarm_host_file_check(identity, NULL), 0);
    image = make_image(0xac);
    put(sandbox, &image, sizeof(image), 3000);
    assert_int_equal(rewarm_host_file_check(identity, NULL), -REWARM_E_MISFIT);
    memset(&image, 0, sizeof(image)); /* no program at all any more */
    put(sandbox, &image, sizeof(image), 4000);
    assert_int_equal(rewarm_host_file_check(identity, NULL), -REWARM_E_MISFIT);
    json_decref(identity);
}

static void survives_broken_programs(void **state)
{
    const struct sandbox *sandbox = *state;
    for (int kind = 0; kind < 8; kind++) {
        struct image image = make_image(1);
        size_t bytes = sizeof(image);
        switch (kind) {
        case 0:
            image.header.e_phoff = UINT64_MAX - 8;
            break;
        case 1:
            image.header.e_phnum = 0xffff;
            break;
        case 2:
            image.segment.p_offset = UINT64_MAX;
            break;
        case 3:
            image.segment.p_filesz = UINT64_MAX;
            break;
        case 4:
            image.notes.tag.n_namesz = UINT32_MAX;
            break;
        case 5:
            image.notes.tag.n_descsz = UINT32_MAX;
            break;
        case 6:
            image.notes.id.n_descsz = 65; /* longer than any build-id */
            break;
        case 7:
            bytes = sizeof(image.header) - 1;
            break;
        }
        put(sandbox, &image, bytes, 1000);
        json_t *identity = identify(sandbox);
        assert_null(json_object_get(identity, "build_id"));
        assert_non_null(json_object_get(identity, "xxh3"));
        json_decref(identity);
    }
}

static void reads_its_own_build_id(void **state)
{
    (void)state;
    json_t *identity = NULL;
    assert_int_equal(rewarm_host_file_identity("/proc/self/exe", &identity, NULL), 0);
    if (json_object_get(identity, "build_id") == NULL)
        print_message("this program was linked without a build-id\n");
    assert_int_equal(rewarm_host_file_check(identity, NULL), 0);
    json_decref(identity);
    struct rewarm_error err = REWARM_ERROR_INIT;
    assert_int_equal(rewarm_host_file_identity("/nowhere", &identity, &err), -REWARM_E_NOT_FOUND);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(describes_this_host),        cmocka_unit_test(accepts_newer_hosts),
        cmocka_unit_test(tells_what_does_not_fit),    cmocka_unit_test(knows_files_by_content),
        cmocka_unit_test(knows_programs_by_build_id), cmocka_unit_test(survives_broken_programs),
        cmocka_unit_test(reads_its_own_build_id),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}

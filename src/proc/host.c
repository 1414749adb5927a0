/* What a snapshot's memory depends on of the machine: kernel series, machine type, page size, and
 * the CPU features that user code looks at once and then relies on (ifunc look-ups, JITs, math
 * kernels). A newer CPU or kernel is fine; an older one is not.
 *
 * Only the first processor of /proc/cpuinfo is read: the kernel writes the file as it is read, and
 * on a machine with hundreds of them the rest costs milliseconds that a restore doesn't have. */
#include "proc/host.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>

#include "base/clean.h"
#include "base/str.h"

enum { CPUINFO_BYTES = 16384 };

/* Families that count as a whole, and single features. What only kernels use, mitigations and names
 * of timers are left out: their absence harms no process. */
static const char *const families[] = {"sse", "avx", "amx_", "bmi", "sha", "3dnow", "vaes"};
static const char *const features[] = {
    "abm",     "adx",       "aes",         "cldemote", "clflushopt", "clwb",       "clzero",
    "cmov",    "cmpccxadd", "cx16",        "cx8",      "enqcmd",     "erms",       "f16c",
    "fma",     "fma4",      "fsgsbase",    "fsrm",     "fxsr",       "gfni",       "hle",
    "lahf_lm", "lm",        "misalignsse", "mmx",      "mmxext",     "movbe",      "movdir64b",
    "movdiri", "ospke",     "pclmulqdq",   "pku",      "pni",        "popcnt",     "prefetchi",
    "ptwrite", "rdpid",     "rdrand",      "rdseed",   "rdtscp",     "rtm",        "serialize",
    "sm3",     "sm4",       "ssse3",       "syscall",  "tbm",        "user_shstk", "vpclmulqdq",
    "waitpkg", "xsave",     "xsavec",      "xsaveopt", "xgetbv1",    "xop",
};

static bool matters(const char *feature)
{
    for (size_t i = 0; i < sizeof(families) / sizeof(families[0]); i++)
        if (rewarm_str_starts(feature, families[i]))
            return true;
    for (size_t i = 0; i < sizeof(features) / sizeof(features[0]); i++)
        if (strcmp(feature, features[i]) == 0)
            return true;
    return false;
}

/* The value of "NAME\t: VALUE" in cpuinfo; NULL when it has no such line. Free it. */
static char *find_value(const char *cpuinfo, const char *name)
{
    for (const char *line = cpuinfo; *line != '\0';) {
        size_t length = strcspn(line, "\n");
        size_t name_length = strlen(name);
        if (length > name_length && memcmp(line, name, name_length) == 0 &&
            strchr("\t :", line[name_length]) != NULL) {
            const char *value = memchr(line, ':', length);
            if (value != NULL) {
                value += 1 + strspn(value + 1, " \t");
                return rewarm_str_format("%.*s", (int)(line + length - value), value);
            }
        }
        line += length;
        line += *line == '\n';
    }
    return NULL;
}

static json_t *list_features(const char *cpuinfo, bool all)
{
    json_t *list = json_array();
    rewarm_auto_free char *flags = find_value(cpuinfo, all ? "Features" : "flags");
    char *save = NULL;
    for (char *word = flags != NULL ? strtok_r(flags, " ", &save) : NULL; word != NULL;
         word = strtok_r(NULL, " ", &save))
        if (all || matters(word))
            json_array_append_new(list, json_string(word));
    return list;
}

int rewarm_host_describe(json_t **ret_host, struct rewarm_error *err)
{
    struct utsname name;
    if (uname(&name) != 0)
        return rewarm_error_errno(err, "can't ask for the kernel's version");
    rewarm_auto_fd int fd = open("/proc/cpuinfo", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return rewarm_error_errno(err, "can't open /proc/cpuinfo");
    char cpuinfo[CPUINFO_BYTES];
    ssize_t used = read(fd, cpuinfo, sizeof(cpuinfo) - 1);
    if (used < 0)
        return rewarm_error_errno(err, "can't read /proc/cpuinfo");
    cpuinfo[used] = '\0';

    bool arm = strcmp(name.machine, "aarch64") == 0;
    rewarm_auto_free char *model = find_value(cpuinfo, "model name");
    json_t *host =
        json_pack("{s:s, s:s, s:s, s:o, s:I}", "kernel", name.release, "machine", name.machine,
                  "cpu_model", model != NULL ? model : "unknown", "cpu_features",
                  list_features(cpuinfo, arm), "page_bytes", (json_int_t)sysconf(_SC_PAGESIZE));
    if (host == NULL)
        return rewarm_error_set(err, REWARM_E_SYSTEM, 0, "can't describe this host");
    *ret_host = host;
    return 0;
}

static bool in_list(const json_t *list, const char *word)
{
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *entry = json_string_value(json_array_get(list, i));
        if (entry != NULL && strcmp(entry, word) == 0)
            return true;
    }
    return false;
}

static int check_features(const json_t *then, const json_t *now, struct rewarm_error *err)
{
    const json_t *wanted = json_object_get(then, "cpu_features");
    const json_t *here = json_object_get(now, "cpu_features");
    char missing[256] = "";
    size_t used = 0, count = 0;
    for (size_t i = 0; i < json_array_size(wanted); i++) {
        const char *feature = json_string_value(json_array_get(wanted, i));
        if (feature == NULL || in_list(here, feature))
            continue;
        count++;
        if (used + strlen(feature) + 3 < sizeof(missing))
            used += (size_t)snprintf(missing + used, sizeof(missing) - used, "%s%s",
                                     used != 0 ? ", " : "", feature);
    }
    if (count == 0)
        return 0;
    const char *model = json_string_value(json_object_get(then, "cpu_model"));
    return rewarm_error_set(err, REWARM_E_MISFIT, 0,
                            "this CPU lacks %zu feature%s that the snapshot's code may use (%s): "
                            "restore on a %s or a newer one, or freeze again here",
                            count, count == 1 ? "" : "s", missing,
                            model != NULL ? model : "like one");
}

int rewarm_host_check(const json_t *then, const json_t *now, struct rewarm_error *err)
{
    const char *machine[2], *kernel[2];
    json_int_t page_bytes[2];
    const json_t *const host[2] = {then, now};
    for (int i = 0; i < 2; i++) {
        machine[i] = json_string_value(json_object_get(host[i], "machine"));
        kernel[i] = json_string_value(json_object_get(host[i], "kernel"));
        page_bytes[i] = json_integer_value(json_object_get(host[i], "page_bytes"));
    }
    if (machine[0] == NULL || kernel[0] == NULL || page_bytes[0] <= 0)
        return rewarm_error_set(err, REWARM_E_CORRUPT, 0,
                                "the snapshot does not say on what host it was frozen");
    if (machine[1] == NULL || kernel[1] == NULL)
        return rewarm_error_set(err, REWARM_E_SYSTEM, 0, "this host can't be described");
    if (strcmp(machine[0], machine[1]) != 0)
        return rewarm_error_set(err, REWARM_E_MISFIT, 0,
                                "the snapshot is of a %s machine and this is %s: freeze again here",
                                machine[0], machine[1]);
    if (page_bytes[0] != page_bytes[1])
        return rewarm_error_set(err, REWARM_E_MISFIT, 0,
                                "the snapshot has pages of %lld bytes and this kernel of %lld: "
                                "freeze again here",
                                (long long)page_bytes[0], (long long)page_bytes[1]);
    int result = check_features(then, now, err);
    if (result != 0)
        return result;
    unsigned then_series[2] = {0}, now_series[2] = {0};
    if (sscanf(kernel[0], "%u.%u", &then_series[0], &then_series[1]) == 2 &&
        sscanf(kernel[1], "%u.%u", &now_series[0], &now_series[1]) == 2 &&
        (now_series[0] < then_series[0] ||
         (now_series[0] == then_series[0] && now_series[1] < then_series[1])))
        return rewarm_error_set(err, REWARM_E_MISFIT, 0,
                                "the snapshot was frozen on Linux %s and this is the older %s: "
                                "restore on %u.%u or newer, freeze again here, or try --any-kernel",
                                kernel[0], kernel[1], then_series[0], then_series[1]);
    return 0;
}

#include "snapshot/identity.h"

#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/clean.h"
#include "base/str.h"
#include "proc/host.h"

extern char **environ;

/* Set anew by every login, shell or service manager, and of no meaning to a server. */
static const char *const volatile_names[] = {"_",
                                             "SHLVL",
                                             "PWD",
                                             "OLDPWD",
                                             "TERM",
                                             "TERM_*",
                                             "COLORTERM",
                                             "COLUMNS",
                                             "LINES",
                                             "LS_COLORS",
                                             "LESS*",
                                             "PS1",
                                             "SSH_*",
                                             "XDG_SESSION_*",
                                             "XDG_RUNTIME_DIR",
                                             "DBUS_SESSION_BUS_ADDRESS",
                                             "DISPLAY",
                                             "WAYLAND_DISPLAY",
                                             "WINDOWID",
                                             "TMUX*",
                                             "STY",
                                             "INVOCATION_ID",
                                             "JOURNAL_STREAM",
                                             "LISTEN_*",
                                             "NOTIFY_SOCKET",
                                             "WATCHDOG_*",
                                             "MAINPID",
                                             "MANAGERPID",
                                             "SYSTEMD_EXEC_PID",
                                             "MEMORY_PRESSURE_*",
                                             "MAIL",

                                             "SUDO_*",
                                             "PYTEST_CURRENT_TEST",
                                             "REWARM_*",
                                             "MAKEFLAGS",
                                             "MAKELEVEL",
                                             "MFLAGS",
                                             "MAKE_TERMOUT",
                                             "MAKE_TERMERR"};

static bool matches(const char *name, const char *const *globs, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (fnmatch(globs[i], name, 0) == 0)
            return true;
    }
    return false;
}

char *rewarm_identity_find_program(const char *name)
{
    if (strchr(name, '/') != NULL)
        return access(name, X_OK) == 0 ? realpath(name, NULL) : NULL;
    const char *path = getenv("PATH");
    rewarm_auto_free char *copy = rewarm_str_dup(path != NULL ? path : "/usr/bin:/bin");
    char *rest = copy;
    for (char *dir; (dir = strsep(&rest, ":")) != NULL;) {
        rewarm_auto_free char *file = rewarm_str_format("%s/%s", *dir != '\0' ? dir : ".", name);
        struct stat st;
        if (access(file, X_OK) == 0 && stat(file, &st) == 0 && S_ISREG(st.st_mode))
            return realpath(file, NULL);
    }
    return NULL;
}

/* The record is in a file of mode 0600, beside the memory that holds the values themselves; the
 * salt keeps it from being a table to look short secrets up in, should it be passed on. */
static void digest_value(const char *salt, const char *value, char out[33])
{
    rewarm_auto_free char *text = rewarm_str_format("%s\n%s", salt, value);
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits(text, strlen(text)));
    rewarm_str_hex(canonical.digest, sizeof(canonical.digest), out);
}

static json_t *environment(const char *salt, const char *const *ignore)
{
    size_t ignore_count = 0;
    while (ignore != NULL && ignore[ignore_count] != NULL)
        ignore_count++;
    json_t *env = json_object();
    for (char **entry = environ; *entry != NULL; entry++) {
        size_t length = strcspn(*entry, "=");
        rewarm_auto_free char *name = rewarm_str_format("%.*s", (int)length, *entry);
        if ((*entry)[length] != '=' ||
            matches(name, volatile_names, sizeof(volatile_names) / sizeof(volatile_names[0])) ||
            matches(name, ignore, ignore_count))
            continue;
        char digest[33];
        digest_value(salt, *entry + length + 1, digest);
        json_object_set_new(env, name, json_string(digest));
    }
    return env;
}

static int choose_salt(const json_t *like, char out[33], struct rewarm_error *err)
{
    const char *old = json_string_value(json_object_get(like, "salt"));
    if (old != NULL && strlen(old) == 32) {
        memcpy(out, old, 33);
        return 0;
    }
    unsigned char bytes[16];
    if (getrandom(bytes, sizeof(bytes), 0) != (ssize_t)sizeof(bytes))
        return rewarm_error_errno(err, "getting random bytes");
    rewarm_str_hex(bytes, sizeof(bytes), out);
    return 0;
}

int rewarm_identity_of_command(char *const *argv, const char *const *ignore_env, const json_t *like,
                               json_t **ret_identity, struct rewarm_error *err)
{
    rewarm_auto_free char *program = rewarm_identity_find_program(argv[0]);
    if (program == NULL)
        return rewarm_error_set(err, REWARM_E_NOT_FOUND, 0, "there is no program %s", argv[0]);
    char salt[33];
    json_t *exe = NULL;
    int result = choose_salt(like, salt, err);
    if (result == 0)
        result = rewarm_host_file_identity(program, &exe, err);
    if (result != 0)
        return result;
    json_t *list = json_array();
    for (size_t i = 0; argv[i] != NULL; i++) {
        json_t *text = json_string(argv[i]);
        json_array_append_new(list, text != NULL ? text : json_string("(not UTF-8)"));
    }
    rewarm_auto_free char *cwd = getcwd(NULL, 0);
    *ret_identity = json_pack("{s:o,s:s,s:i,s:i,s:s,s:o,s:o}", "argv", list, "cwd",
                              cwd != NULL ? cwd : "", "uid", (int)geteuid(), "gid", (int)getegid(),
                              "salt", salt, "exe", exe, "env", environment(salt, ignore_env));
    if (*ret_identity == NULL)
        return rewarm_error_set(err, REWARM_E_USAGE, 0,
                                "the working directory or an argument is not UTF-8");
    return 0;
}

static int check_env(const json_t *then, const json_t *now, struct rewarm_error *err)
{
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)now, name, value)
    {
        const json_t *old = json_object_get(then, name);
        if (!json_equal(old, value))
            return rewarm_error_set(err, REWARM_E_MISFIT, 0,
                                    "environment variable %s %s since the snapshot was made "
                                    "(--ignore-env %s if that does not matter)",
                                    name, old == NULL ? "was added" : "has changed", name);
    }
    json_object_foreach((json_t *)then, name, value)
    {
        if (json_object_get(now, name) == NULL)
            return rewarm_error_set(
                err, REWARM_E_MISFIT, 0,
                "environment variable %s was removed since the snapshot was made "
                "(--ignore-env %s if that does not matter)",
                name, name);
    }
    return 0;
}

int rewarm_identity_check(const json_t *then, const json_t *now, struct rewarm_error *err)
{
    static const struct {
        const char *key, *words;
    } parts[] = {{"argv", "the command line has"},
                 {"cwd", "the working directory has"},
                 {"uid", "the user has"},
                 {"gid", "the group has"}};
    if (!json_is_object(then))
        return rewarm_error_set(
            err, REWARM_E_MISFIT, 0,
            "the snapshot was not made by 'rewarm run': what command it holds is "
            "not known ('rewarm restore' brings it back)");
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
        if (!json_equal(json_object_get(then, parts[i].key), json_object_get(now, parts[i].key)))
            return rewarm_error_set(err, REWARM_E_MISFIT, 0,
                                    "%s changed since the snapshot was made", parts[i].words);
    }
    const char *old_path = json_string_value(json_object_get(json_object_get(then, "exe"), "path"));
    const char *new_path = json_string_value(json_object_get(json_object_get(now, "exe"), "path"));
    if (old_path == NULL || new_path == NULL || strcmp(old_path, new_path) != 0)
        return rewarm_error_set(err, REWARM_E_MISFIT, 0, "the program is now %s, it was %s",
                                new_path != NULL ? new_path : "?",
                                old_path != NULL ? old_path : "?");
    int result = rewarm_host_file_check(json_object_get(then, "exe"), err);
    if (result != 0)
        return result;
    return check_env(json_object_get(then, "env"), json_object_get(now, "env"), err);
}

#include "base/error.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static void append_native(char *message, size_t size, int native)
{
    if (native == 0)
        return;
    size_t used = strlen(message);
    if (used < size)
        snprintf(message + used, size - used, ": %s", strerror(native));
}

__attribute__((format(printf, 4, 0))) static int set_va(struct rewarm_error *err,
                                                        enum rewarm_code code, int native,
                                                        const char *format, va_list args)
{
    if (err == NULL)
        return -(int)code;
    if (err->code != 0)
        return -err->code;
    err->code = (int)code;
    err->native = native;
    vsnprintf(err->message, sizeof(err->message), format, args);
    append_native(err->message, sizeof(err->message), native);
    return -err->code;
}

int rewarm_error_set(struct rewarm_error *err, enum rewarm_code code, int native,
                     const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int result = set_va(err, code, native, format, args);
    va_end(args);
    return result;
}

int rewarm_error_wrap(struct rewarm_error *err, const char *format, ...)
{
    if (err == NULL || err->code == 0)
        return -REWARM_E_SYSTEM;
    char what[sizeof(err->message)];
    char old[sizeof(err->message)];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof(what), format, args);
    va_end(args);
    memcpy(old, err->message, sizeof(old));
    /* Cut the prefix rather than the cause when both do not fit. */
    size_t room = sizeof(err->message) - 1;
    size_t keep = strlen(old) + 2;
    int prefix = keep < room ? (int)(room - keep) : 0;
    snprintf(err->message, sizeof(err->message), "%.*s: %.*s", prefix, what, (int)room - 2, old);
    return -err->code;
}

static enum rewarm_code code_of(int native)
{
    switch (native) {
    case ENOENT:
        return REWARM_E_NOT_FOUND;
    case EPERM:
    case EACCES:
        return REWARM_E_PERMISSION;
    case ENOSPC:
    case EDQUOT:
    case ENOMEM:
        return REWARM_E_NO_SPACE;
    default:
        return REWARM_E_SYSTEM;
    }
}

int rewarm_error_errno(struct rewarm_error *err, const char *format, ...)
{
    int native = errno;
    va_list args;
    va_start(args, format);
    int result = set_va(err, code_of(native), native, format, args);
    va_end(args);
    return result;
}

void rewarm_error_clear(struct rewarm_error *err)
{
    if (err != NULL)
        *err = (struct rewarm_error)REWARM_ERROR_INIT;
}

const char *rewarm_code_name(int code)
{
    static const char *const names[] = {
        [REWARM_OK] = "ok",
        [REWARM_E_SYSTEM] = "system",
        [REWARM_E_USAGE] = "usage",
        [REWARM_E_NOT_FOUND] = "not-found",
        [REWARM_E_REFUSED] = "refused",
        [REWARM_E_MISFIT] = "misfit",
        [REWARM_E_CORRUPT] = "corrupt",
        [REWARM_E_PERMISSION] = "permission",
        [REWARM_E_NO_SPACE] = "no-space",
        [REWARM_E_BUSY] = "busy",
        [REWARM_E_CRIU] = "criu",
        [REWARM_E_TIMEOUT] = "timeout",
        [REWARM_E_LOST] = "lost",
        [REWARM_E_CANCELLED] = "cancelled",
    };
    if (code < 0)
        code = -code;
    if ((size_t)code >= sizeof(names) / sizeof(names[0]) || names[code] == NULL)
        return "unknown";
    return names[code];
}

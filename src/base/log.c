#include "base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static enum rewarm_log_level current_level = REWARM_LOG_NOTE;

void rewarm_log_set_level(enum rewarm_log_level level)
{
    current_level = level;
}

enum rewarm_log_level rewarm_log_level(void)
{
    return current_level;
}

void rewarm_log(enum rewarm_log_level level, const char *format, ...)
{
    if (level > current_level)
        return;
    int saved = errno;
    static const char *const prefix[] = {
        "rewarm: error: ", "rewarm: warning: ", "rewarm: ", "rewarm: ", "rewarm: debug: "};
    char line[2048];
    size_t used = strlen(prefix[level]);
    memcpy(line, prefix[level], used);
    va_list args;
    va_start(args, format);
    int more = vsnprintf(line + used, sizeof(line) - used - 1, format, args);
    va_end(args);
    if (more > 0)
        used = used + (size_t)more < sizeof(line) - 1 ? used + (size_t)more : sizeof(line) - 2;
    line[used++] = '\n';
    ssize_t ignored = write(STDERR_FILENO, line, used);
    (void)ignored; /* nobody is left to tell */
    errno = saved;
}

/* Messages for people, one line each, on stderr. Data goes to stdout and never through here. */
#ifndef REWARM_BASE_LOG_H
#define REWARM_BASE_LOG_H

enum rewarm_log_level {
    REWARM_LOG_ERROR,
    REWARM_LOG_WARN,
    REWARM_LOG_NOTE,    /* the default: what changed, in a few lines */
    REWARM_LOG_VERBOSE, /* -v: stage times */
    REWARM_LOG_DEBUG,   /* -vv */
};

/* Process-wide; call before threads start. */
void rewarm_log_set_level(enum rewarm_log_level level);
enum rewarm_log_level rewarm_log_level(void);

/* One write(2) a line, so that lines of several threads do not mix. Keeps errno. */
void rewarm_log(enum rewarm_log_level level, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#define rewarm_warn(...)    rewarm_log(REWARM_LOG_WARN, __VA_ARGS__)
#define rewarm_note(...)    rewarm_log(REWARM_LOG_NOTE, __VA_ARGS__)
#define rewarm_verbose(...) rewarm_log(REWARM_LOG_VERBOSE, __VA_ARGS__)
#define rewarm_debug(...)   rewarm_log(REWARM_LOG_DEBUG, __VA_ARGS__)

#endif

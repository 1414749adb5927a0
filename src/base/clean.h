/* Clean-up at the end of a scope: `rewarm_auto_fd int fd = -1;` and friends. Ownership leaves the
 * scope only through rewarm_steal_fd() and rewarm_steal_ptr(). */
#ifndef REWARM_BASE_CLEAN_H
#define REWARM_BASE_CLEAN_H

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static inline void rewarm_clean_free(void *pointer)
{
    free(*(void **)pointer);
}

static inline void rewarm_clean_fd(int *fd)
{
    if (*fd >= 0) {
        int saved = errno;
        close(*fd);
        errno = saved;
    }
}

static inline void rewarm_clean_file(FILE **file)
{
    if (*file != NULL)
        fclose(*file);
}

static inline void rewarm_clean_dir(DIR **dir)
{
    if (*dir != NULL)
        closedir(*dir);
}

#define rewarm_auto_free __attribute__((cleanup(rewarm_clean_free)))
#define rewarm_auto_fd   __attribute__((cleanup(rewarm_clean_fd)))
#define rewarm_auto_file __attribute__((cleanup(rewarm_clean_file)))
#define rewarm_auto_dir  __attribute__((cleanup(rewarm_clean_dir)))

static inline int rewarm_steal_fd(int *fd)
{
    int result = *fd;
    *fd = -1;
    return result;
}

#define rewarm_steal_ptr(pointer)                                                                  \
    ({                                                                                             \
        __typeof__(*(pointer)) stolen_ = *(pointer);                                               \
        *(pointer) = NULL;                                                                         \
        stolen_;                                                                                   \
    })

#endif

/* Memory that is not there yet. A process of a restored tree gets its memory through userfaultfd,
 * and until that is complete its mappings are registered for missing pages: "um" in the VmFlags
 * line of smaps. CRIU would dump what is there and take the rest for zeros. Whoever reads smaps
 * makes the kernel count every page, 17 ms for each GiB of 4 KiB pages (measured on two busy
 * cores), and CRIU does the same again with the tree stopped. So it is read in pieces, and up to
 * the first such mapping only, which is among the first there are. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clean.h"
#include "base/str.h"
#include "proc/preflight_private.h"

bool rewarm_preflight_is_missing(const char *line, size_t bytes)
{
    static const char name[] = "VmFlags:";
    if (bytes < strlen(name) || memcmp(line, name, strlen(name)) != 0)
        return false;
    for (size_t i = strlen(name); i + 3 <= bytes; i++)
        if (memcmp(line + i, " um", 3) == 0 && (i + 3 == bytes || line[i + 3] == ' '))
            return true;
    return false;
}

/* True when a line of the file says so. A file that can't be read says nothing: the process has
 * ended, or CRIU will be refused as well. */
static bool find_missing(int fd)
{
    char text[32 << 10];
    size_t used = 0;
    bool cut = false; /* what is read next goes on with a line that did not fit: a mapping's path */
    for (;;) {
        ssize_t got = read(fd, text + used, sizeof(text) - used);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return false;
        used += (size_t)got;
        size_t start = 0;
        for (const char *newline; (newline = memchr(text + start, '\n', used - start)) != NULL;) {
            size_t bytes = (size_t)(newline - text) - start;
            if (!cut && rewarm_preflight_is_missing(text + start, bytes))
                return true;
            cut = false;
            start += bytes + 1;
        }
        used -= start;
        memmove(text, text + start, used);
        if (used == sizeof(text)) {
            used = 0;
            cut = true;
        }
    }
}

int rewarm_preflight_memory(const struct rewarm_proc_stat *member, struct rewarm_error *err)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/smaps", (int)member->pid);
    rewarm_auto_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || !find_missing(fd))
        return 0;
    return rewarm_error_set(err, REWARM_E_BUSY, 0,
                            "process %d (%s): its memory is still coming in from a restore; freeze "
                            "it once `rewarm ps` says \"restored\"",
                            (int)member->pid, member->comm);
}

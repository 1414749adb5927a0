/* /proc/PID/stat: any bytes give an error or a struct whose name is terminated. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "proc/procfs.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct rewarm_proc_stat stat;
    if (rewarm_proc_parse_stat((const char *)data, bytes, &stat, NULL) == 0 &&
        (memchr(stat.comm, '\0', sizeof(stat.comm)) == NULL || stat.pid < 0))
        abort();
    return 0;
}

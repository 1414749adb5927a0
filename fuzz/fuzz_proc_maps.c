/* /proc/PID/maps and smaps: any bytes give an error or areas that are not empty. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "proc/procfs.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct rewarm_proc_vma *vmas = NULL;
    size_t count = 0;
    if (rewarm_proc_parse_maps((const char *)data, bytes, &vmas, &count, NULL) != 0)
        return 0;
    for (size_t i = 0; i < count; i++)
        if (vmas[i].start >= vmas[i].end || strlen(vmas[i].perms) != 4 ||
            strlen(vmas[i].path) > bytes)
            abort();
    rewarm_proc_vmas_free(vmas, count);
    return 0;
}

/* The build-id reader: any file has an identity, and is found unchanged by it. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "proc/host.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    int fd = memfd_create("elf", MFD_CLOEXEC);
    char path[32];
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    if (fd < 0 || write(fd, data, bytes) != (ssize_t)bytes)
        abort();
    json_t *identity = NULL;
    if (rewarm_host_file_identity(path, &identity, NULL) != 0)
        abort();
    /* Another time: then the build-id or the digest decides. */
    json_object_set_new(identity, "mtime_ns", json_integer(1));
    if (rewarm_host_file_check(identity, NULL) != 0)
        abort();
    json_decref(identity);
    close(fd);
    return 0;
}

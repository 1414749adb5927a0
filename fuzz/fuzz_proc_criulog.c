/* CRIU's log: any bytes give an error of one printable line. The first byte picks the verb. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "proc/criu.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    if (bytes == 0)
        return 0;
    struct rewarm_error err = REWARM_ERROR_INIT;
    const char *verb = data[0] == 'r' ? "restore" : "dump";
    int result = rewarm_criu_explain(verb, (const char *)data + 1, bytes - 1, &err);
    if (result >= 0 || err.code != -result || strchr(err.message, '\n') != NULL)
        abort();
    return 0;
}

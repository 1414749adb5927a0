#include <stddef.h>
#include <stdint.h>

#include "snapshot/session.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct rewarm_journal journal;
    if (rewarm_journal_parse((const char *)data, bytes, &journal, NULL) == 0)
        rewarm_journal_fini(&journal);
    return 0;
}

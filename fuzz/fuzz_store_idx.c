/* The decoder of pack indexes. The trailer is made right first, or nothing would ever get past it.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "store/digest.h"
#include "store/idx.h"
#include "store/wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct rewarm_error err = REWARM_ERROR_INIT;
    struct rewarm_idx idx;
    uint8_t *copy = malloc(bytes != 0 ? bytes : 1);
    if (copy == NULL)
        return 0;
    if (bytes != 0)
        memcpy(copy, data, bytes);
    if (bytes >= 8)
        rewarm_wire_put64(copy + bytes - 8, rewarm_store_xxh3(copy, bytes - 8));
    if (rewarm_idx_decode(copy, bytes, "fuzz", &idx, &err) == 0) {
        struct rewarm_chunk chunk, found;
        for (size_t i = 0; i < idx.count; i++) {
            rewarm_idx_at(&idx, i, &chunk);
            if (!rewarm_idx_find(&idx, chunk.digest, &found) ||
                found.offset_bytes != chunk.offset_bytes ||
                found.offset_bytes + found.stored_bytes > idx.pack.bytes)
                abort();
        }
        memset(chunk.digest, 0xa5, sizeof(chunk.digest));
        rewarm_idx_find(&idx, chunk.digest, &found);
    }
    free(copy);
    return 0;
}

/* The decoder of manifests. The digest is made right first, or nothing would ever get past it. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "store/digest.h"
#include "store/manifest.h"

#define PREFIX "{\"sha256\":\""

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct rewarm_error err = REWARM_ERROR_INIT;
    struct rewarm_manifest manifest;
    const size_t head = strlen(PREFIX), digits = 2 * REWARM_DIGEST_BYTES;
    char *copy = malloc(bytes != 0 ? bytes : 1);
    if (copy == NULL)
        return 0;
    if (bytes != 0)
        memcpy(copy, data, bytes);
    if (bytes >= head + digits) {
        uint8_t digest[REWARM_DIGEST_BYTES];
        char hex[2 * REWARM_DIGEST_BYTES + 1];
        if (rewarm_store_sha256(copy + head + digits, bytes - head - digits, digest, &err) < 0)
            abort();
        rewarm_str_hex(digest, sizeof(digest), hex);
        memcpy(copy, PREFIX, head);
        memcpy(copy + head, hex, digits);
    }
    if (rewarm_manifest_decode(copy, bytes, "golden", &manifest, &err) == 0)
        rewarm_manifest_fini(&manifest);
    free(copy);
    return 0;
}

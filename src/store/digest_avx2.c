/* XXH3 with AVX2: built with -mavx2 (CMakeLists.txt), called only where the CPU has it. Every chunk
 * of a restore is hashed, and this is three times as fast as what a build for any x86-64 gets. */
#include "store/digest.h"

#ifdef __AVX2__

#define XXH_INLINE_ALL
#include <xxhash.h>

uint64_t rewarm_store_xxh3_avx2(const void *data, size_t bytes)
{
    return XXH3_64bits(data, bytes);
}

#endif

#include "store/digest.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <stdlib.h>
#define XXH_INLINE_ALL    /* inlined and vectorised; the library's symbol would be called once a   \
                             chunk anyway */
#include <xxhash.h>

#include "base/str.h"

struct thread_state {
    EVP_MD_CTX *sha;
    uint8_t *scratch[REWARM_SCRATCH_COUNT];
};

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_key_t key;
static EVP_MD *sha256; /* lives as long as the process */

static void free_thread(void *pointer)
{
    struct thread_state *state = pointer;
    EVP_MD_CTX_free(state->sha);
    for (size_t i = 0; i < REWARM_SCRATCH_COUNT; i++)
        free(state->scratch[i]);
    free(state);
}

static void init(void)
{
    /* Reading openssl.cnf costs more than opening a small snapshot. */
    OPENSSL_init_crypto(OPENSSL_INIT_NO_LOAD_CONFIG, NULL);
    sha256 = EVP_MD_fetch(NULL, "SHA256", NULL);
    if (pthread_key_create(&key, free_thread) != 0)
        abort(); /* no thread-specific key left: nothing of this process can go on */
}

static struct thread_state *thread(void)
{
    pthread_once(&once, init);
    struct thread_state *state = pthread_getspecific(key);
    if (state == NULL) {
        state = rewarm_mem_new(1, sizeof(*state));
        state->sha = EVP_MD_CTX_new();
        pthread_setspecific(key, state);
    }
    return state;
}

int rewarm_store_sha256(const void *data, size_t bytes, uint8_t ret_digest[REWARM_DIGEST_BYTES],
                        struct rewarm_error *err)
{
    struct thread_state *state = thread();
    if (sha256 == NULL || state->sha == NULL || EVP_DigestInit_ex2(state->sha, sha256, NULL) != 1 ||
        EVP_DigestUpdate(state->sha, data, bytes) != 1 ||
        EVP_DigestFinal_ex(state->sha, ret_digest, NULL) != 1)
        return rewarm_error_set(err, REWARM_E_SYSTEM, 0, "OpenSSL can't compute a SHA-256");
    return 0;
}

uint64_t rewarm_store_xxh3(const void *data, size_t bytes)
{
#ifdef REWARM_STORE_AVX2
    if (__builtin_cpu_supports("avx2"))
        return rewarm_store_xxh3_avx2(data, bytes);
#endif
    return XXH3_64bits(data, bytes);
}

uint8_t *rewarm_store_scratch(enum rewarm_store_scratch which)
{
    struct thread_state *state = thread();
    if (state->scratch[which] == NULL) {
        state->scratch[which] = aligned_alloc(REWARM_PAGE_BYTES, REWARM_WINDOW_BYTES);
        if (state->scratch[which] == NULL)
            abort(); /* as every small allocation (base/str.h) */
    }
    return state->scratch[which];
}

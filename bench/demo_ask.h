/* Questions to llama-server over HTTP, as a client would ask them. */
#ifndef REWARM_BENCH_DEMO_ASK_H
#define REWARM_BENCH_DEMO_ASK_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

/* Set by a signal: every wait ends soon, and the caller cleans up. */
bool demo_stopped(void);

struct demo_answer {
    json_t *tokens; /* array of token numbers */
    char *content;
    unsigned prompt_tokens; /* computed for this answer */
    unsigned cached_tokens; /* of the prompt, found in the server's cache */
};

void demo_answer_fini(struct demo_answer *answer);
bool demo_answer_equal(const struct demo_answer *a, const struct demo_answer *b);

/* Asks at temperature 0. False when nothing answers, or not with tokens (the model is still
 * loading). */
bool demo_ask(const char *url, const char *prompt, unsigned tokens, struct demo_answer *ret_answer);

/* Asks again every millisecond until there is an answer. False after `deadline_ns`, or once
 * `give_up(context)` says so. */
bool demo_ask_until_up(const char *url, const char *prompt, unsigned tokens, uint64_t deadline_ns,
                       bool (*give_up)(void *context), void *context,
                       struct demo_answer *ret_answer);

/* CLOCK_MONOTONIC in nanoseconds. */
uint64_t demo_now_ns(void);

/* The system prompt: a thousand tokens, nearly. Free it. */
char *demo_long_prompt(void);

#endif

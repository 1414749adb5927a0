#include "demo_ask.h"

#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

uint64_t demo_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void demo_answer_fini(struct demo_answer *answer)
{
    json_decref(answer->tokens);
    free(answer->content);
    *answer = (struct demo_answer){0};
}

bool demo_answer_equal(const struct demo_answer *a, const struct demo_answer *b)
{
    return json_array_size(a->tokens) != 0 && json_equal(a->tokens, b->tokens) &&
           strcmp(a->content, b->content) == 0;
}

struct body {
    char *text;
    size_t bytes;
};

static size_t body_add(char *data, size_t size, size_t count, void *context)
{
    struct body *body = context;
    size_t bytes = size * count;
    char *text = realloc(body->text, body->bytes + bytes);
    if (text == NULL)
        return 0;
    memcpy(text + body->bytes, data, bytes);
    body->text = text;
    body->bytes += bytes;
    return bytes;
}

static int stop_transfer(void *context, curl_off_t a, curl_off_t b, curl_off_t c, curl_off_t d)
{
    (void)context, (void)a, (void)b, (void)c, (void)d;
    return demo_stopped();
}

/* POST of a JSON text to `url`; the body of a 200 in `body`. */
static bool post(const char *url, const char *json, struct body *body)
{
    CURL *curl = curl_easy_init();
    struct curl_slist *headers = curl_slist_append(NULL, "Content-Type: application/json");
    bool done = false;
    if (curl != NULL && headers != NULL) {
        long status = 0;
        curl_easy_setopt(curl, CURLOPT_URL, url);
        curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
        curl_easy_setopt(curl, CURLOPT_POSTFIELDS, json);
        curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, body_add);
        curl_easy_setopt(curl, CURLOPT_WRITEDATA, body);
        curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
        curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, stop_transfer);
        curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
        curl_easy_setopt(curl, CURLOPT_NOPROXY, "*");
        curl_easy_setopt(curl, CURLOPT_TIMEOUT, 120L);
        done = curl_easy_perform(curl) == CURLE_OK &&
               curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status) == CURLE_OK &&
               status == 200;
    }
    curl_slist_free_all(headers);
    curl_easy_cleanup(curl);
    return done;
}

bool demo_ask(const char *url, const char *prompt, unsigned tokens, struct demo_answer *ret_answer)
{
    json_t *question =
        json_pack("{s:s, s:i, s:i, s:i, s:b, s:b}", "prompt", prompt, "n_predict", (int)tokens,
                  "temperature", 0, "seed", 1, "return_tokens", 1, "cache_prompt", 1);
    char *text = json_dumps(question, JSON_COMPACT);
    json_decref(question);
    struct body body = {0};
    json_t *answer = NULL;
    if (text != NULL && post(url, text, &body))
        answer = json_loadb(body.text, body.bytes, 0, NULL);
    free(text);
    free(body.text);

    json_t *list = NULL;
    const char *content = NULL;
    int prompt_n = 0, cache_n = 0;
    bool good = json_unpack(answer, "{s:o, s:s, s:{s:i, s:i}}", "tokens", &list, "content",
                            &content, "timings", "prompt_n", &prompt_n, "cache_n", &cache_n) == 0 &&
                json_array_size(list) != 0;
    if (good)
        *ret_answer = (struct demo_answer){.tokens = json_incref(list),
                                           .content = strdup(content),
                                           .prompt_tokens = (unsigned)prompt_n,
                                           .cached_tokens = (unsigned)cache_n};
    json_decref(answer);
    return good;
}

bool demo_ask_until_up(const char *url, const char *prompt, unsigned tokens, uint64_t deadline_ns,
                       bool (*give_up)(void *context), void *context,
                       struct demo_answer *ret_answer)
{
    while (!demo_stopped() && demo_now_ns() < deadline_ns && !give_up(context)) {
        if (demo_ask(url, prompt, tokens, ret_answer))
            return true;
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    return false;
}

char *demo_long_prompt(void)
{
    static const char *const branches[] = {"harbour", "station", "hillside", "market", "island"};
    static const struct {
        const char *before, *after;
    } rules[] = {
        {"lends ", " books to each reader for three weeks, and asks for a card at the desk"},
        {"opens at ", " in the morning, but on the first Monday of a month it stays closed"},
        {"keeps newspapers of the last ", " days; older ones are in the archive downstairs"},
        {"has a reading room with ", " seats, where nobody may eat and everybody may whisper"},
        {"answers letters within ", " days, and writes back in the language of the letter"},
        {"takes ", " reservations a reader, and calls when the book is there"},
        {"reads to children every afternoon at ", "; they may bring a blanket"},
        {"repairs torn pages itself, and charges nothing for the first ", " of a year"},
    };
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    if (out == NULL)
        abort();
    fputs("You work at the desk of the town library, which has five branches. "
          "Answer each visitor in one or two friendly sentences, and keep to these rules.\n",
          out);
    int number = 0;
    for (size_t r = 0; r < sizeof(rules) / sizeof(rules[0]); r++) {
        for (size_t b = 0; b < sizeof(branches) / sizeof(branches[0]); b++) {
            fprintf(out, "%d. The %s branch %s%d%s.\n", ++number, branches[b], rules[r].before,
                    3 + (int)((3 * r + 2 * b) % 9), rules[r].after);
        }
    }
    fputs("Visitor: how many books may I take home from the station branch?\nDesk:", out);
    if (fclose(out) != 0)
        abort();
    return text;
}

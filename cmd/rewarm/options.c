/* Parsing with getopt_long() from the tables, and the help text made from the same tables.
 *
 * A command's options and the global ones are put into one getopt_long() array; `val` is 256 plus
 * the position. Options and operands may be mixed. A command that another program follows (`run
 * NAME CMD...`) is parsed in order instead, and what comes after "--" or after its first operand is
 * left alone. */
#include "options.h"

#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "base/clean.h"
#include "base/str.h"
#include "base/time.h"

enum { FIRST_VAL = 256, HELP_COLUMNS = 80 };

const struct rewarm_cli_option rewarm_cli_globals[] = {
    {.name = "store",
     .argument = "DIR",
     .help = "The store (default: $REWARM_STORE, else /var/lib/rewarm for root, else "
             "~/.local/share/rewarm)",
     .kind = REWARM_CLI_TEXT,
     .word = REWARM_WORD_FOLDER,
     .offset = offsetof(struct rewarm_cli, store_path)},
    {.name = "json",
     .help = "Print one JSON document on stdout",
     .kind = REWARM_CLI_FLAG,
     .offset = offsetof(struct rewarm_cli, json)},
    {.name = "verbose",
     .letter = 'v',
     .help = "Say more: stage times; twice: everything",
     .kind = REWARM_CLI_COUNT,
     .offset = offsetof(struct rewarm_cli, verbose)},
    {.name = "quiet",
     .letter = 'q',
     .help = "Say less: no progress and no notes; ls and ps print only names",
     .kind = REWARM_CLI_FLAG,
     .offset = offsetof(struct rewarm_cli, quiet)},
    {.name = "help",
     .letter = 'h',
     .help = "Print this help",
     .kind = REWARM_CLI_FLAG,
     .offset = offsetof(struct rewarm_cli, help)},
    {.name = "version",
     .help = "Print the version",
     .kind = REWARM_CLI_FLAG,
     .offset = offsetof(struct rewarm_cli, version)},
    {0},
};

bool rewarm_cli_has_global(const struct rewarm_cli_command *command,
                           const struct rewarm_cli_option *global)
{
    return command == NULL || command->json || strcmp(global->name, "json") != 0;
}

/* --- the nearest name ---------------------------------------------------------------------------
 */

static size_t smallest(size_t a, size_t b, size_t c)
{
    size_t least = a < b ? a : b;
    return least < c ? least : c;
}

/* Insertions, deletions and replacements between two words. */
static size_t distance(const char *from, const char *to)
{
    size_t length = strlen(to);
    rewarm_auto_free size_t *row = rewarm_mem_new(length + 1, sizeof(*row));
    for (size_t column = 0; column <= length; column++)
        row[column] = column;
    for (size_t line = 1; from[line - 1] != '\0'; line++) {
        size_t diagonal = row[0];
        row[0] = line;
        for (size_t column = 1; column <= length; column++) {
            size_t above = row[column];
            size_t replace = diagonal + (from[line - 1] != to[column - 1] ? 1 : 0);
            row[column] = smallest(above + 1, row[column - 1] + 1, replace);
            diagonal = above;
        }
    }
    return row[length];
}

const char *rewarm_cli_nearest(const char *word, const char *const *names)
{
    const char *best = NULL;
    size_t best_distance = SIZE_MAX;
    for (; *names != NULL; names++) {
        size_t now = distance(word, *names);
        if (now < best_distance) {
            best_distance = now;
            best = *names;
        }
    }
    /* A third of the word may be wrong; more would be guessing. */
    size_t allowed = strlen(word) / 3 + 1;
    return best_distance <= allowed ? best : NULL;
}

/* --- parsing ------------------------------------------------------------------------------------
 */

struct parser {
    struct rewarm_cli *cli;
    const struct rewarm_cli_command *command;
    struct rewarm_cli_parsed *parsed;
    const struct rewarm_cli_option *
        *table; /* NULL-terminated: the command's, then the global ones */
    size_t own; /* how many of them are the command's */
    struct option *longs;
    char *shorts;
};

static void parser_fini(struct parser *parser)
{
    free(parser->table);
    free(parser->longs);
    free(parser->shorts);
}

static void parser_init(struct parser *parser)
{
    const struct rewarm_cli_command *command = parser->command;
    size_t capacity = 1;
    for (size_t i = 0; command != NULL && command->options != NULL && command->options[i].name; i++)
        capacity++;
    parser->own = capacity - 1;
    for (size_t i = 0; rewarm_cli_globals[i].name != NULL; i++)
        capacity++;
    parser->table = rewarm_mem_new(capacity, sizeof(*parser->table));
    parser->longs = rewarm_mem_new(capacity, sizeof(*parser->longs));
    parser->shorts = rewarm_mem_new(2 * capacity + 3, 1);

    size_t count = 0;
    for (; count < parser->own; count++)
        parser->table[count] = &command->options[count];
    for (size_t i = 0; rewarm_cli_globals[i].name != NULL; i++)
        parser->table[count++] = &rewarm_cli_globals[i];

    char *letter = parser->shorts;
    if (command == NULL)
        *letter++ = '+'; /* stop at the command */
    else if (command->program_follows)
        *letter++ = '-'; /* operands come back as 1, in order */
    *letter++ = ':';     /* a missing argument comes back as ':', and getopt prints nothing */
    for (size_t i = 0; i < count; i++) {
        const struct rewarm_cli_option *option = parser->table[i];
        parser->longs[i] = (struct option){
            .name = option->name,
            .has_arg = option->argument != NULL ? required_argument : no_argument,
            .val = FIRST_VAL + (int)i,
        };
        if (option->letter != 0) {
            *letter++ = option->letter;
            if (option->argument != NULL)
                *letter++ = ':';
        }
    }
}

static int parse_seconds(const char *text, uint64_t *ret_ns)
{
    char *end;
    errno = 0;
    double seconds = strtod(text, &end);
    if (end == text || *end != '\0' || errno != 0 || !(seconds >= 0 && seconds <= 1e9) ||
        strpbrk(text, "xXpP") != NULL)
        return -1;
    *ret_ns = (uint64_t)(seconds * (double)REWARM_NS_PER_S);
    return 0;
}

static bool is_choice(const char *choices, const char *word)
{
    size_t length = strlen(word);
    while (length > 0 && choices != NULL) {
        size_t one = strcspn(choices, " ");
        if (one == length && memcmp(choices, word, one) == 0)
            return true;
        if (choices[one] == '\0')
            return false;
        choices += one + 1;
    }
    return false;
}

/* Puts one option's argument into its place. */
static int store_value(const struct rewarm_cli_option *option, void *base, const char *argument,
                       struct rewarm_error *err)
{
    void *place = (char *)base + option->offset;
    switch (option->kind) {
    case REWARM_CLI_FLAG:
        *(bool *)place = true;
        return 0;
    case REWARM_CLI_COUNT:
        *(unsigned *)place += 1;
        return 0;
    case REWARM_CLI_TEXT:
        *(const char **)place = argument;
        return 0;
    case REWARM_CLI_NUMBER:
        if (!rewarm_str_to_u64(argument, place))
            return rewarm_error_set(err, REWARM_E_USAGE, 0, "--%s wants a whole number, not '%s'",
                                    option->name, argument);
        return 0;
    case REWARM_CLI_SECONDS:
        if (parse_seconds(argument, place) < 0)
            return rewarm_error_set(err, REWARM_E_USAGE, 0, "--%s wants seconds, not '%s'",
                                    option->name, argument);
        return 0;
    case REWARM_CLI_LIST: {
        struct rewarm_cli_list *list = place;
        list->items = rewarm_mem_resize(list->items, list->count + 2, sizeof(*list->items));
        list->items[list->count++] = argument;
        list->items[list->count] = NULL;
        return 0;
    }
    }
    return 0;
}

static int take_option(struct parser *parser, const struct rewarm_cli_option *option,
                       const char *argument, struct rewarm_error *err)
{
    bool global = option >= rewarm_cli_globals &&
                  option < rewarm_cli_globals + sizeof(rewarm_cli_globals) / sizeof(*option);
    void *base = global ? (void *)parser->cli : parser->parsed->values;
    if (option->argument != NULL && argument[0] == '\0')
        return rewarm_error_set(err, REWARM_E_USAGE, 0, "--%s wants %s, not an empty word",
                                option->name, option->argument);
    if (option->word == REWARM_WORD_CHOICE && !is_choice(option->choices, argument))
        return rewarm_error_set(err, REWARM_E_USAGE, 0, "--%s: '%s' is none of: %s", option->name,
                                argument, option->choices);
    return store_value(option, base, argument, err);
}

/* getopt_long() said '?': unknown, ambiguous, or an argument where none belongs. */
static int bad_option(const struct parser *parser, char **argv, struct rewarm_error *err)
{
    const char *of = parser->command != NULL ? parser->command->name : "rewarm";
    if (optopt >= FIRST_VAL)
        return rewarm_error_set(err, REWARM_E_USAGE, 0, "%s: --%s takes no argument", of,
                                parser->table[optopt - FIRST_VAL]->name);
    if (optopt != 0)
        return rewarm_error_set(err, REWARM_E_USAGE, 0, "%s: there is no option -%c", of, optopt);
    char word[64];
    snprintf(word, sizeof(word), "%s", argv[optind - 1] + 2);
    word[strcspn(word, "=")] = '\0';

    const char *names[64] = {NULL};
    const char *matches[2] = {NULL, NULL};
    size_t count = 0, matching = 0;
    for (; parser->table[count] != NULL && count < 63; count++) {
        names[count] = parser->table[count]->name;
        if (rewarm_str_starts(names[count], word) && matching++ < 2)
            matches[matching - 1] = names[count];
    }
    if (matching > 1)
        return rewarm_error_set(err, REWARM_E_USAGE, 0,
                                "%s: --%s could be --%s or --%s; write more of it", of, word,
                                matches[0], matches[1]);
    const char *near = rewarm_cli_nearest(word, names);
    if (near != NULL)
        return rewarm_error_set(err, REWARM_E_USAGE, 0,
                                "%s: there is no option --%s; did you mean --%s?", of, word, near);
    return rewarm_error_set(err, REWARM_E_USAGE, 0, "%s: there is no option --%s; see %s--help", of,
                            word, parser->command != NULL ? "its " : "");
}

static int missing_argument(const struct parser *parser, struct rewarm_error *err)
{
    for (size_t i = 0; parser->table[i] != NULL; i++) {
        const struct rewarm_cli_option *option = parser->table[i];
        if (optopt == FIRST_VAL + (int)i || (option->letter != 0 && optopt == option->letter))
            return rewarm_error_set(err, REWARM_E_USAGE, 0, "--%s wants %s after it", option->name,
                                    option->argument);
    }
    return rewarm_error_set(err, REWARM_E_USAGE, 0, "an option lacks its argument");
}

static const struct rewarm_cli_option *find_option(const struct parser *parser, int val)
{
    if (val >= FIRST_VAL)
        return parser->table[val - FIRST_VAL];
    size_t i = 0;
    while (parser->table[i]->letter != val)
        i++;
    return parser->table[i];
}

static void add_operands(struct rewarm_cli_parsed *parsed, char **words, size_t count)
{
    parsed->operands =
        rewarm_mem_resize(parsed->operands, parsed->count + count + 1, sizeof(*parsed->operands));
    if (count > 0)
        memcpy(parsed->operands + parsed->count, words, count * sizeof(*words));
    parsed->count += count;
    parsed->operands[parsed->count] = NULL;
}

static int parse_words(struct parser *parser, int argc, char **argv, struct rewarm_error *err)
{
    struct rewarm_cli_parsed *parsed = parser->parsed;
    optind = 0; /* start afresh, the order mode too */
    opterr = 0;
    int val;
    while ((val = getopt_long(argc, argv, parser->shorts, parser->longs, NULL)) != -1) {
        if (val == '?')
            return bad_option(parser, argv, err);
        if (val == ':')
            return missing_argument(parser, err);
        if (val == 1) {
            if (parsed->count == 1) { /* the program's name, with no "--" in front */
                optind--;
                break;
            }
            add_operands(parsed, &optarg, 1);
            continue;
        }
        int rc = take_option(parser, find_option(parser, val), optarg, err);
        if (rc < 0)
            return rc;
    }
    if (parser->command != NULL && parser->command->program_follows && parsed->count == 0 &&
        !parser->cli->help)
        return rewarm_error_set(err, REWARM_E_USAGE, 0,
                                "NAME is missing; usage: rewarm %s [options] %s",
                                parser->command->name, parser->command->operands);
    add_operands(parsed, argv + optind, (size_t)(argc - optind));
    return 0;
}

static int check_operands(const struct parser *parser, struct rewarm_error *err)
{
    const struct rewarm_cli_command *command = parser->command;
    const struct rewarm_cli_parsed *parsed = parser->parsed;
    if (parsed->count < command->operands_min)
        return rewarm_error_set(err, REWARM_E_USAGE, 0,
                                "%s is missing; usage: rewarm %s [options] %s", command->operands,
                                command->name, command->operands);
    if (parsed->count > command->operands_max)
        return rewarm_error_set(err, REWARM_E_USAGE, 0,
                                "%s: '%s' is too much; usage: rewarm %s %s%s", command->name,
                                parsed->operands[command->operands_max], command->name,
                                "[options] ", command->operands);
    for (size_t i = 0; command->word == REWARM_WORD_CHOICE && i < parsed->count; i++) {
        if (!is_choice(command->choices, parsed->operands[i]))
            return rewarm_error_set(err, REWARM_E_USAGE, 0, "%s: '%s' is none of: %s",
                                    command->name, parsed->operands[i], command->choices);
    }
    if (parser->cli->json && !command->json)
        return rewarm_error_set(err, REWARM_E_USAGE, 0, "%s has no --json", command->name);
    return 0;
}

int rewarm_cli_parse(struct rewarm_cli *cli, const struct rewarm_cli_command *command, int argc,
                     char **argv, struct rewarm_cli_parsed *ret_parsed, struct rewarm_error *err)
{
    struct rewarm_cli_parsed parsed = {.command = command};
    struct parser parser = {.cli = cli, .command = command, .parsed = &parsed};
    if (command != NULL && command->values_bytes > 0) {
        parsed.values = rewarm_mem_new(1, command->values_bytes);
        if (command->defaults != NULL)
            memcpy(parsed.values, command->defaults, command->values_bytes);
    }
    parser_init(&parser);
    int rc = parse_words(&parser, argc, argv, err);
    if (rc == 0 && command != NULL && !cli->help && !cli->version)
        rc = check_operands(&parser, err);
    parser_fini(&parser);
    if (rc < 0) {
        rewarm_cli_parsed_fini(&parsed);
        return rc;
    }
    *ret_parsed = parsed;
    return 0;
}

void rewarm_cli_parsed_fini(struct rewarm_cli_parsed *parsed)
{
    const struct rewarm_cli_command *command = parsed->command;
    for (size_t i = 0; command != NULL && command->options != NULL && command->options[i].name;
         i++) {
        if (command->options[i].kind == REWARM_CLI_LIST)
            free(((struct rewarm_cli_list *)((char *)parsed->values + command->options[i].offset))
                     ->items);
    }
    free(parsed->values);
    free(parsed->operands);
    *parsed = (struct rewarm_cli_parsed){0};
}

/* --- help ---------------------------------------------------------------------------------------
 */

/* Prints `text` wrapped between columns `indent` and HELP_COLUMNS; the cursor stands at `indent`.
 */
static void print_wrapped(FILE *out, int indent, const char *text)
{
    int column = indent;
    while (*text != '\0') {
        int length = (int)strcspn(text, " \n");
        if (column > indent && column + 1 + length > HELP_COLUMNS) {
            fprintf(out, "\n%*s", indent, "");
            column = indent;
        }
        if (column > indent)
            fputc(' ', out);
        column += length + (column > indent ? 1 : 0);
        fprintf(out, "%.*s", length, text);
        text += length;
        while (*text == ' ' || *text == '\n') {
            if (*text == '\n') {
                fprintf(out, "\n%*s", indent, "");
                column = indent;
            }
            text++;
        }
    }
    fputc('\n', out);
}

static void print_option(FILE *out, const struct rewarm_cli_option *option)
{
    enum { INDENT = 30 };
    char left[INDENT + 64];
    char letter[5] = "    ";
    if (option->letter != 0)
        snprintf(letter, sizeof(letter), "-%c, ", option->letter);
    int width = snprintf(left, sizeof(left), "  %s--%s%s%s", letter, option->name,
                         option->argument != NULL ? " " : "",
                         option->argument != NULL ? option->argument : "");
    fputs(left, out);
    if (width + 2 > INDENT) {
        fputc('\n', out);
        width = 0;
    }
    fprintf(out, "%*s", INDENT - width, "");
    print_wrapped(out, INDENT, option->help);
}

void rewarm_cli_help(FILE *out, const struct rewarm_cli_command *command)
{
    fprintf(out, "usage: rewarm %s [options]%s%s\n\n", command->name,
            command->operands[0] != '\0' ? " " : "", command->operands);
    fprintf(out, "%s.\n", command->summary);
    if (command->details != NULL) {
        fputc('\n', out);
        print_wrapped(out, 0, command->details);
    }
    if (command->options != NULL) {
        fputs("\noptions:\n", out);
        for (const struct rewarm_cli_option *option = command->options; option->name; option++)
            print_option(out, option);
    }
    fputs("\nevery command:\n", out);
    for (const struct rewarm_cli_option *option = rewarm_cli_globals; option->name; option++) {
        if (rewarm_cli_has_global(command, option))
            print_option(out, option);
    }
    fprintf(out, "\nThe manual: man rewarm-%s\n", command->name);
}

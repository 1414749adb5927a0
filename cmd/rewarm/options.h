/* One table of options a command: it drives parsing, --help and shell completion, so that the three
 * cannot disagree. */
#ifndef REWARM_CMD_OPTIONS_H
#define REWARM_CMD_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/error.h"

/* What an option's place in the values structure is. */
enum rewarm_cli_kind {
    REWARM_CLI_FLAG,    /* bool */
    REWARM_CLI_COUNT,   /* unsigned: how often it was given */
    REWARM_CLI_TEXT,    /* const char *, borrowed from argv */
    REWARM_CLI_NUMBER,  /* uint64_t */
    REWARM_CLI_SECONDS, /* uint64_t, nanoseconds; the text may have a fraction */
    REWARM_CLI_LIST,    /* struct rewarm_cli_list: may be given more than once */
};

/* What a shell should offer for an argument or operand. */
enum rewarm_cli_word {
    REWARM_WORD_ANY,
    REWARM_WORD_FILE,
    REWARM_WORD_FOLDER,
    REWARM_WORD_SNAPSHOT,
    REWARM_WORD_WORKER,
    REWARM_WORD_COMMAND, /* a command of rewarm */
    REWARM_WORD_CHOICE,  /* one of `choices` */
};

struct rewarm_cli_list {
    const char **items; /* NULL-terminated, or NULL when empty; the texts are argv's */
    size_t count;
};

struct rewarm_cli_option {
    const char *name;     /* without "--" */
    const char *argument; /* "URL"; NULL when it takes none */
    const char *help;     /* without a full stop */
    const char *choices;  /* space-separated; with REWARM_WORD_CHOICE */
    size_t offset;        /* of its place in the values structure */
    enum rewarm_cli_kind kind;
    enum rewarm_cli_word word;
    char letter; /* 0 for none */
};

/* What every command gets: the options that all of them have. */
struct rewarm_cli {
    const char *store_path; /* --store, or NULL */
    unsigned verbose;
    bool quiet, json, help, version;
    bool answered; /* the JSON document of this call is on stdout */
};

struct rewarm_cli_command {
    const char *name;
    const char *operands;                    /* "PID|NAME"; "" for none */
    const char *summary;                     /* one line, without a full stop */
    const char *details;                     /* paragraphs for --help, or NULL */
    const struct rewarm_cli_option *options; /* up to one without a name; NULL for none */
    size_t values_bytes;
    const void *defaults; /* values_bytes, or NULL for zeros */
    size_t operands_min, operands_max;
    enum rewarm_cli_word word; /* the operands */
    const char *choices;       /* space-separated; with REWARM_WORD_CHOICE */
    bool program_follows;      /* after its first operand everything belongs to another program */
    bool json;                 /* has --json */
    int usage_status;          /* exit status of a usage error; 0 = REWARM_E_USAGE */
    /* Does it; returns the exit status. `values` was filled from the table. */
    int (*run)(struct rewarm_cli *cli, const void *values, char **operands, size_t count);
};

/* The global options, up to one without a name. Their offsets are in struct rewarm_cli. */
extern const struct rewarm_cli_option rewarm_cli_globals[];

/* Result of parsing; free with rewarm_cli_parsed_fini(). */
struct rewarm_cli_parsed {
    void *values;
    char **operands; /* NULL-terminated */
    size_t count;
    const struct rewarm_cli_command *command;
};

/* Parses argv[1..] (argv[0] is the command's name) of `command`, or of rewarm itself when `command`
 * is NULL: then it stops at the first operand. REWARM_E_USAGE says what is wrong, with the nearest
 * name. */
int rewarm_cli_parse(struct rewarm_cli *cli, const struct rewarm_cli_command *command, int argc,
                     char **argv, struct rewarm_cli_parsed *ret_parsed, struct rewarm_error *err);
void rewarm_cli_parsed_fini(struct rewarm_cli_parsed *parsed);

/* Prints the --help text of a command. */
void rewarm_cli_help(FILE *out, const struct rewarm_cli_command *command);

/* Whether a command takes the option: --json only where it means something. */
bool rewarm_cli_has_global(const struct rewarm_cli_command *command,
                           const struct rewarm_cli_option *global);

/* The one of `names` (NULL-terminated) that `word` was probably meant to be, or NULL. */
const char *rewarm_cli_nearest(const char *word, const char *const *names);

#endif

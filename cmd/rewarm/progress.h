/* How far a freeze, restore or verify is, on stderr: a bar on a terminal, plain lines elsewhere. */
#ifndef REWARM_CMD_PROGRESS_H
#define REWARM_CMD_PROGRESS_H

#include "options.h"
#include "snapshot/snapshot.h"

struct rewarm_cli_progress;

/* `what` (a snapshot's name) is borrowed. NULL with --quiet: every function here takes NULL. With
 * `worker_follows` the terminal belongs to a worker afterwards: then every stage's last line comes
 * at once, and none at the end. */
struct rewarm_cli_progress *rewarm_cli_progress_new(const struct rewarm_cli *cli, const char *what,
                                                    bool worker_follows);

/* Ends the line of the bar, prints the last plain line. */
void rewarm_cli_progress_free(struct rewarm_cli_progress *progress);

/* To be handed to the pipelines; NULL for NULL. */
const struct rewarm_progress *rewarm_cli_progress_hook(struct rewarm_cli_progress *progress);

/* What the hook does. From one thread at a time. */
void rewarm_cli_progress_update(struct rewarm_cli_progress *progress, const char *stage,
                                uint64_t done_bytes, uint64_t total_bytes);

static inline void rewarm_clean_cli_progress(struct rewarm_cli_progress **progress)
{
    rewarm_cli_progress_free(*progress);
}
#define rewarm_auto_progress __attribute__((cleanup(rewarm_clean_cli_progress)))

#endif

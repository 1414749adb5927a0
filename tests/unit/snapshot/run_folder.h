/* A private RUN folder for a test: made by run_folder_set_up(), removed by run_folder_tear_down().
 */
#ifndef REWARM_TESTS_RUN_FOLDER_H
#define REWARM_TESTS_RUN_FOLDER_H

#include <fcntl.h>
#include <stdlib.h>

#include "base/fs.h"

static char run_folder[] = "/tmp/rewarm-test-XXXXXX";

static int run_folder_set_up(void **state)
{
    (void)state;
    return mkdtemp(run_folder) != NULL && setenv("REWARM_RUN", run_folder, 1) == 0 ? 0 : -1;
}

static int run_folder_tear_down(void **state)
{
    (void)state;
    return rewarm_fs_remove_tree(AT_FDCWD, run_folder, NULL);
}

#endif

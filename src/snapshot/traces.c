#include "snapshot/traces.h"

#include <fcntl.h>
#include <unistd.h>

#include "base/clean.h"
#include "base/fs.h"
#include "base/str.h"
#include "base/trace.h"
#include "snapshot/session.h"
#include "snapshot/snapshot.h"

void rewarm_trace_begin(const char *name, const char *verb)
{
    rewarm_auto_fd int traces = -1;
    rewarm_auto_free char *file = rewarm_str_format("%s.%s", name, verb);
    if (rewarm_str_check_name(name, NULL) != 0 || rewarm_run_dir("traces", &traces, NULL) != 0)
        return;
    unlinkat(traces, file, 0);
    rewarm_trace_open(traces, file, NULL);
}

int rewarm_trace_load(const char *name, const char *verb, char **ret_text, size_t *ret_bytes,
                      struct rewarm_error *err)
{
    rewarm_auto_fd int traces = -1;
    int result = rewarm_str_check_name(name, err);
    if (result == 0)
        result = rewarm_run_dir("traces", &traces, err);
    if (result != 0)
        return result;
    rewarm_auto_free char *file = rewarm_str_format("%s.%s", name, verb);
    if (faccessat(traces, file, F_OK, 0) != 0)
        return rewarm_error_set(err, REWARM_E_NOT_FOUND, 0,
                                "there is no %s trace of %s on this machine", verb, name);
    return rewarm_fs_read_file(traces, file, (size_t)64 << 20, ret_text, ret_bytes, err);
}

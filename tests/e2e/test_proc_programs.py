"""Every kind of process state has a test program; each is frozen and killed and
restored, and frozen with its source going on, and must find its state right both times."""

import pytest

from engine import lab  # noqa: F401

# (id, program, arguments). The programs' first comments say what they hold.
PROGRAMS = [
    ("anonymous", "mem_anon", [8]),
    ("private-file-cow", "mem_cow", []),
    ("shared-anonymous", "mem_shared", [4]),
    ("memfd", "mem_memfd", []),
    ("memfd-closed", "mem_memfd", ["closed"]),
    ("memfd-in-child", "mem_memfd", ["child"]),
    ("locked", "mem_locked", []),
    ("hugetlb", "mem_hugetlb", []),
    ("wipeonfork", "mem_wipeonfork", []),
    ("guard-pages", "mem_guard", []),
    ("small-vmas", "mem_vmas", [3000]),
    ("posix-shm-and-semaphores", "shm_posix", []),
    ("sysv-sem", "sysv", ["sem"]),
    ("sysv-msg", "sysv", ["msg"]),
    ("threads", "threads", [32]),
    ("deep-tree-from-threads", "tree", [6]),
    ("zombies", "zombies", []),
    ("forked-workers-cow", "cow_workers", [4]),
    ("sessions-and-groups", "sessions", []),
    ("eventfd", "eventfd", []),
    ("epoll", "epoll", []),
    ("timerfd", "timerfd", []),
    ("signalfd", "signalfd", []),
    ("pidfd", "pidfd", []),
    ("inotify", "inotify", []),
    ("pipes-with-data", "pipes", []),
    ("unix-pairs-with-data", "unix_pairs", []),
    ("descriptors-in-flight", "unix_rights", []),
    ("unix-abstract", "unix_named", ["abstract"]),
    ("unix-path", "unix_named", ["path"]),
    ("flock", "locks", ["flock"]),
    ("posix-lock", "locks", ["posix"]),
    ("ofd-lock", "locks", ["ofd"]),
    ("deleted-small", "deleted", [8192]),
    ("deleted-4-mib-ghost-limit", "deleted", [4 << 20]),
    ("deleted-with-other-name", "deleted", [8192, 1]),
    ("deleted-all-names", "deleted", [8192, 2]),
    ("log-append", "log_file", ["append"]),
    ("log-plain", "log_file", ["plain"]),
    ("tcp-listener-v4", "tcp_listen", [4]),
    ("tcp-listener-v6", "tcp_listen", [6]),
    ("tcp-with-itself-v4", "tcp_pair", [4]),
    ("tcp-with-itself-v6", "tcp_pair", [6]),
    ("tcp-with-itself-no-listener", "tcp_pair", [4, "closed"]),
    ("udp-v4", "udp", [4]),
    ("udp-v6", "udp", [6]),
    ("seccomp", "seccomp", []),
    ("attributes", "attributes", []),
    ("signals-pending", "signals", []),
    ("timers", "timers", []),
    ("credentials", "credentials", ["groups"]),
    ("chroot", "chroot", []),
    ("deleted-cwd", "cwd_deleted", []),
    ("rlimits", "rlimits", []),
    ("robust-futex", "futex", []),
]


def start(lab, program, args):
    return lab.start(program, *args, answers="root" if program == "chroot" else "")


@pytest.mark.parametrize("program,args", [pytest.param(*row[1:], id=row[0]) for row in PROGRAMS])
def test_killed_and_restored(lab, program, args):
    worker = start(lab, program, args)
    worker.check("before")
    lab.freeze(worker)
    copy = lab.restore(like=worker)
    assert copy.pid == worker.pid
    copy.check("restored")
    copy.check("restored, again")


@pytest.mark.parametrize("program,args", [pytest.param(*row[1:], id=row[0]) for row in PROGRAMS])
def test_source_goes_on(lab, program, args):
    worker = start(lab, program, args)
    lab.freeze(worker, stop=False)
    worker.check("source after the freeze")
    assert worker.end() == 42

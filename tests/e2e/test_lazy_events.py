"""Lazy memory: what the worker does to memory that is still coming in.

`lazy_storm` never stops remapping, discarding, unmapping and forking, so it is restored in the middle of it;
`lazy_go` does one thing in its first moments. Memory is checked at once (most of it comes by faults
then) and once more when all of it is there."""

import os
import signal
import time

import pytest

from engine import LOST, alive, children_of, lab, reap, rewarm_only, stat_of, tree_of, until  # noqa: F401

pytestmark = rewarm_only
NO_WAIT = "--no-wait"


@pytest.mark.parametrize("mode", ["all", "move", "shrink", "discard", "discard-part", "unmap", "fork", "protect"])
def test_events_while_memory_comes_in(lab, mode):
    """fork, mremap, munmap, MADV_DONTNEED and exit while pages are outstanding; discarded pages read as zero, never
    as what the snapshot had (stale bytes)."""
    worker = lab.start("lazy_storm", mode, 48)
    lab.freeze(worker)
    copy = lab.restore("snap", NO_WAIT, like=worker)
    copy.check("at once")
    time.sleep(0.2)
    copy.check("later")


def test_storm_goes_on_in_the_source(lab):
    worker = lab.start("lazy_storm", "all", 16)
    for round_number in range(3):
        lab.freeze(worker, stop=False)
        worker.check(f"source, round {round_number}")


def test_storm_over_generations(lab):
    """Frozen again as soon as it is whole, with children that may come and go in that moment."""
    worker = lab.start("lazy_storm", "all", 16)
    for generation in range(3):
        lab.freeze(worker, f"generation-{generation}")
        worker = lab.restore(f"generation-{generation}", like=worker)
        worker.check(f"generation {generation}")


def test_freeze_while_memory_comes_in(lab):
    """A freeze in the middle of a fill: refused or right, never a snapshot of memory that was not there."""
    worker = lab.start("lazy_go", "none", 256)
    lab.freeze(worker)
    copy = lab.restore("snap", NO_WAIT, like=worker)
    done = lab.cli("freeze", copy.pid, "--as", "again")
    copy.check("copy after a freeze in its fill")
    if done.returncode == 0:
        tree = tree_of(copy.pid)
        copy.end()
        reap(tree)
        lab.restore("again", like=worker).check("restored from the freeze in the fill")
    else:
        assert "again" not in lab.snapshots()


@pytest.mark.parametrize("action", ["exec", "become", "fork", "unmap", "discard", "syscall", "none"])
def test_first_moments(lab, action):
    """execve, fork, munmap, MADV_DONTNEED, and get_user_pages by the kernel (write, process_vm_readv, O_DIRECT) in the
    first moments of a restored worker, on pages that are not there yet."""
    worker = lab.start("lazy_go", action, 24 if action == "fork" else 128)  # 33 copies of 24 MiB
    lab.freeze(worker)
    (worker.folder / "go").touch()
    copy = lab.restore("snap", NO_WAIT, like=worker)
    until(lambda: (worker.folder / "pid").exists(), 5)
    time.sleep(0.3 if action == "become" else 0)
    copy.check("at once")
    copy.check("again")


@pytest.mark.parametrize("action,status", [("exit", 7), ("abort", 128 + 6)])
def test_ends_in_its_first_moments(lab, action, status):
    """The worker exits while its memory comes in: that is its own end, not a failed restore, and nothing is left."""
    worker = lab.start("lazy_go", action, 128)
    lab.freeze(worker)
    (worker.folder / "go").touch()
    started = time.monotonic()
    done = lab.cli("restore", "snap")
    assert done.returncode == status, done.stderr
    assert time.monotonic() - started < 10
    assert stat_of(worker.pid) is None


def test_worker_killed_in_its_fill(lab):
    """Killed from outside in the middle of the fill: the supervisor ends with 128 + 9 and leaves nothing."""
    worker = lab.start("lazy_go", "none", 256)
    lab.freeze(worker)
    process = lab.popen_cli("restore", "snap")
    until(lambda: (stat_of(worker.pid) or "Z")[0] not in "tTZ", 10, "the worker")
    os.kill(worker.pid, signal.SIGKILL)
    assert process.wait(20) in (128 + 9, LOST)


@pytest.mark.parametrize("program,args", [("tree", [6]), ("cow_workers", [32]), ("zombies", []), ("threads", [32]),
                                          ("mem_vmas", [3000]), ("mem_wipeonfork", []), ("mem_guard", []),
                                          ("mem_locked", []), ("mem_shared", [16])])
def test_checked_while_memory_comes_in(lab, program, args):
    """Whole process trees, threads, zombies, thousands of areas: the check itself runs into missing pages."""
    worker = lab.start(program, *args)
    lab.freeze(worker)
    lab.restore("snap", NO_WAIT, like=worker).check("at once")


def test_pages_never_dumped_are_zero(lab):
    """Faults on pages that were never dumped want a zero page."""
    worker = lab.start("mem_anon", 64)
    lab.freeze(worker)
    lab.restore("snap", NO_WAIT, like=worker).check("at once")


def test_nothing_depends_on_rewarm_when_it_is_whole(lab):
    """Once the memory is there the filler has gone and holds nothing of the worker."""
    worker = lab.start("mem_anon", 16)
    lab.freeze(worker)
    copy = lab.restore("snap", like=worker)
    supervisor = lab.ps()["snap"]["supervisor"]
    until(lambda: [pid for pid in children_of(supervisor) if alive(pid)] == [copy.pid], 5,
          "a supervisor with no child but the worker")
    os.kill(supervisor, signal.SIGKILL)
    time.sleep(0.1)
    copy.check("whole, and without its supervisor")
    assert lab.ps()["snap"]["supervisor"] == 0

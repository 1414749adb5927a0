"""The invariant of the design: rewarm, its filler or CRIU killed at random moments. The source
serves on; a copy is whole or gone, never wrong; a later `rewarm` puts right what was left."""

import os
import random
import re
import signal
import time
from pathlib import Path

import pytest

from engine import (CANCELLED, Worker, alive, kill, lab, reap, reap_orphans, rewarm_only, stat_of, tree_of,
                    until)  # noqa: F401

pytestmark = rewarm_only
MIB = 96
# Fractions of the time that the undisturbed command takes; a little noise is added.
MOMENTS = [0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0]


def pipe_limit():
    return Path("/proc/sys/fs/pipe-max-size").read_text()


def timed(command):
    started = time.monotonic()
    command()
    return time.monotonic() - started


def running(lab, program):
    """Processes of a test program, by their program's path (rewarm's own command line may name it too)."""
    return [entry for entry in lab.processes() if entry[1].split(" ")[0].endswith("/" + program)]


def children_named(pid, word):
    """Descendants of a process whose command line has this word."""
    found = []
    for child in tree_of(pid)[1:]:
        try:
            if word in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(child)
        except OSError:
            pass
    return found


def nothing_left(lab):
    """After a repair: no session, and no process but test programs and those who watch them."""

    def repaired():
        lab.ps()
        return not list((lab.run / "sessions").glob("*"))

    until(repaired, 5, "a session's repair", pause=0.1)  # CRIU may have outlived rewarm for a moment
    watching = {entry["supervisor"] for entry in lab.ps().values()}

    def ours():
        return [entry for entry in lab.processes() if "/programs/" not in entry[1] and entry[0] not in watching]

    until(lambda: not ours(), 5, f"the end of {ours()}")


def whole_or_gone(copy, seconds=15):
    """Asks a copy until it has answered or has ended. A wrong answer is the one thing that must not happen."""
    try:
        copy.check("copy", seconds)
        return "whole"
    except (ProcessLookupError, AssertionError) as error:
        if "ended instead of answering" in str(error) or isinstance(error, ProcessLookupError):
            return "gone"
        raise


# --- freeze

@pytest.mark.parametrize("stop", [False, True], ids=["leave-running", "kill"])
def test_freeze_killed(lab, stop):
    """kill -9 of rewarm at random moments of a freeze leaves the worker serving; with --kill it may have ended only if the
    snapshot is there. A later call repairs: stopped tree, staging, limits."""
    worker = lab.start("cow_workers", MIB // 4)
    limit = pipe_limit()
    whole = timed(lambda: lab.freeze(worker, "measure", stop=False))
    lab.cli("rm", "measure", check=True)
    lab.cli("gc", check=True)
    for moment in MOMENTS:
        process = lab.popen_cli("freeze", worker.pid, "--as", "snap", *(["--kill"] if stop else []))
        tree = tree_of(worker.pid)
        time.sleep(whole * moment * random.uniform(0.9, 1.1))
        process.kill()
        process.wait()
        lab.ps()  # repairs
        if stop and "snap" in lab.snapshots() and not alive(worker.pid):
            worker.gone(tree) if worker.process else reap(tree)
            worker = lab.restore(like=worker)
        worker.check(f"source after a kill at {moment}", 15)
        nothing_left(lab)
        until(lambda: pipe_limit() == limit, 5, f"fs.pipe-max-size back at {limit}")
        if "snap" in lab.snapshots():
            assert lab.cli("verify", "snap").returncode == 0
            lab.cli("rm", "snap", check=True)
    lab.cli("gc", check=True)
    lab.freeze(worker, "last")
    lab.restore("last", like=worker).check("restored from a freeze after all this")


def test_freeze_interrupted(lab):
    """SIGTERM and SIGINT: the freeze is undone and says so."""
    worker = lab.start("mem_anon", MIB)
    for number, moment in ((signal.SIGTERM, 0.1), (signal.SIGINT, 0.15), (signal.SIGTERM, 0.02)):
        process = lab.popen_cli("freeze", worker.pid, "--as", "snap", "--kill")
        time.sleep(moment)
        process.send_signal(number)
        code = process.wait(20)
        if code == 0:
            pytest.skip("the freeze was quicker than the signal")
        assert code in (CANCELLED, 128 + number, -number), code
        lab.ps()
        worker.check("source")
        nothing_left(lab)


def test_criu_killed_in_a_freeze(lab):
    """CRIU itself dies (out of memory, say): the freeze fails, the source goes on."""
    worker = lab.start("mem_anon", MIB)
    for _ in range(4):
        process = lab.popen_cli("freeze", worker.pid, "--as", "snap", "--kill")
        found = until(lambda: children_named(process.pid, b"dump") or process.poll() is not None, 10, "CRIU", pause=0.001)
        if found is True:
            continue
        time.sleep(random.uniform(0, 0.1))
        kill(found[0])
        code = process.wait(30)
        if code == 0:
            continue  # it had done its work
        assert "snap" not in lab.snapshots()
        try:
            worker.check("source", 15)
        except AssertionError as error:
            # docs/limits.md: killed inside CRIU's parasite code it may take the worker along; a wrong answer never.
            assert "ended instead of answering" in str(error)
            worker = lab.start("mem_anon", MIB)
        nothing_left(lab)


def test_source_dies_in_a_freeze(lab):
    """The worker is killed while it is being frozen: an error, no snapshot of half of it."""
    worker = lab.start("mem_anon", MIB)
    process = lab.popen_cli("freeze", worker.pid, "--as", "snap")
    until(lambda: children_named(process.pid, b"dump") or process.poll() is not None, 10, "CRIU", pause=0.001)
    time.sleep(0.02)
    kill(worker.pid)
    code = process.wait(30)
    assert (code == 0) == ("snap" in lab.snapshots())
    if code == 0:
        assert lab.cli("verify", "snap").returncode == 0
    lab.ps()
    nothing_left(lab)


# --- restore

def start_restore(lab, worker):
    process = lab.popen_cli("restore", "snap")
    copy = Worker(worker.folder, worker.pid)
    lab.workers.append(copy)
    return process, copy


def end_copy(lab, process, copy):
    if alive(copy.pid):
        tree = tree_of(copy.pid)
        copy.end()
        for pid in tree:
            kill(pid)
        if process is not None and process.poll() is None:
            process.wait(10)
        reap(tree)
    if process is not None:
        process.wait(15)

    def all_gone():
        reap_orphans(lab.popen)
        return all(stat_of(pid) is None for pid in lab.tree)

    until(all_gone, 10, f"the end of all of {[(pid, stat_of(pid)) for pid in lab.tree]}")


def stages(table):
    """The stages of a pipeline, read from its table: a new one is tested by itself."""
    source = Path(__file__).parents[2] / "src/snapshot" / table
    rows = source.read_text().split("static const struct rewarm_stage stages[] = {")[1].split("};")[0]
    return re.findall(r'\{"([a-z]+)",', rows)


def killed_at(lab, verb, stage, point, *args):
    """Runs `rewarm VERB ARGS`, which kills itself with SIGKILL when STAGE begins, or when it has ended."""
    process = lab.popen_cli(verb, *args, env=dict(lab.environment, REWARM_FAULT=f"{verb}/{stage}{point}"))
    assert process.wait(30) == -signal.SIGKILL, f"{verb} was not killed at {stage}{point}"


def test_freeze_killed_at_every_stage(lab):
    """kill -9 of rewarm at the beginning and the end of every stage of a freeze: the worker serves on, nothing stays."""
    worker = lab.start("cow_workers", MIB // 12)
    limit = pipe_limit()
    found = stages("freeze.c")
    assert {"preflight", "dump", "read", "release", "publish"} <= set(found)
    for stage in found:
        for point in ("", "/end"):
            killed_at(lab, "freeze", stage, point, worker.pid, "--as", "snap")
            lab.ps()  # repairs
            worker.check(f"source after a kill at {stage}{point}", 15)
            nothing_left(lab)
            until(lambda: pipe_limit() == limit, 5, f"fs.pipe-max-size back at {limit}")
            assert "snap" not in lab.snapshots() or lab.cli("verify", "snap").returncode == 0


@pytest.fixture
def snapshot(lab):
    worker = lab.start("cow_workers", MIB // 4)
    lab.tree = tree_of(worker.pid)
    lab.freeze(worker)
    process, copy = start_restore(lab, worker)
    started = time.monotonic()
    lab.until_whole(process)
    lab.whole = time.monotonic() - started
    copy.check("undisturbed")
    end_copy(lab, process, copy)
    return worker


def test_restore_killed(lab, snapshot):
    """kill -9 of rewarm at random moments of a restore: the tree is gone or whole, never half, never wrong."""
    outcomes = []
    for moment in MOMENTS:
        process, copy = start_restore(lab, snapshot)
        time.sleep(lab.whole * moment * random.uniform(0.8, 1.2))
        process.kill()
        process.wait()
        # A tree that is not whole must be dead at once, without anybody's help: give it two seconds, then look.
        time.sleep(0.3)
        outcomes.append(whole_or_gone(copy) if alive(copy.pid) else "gone")
        lab.ps()  # repairs
        if outcomes[-1] == "gone":
            until(lambda: not running(lab, "cow_workers"), 5, "a half-restored tree's end")
        end_copy(lab, None, copy)
        nothing_left(lab)
    process, copy = start_restore(lab, snapshot)
    lab.until_whole(process)
    copy.check("restored after all this")
    end_copy(lab, process, copy)


def test_restore_killed_at_every_stage(lab, snapshot):
    """kill -9 of rewarm at the beginning and the end of every stage of a restore leaves no half-restored tree."""
    found = stages("restore.c")
    assert {"open", "images", "filler", "skeleton", "running"} <= set(found)
    for stage in found:
        for point in ("", "/end"):
            killed_at(lab, "restore", stage, point, "snap")
            copy = Worker(snapshot.folder, snapshot.pid)
            lab.workers.append(copy)
            time.sleep(0.3)
            outcome = whole_or_gone(copy) if alive(copy.pid) else "gone"
            lab.ps()  # repairs
            if outcome == "gone":
                until(lambda: not running(lab, "cow_workers"), 5, "a half-restored tree's end")
            end_copy(lab, None, copy)
            nothing_left(lab)


def test_filler_killed(lab, snapshot):
    """kill -9 of the filler at random moments: the worker is gone or whole, never wrong; the supervisor says LOST."""
    outcomes = set()
    for moment in [None, None, 0.0, 0.005, 0.01, 0.02, 0.04, 0.06, 0.1]:
        process, copy = start_restore(lab, snapshot)
        filler = lab.filler_of(process.pid)
        if moment is not None:
            until(lambda: alive(copy.pid), 10, "the worker", pause=0.0005)
            time.sleep(moment * random.uniform(0.5, 1.5))
        kill(filler)
        outcome = "gone"
        if moment is None:
            code = process.wait(15)
            assert code not in (0, 42), "a restore without its filler went well"
        elif alive(copy.pid):
            outcome = whole_or_gone(copy)
        if outcome == "gone":
            assert process.wait(15) != 0
            until(lambda: not running(lab, "cow_workers"), 5, "the tree's end")
        outcomes.add(outcome)
        end_copy(lab, process, copy)
        lab.ps()
        nothing_left(lab)
    assert "gone" in outcomes


def test_filler_stopped_then_killed(lab, snapshot):
    """The worker waits on pages that a stopped filler owes it; then the filler is killed. It must not see zeros."""
    process, copy = start_restore(lab, snapshot)
    filler = lab.filler_of(process.pid)
    until(lambda: alive(copy.pid), 10, "the worker", pause=0.0005)
    os.kill(filler, signal.SIGSTOP)
    time.sleep(0.05)
    if alive(copy.pid):
        kill(copy.pid, signal.SIGUSR1)
    time.sleep(0.1)
    kill(filler)
    code = process.wait(15)
    assert code != 0
    assert not (copy.folder / "fail").exists(), (copy.folder / "fail").read_text()
    assert not running(lab, "cow_workers")


def test_criu_killed_in_a_restore(lab, snapshot):
    """CRIU dies while it restores: no half-restored tree."""
    for _ in range(4):
        process, copy = start_restore(lab, snapshot)
        found = until(lambda: children_named(process.pid, b"restore\0") or process.poll() is not None, 10, "CRIU",
                      pause=0.0005)
        if found is not True:
            time.sleep(random.uniform(0, 0.03))
            kill(found[0])
        time.sleep(0.2)
        if process.poll() is not None:
            assert process.returncode != 0
            until(lambda: not running(lab, "cow_workers"), 5, "the tree's end")
        else:
            assert whole_or_gone(copy) == "whole" or process.wait(15) != 0
        end_copy(lab, process, copy)
        lab.ps()
        nothing_left(lab)


def test_fork_heavy_worker_and_a_killed_filler(lab):
    """A worker that forks all the time while its memory comes in; children are served too, or gone too."""
    worker = lab.start("lazy_storm", "fork", 64)
    lab.tree = [worker.pid]
    lab.freeze(worker)
    for moment in (0.0, 0.01, 0.03):
        process, copy = start_restore(lab, worker)
        filler = lab.filler_of(process.pid)
        until(lambda: alive(copy.pid), 10, "the worker", pause=0.0005)
        time.sleep(moment)
        kill(filler)
        outcome = whole_or_gone(copy) if alive(copy.pid) else "gone"
        if outcome == "gone":
            process.wait(15)
            until(lambda: not running(lab, "lazy_storm"), 5, "the tree's end")
        end_copy(lab, process, copy)

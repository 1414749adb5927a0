"""What every end-to-end test gets: the built command with a store and a run folder of its own.

REWARM names the command (default: build/release/rewarm). A test that leaves a process or a mount
behind fails; processes are known by the run folder in their environment, which copies keep.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
REWARM = pathlib.Path(os.environ.get("REWARM", ROOT / "build/release/rewarm")).resolve()
PROGRAMS = pathlib.Path(os.environ.get("REWARM_TEST_PROGRAMS", REWARM.parent / "tests/programs"))


@pytest.fixture
def tmp_path():
    """A short path, as UNIX sockets go below it, that is gone afterwards."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="rewarm-e2e-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def environment(tmp_path):
    """The environment of the command; a test may add to it."""
    return {
        **os.environ,
        "REWARM_STORE": str(tmp_path / "store"),
        "REWARM_RUN": str(tmp_path / "run"),
        "LC_ALL": "C.UTF-8",
    }


def _processes_of(run_path):
    mark = f"REWARM_RUN={run_path}".encode()
    found = {}
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                found[int(entry.name)] = (entry / "comm").read_text().strip()
        except OSError:
            pass  # it has ended, or is a zombie
    return found


def _mounts_below(path):
    with open("/proc/self/mountinfo", encoding="utf-8") as mounts:
        return [line.split()[4] for line in mounts if f"{path}/" in line]


@pytest.fixture(autouse=True)
def no_leaks(tmp_path, environment):
    yield
    deadline = time.monotonic() + 5
    while (left := _processes_of(environment["REWARM_RUN"])) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    mounts = _mounts_below(tmp_path)
    for mount in reversed(mounts):
        subprocess.run(["umount", "-l", mount], check=False)
    assert not left, f"left running: {left}"
    assert not mounts, f"left mounted: {mounts}"


@pytest.fixture
def rewarm(environment):
    """rewarm(ARG..., timeout=60, **of subprocess.run) -> CompletedProcess; .json() reads its stdout."""

    def run(*args, timeout=60, **options):
        options = {"env": environment, "text": True, "stdin": subprocess.DEVNULL, **options}
        if "stdout" not in options and "stderr" not in options:
            options["capture_output"] = True
        done = subprocess.run([REWARM, *map(str, args)], timeout=timeout, check=False, **options)
        done.json = lambda: json.loads(done.stdout)
        return done

    run.path = REWARM
    return run


@pytest.fixture
def worker_program():
    """worker_program(NAME) -> path of a built program of tests/programs."""

    def find(name):
        path = (PROGRAMS / name).resolve()
        assert os.access(path, os.X_OK), f"{path} is not built"
        return path

    return find

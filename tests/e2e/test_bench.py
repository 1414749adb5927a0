"""rewarm bench: its answer, what it refuses, and that nothing is left whatever happens to it."""

import json
import pathlib
import signal
import subprocess
import time

import pytest

SHM = pathlib.Path("/dev/shm")


def rooms(pid):
    return [path for path in SHM.glob("rewarm-bench.*") if path.name.endswith(f".{pid}")]


def workers(room):
    """PIDs of synthetic workers whose board is in the room."""
    found = []
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"bench-worker" in words and f"{room}/board".encode() in words:
            found.append(int(entry.name))
    return found


def wait_until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@pytest.fixture
def start(rewarm, environment):
    started = []

    def run(*args):
        process = subprocess.Popen(
            [rewarm.path, "bench", *args],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def test_command_case(start, tmp_path):
    process = start("--size", "1", "--rounds", "1", "--only", "command", "--json")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    answer = json.loads(out)
    assert answer["size_bytes"] == 2**30 and answer["rounds"] == 1
    assert answer["machine"]["kernel"] and answer["machine"]["criu"]
    (bar,) = answer["bars"]
    assert bar["name"] == "small_restore_beyond_criu" and bar["unit"] == "ms"
    assert bar["direction"] == "at-most" and bar["goal"] == 30
    assert bar["reached"] == (bar["value"] <= 30)
    values = {item["name"]: item["value"] for item in answer["measured"]}
    difference = values["small_restore_rewarm"] - values["small_restore_criu"]
    assert bar["value"] == pytest.approx(difference)
    assert min(values.values()) > 1
    assert not rooms(process.pid)
    assert not (tmp_path / "store").exists(), "the caller's store is none of its business"


def test_lines(start):
    process = start("--size", "1", "--rounds", "1", "--only", "maps")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    machine, *lines = out.splitlines()
    assert machine.startswith("rewarm ") and "CRIU" in machine and "/dev/shm" in machine
    assert all(line.split()[0] in ("bar", "measured") for line in lines)
    assert {"maps_touched_rewarm", "maps_touched_criu"} <= {line.split()[1] for line in lines}


def test_interrupted(start):
    process = start("--size", "1", "--rounds", "50", "--only", "command")
    room = SHM / f"rewarm-bench.{process.pid}"
    wait_until(lambda: workers(room))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 13, err
    assert "stopped by signal 2" in err
    assert not room.exists() and not workers(room)


def test_killed(start):
    """The worker notices, and the next bench removes what is left."""
    process = start("--size", "1", "--rounds", "50", "--only", "command")
    room = SHM / f"rewarm-bench.{process.pid}"
    wait_until(lambda: workers(room))
    process.kill()
    process.wait()
    wait_until(lambda: not workers(room))
    assert room.exists()
    again = start("--size", "1", "--rounds", "1", "--only", "command")
    _, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert not room.exists()


@pytest.mark.parametrize(
    "args,status,words",
    [
        (["--size", "512"], 8, "--size"),
        (["--size", "0"], 2, "1 to 512"),
        (["--rounds", "0"], 2, "1 to 50"),
        (["--only", "everything"], 2, "restore freeze command memory fill maps"),
    ],
)
def test_refused(rewarm, args, status, words):
    done = rewarm("bench", *args)
    assert done.returncode == status and words in done.stderr
    assert done.stdout == ""


def test_worker_is_no_command(rewarm):
    assert "bench-worker" not in rewarm("help").stdout
    assert rewarm("bench-worker").returncode == 2

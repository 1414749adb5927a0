"""The store: damaged and missing objects, no space, a read-only store, writers, readers and removal side by side."""

import os
import signal
import subprocess
import time

import pytest

from engine import (BUSY, CORRUPT, NOT_FOUND, NO_SPACE, PERMISSION, SYSTEM, Worker, alive, lab, rewarm_only, stat_of, until)  # noqa: F401

pytestmark = rewarm_only


def flip(path, offset):
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0x40]))


def frozen(lab, program="mem_anon", *args):
    worker = lab.start(program, *(args or [16]))
    lab.freeze(worker)
    return worker


def no_trace_of(lab, worker):
    """Nothing of the tree is left, and nothing of rewarm."""
    until(lambda: not lab.processes(), 5, f"the end of {lab.processes()}")
    assert stat_of(worker.pid) is None or not alive(worker.pid)
    assert not any((lab.run / "sessions").glob("*")), "a session was left"


# --- damage

@pytest.mark.parametrize("where", [0.1, 0.35, 0.6, 0.9])
def test_flipped_byte_in_a_pack(lab, where):
    """A damaged chunk found while the worker already runs: the tree is ended; never zeros, never a wrong answer."""
    worker = frozen(lab)
    pack = max(lab.packs(), key=lambda path: path.stat().st_size)
    # A byte at each 64 KiB around the place: at least one of them is content, not padding.
    size = pack.stat().st_size
    for step in range(4):
        flip(pack, min(size - 1, int(size * where) // 65536 * 65536 + step * 65536 + 100))
    words = lab.refuses("restore", "snap", code=CORRUPT)
    assert pack.stem[:8] in words or "chunk" in words
    no_trace_of(lab, worker)
    assert lab.cli("verify", "snap").returncode == CORRUPT


def test_every_pack_byte_is_verified(lab):
    """Nothing in a pack that a restore uses can change unseen: a flip in each of 24 chunks is found each time."""
    worker = frozen(lab, "mem_anon", 4)
    pack = max(lab.packs(), key=lambda path: path.stat().st_size)
    size = pack.stat().st_size
    found = 0
    for index in range(24):
        offset = size * index // 24 // 4096 * 4096 + 64
        flip(pack, offset)
        if lab.cli("verify", "snap").returncode == CORRUPT:
            found += 1
            assert lab.cli("restore", "snap", "--detach").returncode == CORRUPT
        flip(pack, offset)
    assert found >= 12, f"only {found} of 24 flipped bytes were found"
    no_trace_of(lab, worker)
    assert lab.cli("verify", "snap").returncode == 0
    lab.restore(like=worker).check("repaired and restored")


def objects(lab):
    """Every file of a store with one snapshot that is not a pack or a lock."""
    return [path for path in lab.store.rglob("*") if path.is_file() and path not in lab.packs()
            and path.stat().st_size > 100]


def test_damaged_manifest_and_map(lab):
    """Every other object of the store: damaged in the middle, it is found before a process is made."""
    worker = frozen(lab, "mem_anon", 4)
    assert objects(lab)
    for path in objects(lab):
        flip(path, path.stat().st_size // 2)
        done = lab.cli("restore", "snap", "--detach")
        flip(path, path.stat().st_size // 2)
        assert done.returncode in (CORRUPT, 0), f"{path}: {done.returncode} {done.stderr}"
        if done.returncode == 0:
            # Not needed for a restore (an index that is made again); what came back must be right.
            copy = Worker(worker.folder, worker.pid)
            lab.workers.append(copy)
            copy.check(f"restored with a damaged {path.name}")
            lab.freeze(copy)
    lab.restore(like=worker).check("repaired and restored")


def test_truncated_pack(lab):
    worker = frozen(lab)
    pack = max(lab.packs(), key=lambda path: path.stat().st_size)
    os.truncate(pack, pack.stat().st_size // 2)
    lab.refuses("restore", "snap", "--detach", code=CORRUPT)
    no_trace_of(lab, worker)


def test_missing_pack(lab):
    """Missing bytes: the manifest says what must be there, and restore checks it before it makes a process."""
    worker = frozen(lab)
    max(lab.packs(), key=lambda path: path.stat().st_size).unlink()
    words = lab.refuses("restore", "snap", "--detach", code=CORRUPT)
    assert "pack" in words
    no_trace_of(lab, worker)
    assert lab.cli("verify", "snap").returncode == CORRUPT


def test_missing_manifest_is_no_snapshot(lab):
    """A missing manifest means no snapshot."""
    worker = frozen(lab, "mem_anon", 4)
    lab.cli("rm", "snap", check=True)
    lab.refuses("restore", "snap", "--detach", code=NOT_FOUND)
    lab.refuses("verify", "snap", code=NOT_FOUND)
    assert "snap" not in lab.snapshots()
    no_trace_of(lab, worker)


def test_run_starts_cold_on_a_damaged_snapshot(lab):
    """`run` never hands out damage: it says so and starts cold."""
    folder = lab.new_folder()
    command = ["run", "job", "--ready-file", folder / "ready", "--", lab.program("mem_anon"), folder, 16]
    first = lab.popen_cli(*command)
    worker = lab.adopt(folder)
    until(lambda: "job" in lab.snapshots(), 20, "the snapshot", pause=0.05)
    worker.end()
    assert first.wait(10) == 42
    pack = max(lab.packs(), key=lambda path: path.stat().st_size)
    for offset in range(100, pack.stat().st_size, 65536):
        flip(pack, offset)
    for name in ("ready", "pid"):
        (folder / name).unlink()
    with open(lab.folder / "words", "w+") as words:
        second = lab.popen_cli(*command, stderr=words)
        copy = lab.adopt(folder)
        copy.check("cold")
        copy.end()
        assert second.wait(10) == 42
    said = (lab.folder / "words").read_text()
    assert "cold" in said and ("damage" in said or "corrupt" in said or "chunk" in said), said


# --- space and permission

@pytest.fixture
def small_store(lab):
    """A store of 8 MiB."""
    lab.store.mkdir(mode=0o700)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "rewarm-e2e", lab.store],
                      check=False).returncode != 0:
        pytest.skip("cannot mount a tmpfs")
    yield lab
    lab.end_workers()
    subprocess.run(["umount", "-l", lab.store], check=True)


def used_kib(path):
    return int(subprocess.run(["du", "-sk", path], capture_output=True, check=True).stdout.split()[0])


def test_no_space(small_store):
    """ENOSPC in the middle: the source goes on, what was published stays, nothing torn is left behind."""
    lab = small_store
    small, large = lab.start("mem_anon", 2), lab.start("mem_anon", 32)
    lab.freeze(small, "small", stop=False)
    before = used_kib(lab.store)
    words = lab.refuses("freeze", large.pid, "--as", "large", "--kill", code=NO_SPACE)
    assert "space" in words.lower()
    large.check("source after a freeze with no space")
    assert list(lab.snapshots()) == ["small"]
    assert lab.cli("verify", "small").returncode == 0
    lab.cli("gc", check=True)
    assert used_kib(lab.store) <= before + 64
    small.check("the other source")
    small.process.kill()
    small.process.wait()
    lab.restore("small", like=small).check("restored from the full store")


def test_no_space_keeps_the_old_snapshot(small_store):
    """Never delete the old before the new is durable."""
    lab = small_store
    first = lab.start("mem_anon", 2)
    lab.freeze(first, "name")
    second = lab.start("mem_anon", 32)
    lab.refuses("freeze", second.pid, "--as", "name", code=NO_SPACE)
    lab.restore("name", like=first).check("the old one")


def test_read_only_store(small_store):
    """A store that has become read-only: a freeze fails in words, the source goes on; a restore still works."""
    lab = small_store
    worker = lab.start("mem_anon", 2)
    lab.freeze(worker, stop=False)
    subprocess.run(["mount", "-o", "remount,ro", lab.store], check=True)
    words = lab.refuses("freeze", worker.pid, "--as", "other", "--kill", code=(PERMISSION, SYSTEM, NO_SPACE))
    assert "read-only" in words.lower() or "Read-only" in words
    worker.check("source")
    worker.process.kill()
    worker.process.wait()
    lab.restore(like=worker).check("restored from a read-only store")


def test_store_is_private(lab):
    """A snapshot is a copy of memory, secrets and all: 0700, and a store that others can enter is refused."""
    worker = frozen(lab, "mem_anon", 2)
    for path in [lab.store, *lab.store.rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, f"{path} is open to others"
    for path in [lab.run, *lab.run.rglob("*")]:
        assert path.is_socket() or path.stat().st_mode & 0o077 == 0, f"{path} is open to others"
    lab.store.chmod(0o755)
    lab.refuses("restore", "snap", "--detach", code=PERMISSION)
    lab.store.chmod(0o700)
    lab.restore(like=worker).check("restored")


# --- side by side

def test_two_freezes_to_one_name(lab):
    """Two writers of one name: one has it, the other is told so (or comes after it); the snapshot is one of the two, whole."""
    workers = [lab.start("mem_anon", 24), lab.start("mem_anon", 24)]
    freezes = [lab.popen_cli("freeze", worker.pid, "--as", "snap") for worker in workers]
    codes = [freeze.wait(30) for freeze in freezes]
    assert 0 in codes and set(codes) <= {0, BUSY}, codes
    for worker in workers:
        worker.check("source")
    assert lab.cli("verify", "snap").returncode == 0
    pid = lab.json("inspect", "snap")["snapshot"]["tree"][0]["pid"]
    source = next(worker for worker in workers if worker.pid == pid)
    source.process.kill()
    source.process.wait()
    lab.restore(like=source).check("restored")


def test_two_freezes_of_one_tree(lab):
    """Two freezes of the same worker under two names: one is told that another is at it (and not that its worker has
    ended); the source goes on."""
    worker = lab.start("mem_anon", 24)
    freezes = [lab.popen_cli("freeze", worker.pid, "--as", name) for name in ("one", "two")]
    codes = [freeze.wait(30) for freeze in freezes]
    assert 0 in codes and set(codes) <= {0, 4, BUSY, 10}, codes
    worker.check("source")
    for name in lab.snapshots():
        assert lab.cli("verify", name).returncode == 0


def stopped_restore(lab, worker):
    """A foreground restore whose filler stands still in the middle of its work."""
    process = lab.popen_cli("restore", "snap")
    filler = lab.filler_of(process.pid)
    os.kill(filler, signal.SIGSTOP)
    return process, filler


@pytest.mark.parametrize("command", [["rm", "snap"], ["gc"], ["rm-gc"]])
def test_removal_during_a_restore(lab, command):
    """A reader during deletion: rm and gc while a restore reads take nothing away from it."""
    worker = frozen(lab, "mem_anon", 128)
    process, filler = stopped_restore(lab, worker)
    try:
        for words in [["rm", "snap"], ["gc"]] if command == ["rm-gc"] else [command]:
            try:
                done = lab.cli(*words, timeout=5)
                assert done.returncode in (0, BUSY), done.stderr
            except subprocess.TimeoutExpired:
                assert words == ["gc"], "only gc may wait for a reader"
    finally:
        os.kill(filler, signal.SIGCONT)
    copy = Worker(worker.folder, worker.pid)
    lab.workers.append(copy)
    lab.until_whole(process)
    copy.check("restored while the snapshot was removed")
    copy.end()
    assert process.wait(10) == 42


def test_replaced_during_a_restore(lab):
    """Publishing over a snapshot that is being restored: the reader gets the old one, whole."""
    worker, other = frozen(lab, "mem_anon", 96), lab.start("mem_anon", 8)
    process, filler = stopped_restore(lab, worker)
    try:
        lab.freeze(other, "snap")
    finally:
        os.kill(filler, signal.SIGCONT)
    copy = Worker(worker.folder, worker.pid)
    lab.workers.append(copy)
    lab.until_whole(process)
    copy.check("restored from the replaced snapshot")
    copy.end()
    assert process.wait(10) == 42
    lab.restore(like=other).check("the new snapshot")


def test_equal_bytes_are_stored_once(lab):
    """Dedup: the same worker frozen twice, and three workers forked over the same memory."""
    worker = lab.start("cow_workers", 16)
    lab.freeze(worker, "one", stop=False)
    lab.freeze(worker, "two", stop=False)
    one, two = lab.snapshots()["one"], lab.snapshots()["two"]
    assert one["stored_bytes"] < one["logical_bytes"] * 0.7, one  # half of it is equal in all four
    assert two["stored_bytes"] < one["stored_bytes"] / 4, (one, two)
    lab.cli("rm", "one", check=True)
    lab.cli("gc", check=True)
    assert lab.cli("verify", "two").returncode == 0
    lab.cli("rm", "two", check=True)
    lab.cli("gc", check=True)
    assert sum(path.stat().st_size for path in lab.packs()) == 0


def test_zero_pages_take_no_space(lab):
    worker = lab.start("mem_anon", 64)
    lab.freeze(worker, stop=False)
    entry = lab.snapshots()["snap"]
    assert entry["stored_bytes"] < 64 * 1024 * 1024 * 6 / 8 + 4 * 1024 * 1024, entry

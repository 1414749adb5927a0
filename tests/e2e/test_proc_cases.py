"""What is refused, what changes between freeze and restore, and who may hold a PID or a port."""

import contextlib
import os
import shutil
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from engine import (BUSY, CRIU_FAILED, MISFIT, PERMISSION, REFUSED, EngineError, Worker, kill, lab,
                    reap, rewarm_only, stat_of, tree_of, until)  # noqa: F401

pytestmark = rewarm_only


def refused_freeze(lab, worker, code=REFUSED):
    """A freeze that must be refused and leave the source as it was; returns the words."""
    words = lab.refuses("freeze", worker.pid, "--as", "snap", "--kill", code=code)
    worker.check("source after a refused freeze")
    assert "snap" not in lab.snapshots()
    return words


def has_cap_sys_resource():
    lines = Path("/proc/self/status").read_text().splitlines()
    effective = next(line for line in lines if line.startswith("CapEff")).split()[1]
    return int(effective, 16) >> 24 & 1 == 1


# --- refused before anything is changed, with process and descriptor named

@pytest.mark.parametrize("where", ["", "child"])
def test_io_uring_ring_is_refused(lab, where):
    """io_uring rings cannot be dumped: refuse early with the fd's owner named."""
    worker = lab.start("uring", where)
    if (worker.folder / "uring").read_text() != "open":
        pytest.skip("this kernel opens no io_uring rings")
    words = refused_freeze(lab, worker)
    owner = tree_of(worker.pid)[-1]
    assert "io_uring" in words and str(owner) in words and "uring" in words
    assert "rewarm run" in words or "seccomp" in words, f"no advice: {words}"


def test_packet_pipe_is_refused(lab):
    """docs/limits.md: a pipe in packet mode (O_DIRECT)."""
    worker = lab.start("pipes", "packet")
    words = refused_freeze(lab, worker, code=(REFUSED, CRIU_FAILED))
    assert "packet" in words


def test_sysv_shared_memory_of_the_host_is_refused(lab):
    """docs/limits.md: System V shared memory outside an IPC namespace of the worker's own."""
    worker = lab.start("sysv", "shm")
    words = refused_freeze(lab, worker, code=(REFUSED, CRIU_FAILED))
    assert "IPC" in words


def test_program_in_a_memfd_is_refused(lab):
    """docs/limits.md: CRIU dumps a process whose program is a memfd, and cannot restore it."""
    worker = lab.start("mem_memfd", "program")
    words = refused_freeze(lab, worker)
    assert "memfd:program" in words and str(worker.pid) in words


def test_private_mapping_of_a_memfd_twice(lab):
    """What was restored is frozen and restored again: private areas of a memfd are in pieces by then."""
    worker = lab.start("mem_memfd", "child")
    lab.freeze(worker)
    copy = lab.restore(like=worker)
    copy.check("restored")
    lab.freeze(copy, name="again")
    lab.restore("again", like=worker).check("restored again")


def test_semaphore_eventfd_is_refused(lab):
    """docs/limits.md: CRIU forgets EFD_SEMAPHORE without a word; the wrong answer must not be ours."""
    worker = lab.start("eventfd", "semaphore")
    words = refused_freeze(lab, worker)
    assert "eventfd" in words and str(worker.pid) in words


def test_other_user(lab):
    """A worker of another user: frozen and restored, or, where root has no CAP_SYS_RESOURCE, refused with that name."""
    worker = lab.start("credentials", "user")
    if not has_cap_sys_resource():
        words = refused_freeze(lab, worker, code=(REFUSED, PERMISSION, CRIU_FAILED))
        assert "CAP_SYS_RESOURCE" in words
        return
    lab.freeze(worker)
    lab.restore(like=worker).check("restored")


def test_affinity_is_the_restorers(lab):
    """docs/limits.md: CPU affinity is not part of CRIU's images."""
    worker = lab.start("attributes", "affinity")
    lab.freeze(worker)
    words = lab.restore(like=worker).ask()
    assert words is None or "affinity" in words, words


def test_own_ancestor_is_refused(lab):
    """The caller itself or an ancestor of it in the tree."""
    words = lab.refuses("freeze", os.getpid(), "--as", "snap", code=REFUSED)
    assert str(os.getpid()) in words
    assert stat_of(os.getpid())[0] == "R"


def test_no_such_process(lab):
    lab.refuses("freeze", 999999999, "--as", "snap", code=(3, 4))


def test_traced_process_is_refused(lab):
    """A process traced by somebody else can't be seized."""
    worker = lab.start("eventfd")
    tracer = subprocess.Popen([lab.program("tracer"), lab.new_folder(), str(worker.pid)])
    try:
        until(lambda: f"TracerPid:\t{tracer.pid}" in Path(f"/proc/{worker.pid}/status").read_text(), 10,
              "the tracer")
        words = lab.refuses("freeze", worker.pid, "--as", "snap", code=REFUSED)
        assert "trac" in words and str(tracer.pid) in words
    finally:
        tracer.kill()
        tracer.wait()


# --- connections

class EchoServer:
    """Outside the tree: echoes."""

    def __init__(self, family):
        self.listener = socket.socket(family)
        self.listener.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        self.listener.listen(8)
        self.port = self.listener.getsockname()[1]
        self.connections = []
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connections.append(connection)
            threading.Thread(target=self.echo, args=(connection,), daemon=True).start()

    @staticmethod
    def echo(connection):
        with contextlib.suppress(OSError):
            while data := connection.recv(4096):
                connection.sendall(data)

    def close(self):
        self.listener.close()
        for connection in self.connections:
            connection.close()


@pytest.mark.parametrize("version", [4, 6])
def test_connection_out_of_the_tree(lab, version):
    """Established TCP cannot follow a clone: it is closed in the copy and goes on in the source."""
    server = EchoServer(socket.AF_INET if version == 4 else socket.AF_INET6)
    try:
        worker = lab.start("tcp_outside", server.port, version)
        worker.check("before")
        assert (worker.folder / "state").read_text() == "open"
        lab.freeze(worker, stop=False)
        worker.check("source")
        assert (worker.folder / "state").read_text() == "open"
        lab.freeze(worker)
        copy = lab.restore(like=worker)
        copy.check("restored", seconds=5)
        assert (worker.folder / "state").read_text() == "closed"
    finally:
        server.close()


@pytest.mark.parametrize("version", [4, 6])
def test_port_in_use(lab, version):
    """Port in use: fails at once, says which; works when the port is free again."""
    worker = lab.start("tcp_listen", version)
    port = int((worker.folder / "port").read_text())
    lab.freeze(worker)
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with socket.socket(family) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1" if version == 4 else "::1", port))
        other.listen(1)
        words = lab.refuses("restore", "snap", "--detach", code=BUSY)
        assert "port" in words or "address" in words
        assert stat_of(worker.pid) is None
    lab.restore(like=worker).check("restored")


# --- PIDs

def test_pid_in_use_by_the_living_source(lab):
    """PID collisions: the source still runs. It is told from a fault, and the source is left alone."""
    worker = lab.start("mem_anon", 4)
    lab.freeze(worker, stop=False)
    words = lab.refuses("restore", "snap", "--detach", code=BUSY)
    assert str(worker.pid) in words and "--isolate pid" in words
    worker.check("source after a restore that was refused")


def test_killed_and_unreaped_source(lab):
    """A killed, unreaped member of the old session keeps the pid taken: BUSY, then fine once it is reaped."""
    worker = lab.start("mem_anon", 4)
    lab.cli("freeze", worker.pid, "--as", "snap", "--kill", check=True)
    until(lambda: (stat_of(worker.pid) or "Z")[0] == "Z", 5, "the source's end")
    assert stat_of(worker.pid) is not None, "it was reaped; this test wants a zombie"
    words = lab.refuses("restore", "snap", "--detach", code=BUSY)
    assert str(worker.pid) in words
    worker.process.wait()
    lab.restore(like=worker).check("restored")


def test_member_of_the_old_session_keeps_the_pid(lab):
    """A process that has left the tree but not its session keeps the number taken: BUSY says so, and it works once it
    has gone."""
    worker = lab.start("orphan")
    orphan = int((worker.folder / "orphan").read_text())
    try:
        lab.freeze(worker)
        words = lab.refuses("restore", "snap", "--detach", code=BUSY)
        assert str(worker.pid) in words
    finally:
        kill(orphan)
        reap([orphan])
    lab.restore(like=worker).check("restored")


# --- files that change in between

@pytest.mark.parametrize("kind", ["append", "plain"])
def test_log_has_grown(lab, kind):
    """A file written without O_APPEND has grown since the freeze (`bad size`): the restore goes on behind its end."""
    worker = lab.start("log_file", kind)
    lab.freeze(worker, stop=False)
    log = worker.folder / "log"
    frozen = log.stat().st_size
    until(lambda: log.stat().st_size > frozen + 200, 5, "the log's growth")
    worker.process.kill()
    worker.process.wait()
    grown = log.read_bytes()
    copy = lab.restore(like=worker)
    copy.check("restored")
    after = log.read_bytes()
    assert after.startswith(grown), "what the source wrote after the freeze was overwritten"
    assert b"\0" not in after


def test_log_has_gone(lab):
    """A log that was rotated away is made again."""
    worker = lab.start("log_file", "append")
    lab.freeze(worker)
    (worker.folder / "log").unlink()
    copy = lab.restore(like=worker)
    copy.check("restored")


def changed_binary(lab, how):
    binary = lab.folder / "binary"
    shutil.copy(lab.program("mem_anon"), binary)
    worker = lab.start("mem_anon", 4, binary=binary)
    lab.freeze(worker)
    how(binary)
    return worker


def other_build(binary):
    other = binary.with_name("other")
    shutil.copy(binary.parent / "other-build", other)
    other.replace(binary)


def test_changed_binary_is_a_misfit(lab):
    """Another build under the same path: MISFIT, naming the file, and nothing of the tree is left."""
    shutil.copy(lab.program("eventfd"), lab.folder / "other-build")
    worker = changed_binary(lab, other_build)
    words = lab.refuses("restore", "snap", "--detach", code=MISFIT)
    assert str(lab.folder / "binary") in words
    assert stat_of(worker.pid) is None


def test_touched_binary_is_no_misfit(lab):
    """The same bytes with another time (an image that was pulled again) are the same file."""
    worker = changed_binary(lab, lambda binary: os.utime(binary, (1, 1)))
    lab.restore(like=worker).check("restored")


def test_changed_mapped_file_is_a_misfit(lab):
    """A mapped data file of the same size with other content (weights that were updated in place)."""
    worker = lab.start("mem_cow")
    lab.freeze(worker)
    mapped = worker.folder / "mapped"
    data = bytearray(mapped.read_bytes())
    data[5000] ^= 1
    mapped.write_bytes(data)
    words = lab.refuses("restore", "snap", "--detach", code=MISFIT)
    assert str(mapped) in words


def test_missing_mapped_file_is_a_misfit(lab):
    worker = lab.start("mem_cow")
    lab.freeze(worker)
    (worker.folder / "mapped").unlink()
    words = lab.refuses("restore", "snap", "--detach", code=(MISFIT, 3))
    assert str(worker.folder / "mapped") in words


# --- /dev/shm

def shm_names():
    return {name for name in os.listdir("/dev/shm") if name.startswith("link_remap")}


def test_shm_leaves_no_link_behind(lab):
    """POSIX semaphores are unlinked (link_remap): CRIU's helper names do not stay in /dev/shm, or the next freeze
    of anything fails on them."""
    before = shm_names()
    worker = lab.start("shm_posix")
    lab.freeze(worker, "first", stop=False)
    worker.check("source after the first freeze")
    assert shm_names() <= before
    lab.freeze(worker, "second")
    assert shm_names() <= before
    copy = lab.restore("second", like=worker)
    copy.check("restored")
    assert shm_names() <= before


def test_shm_travels_with_the_snapshot(lab):
    """/dev/shm must travel with the image: after a reboot nothing of it is there."""
    worker = lab.start("shm_posix")
    names = (worker.folder / "names").read_text().split()
    lab.freeze(worker)
    for name in names:
        Path(name).unlink(missing_ok=True)
    done = lab.cli("restore", "snap", "--detach", "--json")
    if done.returncode == 0:
        copy = Worker(worker.folder, worker.pid)
        lab.workers.append(copy)
        copy.check("restored")
    else:
        assert done.returncode == MISFIT and any(name in done.stderr for name in names), done.stderr
        assert stat_of(worker.pid) is None


# --- cgroups

def cgroup_folders():
    """A fresh cgroup in each writable hierarchy (v1), or in the one (v2)."""
    root = Path("/sys/fs/cgroup")
    places = [root] if (root / "cgroup.controllers").exists() else [root / "pids", root / "freezer"]
    return [place / f"rewarm-e2e-{os.getpid()}" for place in places if os.access(place, os.W_OK)]


def test_cgroup_is_the_restorers(lab):
    """Cgroups: a copy belongs to whoever restores it; the old group may be gone or about to be killed."""
    groups = cgroup_folders()
    if not groups:
        pytest.skip("no writable cgroup hierarchy")
    try:
        for group in groups:
            group.mkdir()

        def enter():
            for group in groups:
                (group / "cgroup.procs").write_text("0")

        worker = lab.start("cgroup", preexec_fn=enter)
        assert groups[0].name in (worker.folder / "cgroup").read_text()
        lab.freeze(worker)
    finally:
        for group in groups:
            until(lambda: _rmdir(group), 5, f"an empty {group}")
    copy = lab.restore(like=worker)
    copy.check("restored")
    assert groups[0].name not in (worker.folder / "cgroup").read_text()
    assert not any(group.exists() for group in groups)


def _rmdir(path):
    with contextlib.suppress(OSError):
        path.rmdir()
    return not path.exists()


# --- generations

def test_three_generations(lab):
    """A restored worker is a worker like any other: frozen and restored again, and again."""
    worker = lab.start("cow_workers", 4)
    for generation in range(3):
        lab.freeze(worker, f"generation-{generation}")
        worker = lab.restore(f"generation-{generation}", like=worker)
        worker.check(f"generation {generation}")


def test_restored_from_a_bare_environment(lab):
    """Restore options belong to the restorer, never to the artifact: another umask, folder, limits and no environment."""
    worker = lab.start("attributes")
    lab.freeze(worker)
    bare = {key: lab.environment[key] for key in ("REWARM_STORE", "REWARM_RUN", "REWARM_CRIU", "REWARM_E2E")}
    done = lab.cli("restore", "snap", "--detach", cwd="/", umask=0o077, env=dict(bare, PATH="/usr/bin:/bin"))
    assert done.returncode == 0, done.stderr
    copy = Worker(worker.folder, worker.pid)
    lab.workers.append(copy)
    copy.check("restored")

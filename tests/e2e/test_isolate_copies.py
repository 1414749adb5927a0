"""Several copies of one snapshot on one host: PID and network namespaces, published ports."""

import contextlib
import os
import shutil
import signal
import socket
import time

import pytest

from engine import BUSY, LOST, SYSTEM, USAGE, Worker, kill, lab, rewarm_only, until  # noqa: F401

pytestmark = rewarm_only
needs_pasta = pytest.mark.skipif(shutil.which("pasta") is None, reason="pasta (package passt) is not installed")


def free_ports(count):
    """The first of this many free ports in a row, below those that the kernel gives out by itself."""
    for first in range(20000 + os.getpid() % 5000, 32000, count):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    one = stack.enter_context(socket.socket())
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    one.bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise AssertionError("no free ports")


def echo(port, seconds=5):
    """What an echo server on this port says, once it answers."""

    def answer():
        try:
            with socket.create_connection(("127.0.0.1", port), 2) as connection:
                connection.settimeout(2)
                connection.sendall(b"hello")
                return connection.recv(5) == b"hello"
        except OSError:
            return False

    return until(answer, seconds, f"an answer on port {port}", pause=0.02)


def copies_of(lab, worker, restored):
    copies = [Worker(worker.folder, entry["pid"], answers=worker.answers) for entry in restored]
    lab.workers += copies
    return copies


@pytest.mark.parametrize("family", [4, 6])
def test_tcp_beside_the_living_source(lab, family):
    """Connections of a tree with itself: source and copies have the host's network namespace, and ports of their own."""
    worker = lab.start("tcp_pair", family, "closed")
    lab.freeze(worker, stop=False)
    copies = [lab.restore("snap", "--isolate", "pid", "--as", f"copy{i}", like=worker) for i in range(2)]
    for number, one in enumerate([worker, *copies, worker]):
        one.check(f"worker {number}")


def test_copy_beside_the_living_source(lab):
    """--isolate pid: the PIDs are taken by the source, which goes on; the copy is right and is another process."""
    worker = lab.start("tree", 4)
    lab.freeze(worker, stop=False)
    copy = lab.restore("snap", "--isolate", "pid", like=worker)
    assert copy.pid != worker.pid
    copy.check("copy")
    worker.check("source")
    copy.check("copy, again")


def test_copies_have_memory_of_their_own(lab):
    """Three copies at once; what one does, no other sees."""
    worker = lab.start("lazy_storm", "all", 8)
    lab.freeze(worker)
    restored = lab.json("restore", "snap", "--detach", "--isolate", "pid", "--copies", 3)
    assert len(restored) == 3
    copies = copies_of(lab, worker, restored)
    assert len({copy.pid for copy in copies}) == 3
    assert {"snap.1", "snap.2", "snap.3"} <= set(lab.ps())
    for copy in copies:
        copy.check("copy")
    kill(copies[0].pid)
    for copy in copies[1:]:
        copy.check("copy, after another has ended")


def test_copies_want_isolation(lab):
    worker = lab.start("eventfd")
    lab.freeze(worker)
    lab.refuses("restore", "snap", "--detach", "--copies", 2, code=USAGE)


@needs_pasta
def test_two_copies_of_a_listener(lab):
    """--isolate pid,net: each has the port to itself; --publish gives each one of the host's."""
    worker = lab.start("tcp_listen", 4)
    port = int((worker.folder / "port").read_text())
    lab.freeze(worker)
    first = free_ports(2)
    restored = lab.json("restore", "snap", "--detach", "--isolate", "pid,net", "--copies", 2, "--publish",
                        f"{first}:{port}")
    copies = copies_of(lab, worker, restored)
    for published in (first, first + 1):
        assert echo(published)
    for copy in copies:
        copy.check("copy")


@needs_pasta
@pytest.mark.parametrize("copies", [1, 2])
def test_published_port_in_use(lab, copies):
    """A published port is taken: said at once, and no copy is left half-published."""
    worker = lab.start("tcp_listen", 4)
    port = int((worker.folder / "port").read_text())
    lab.freeze(worker)
    first = free_ports(copies)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", first + copies - 1))
        other.listen(1)
        words = lab.refuses("restore", "snap", "--detach", "--isolate", "pid,net", "--copies", copies, "--publish",
                            f"{first}:{port}", code=(BUSY, SYSTEM, LOST), timeout=20)
        assert str(first + copies - 1) in words
    for pid, name in lab.processes():
        if name.split()[0].endswith("/tcp_listen"):
            kill(pid)


@needs_pasta
@pytest.mark.parametrize("program,args", [("unix_named", ["abstract"]), ("tcp_pair", [4]), ("tcp_pair", [6]), ("udp", [4]),
                                          ("tcp_listen", [6]), ("threads", [32])])
def test_names_do_not_collide(lab, program, args):
    """Abstract unix sockets, ports and in-image TCP pairs of two clones: each has a network namespace of its own."""
    worker = lab.start(program, *args)
    lab.freeze(worker, stop=False)
    restored = lab.json("restore", "snap", "--detach", "--isolate", "pid,net", "--copies", 2)
    for copy in copies_of(lab, worker, restored):
        copy.check("copy")
    worker.check("source, with two copies")


def test_exit_code_through_a_namespace(lab):
    """The init of a copy's PID namespace forwards signals, reaps, and passes the exit code on."""
    worker = lab.start("tree", 3)
    lab.freeze(worker)
    process = lab.popen_cli("restore", "snap", "--isolate", "pid")
    copy = lab.worker_of("snap", worker.folder, states=("restored",))
    copy.check("copy")
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(10) == 42
    until(lambda: not lab.processes(), 5, "the end of everything")


@pytest.mark.parametrize("who", ["supervisor", "filler"])
def test_killed_while_isolated(lab, who):
    """kill -9 of supervisor or filler of an isolated copy: gone or whole."""
    worker = lab.start("mem_anon", 128)
    lab.freeze(worker)
    for moment in (0.02, 0.1):
        process = lab.popen_cli("restore", "snap", "--isolate", "pid")
        filler = lab.filler_of(process.pid)
        time.sleep(moment)
        kill(process.pid if who == "supervisor" else filler)
        process.wait(15) if who == "supervisor" else None
        time.sleep(0.5)
        found = [pid for pid, name in lab.processes() if "mem_anon" in name and "rewarm" not in name.split()[0]]
        for pid in found:
            copy = Worker(worker.folder, pid)
            try:
                copy.check("copy")
            except ProcessLookupError:
                pass
            except AssertionError as error:
                assert "ended instead of answering" in str(error)
            kill(pid)
        lab.ps()
        process.wait(15)
        until(lambda: not lab.processes(), 10, f"the end of {lab.processes()}")

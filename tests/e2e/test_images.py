"""CRIU's images: that rewarm reads what CRIU wrote, and that CRIU takes what rewarm edited.

Each test dumps tests/data/criu/worker.py with the real CRIU, edits the images with tests/programs/image_dump
(the library's own functions) and restores. With PYCRIU_PATH (the folder of the packages `pycriu` and
`google.protobuf`; several joined by ':') what rewarm reads is compared with what CRIU's own decoder reads.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import pty
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REWARM = Path(os.environ.get("REWARM", ROOT / "build/release/rewarm"))
IMAGE_DUMP = Path(os.environ.get("REWARM_IMAGE_DUMP", REWARM.parent / "tests/image_dump"))
CRIU = Path(os.environ.get("REWARM_CRIU", ROOT / "build/criu"))
DATA = ROOT / "tests/data/criu"
OPTIONS = ("--shell-job --tcp-established --network-lock skip --ext-unix-sk --file-locks --link-remap "
           "--skip-in-flight -v2").split()
PR_SET_CHILD_SUBREAPER = 36
PS_IOV_CLOSE = 0x1023

needs_criu = pytest.mark.skipif(os.geteuid() != 0 or not (CRIU / "criu").exists(),
                                reason="needs root and the CRIU bundle")
needs_tool = pytest.mark.skipif(not IMAGE_DUMP.exists(), reason=f"{IMAGE_DUMP} is not built")
pytestmark = needs_tool


def tool(*words):
    done = subprocess.run([IMAGE_DUMP, *map(str, words)], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout.strip(), done.stderr.strip()


class Worker:
    """A worker, its images and what is outside of it. Everything goes when it is closed."""

    def __init__(self, folder, stdout=subprocess.DEVNULL, stderr=None):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self.folder, self.images = folder, folder / "images"
        self.images.mkdir()
        (folder / "data").write_text("0123456789")
        servers = [socket.create_server(("127.0.0.1", 0)),
                   socket.create_server(("::1", 0), family=socket.AF_INET6)]
        with open(folder / "errors", "a") as errors:
            self.process = subprocess.Popen(
                [sys.executable, DATA / "worker.py", folder,
                 *(str(server.getsockname()[1]) for server in servers)],
                stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr or errors, cwd="/",
                start_new_session=True)
        self.pid = self.process.pid
        self.outside = {}
        for name, server in zip(("v4", "v6"), servers):
            with server:
                server.settimeout(20)
                self.outside[name] = server.accept()[0]
                self.outside[name].settimeout(5)
        end = time.monotonic() + 20
        while not (folder / "ready").exists():
            assert self.process.poll() is None, (folder / "errors").read_text()
            assert time.monotonic() < end, "the worker does not start"
            time.sleep(0.01)
        self.ready = json.loads((folder / "ready").read_text())

    def ask(self, command, listener="v4"):
        host = {"v4": "127.0.0.1", "v6": "::1", "dual": "::1"}[listener]
        with socket.create_connection((host, self.ready[listener]), timeout=20) as peer:
            with peer.makefile("rw") as stream:
                stream.write(command + "\n")
                stream.flush()
                return json.loads(stream.readline())

    def dump(self, *more):
        done = subprocess.run([CRIU / "criu", "dump", "-t", str(self.pid), "-D", self.images, "-o", "dump.log",
                               *OPTIONS, *more], stdin=subprocess.DEVNULL, timeout=60)
        assert done.returncode == 0, (self.images / "dump.log").read_text()[-2000:]
        if "--leave-running" not in more:
            self.reap()

    def reap(self):
        """Waits for all that was killed, orphans too (we are their subreaper): the PIDs must be free."""
        for pid in [self.pid, *self.ready["children"]]:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        self.process.returncode = -9

    def edit(self, *keys):
        code, words, errors = tool("edit", self.images, *keys)
        assert code == 0, errors
        return json.loads(words)

    def key(self, fd):
        code, words, errors = tool("key", self.images, self.pid, fd)
        assert code == 0, errors
        return words

    def restore(self, *more, inherit=()):
        for fd, key in inherit:
            more += ("--inherit-fd", f"fd[{fd}]:{key}")
        done = subprocess.run([CRIU / "criu", "restore", "-d", "-D", self.images, "-o", "restore.log",
                               *OPTIONS, *more], stdin=subprocess.DEVNULL, timeout=60,
                              pass_fds=[fd for fd, _ in inherit])
        assert done.returncode == 0, (self.images / "restore.log").read_text()[-2000:]

    def end(self):
        for pid in [*self.ready["children"], self.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.reap()

    def close(self):
        self.end()
        for peer in self.outside.values():
            peer.close()


@contextlib.contextmanager
def worker_in(folder, **options):
    worker = Worker(folder, **options)
    try:
        yield worker
    finally:
        worker.close()


EVERY_PAIR = {name: ["to server " + name + "ping", "to client " + name + "ping"]
              for name in ("v4", "v6", "mapped", "mapped6")}


@needs_criu
def test_tcp_per_socket(tmp_path):
    """Pairs inside the tree keep their data in flight and go on; what led outside is closed; listeners accept."""
    with worker_in(tmp_path) as worker:
        worker.dump()
        report = worker.edit()
        assert (report["tcp_kept"], report["tcp_closed"], report["listeners"]) == (10, 2, 3)
        worker.restore()
        assert worker.ask("pairs") == EVERY_PAIR
        assert worker.ask("pairs", "v6") == dict.fromkeys(EVERY_PAIR, ["ping", "ping"])
        assert worker.ask("child", "dual") == "CROSS"
        assert worker.ask("outside") == dict.fromkeys(("v4", "v6"), ["ENOTCONN", "EPIPE"])
        assert worker.ask("pipe") == "in the pipe"
        for peer in worker.outside.values():
            # A tree that CRIU itself killed says no goodbye: the other end learns it when it writes.
            peer.send(b"anybody?")
            with pytest.raises(ConnectionResetError):
                peer.recv(10)


def kernel():
    return tuple(int(word) for word in os.uname().release.split("-")[0].split(".")[:2])


def time_wait(port):
    """Connections of this local port that the kernel still remembers."""
    lines = [line.split() for name in ("tcp", "tcp6") for line in open(f"/proc/net/{name}").readlines()[1:]]
    return sum(line[1].endswith(f":{port:04X}") and line[3] == "06" for line in lines)


@needs_criu
@pytest.mark.parametrize("reuse", [True, False], ids=["reuseaddr", "no-reuseaddr"])
def test_beside_time_wait(tmp_path, monkeypatch, reuse):
    """A source that has just ended leaves TIME_WAIT at both ends: listeners, those they accepted and their clients are
    restored beside that, whether or not the server set SO_REUSEADDR."""
    if not reuse:
        monkeypatch.setenv("NO_REUSEADDR", "1")
    with worker_in(tmp_path) as worker:
        assert worker.ask("pairs") == EVERY_PAIR
        for name, host in (("v4", "127.0.0.1"), ("v6", "::1"), ("dual", "::1"), ("dual", "127.0.0.1")):
            with socket.create_connection((host, worker.ready[name]), timeout=20) as peer:
                peer.sendall(b"child\n")
                while peer.recv(100):  # the server closes first: it is the one that must remember
                    pass
        worker.dump("--leave-running")
        worker.end()
        ports = [worker.ready[name] for name in ("v4", "v6", "dual")]
        assert all(time_wait(port) for port in ports)
        report = worker.edit("--fresh-ports")
        assert (report["tcp_kept"], report["tcp_moved"], report["tcp_closed"]) == (10, 5, 2)
        if not reuse and any(time_wait(port) for port in ports):
            assert kernel() < (6, 12), "ended connections were not forgotten"
            pytest.skip("this kernel does not forget connections")
        worker.restore()
        assert worker.ask("pairs") == dict.fromkeys(EVERY_PAIR, ["ping", "ping"])
        assert worker.ask("child", "dual") == "CROSS"


@needs_criu
def test_outside_survives_in_the_source(tmp_path):
    """--tcp-established --network-lock skip --leave-running: the source's connections go on, mid-stream."""
    with worker_in(tmp_path) as worker:
        for name, peer in worker.outside.items():
            peer.sendall(b"before " + name.encode())
        worker.dump("--leave-running")
        assert worker.ask("outside") == {"v4": ["before v4", 1], "v6": ["before v6", 1]}
        for peer in worker.outside.values():
            assert peer.recv(10) == b"x"
            peer.sendall(b"after")
        assert worker.ask("outside") == dict.fromkeys(("v4", "v6"), ["after", 1])
        assert worker.ask("pairs") == EVERY_PAIR
        worker.end()  # killed by somebody else than CRIU: the other end sees it at once
        for peer in worker.outside.values():
            assert peer.recv(10) in (b"x", b"")


STREAM_READER = """
import socket, struct, sys
stream = socket.socket(fileno=int(sys.argv[1]))
data = b""
while True:
    more = stream.recv(1 << 16)
    if not more:
        break
    data += more
numbers = struct.unpack(f"<{len(data) // 4}I", data)
print(numbers == tuple(range(len(numbers))), len(numbers), flush=True)
"""


@needs_criu
def test_stream_during_dump(tmp_path):
    """No byte is lost or doubled of a stream that is running while its receiver is dumped, three times."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        ours = server.accept()[0]
    with open(tmp_path / "result", "w") as result:
        child = subprocess.Popen([sys.executable, "-c", STREAM_READER, str(theirs.fileno())], cwd="/",
                                 pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=result,
                                 stderr=subprocess.DEVNULL, start_new_session=True)
    theirs.close()
    stop, sent = threading.Event(), []

    def send():
        count = 0
        while not stop.is_set():
            ours.sendall(struct.pack("<I", count))
            count += 1
        sent.append(count)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        time.sleep(0.2)
        for number in range(3):
            images = tmp_path / f"images{number}"
            images.mkdir()
            done = subprocess.run([CRIU / "criu", "dump", "-t", str(child.pid), "-D", images, "-o", "dump.log", *OPTIONS,
                                   "--leave-running"], stdin=subprocess.DEVNULL, timeout=60)
            assert done.returncode == 0, (images / "dump.log").read_text()[-2000:]
    finally:
        stop.set()
        thread.join()
        ours.close()
        child.wait(timeout=30)
    assert (tmp_path / "result").read_text().split() == ["True", str(sent[0])]


@needs_criu
@pytest.mark.parametrize("change", ["same", "grown", "truncated", "rotated", "gone"])
def test_logs(tmp_path, change):
    """A log goes on at its end, whatever happened to it since the freeze."""
    with worker_in(tmp_path) as worker:
        worker.dump()
        before = {"same": "first\n", "grown": "first\nsecond\n", "truncated": "f", "rotated": "new log\n",
                  "gone": ""}[change]
        for name in ("log", "append-log"):
            path = tmp_path / name
            if change in ("rotated", "gone"):
                path.rename(tmp_path / (name + ".1"))
            if change == "truncated":
                path.write_text(before)
            if change == "grown":
                with open(path, "a") as file:
                    file.write("second\n")
            if change == "rotated":
                path.write_text(before)
                path.chmod(0o600)
        report = worker.edit()
        assert report["files_moved_to_end"] == (change != "same")
        assert report["files_created"] == (2 if change == "gone" else 0)
        late = "" if change == "gone" else "late\n"
        if late:  # written between the edit and the restore: no harm
            with open(tmp_path / "append-log", "a") as file:
                file.write(late)
        worker.restore()
        worker.ask("log after")
        assert (tmp_path / "log").read_text() == before + "after\n"
        assert (tmp_path / "append-log").read_text() == before + late + "after\n"
        assert worker.ask("read-log") == (before + "after\n" if change != "truncated" else "f" + "after\n")


@needs_criu
def test_misfit(tmp_path):
    """Data that the worker reads must be what it was: refused with the path, and nothing is created."""
    with worker_in(tmp_path) as worker:
        worker.dump()
        images = {path.name: path.read_bytes() for path in worker.images.iterdir()}
        (tmp_path / "data").write_text("0123456789 and more")
        code, _, errors = tool("edit", worker.images)
        assert code == 5 and f"{tmp_path}/data" in errors and "had 10 bytes" in errors and "has 19 now" in errors
        (tmp_path / "data").unlink()
        code, _, errors = tool("edit", worker.images)
        assert code == 5 and f"{tmp_path}/data" in errors and "has gone" in errors
        assert images == {path.name: path.read_bytes() for path in worker.images.iterdir()}


# --- what stands in for the dumped stdout -------------------------------------------------------------------

def a_pipe(folder):
    return os.pipe()


def a_file(folder):
    path = folder / "stdout-file"
    path.write_text("there before\n")
    return os.open(path, os.O_RDONLY), os.open(path, os.O_WRONLY | os.O_APPEND)


def a_null(folder):
    return -1, os.open("/dev/null", os.O_RDWR)


def a_socket(folder):
    ours, theirs = socket.socketpair()
    return ours.detach(), theirs.detach()


def a_terminal(folder):
    return pty.openpty()


def a_fifo(folder):
    os.mkfifo(folder / "fifo")
    return os.open(folder / "fifo", os.O_RDWR), os.open(folder / "fifo", os.O_WRONLY)


def external(kind, fd):
    """What a dump needs to be told of a terminal or a socket whose other end is outside."""
    st = os.fstat(fd)
    if kind is a_terminal:
        return ["--external", f"tty[{st.st_rdev:x}:{st.st_dev:x}]"]
    if kind is a_socket:
        return ["--external", f"unix[{st.st_ino}]"]
    return []


STAND_INS = [(old, new) for old in (a_pipe, a_file, a_fifo, a_socket)
             for new in (a_pipe, a_file, a_null, a_socket, a_terminal)] + [(a_terminal, a_terminal)]


@needs_criu
@pytest.mark.parametrize("old, new", STAND_INS, ids=lambda kind: kind.__name__)
def test_inherit_stdout(tmp_path, old, new):
    """Every kind of stdout may be replaced by every other; stdout and stderr stay one."""
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    reader, writer = old(tmp_path / "old")
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, reader)
        worker = stack.enter_context(worker_in(tmp_path, stdout=writer, stderr=subprocess.STDOUT))
        more = external(old, writer)
        os.close(writer)
        worker.dump(*more)
        key = worker.key(1)
        assert key and worker.key(2) == key
        result, stand_in = new(tmp_path / "new")
        report = worker.edit(key)
        assert report["pipes_inherited"] == (1 if old is a_pipe else 0)
        worker.restore(inherit=[(stand_in, key)])
        os.close(stand_in)
        worker.ask("say hello")
        worker.ask("say again")
        if new is a_null:
            assert os.readlink(f"/proc/{worker.pid}/fd/1") == "/dev/null"
            return
        stack.callback(os.close, result)
        text = b""
        while not text.replace(b"\r", b"").endswith(b"hello\nagain\n"):
            more = os.read(result, 1000)
            assert more, text
            text += more
        if new is a_file:
            assert text == b"there before\nhello\nagain\n"


# --- reading -------------------------------------------------------------------------------------------------

def pycriu_images():
    for folder in reversed(os.environ.get("PYCRIU_PATH", "").split(":")):
        if folder and folder not in sys.path:
            sys.path.insert(0, folder)
    return pytest.importorskip("pycriu.images", reason="pycriu is not to be had: set PYCRIU_PATH")


def load(decoder, path):
    with open(path, "rb") as file:
        return decoder.load(file, False, no_payload=True)["entries"]


def field_numbers(proto):
    """{message: {field: (number, label)}} of our criu.proto."""
    messages, current = {}, None
    for line in proto.read_text().splitlines():
        words = line.split()
        if words[:1] == ["message"]:
            current = messages.setdefault(words[1], {})
        elif words[:1] in (["required"], ["optional"], ["repeated"]):
            current[words[2]] = (int(words[4].rstrip(";")), words[0])
    return messages


def test_field_numbers():
    """criu.proto agrees with CRIU's descriptors: numbers, wire types, and what is required."""
    pycriu_images()
    from google.protobuf import descriptor_pool
    pool = descriptor_pool.Default()
    ours = field_numbers(ROOT / "src/proc/criu.proto")
    assert len(ours) > 15
    for message, fields in ours.items():
        theirs = pool.FindMessageTypeByName(message).fields_by_name
        for name, (number, label) in fields.items():
            assert theirs[name].number == number, f"{message}.{name}"
            assert (label == "required") <= (theirs[name].label == theirs[name].LABEL_REQUIRED), f"{message}.{name}"
            assert (label == "repeated") == (theirs[name].label == theirs[name].LABEL_REPEATED), f"{message}.{name}"


def signed(number):
    """As jansson prints 64 bits (the vsyscall page is at the top)."""
    return number - (1 << 64) if number >> 63 else number


def compare_with_pycriu(decoder, images):
    code, words, errors = tool("show", images)
    assert code == 0, errors
    shown = json.loads(words)
    tree = load(decoder, images / "pstree.img")
    files = {entry["id"]: entry["reg"] for entry in load(decoder, images / "files.img") if entry["type"] == "REG"}
    deleted = {entry["orig_id"] for entry in load(decoder, images / "remap-fpath.img")}
    mapped = set()
    assert [p["pid"] for p in shown["processes"]] == [entry["pid"] for entry in tree]
    for process, entry in zip(shown["processes"], tree):
        core = load(decoder, images / f"core-{entry['pid']}.img")[0]
        assert process["comm"] == core["tc"]["comm"]
        assert all(process[name] == entry[name] for name in ("ppid", "pgid", "sid"))
        if process["threads"] == 0:
            assert core["tc"]["task_state"] in (2, 6)
            continue
        assert process["threads"] == len(entry["threads"])
        pages = load(decoder, images / f"pagemap-{entry['pid']}.img")[1:]
        assert process["pagemap"] == [[p["vaddr"], p["nr_pages"], p["flags"]] for p in pages]
        memory = load(decoder, images / f"mm-{entry['pid']}.img")[0]
        names = ("start", "end", "pgoff", "shmid", "status", "flags", "prot")
        assert process["mm"] == [{**{n: signed(v[n]) for n in names}, "madv": v.get("madv", 0)} for v in memory["vmas"]]
        mapped |= {v["shmid"] for v in memory["vmas"] if v["status"] & 0xc0} | {memory["exe_file_id"]}
    expected = {files[i]["name"] for i in mapped - deleted if i in files and files[i]["mode"] >> 12 == 8}
    assert shown["mapped"] == sorted(expected)
    return shown


def test_kept_images_like_pycriu():
    shown = compare_with_pycriu(pycriu_images(), DATA)
    assert [p["threads"] for p in shown["processes"]] == [2, 0, 1]


@needs_criu
def test_edit_like_pycriu(tmp_path):
    """After an edit CRIU's decoder finds what was meant, and every field that we have no name for."""
    decoder = pycriu_images()
    reader, writer = os.pipe()
    with worker_in(tmp_path, stdout=writer) as worker:
        os.close(writer)
        os.close(reader)
        worker.dump()
        compare_with_pycriu(decoder, worker.images)
        shutil.copytree(worker.images, tmp_path / "before")
        with open(tmp_path / "log", "a") as file:
            file.write("more\n")
        key = worker.key(1)
        worker.edit(key)
        old = load(decoder, tmp_path / "before/files.img")
        new = load(decoder, worker.images / "files.img")
        changed = {"isk": 0, "reg": 0, "pipe": 0}
        for a, b in zip(old, new, strict=True):
            if a == b:
                continue
            kind = next(name for name in changed if name in a)
            changed[kind] += 1
            if kind == "isk":
                assert b["isk"] == {**a["isk"], "state": 7, "src_port": 0, "dst_port": 0}
            elif kind == "reg":
                expected = {**a["reg"]}
                expected.pop("size")
                if a["reg"]["flags"] & 1:
                    expected["pos"] = 11
                assert a["reg"]["name"] == f"{tmp_path}/log" and b["reg"] == expected
            else:
                assert b["type"] == "REG" and b["id"] == a["id"]
                assert b["reg"] == {"id": a["id"], "flags": 1, "pos": 0, "fown": a["pipe"]["fown"], "name": "/" + key}
        assert changed == {"isk": 2, "reg": 2, "pipe": 1}


@contextlib.contextmanager
def long_pipes():
    """CRIU's pipes may be as long as it likes. The lock is rewarm's own (limits.c)."""
    limit = Path("/proc/sys/fs/pipe-max-size")
    with open(limit) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = limit.read_text()
        limit.write_text(str(32 << 20))
        try:
            yield
        finally:
            limit.write_text(before)


@needs_criu
def test_lazy_dump(tmp_path):
    """A dump with --lazy-pages marks what it left out, and what it left out is what an ordinary dump marks lazy."""
    with worker_in(tmp_path) as worker, long_pipes():
        worker.dump("--leave-running")
        ours, theirs = socket.socketpair()
        (tmp_path / "lazy").mkdir()
        criu = subprocess.Popen([CRIU / "criu", "dump", "-t", str(worker.pid), "-D", tmp_path / "lazy", "-o", "dump.log",
                                 *OPTIONS, "--leave-running", "--lazy-pages", "--ps-socket", str(theirs.fileno())],
                                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()
        with ours:
            ours.settimeout(60)
            ours.sendall(struct.pack("<IxxxxQQQ", PS_IOV_CLOSE, 0, 0, 0))
            assert len(ours.recv(4)) == 4
        assert criu.wait(timeout=60) == 0, (tmp_path / "lazy/dump.log").read_text()[-2000:]
        found = []
        for images in (worker.images, tmp_path / "lazy"):
            code, words, errors = tool("show", images)
            assert code == 0, errors
            found.append({p["pid"]: p["pagemap"] for p in json.loads(words)["processes"] if p["threads"]})
        for pid, pages in found[1].items():
            assert {flags for _, _, flags in pages} <= {2, 4}
            assert any(flags == 2 for _, _, flags in pages)
            lazy = [entry[0] for entry in found[0][pid] if entry[2] & 2]
            assert [entry[0] for entry in pages if entry[2] == 2] == lazy


def test_many_pages(tmp_path):
    """100,000 entries of a page map take a few milliseconds (the bound leaves room for a busy machine)."""
    def varint(value):
        out = b""
        while value >= 128:
            out += bytes([value & 127 | 128])
            value >>= 7
        return out + bytes([value])

    def entry(message):
        return struct.pack("<I", len(message)) + message

    image = struct.pack("<II", 0x54564319, 0x56084025) + entry(b"\x08\x01")
    image += b"".join(entry(b"\x08" + varint(0x7f0000000000 + i * 8192) + b"\x10\x00\x20\x06\x28\x01")
                      for i in range(100000))
    (tmp_path / "pagemap").write_bytes(image)
    code, words, errors = tool("time", tmp_path / "pagemap")
    assert code == 0, errors
    measured = json.loads(words)
    assert measured["entries"] == 100000
    assert measured["microseconds"] < 50000

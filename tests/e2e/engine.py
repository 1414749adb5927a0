"""Test programs under an engine: `rewarm` (what the tests are for) or plain `criu` (to tell a limit of CRIU from a fault
of ours while a test program is written; REWARM_TEST_ENGINE=criu).

A Lab is one test's private world: a temporary folder with store, run folder and one folder for each program. When it
is closed it ends what the test has started and fails the test when a process, a mount or a temporary file of
rewarm is left. Processes are found by their environment, which carries the folder's name, so that nobody else's are
looked at.
"""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REWARM = Path(os.environ.get("REWARM", ROOT / "build/release/rewarm"))
PROGRAMS = Path(os.environ.get("REWARM_TEST_PROGRAMS", REWARM.parent / "tests/programs"))
CRIU = Path(os.environ.get("REWARM_CRIU", ROOT / "build/criu"))
ENGINE = os.environ.get("REWARM_TEST_ENGINE", "rewarm")

# Exit codes (src/base/error.h).
SYSTEM, USAGE, NOT_FOUND, REFUSED, MISFIT, CORRUPT, PERMISSION = 1, 2, 3, 4, 5, 6, 7
NO_SPACE, BUSY, CRIU_FAILED, TIMEOUT, LOST, CANCELLED = 8, 9, 10, 11, 12, 13

# Whatever a killed tree leaves behind becomes ours to reap: a zombie keeps its PID taken, and not every
# PID 1 is quick.
PR_SET_CHILD_SUBREAPER = 36
ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

CRIU_OPTIONS = ("--shell-job --tcp-established --network-lock skip --ext-unix-sk --file-locks --link-remap"
                " --ghost-limit 1073741824 -v2").split()


class EngineError(Exception):
    """The engine said no. `code` is its exit code, `words` what it wrote."""

    def __init__(self, code, words):
        super().__init__(f"exit code {code}: {words}")
        self.code, self.words = code, words


def until(condition, seconds=10.0, what="it", pause=0.002):
    """Waits until `condition()` is true and returns its value."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {seconds} s")
        time.sleep(pause)


def stat_of(pid):
    """(state, parent) of a process, or None when it has gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, parent = text.rpartition(")")[2].split()[:2]
    return state, int(parent)


def alive(pid):
    """True unless the process has gone or is a zombie."""
    found = stat_of(pid)
    return found is not None and found[0] not in "ZX"


def children_of(pid):
    """Children of all threads."""
    found = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                found += [int(word) for word in Path(f"/proc/{pid}/task/{task}/children").read_text().split()]
    return found


def tree_of(pid):
    """A process and its descendants."""
    found = [pid]
    for child in children_of(pid):
        found += tree_of(child)
    return found


def kill(pid, number=signal.SIGKILL):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def reap(pids, seconds=10.0):
    """Waits until none of these processes is left, zombies included."""

    def none_left():
        for pid in pids:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        return all(stat_of(pid) is None for pid in pids)

    until(none_left, seconds, f"the end of {pids}")


def reap_orphans(popen):
    """Reaps zombies that were left to us; children that subprocess waits for (`popen`) are not touched."""
    known = {process.pid for process in popen if process.returncode is None}
    for pid in children_of(os.getpid()):
        if pid not in known and (stat_of(pid) or " ")[0] == "Z":
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


class Worker:
    """A test program (tests/programs/program.h) that runs, or did."""

    def __init__(self, folder, pid, process=None, answers=None):
        self.folder, self.pid, self.process = Path(folder), pid, process
        self.answers = Path(answers or folder)

    def ask(self, seconds=30.0):
        """None when its state is right, else its words."""
        for name in ("pass", "fail"):
            (self.answers / name).unlink(missing_ok=True)
        os.kill(self.pid, signal.SIGUSR1)

        def answer():
            for name in ("pass", "fail"):
                if (self.answers / name).exists():
                    return name
            if not alive(self.pid):
                raise AssertionError(f"process {self.pid} has ended instead of answering")
            return None

        if until(answer, seconds, f"an answer of process {self.pid}") == "pass":
            return None
        return (self.answers / "fail").read_text()

    def check(self, when, seconds=30.0):
        words = self.ask(seconds)
        assert words is None, f"{when}: {words}"

    def end(self):
        """SIGTERM; returns the exit code when it is our child."""
        kill(self.pid, signal.SIGTERM)
        return self.wait()

    def wait(self, seconds=10.0):
        if self.process is not None and self.process.pid == self.pid:
            return self.process.wait(seconds)
        until(lambda: not alive(self.pid), seconds, f"the end of process {self.pid}")
        return None

    def gone(self, tree, seconds=10.0):
        """Waits until a killed source (`tree`: its processes) has gone and reaps it."""
        if self.process is not None:
            self.process.wait(seconds)
        reap([pid for pid in tree if self.process is None or pid != self.process.pid], seconds)


class Lab:
    def __init__(self, engine=ENGINE):
        self.engine = engine
        self.folder = Path(tempfile.mkdtemp(prefix="rewarm-e2e-"))
        self.folder.chmod(0o755)
        self.store, self.run = self.folder / "store", self.folder / "run"
        self.environment = dict(os.environ, REWARM_STORE=str(self.store), REWARM_RUN=str(self.run),
                                REWARM_CRIU=str(CRIU), REWARM_E2E=str(self.folder))
        self.workers = []
        self.popen = []
        self.count = 0
        self.ended = []
        self.expect_leftovers = False

    # --- programs

    def program(self, name):
        path = PROGRAMS / name
        if not path.exists():
            pytest.fail(f"{path} has not been built")
        return path

    def new_folder(self, name="w"):
        self.count += 1
        folder = self.folder / f"{name}{self.count}"
        folder.mkdir(mode=0o755)
        return folder

    def start(self, program, *args, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
              stderr=subprocess.DEVNULL, folder=None, answers="", binary=None, prefix=(), **more):
        """Starts a test program in a session of its own and waits until it is ready."""
        folder = folder or self.new_folder()
        binary = binary or self.program(program)
        process = subprocess.Popen([*prefix, binary, folder, *map(str, args)], stdin=stdin,
                                   stdout=stdout, stderr=stderr, env=self.environment,
                                   start_new_session=True, **more)
        self.popen.append(process)
        worker = self.adopt(folder, process=process, answers=folder / answers)
        return worker

    def adopt(self, folder, process=None, answers=None, seconds=20.0):
        """Waits for `ready` in `folder` and makes a Worker of the process that wrote it."""
        answers = Path(answers or folder)

        def ready():
            for place in {folder, answers}:
                if (place / "skip").exists():
                    pytest.skip((place / "skip").read_text())
                if (place / "fail").exists():
                    raise AssertionError("set-up: " + (place / "fail").read_text())
            if process is not None and process.poll() is not None and not (answers / "ready").exists():
                raise AssertionError(f"the program ended with {process.returncode}")
            return (answers / "ready").exists()

        until(ready, seconds, "the program's set-up")
        worker = Worker(folder, int((answers / "pid").read_text()), process, answers)
        self.workers.append(worker)
        return worker

    # --- the engine

    def command(self, *args):
        return [str(REWARM), *map(str, args)]

    def cli(self, *args, timeout=60, check=False, **more):
        """Runs rewarm; returns the finished process, or raises EngineError with `check`."""
        more.setdefault("stdin", subprocess.DEVNULL)
        # Files, not pipes: a supervisor that stays must not make us wait for an end of file.
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            process = subprocess.run(self.command(*args), stdout=out, stderr=err, timeout=timeout,
                                     env=more.pop("env", self.environment), check=False, **more)
            out.seek(0)
            err.seek(0)
            process.stdout, process.stderr = out.read(), err.read()
        if check and process.returncode != 0:
            raise EngineError(process.returncode, process.stderr.strip() or process.stdout.strip())
        return process

    def json(self, *args, **more):
        return json.loads(self.cli(*args, "--json", check=True, **more).stdout)

    def popen_cli(self, *args, **more):
        """rewarm in the foreground, as a process to play with."""
        more.setdefault("stdin", subprocess.DEVNULL)
        more.setdefault("stdout", subprocess.DEVNULL)
        words = self.folder / f"words-{len(self.popen)}"
        with open(words, "w") as file:
            more.setdefault("stderr", file)
            process = subprocess.Popen(self.command(*args), env=more.pop("env", self.environment), **more)
        process.words = words
        self.popen.append(process)
        return process

    def freeze(self, worker, name="snap", stop=True, timeout=60):
        tree = tree_of(worker.pid)
        if self.engine == "criu":
            images = self.folder / f"images-{name}"
            shutil.rmtree(images, ignore_errors=True)
            images.mkdir()
            self._criu(images, "dump", "-t", str(worker.pid), *([] if stop else ["--leave-running"]))
        else:
            self.cli("freeze", worker.pid, "--as", name, *(["--kill"] if stop else []), check=True,
                     timeout=timeout)
        if stop:
            worker.gone(tree)
            reap_orphans(self.popen)  # forked since

    def restore(self, name="snap", *options, like=None, timeout=60):
        """Restores with a supervisor in the background; returns the new Worker, in `like`'s folder."""
        if self.engine == "criu":
            images = self.folder / f"images-{name}"
            self._criu(images, "restore", "-d", "--pidfile", str(images / f"pid{time.monotonic_ns()}"))
            pid = int(max(images.glob("pid*"), key=lambda path: path.stat().st_mtime_ns).read_text())
        else:
            pid = self.json("restore", name, "--detach", *options, timeout=timeout)["pid"]
        worker = Worker(like.folder, pid, answers=like.answers)
        self.workers.append(worker)
        return worker

    def _criu(self, images, verb, *args):
        process = subprocess.run([CRIU / "criu", verb, "-D", images, "-o", f"{verb}.log", "--libdir",
                                  CRIU / "plugins", *args, *CRIU_OPTIONS], stdin=subprocess.DEVNULL,
                                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60,
                                 env=self.environment, check=False)
        if process.returncode != 0:
            lines = (images / f"{verb}.log").read_text(errors="replace").splitlines()
            errors = [line for line in lines if "Error" in line]
            raise EngineError(process.returncode, " / ".join(errors[-3:]))

    # --- what rewarm says and does

    def refuses(self, *args, code, **more):
        """Runs rewarm, which must end with `code` (one or several) and words; returns the words."""
        codes = {code} if isinstance(code, int) else set(code)
        done = self.cli(*args, **more)
        assert done.returncode in codes, f"exit code {done.returncode}: {done.stdout}{done.stderr}"
        words = done.stderr + done.stdout
        assert words.strip(), "not a word of explanation"
        return words

    def ps(self):
        return {entry["name"]: entry for entry in self.json("ps")}

    def worker_of(self, name, folder, seconds=30.0, answers=None, states=("cold", "restored", "filling")):
        """The running worker that `ps` knows as `name`, once it has one of these states."""

        def found():
            entry = self.ps().get(name)
            return entry if entry and entry["state"] in states and alive(entry["pid"]) else None

        entry = until(found, seconds, f"worker {name}", pause=0.02)
        worker = Worker(folder, entry["pid"], answers=answers)
        self.workers.append(worker)
        return worker

    def until_whole(self, process, name="snap", seconds=20.0):
        """Waits until a foreground restore (popen_cli) has all of its memory."""

        def whole():
            if process.poll() is not None:
                raise AssertionError(f"restore ended with {process.returncode}: {process.words.read_text()}")
            return self.ps().get(name, {}).get("state") == "restored"

        until(whole, seconds, f"worker {name}", pause=0.01)

    def filler_of(self, supervisor, seconds=10.0):
        """The filler: a child of the supervisor that names itself so."""

        def found():
            for pid in children_of(supervisor):
                with contextlib.suppress(OSError):
                    if Path(f"/proc/{pid}/comm").read_text() == "rewarm-filler\n":
                        return pid
            return None

        return until(found, seconds, f"the filler of {supervisor}", pause=0.0005)

    def snapshots(self):
        return {entry["name"]: entry for entry in self.json("ls")}

    def packs(self):
        return sorted(path for path in self.store.rglob("*") if path.is_file() and "pack" in str(path)
                      and path.stat().st_size > 4096)

    # --- the end

    def processes(self):
        """Everything that runs with this lab's environment."""
        mark = f"REWARM_E2E={self.folder}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    name = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    found.append((int(entry.name), name.strip()))
        return found

    def end_workers(self):
        """Ends test programs and their copies; supervisors then end by themselves."""
        for worker in self.workers:
            if str(worker.folder).encode() in _cmdline(worker.pid):
                tree = tree_of(worker.pid)
                for pid in tree:
                    kill(pid)
                if worker.process is None:
                    self.ended += tree
        for process in self.popen:
            if process.poll() is None and process.args[0] != str(REWARM):
                process.kill()

    def leftovers(self):
        problems = [f"process {pid}: {name}" for pid, name in self.processes()]
        mounts = Path("/proc/self/mounts").read_text().splitlines()
        problems += [f"mount: {line}" for line in mounts if str(self.folder) in line]
        return problems

    def close(self):
        self.end_workers()
        deadline = time.monotonic() + 5
        for process in self.popen:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.01, deadline - time.monotonic()))
        with contextlib.suppress(AssertionError):
            reap(self.ended, 5)
        problems = self.leftovers()
        while problems and time.monotonic() < deadline:
            time.sleep(0.02)
            problems = self.leftovers()
        for pid, _ in self.processes():
            kill(pid)
        for process in self.popen:
            if process.poll() is None:
                process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
        for line in Path("/proc/self/mounts").read_text().splitlines():
            if str(self.folder) in line:
                subprocess.run(["umount", "-l", line.split()[1]], check=False)
        self._remove_names()
        shutil.rmtree(self.folder, ignore_errors=True)
        assert not problems or self.expect_leftovers, f"left behind: {problems}"

    def _remove_names(self):
        for worker in self.workers:
            names, ipc = worker.folder / "names", worker.folder / "ipc"
            for name in names.read_text().split() if names.exists() else []:
                Path(name).unlink(missing_ok=True)
            if ipc.exists():
                kind, number = ipc.read_text().split()
                flag = {"shm": "-m", "sem": "-s", "msg": "-q"}[kind]
                subprocess.run(["ipcrm", flag, number], check=False, stderr=subprocess.DEVNULL)


def _cmdline(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.fixture
def lab():
    if ENGINE == "rewarm" and not REWARM.exists():
        pytest.fail(f"{REWARM} has not been built (REWARM names another)")
    lab = Lab()
    try:
        yield lab
    finally:
        lab.close()


rewarm_only = pytest.mark.skipif(ENGINE != "rewarm", reason="plain CRIU has no such command")

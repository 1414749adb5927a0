"""`rewarm run` and `rewarm restore` in the foreground as the worker's parent would be: stdio, signals, exit codes; what
makes it start cold; the io_uring filter."""

import contextlib
import os
import pty
import shutil
import signal
import subprocess
import time

import pytest

from engine import Worker, alive, lab, rewarm_only, stat_of, until  # noqa: F401

pytestmark = rewarm_only


class Job:
    """`rewarm run` of one command, as often as one likes."""

    def __init__(self, lab, program, *args, options=(), binary=None):
        self.lab, self.folder = lab, lab.new_folder()
        self.command = [binary or lab.program(program), self.folder, *args]
        self.options = list(options)
        self.words = ""

    def start(self, *options, **more):
        """Starts it; returns (process, worker, "cold" or "restored")."""
        for name in ("ready", "pid", "pass", "fail"):
            (self.folder / name).unlink(missing_ok=True)
        self.log = open(self.lab.folder / "words", "w+")
        more.setdefault("stderr", self.log)
        self.process = self.lab.popen_cli("run", "job", "--ready-file", self.folder / "ready", *self.options, *options,
                                          "--", *self.command, **more)
        entry = {}

        def settled():
            entry.update(self.lab.ps().get("job", {}))
            if self.process.poll() is not None:
                raise AssertionError(f"run ended with {self.process.returncode}: {self.said()}")
            return entry.get("state") == "restored" or (
                entry.get("state") == "cold" and (self.folder / "ready").exists())

        until(settled, 20, "the worker", pause=0.02)
        worker = Worker(self.folder, entry["pid"])
        self.lab.workers.append(worker)
        return self.process, worker, entry["state"]

    def said(self):
        self.log.flush()
        return (self.lab.folder / "words").read_text()

    def save(self, *options, **more):
        """The first, cold run: waits for the snapshot, then ends the worker."""
        process, worker, state = self.start(*options, **more)
        assert state == "cold"
        until(lambda: "job" in self.lab.snapshots(), 20, "the snapshot", pause=0.05)
        worker.check("cold, after the freeze")
        self.end(process, worker)

    def end(self, process, worker, code=42):
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(10) == code
        until(lambda: not alive(worker.pid), 5, "the worker's end")


def test_cold_then_restored(lab):
    """The killer feature: cold the first time, restored from then on; SIGTERM and exit code pass through both times."""
    job = Job(lab, "mem_anon", 16)
    job.save()
    for _ in range(2):
        process, worker, state = job.start()
        assert state == "restored", job.said()
        worker.check("restored")
        job.end(process, worker)


def test_no_save_and_refresh(lab):
    job = Job(lab, "mem_anon", 2)
    process, worker, state = job.start("--no-save")
    time.sleep(0.5)
    assert state == "cold" and "job" not in lab.snapshots()
    job.end(process, worker)
    job.save()
    created = lab.snapshots()["job"]["created"]
    time.sleep(1.1)  # timestamps have seconds
    process, worker, state = job.start("--refresh")
    assert state == "cold"
    until(lambda: lab.snapshots()["job"]["created"] != created, 20, "the new snapshot", pause=0.05)
    job.end(process, worker)


def test_detached(lab):
    """--detach returns once the worker is ready, and a supervisor watches it."""
    job = Job(lab, "mem_anon", 4)
    command = ["run", "job", "--detach", "--ready-file", job.folder / "ready", "--", *job.command]
    lab.cli(*command, check=True)
    worker = lab.worker_of("job", job.folder)
    worker.check("cold")
    until(lambda: "job" in lab.snapshots(), 20, "the snapshot", pause=0.05)
    worker.end()
    until(lambda: "job" not in lab.ps(), 10, "its removal from ps", pause=0.05)
    lab.cli(*command, check=True)
    worker = lab.worker_of("job", job.folder, states=("restored",))
    worker.check("restored")


# --- why it starts cold

def restart(job, reason, **more):
    process, worker, state = job.start(**more)
    said = job.said()
    assert state == "cold", "a snapshot that does not fit was restored"
    assert reason in said.lower(), f"'{reason}' is not the reason given: {said}"
    worker.check("cold")
    job.end(process, worker)


def test_changed_arguments_start_cold(lab):
    job = Job(lab, "mem_anon", 4)
    job.save()
    job.command[-1] = 5
    restart(job, "command")


def test_changed_environment_starts_cold(lab):
    job = Job(lab, "mem_anon", 4)
    job.save()
    restart(job, "worker_setting", env=dict(lab.environment, WORKER_SETTING="1"))
    process, worker, state = job.start("--ignore-env", "WORKER_*", env=dict(lab.environment, WORKER_SETTING="2"))
    job.end(process, worker)


def test_changed_binary_starts_cold(lab):
    """A new build under the old path (MISFIT): `run` starts cold and says why."""
    binary = lab.folder / "binary"
    shutil.copy(lab.program("mem_anon"), binary)
    job = Job(lab, None, 4, binary=binary)
    job.save()
    other = lab.folder / "other"
    shutil.copy(lab.program("eventfd"), other)
    other.replace(binary)
    restart(job, str(binary).lower())


def test_pid_in_use_starts_cold(lab):
    """The snapshot's PIDs are taken: a cold start, not an outage."""
    job = Job(lab, "mem_anon", 4)
    process, worker, _ = job.start()
    until(lambda: "job" in lab.snapshots(), 20, "the snapshot", pause=0.05)
    job.end(process, worker)
    holder = claim_pid(lab, worker.pid)
    if holder is None:
        pytest.skip("could not take the PID")
    try:
        process, copy, state = job.start()
        assert state == "cold" and str(worker.pid) in job.said(), job.said()
        copy.check("cold")
        job.end(process, copy)
    finally:
        holder.kill()
        holder.wait()


def claim_pid(lab, pid):
    """A process with this PID, by way of ns_last_pid."""
    for _ in range(20):
        with open("/proc/sys/kernel/ns_last_pid", "w") as last:
            last.write(str(pid - 1))
        holder = subprocess.Popen(["sleep", "120"])
        if holder.pid == pid:
            return holder
        holder.kill()
        holder.wait()
    return None


# --- io_uring

def test_run_answers_enosys(lab):
    """`rewarm run` starts the worker so that it is freezable: io_uring_setup gives ENOSYS, before and after a restore."""
    job = Job(lab, "uring")
    job.save()
    assert (job.folder / "uring").read_text() == "enosys"
    process, worker, state = job.start()
    assert state == "restored"
    job.end(process, worker)


def test_allow_io_uring(lab):
    """--allow-io-uring: the ring opens; the freeze is refused in words and the worker serves on, cold."""
    job = Job(lab, "uring", options=["--allow-io-uring"])
    process, worker, _ = job.start()
    if (job.folder / "uring").read_text() != "open":
        job.end(process, worker)
        pytest.skip("this kernel opens no io_uring rings")
    until(lambda: "io_uring" in job.said(), 10, "the refusal", pause=0.05)
    assert "job" not in lab.snapshots()
    worker.check("cold")
    job.end(process, worker)


# --- stdio

class Talk:
    """A program `stdio` behind pipes."""

    def __init__(self, process):
        self.process = process
        self.seen = {"stdout": b"", "stderr": b""}
        for stream in (process.stdout, process.stderr):
            os.set_blocking(stream.fileno(), False)

    def say(self, line):
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def hear(self, stream, text, seconds=10):
        def heard():
            with contextlib.suppress(BlockingIOError):
                self.seen[stream] += os.read(getattr(self.process, stream).fileno(), 65536)
            return text.encode() in self.seen[stream]

        until(heard, seconds, f"'{text}' on {stream} (seen: {self.seen[stream]!r})")


PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}


def test_pipes(lab):
    """stdio pipes: a restored worker has those of its new parent, both ways, and both of the last moment's lines arrive."""
    job = Job(lab, "stdio")
    for expected in ("cold", "restored"):
        process, worker, state = job.start(**PIPES)
        assert state == expected
        talk = Talk(process)
        talk.say(f"hello {expected}")
        talk.hear("stdout", f"echo: hello {expected}")
        talk.hear("stderr", f"error: hello {expected}")
        if expected == "cold":
            until(lambda: "job" in lab.snapshots(), 20, "the snapshot", pause=0.05)
        talk.say("after the freeze")
        talk.hear("stdout", "echo: after the freeze")
        talk.say("exit 9")
        talk.hear("stdout", "echo: exit 9")
        assert process.wait(10) == 9


def test_restore_with_pipes(lab):
    """A source that somebody else started with pipes, restored in the foreground with others."""
    worker = lab.start("stdio", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    lab.freeze(worker)
    process = lab.popen_cli("restore", "snap", **PIPES)
    lab.workers.append(Worker(worker.folder, worker.pid))
    talk = Talk(process)
    talk.say("hello")
    talk.hear("stdout", "echo: hello")
    talk.hear("stderr", "error: hello")
    talk.say("exit 3")
    assert process.wait(10) == 3


def test_end_of_input_passes_through(lab):
    worker = lab.start("stdio", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    lab.freeze(worker)
    process = lab.popen_cli("restore", "snap", **PIPES)
    copy = Worker(worker.folder, worker.pid)
    lab.workers.append(copy)
    process.stdin.close()
    until(lambda: (worker.folder / "eof").exists(), 10, "the end of its input")
    copy.check("restored")
    copy.end()
    assert process.wait(10) == 42


def test_files(lab):
    """stdout and stderr are files (opened with O_APPEND or not); a restored worker writes to those of its new parent."""
    for mode in ("wb", "ab"):
        first, second = lab.folder / f"first-{mode}", lab.folder / f"second-{mode}"
        with open(first, mode) as out:
            worker = lab.start("stdio", stdout=out, stderr=out)
        worker.check("before")
        lab.freeze(worker)
        before = first.read_bytes()
        with open(second, mode) as out:
            process = lab.popen_cli("restore", "snap", stdout=out, stderr=out)
        copy = lab.worker_of("snap", worker.folder, states=("restored",))
        copy.check("restored")
        until(lambda: b"checked" in second.read_bytes(), 5, "its line in the new file")
        assert first.read_bytes() == before
        copy.end()
        assert process.wait(10) == 42


def test_log_of_the_shell(lab):
    """`run ... >log` (no O_APPEND): the file has grown by what the source wrote after the freeze."""
    job = Job(lab, "stdio")
    log = lab.folder / "log"
    with open(log, "wb") as out:
        job.save(stdout=out)
    frozen = log.read_bytes()
    assert frozen.count(b"checked") == 1
    with open(log, "ab") as out:
        process, worker, state = job.start(stdout=out)
    assert state == "restored", job.said()
    worker.check("restored")
    until(lambda: log.read_bytes().count(b"checked") == 2, 5, "its line in the log")
    assert log.read_bytes().startswith(frozen) and b"\0" not in log.read_bytes()
    job.end(process, worker)


def test_dev_null(lab):
    job = Job(lab, "stdio")
    job.save()
    process, worker, state = job.start()
    assert state == "restored"
    worker.check("restored")
    job.end(process, worker)


def test_terminal(lab):
    """A tty is another case: `run` and `restore` work on one (input, output, ^C), and so does the next restore elsewhere."""
    job = Job(lab, "stdio")
    for expected in ("cold", "restored"):
        master, slave = pty.openpty()
        try:
            process, worker, state = job.start(stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
            os.close(slave)
            assert state == expected, job.said()
            if expected == "cold":
                until(lambda: "job" in lab.snapshots(), 20, "the snapshot", pause=0.05)
            os.set_blocking(master, False)
            os.write(master, b"from the terminal\n")
            seen = bytearray()

            def heard():
                with contextlib.suppress(BlockingIOError):
                    seen.extend(os.read(master, 65536))
                return b"echo: from the terminal" in seen

            until(heard, 10, f"an answer on the terminal ({bytes(seen)!r})")
            worker.check(expected)
            job.end(process, worker)
        finally:
            os.close(master)


def test_foreign_terminal_is_refused_or_restored(lab):
    """A worker that somebody started on a terminal: refused with the descriptor named."""
    master, slave = pty.openpty()
    try:
        worker = lab.start("stdio", stdin=slave, stdout=slave, stderr=slave)
        words = lab.refuses("freeze", worker.pid, "--as", "snap", code=4)
        assert "/dev/pts" in words or "terminal" in words
        assert str(worker.pid) in words
        worker.check("source")
    finally:
        os.close(slave)
        os.close(master)


# --- signals and exit codes

@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_signals_are_forwarded(lab, number):
    job = Job(lab, "stdio")
    job.save()
    process, worker, state = job.start()
    assert state == "restored"
    os.kill(process.pid, number)
    until(lambda: (job.folder / f"signal-{int(number)}").exists(), 5, "the signal")
    assert process.poll() is None
    job.end(process, worker)


@pytest.mark.parametrize("line,status", [("exit 0", 0), ("exit 255", 255), ("kill 9", 137), ("kill 6", 134)])
def test_exit_status(lab, line, status):
    """Exit codes and deaths by signal, through a foreground restore."""
    worker = lab.start("stdio", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    lab.freeze(worker)
    process = lab.popen_cli("restore", "snap", **PIPES)
    lab.workers.append(Worker(worker.folder, worker.pid))
    Talk(process).say(line)
    assert process.wait(20) == status
    assert stat_of(worker.pid) is None


def test_command_that_can_not_be_executed(lab):
    assert lab.cli("run", "job", "--", "/nonexistent/command").returncode == 127
    assert lab.cli("run", "job", "--", "/etc/passwd").returncode == 126
    assert "job" not in lab.snapshots()


def test_worker_that_ends_before_it_is_ready(lab):
    done = lab.cli("run", "job", "--ready-file", "/nonexistent", "--", "/bin/sh", "-c", "exit 5")
    assert done.returncode == 5
    assert "job" not in lab.snapshots()


def test_orphans_are_reaped(lab):
    """rewarm as subreaper: what a restored tree leaves behind becomes nobody's zombie."""
    worker = lab.start("tree", 3)
    lab.freeze(worker)
    process = lab.popen_cli("restore", "snap")
    copy = lab.worker_of("snap", worker.folder, states=("restored",))
    copy.check("restored")
    copy.end()
    assert process.wait(10) == 42

"""Files that were deleted under the name by which they were opened and have another one (links.h): CRIU's helper names
never stay, whatever happens, and the file is found, made anew or refused by name."""

import os

import pytest

from engine import MISFIT, REFUSED, lab, rewarm_only, stat_of, until  # noqa: F401

pytestmark = rewarm_only
SMALL, LARGE = 8192, 1 << 17


def helpers(folder):
    return {name for name in os.listdir(folder) if name.startswith("link_remap")}


def test_name_is_made_anew(lab):
    """A small file whose other name has gone, as a semaphore's after a reboot, comes back with content, mode and owner."""
    worker = lab.start("deleted", SMALL, 1)
    other = worker.folder / "other"
    other.chmod(0o640)
    os.chown(other, 12, 34)
    content = other.read_bytes()
    lab.freeze(worker)
    other.unlink()
    copy = lab.restore(like=worker)
    copy.check("restored")
    found = other.stat()
    assert (found.st_mode & 0o7777, found.st_uid, found.st_gid, found.st_nlink) == (0o640, 12, 34, 1)
    assert other.read_bytes() == content
    assert not helpers(worker.folder)


@pytest.mark.parametrize("change", ["gone", "grown"])
def test_misfit(lab, change):
    """A large file is not copied into the manifest: it must be there, and be what it was."""
    worker = lab.start("deleted", LARGE, 1)
    other = worker.folder / "other"
    lab.freeze(worker)
    if change == "gone":
        other.unlink()
    else:
        with open(other, "ab") as file:
            file.write(b"more")
    words = lab.refuses("restore", "snap", "--detach", code=MISFIT)
    assert str(other) in words
    assert not helpers(worker.folder) and other.exists() == (change == "grown")
    assert stat_of(worker.pid) is None


def test_refused_without_a_name(lab):
    """Another name in another folder is not looked for: refused with file and process, and the source goes on."""
    worker = lab.start("deleted", SMALL, 1)
    (worker.folder / "elsewhere").mkdir()
    (worker.folder / "other").rename(worker.folder / "elsewhere/other")
    words = lab.refuses("freeze", worker.pid, "--as", "snap", code=REFUSED)
    assert str(worker.pid) in words and str(worker.folder / "doomed") in words
    worker.check("source")
    assert not helpers(worker.folder) and "snap" not in lab.snapshots()


def test_two_at_once(lab):
    """Copies restored at the same time do not take each other's link away."""
    worker = lab.start("deleted", SMALL, 1)
    lab.freeze(worker)
    commands = [lab.popen_cli("restore", "snap", "--isolate", "pid", "--as", f"copy{i}", stdout=None) for i in range(4)]
    copies = [lab.worker_of(f"copy{i}", worker.folder) for i in range(4)]
    for number, copy in enumerate(copies):
        copy.check(f"copy {number}")
    assert not helpers(worker.folder)
    for copy, command in zip(copies, commands):
        copy.end()
        command.wait(10)


@pytest.mark.parametrize("fault", ["restore/images/fail", "restore/skeleton/fail", "restore/running/fail"])
def test_failed_restore_leaves_no_link(lab, fault):
    worker = lab.start("deleted", SMALL, 1)
    lab.freeze(worker)
    done = lab.cli("restore", "snap", "--detach", env=dict(lab.environment, REWARM_FAULT=fault))
    assert done.returncode != 0
    assert not helpers(worker.folder)
    lab.restore(like=worker).check("restored")


def test_killed_restore_leaves_no_link(lab):
    """The next command removes the link of one that was killed when it had made it."""
    worker = lab.start("deleted", SMALL, 1)
    lab.freeze(worker)
    lab.cli("restore", "snap", "--detach", env=dict(lab.environment, REWARM_FAULT="restore/images/end"))
    assert len(helpers(worker.folder)) == 2  # opened for writing, and mapped read-only

    def repaired():
        lab.ps()
        return not helpers(worker.folder)

    until(repaired, 5, "the repair", pause=0.1)
    lab.restore(like=worker).check("restored")


def test_failed_freeze_leaves_no_link(lab):
    worker = lab.start("deleted", SMALL, 1)
    for fault in ("freeze/read/fail", "freeze/read", "freeze/release/fail"):
        lab.cli("freeze", worker.pid, "--as", "snap", env=dict(lab.environment, REWARM_FAULT=fault))
        lab.ps()
        worker.check(f"source after {fault}")
        assert not helpers(worker.folder), fault

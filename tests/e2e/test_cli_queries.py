"""The queries on an empty store, and on one that is not there."""

import pytest


@pytest.fixture
def empty_store(rewarm, tmp_path):
    """A store that a refused freeze has made."""
    rewarm("freeze", 2**22 + 1, "--as", "nothing")
    assert (tmp_path / "store").is_dir()


@pytest.mark.parametrize("command", ["ls", "ps"])
def test_empty_list_without_a_store(rewarm, tmp_path, command):
    done = rewarm(command)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith("NAME ") and done.stdout.count("\n") == 1
    assert rewarm(command, "--json").json() == []
    assert rewarm(command, "-q").stdout == ""
    assert not (tmp_path / "store").exists()


@pytest.mark.usefixtures("empty_store")
def test_empty_store(rewarm):
    assert rewarm("ls", "--json").json() == []
    assert rewarm("verify", "--all", "--json").json() == []
    done = rewarm("gc", "--json")
    assert done.returncode == 0, done.stderr
    assert done.json()["live_bytes"] == 0 and done.json()["dry_run"] is False


def test_freeze_of_a_missing_process(rewarm):
    done = rewarm("freeze", 2**22 + 1, "--as", "nothing")
    assert done.returncode == 3, done.stderr
    assert str(2**22 + 1) in done.stderr
    assert rewarm("ls", "-q").stdout == ""


def test_freeze_of_a_missing_worker(rewarm):
    done = rewarm("freeze", "nobody")
    assert done.returncode == 3
    assert "no worker 'nobody' is running" in done.stderr


@pytest.mark.usefixtures("empty_store")
@pytest.mark.parametrize("command", ["inspect", "verify", "rm", "restore", "trace"])
def test_missing_snapshot(rewarm, command):
    done = rewarm(command, "nosuchthing")
    assert done.returncode == 3, done.stderr
    assert "nosuchthing" in done.stdout + done.stderr


@pytest.mark.usefixtures("empty_store")
def test_rm_names_each_missing_snapshot(rewarm):
    done = rewarm("rm", "one", "two")
    assert done.returncode == 3
    lines = done.stderr.splitlines()
    assert len(lines) == 2 and "one" in lines[0] and "two" in lines[1]


def test_gc_without_a_store(rewarm, tmp_path):
    assert rewarm("gc", "--dry-run").returncode == 0
    assert rewarm("verify", "--all", "--json").json() == []
    assert not (tmp_path / "store").exists()


def test_store_option_beats_the_environment(rewarm, tmp_path):
    done = rewarm("--store", tmp_path / "other", "doctor", "--json")
    details = " ".join(line["detail"] for line in done.json())
    assert str(tmp_path / "other") in details


def test_doctor(rewarm):
    done = rewarm("doctor", "--json")
    lines = done.json()
    states = {line["state"] for line in lines}
    assert lines and states <= {"ok", "warn", "bad"}
    assert done.returncode == (1 if "bad" in states else 0)
    for line in lines:
        assert line["check"] and line["detail"]
        assert (line["advice"] != "") == (line["state"] != "ok"), line
    plain = rewarm("doctor")
    assert plain.returncode == done.returncode
    for line in lines:
        assert line["check"] in plain.stdout

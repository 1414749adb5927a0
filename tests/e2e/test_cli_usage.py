"""Help, usage errors, exit statuses, and what goes to which stream."""

import subprocess

import pytest

COMMANDS = (
    "run freeze restore ps ls inspect verify rm gc doctor bench trace completion help "
    "version".split()
)
QUERIES = "ps ls inspect verify gc doctor bench version freeze restore".split()


def test_help_lists_every_command(rewarm):
    done = rewarm("help")
    assert done.returncode == 0 and done.stderr == ""
    listed = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")]
    missing = set(COMMANDS) - set(listed)
    assert not missing
    assert rewarm("--help").stdout == done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(rewarm, command):
    done = rewarm(command, "--help")
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith(f"usage: rewarm {command} ")
    assert rewarm("help", command).stdout == done.stdout
    assert rewarm(command, "-h", "--store", "/nonexistent").stdout == done.stdout
    assert ("--json" in done.stdout) == (command in QUERIES)
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_no_command(rewarm):
    done = rewarm()
    assert done.returncode == 2
    assert done.stdout == "" and done.stderr.startswith("usage: rewarm ")


def test_version(rewarm):
    done = rewarm("--version")
    assert done.returncode == 0 and done.stdout.startswith("rewarm ")
    answer = rewarm("version", "--json").json()
    assert done.stdout.splitlines()[0] == f"rewarm {answer['rewarm']}"
    assert rewarm("ls", "--version").stdout == done.stdout


@pytest.mark.parametrize(
    "args, words",
    [
        (["frezze"], "did you mean 'freeze'?"),
        (["qqqqqq"], "see rewarm help"),
        (["help", "restor"], "did you mean 'restore'?"),
        (["--sotre", "x", "ls"], "did you mean --store?"),
        (["freeze", "--kll", "x"], "did you mean --kill?"),
        (["ls", "--qqqqqq"], "there is no option --qqqqqq"),
        (["ls", "-z"], "there is no option -z"),
        (["ls", "--ver"], "could be"),
        (["ls", "--json=yes"], "--json takes no argument"),
        (["ls", "--store"], "--store wants DIR"),
        (["ls", "--store="], "not an empty word"),
        (["ls", "extra"], "'extra' is too much"),
        (["rm"], "NAME... is missing"),
        (["rm", "--json", "x"], "rm has no --json"),
        (["inspect"], "NAME is missing"),
        (["inspect", "a", "b"], "'b' is too much"),
        (["verify"], "name a snapshot, or --all"),
        (["verify", "--all", "x"], "not both"),
        (["gc", "--wait", "soon"], "wants seconds"),
        (["gc", "--wait", "-1"], "wants seconds"),
        (["freeze"], "PID|NAME is missing"),
        (["freeze", "4242"], "needs --as NAME"),
        (["freeze", "0", "--as", "x"], "no process that can be frozen"),
        (["freeze", "4242", "--as", "../x"], "is no name"),
        (["restore", "x", "--isolate", "mnt"], "'mnt' is none of: pid net"),
        (["restore", "x", "--copies", "0"], "1 to 1024"),
        (["restore", "x", "--copies", "many"], "wants a whole number"),
        (["restore", "x", "--copies", "2"], "--copies needs --isolate pid"),
        (["restore", "x", "--publish", "80:80"], "--publish needs --isolate net"),
        (["restore", "x", "--isolate", "net", "--publish", "80"], "two ports, not '80'"),
        (["restore", "x", "--isolate", "net", "--publish", "0:1"], "two ports, not '0:1'"),
        (
            "restore x --isolate pid,net --publish 65535:1 --copies 2".split(),
            "beyond port 65535",
        ),
        (["restore", "x", "--no-wait"], "--no-wait needs --detach"),
        (["restore", ".x"], "is no name"),
        (["trace", "a/b"], "is no name"),
        (["completion", "tcsh"], "none of: bash zsh fish"),
    ],
)
def test_usage_errors(rewarm, args, words):
    done = rewarm(*args)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert done.stderr.startswith("rewarm: error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "args, words",
    [
        (["run"], "is missing"),
        (["run", "name"], "is missing"),
        (["run", "--", "true"], "NAME is missing"),
        (["run", "--no-sav", "x"], "is missing"),  # shortened options are fine
        (["run", "--bogus", "x", "true"], "there is no option --bogus"),
        (["run", "x/y", "true"], "is no name"),
        (["run", "--ready-tcp", "a:1", "--ready-file", "f", "x", "true"], "one --ready option"),
        (["run", "--refresh", "--no-save", "x", "true"], "--no-save forbids it"),
        (["run", "--ready-timeout", "x", "n", "true"], "wants seconds"),
    ],
)
def test_own_failures_of_run_are_125(rewarm, args, words):
    done = rewarm(*args)
    assert done.returncode == 125, done.stderr
    assert words in done.stderr and done.stdout == ""


def test_errors_as_json(rewarm):
    done = rewarm("inspect", "nothing", "--json")
    assert done.returncode == 3
    answer = done.json()
    assert answer["error"] == "not-found" and answer["message"]
    assert rewarm("--json", "inspect", "nothing").json() == answer


def test_a_reader_that_goes_away_is_no_error(rewarm, environment):
    with subprocess.Popen(
        [rewarm.path, "completion", "bash"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=30) == 0


def test_a_full_disk_is_an_error(rewarm):
    with open("/dev/full", "w", encoding="ascii") as full:
        done = rewarm("help", stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 8
    assert "standard output" in done.stderr

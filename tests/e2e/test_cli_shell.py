"""Completion scripts and manual pages: made from, and in step with, the option tables."""

import os
import pathlib
import re
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPTS = {"bash": "rewarm.bash", "zsh": "_rewarm", "fish": "rewarm.fish"}


def commands(rewarm):
    """Of the help: the words that begin the indented lines."""
    lines = rewarm("help").stdout.splitlines()
    return [line.split()[0] for line in lines if line.startswith("  ")]


@pytest.mark.parametrize("shell", SCRIPTS)
def test_script_parses(rewarm, tmp_path, shell):
    script = tmp_path / "script"
    script.write_text(rewarm("completion", shell).stdout)
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    subprocess.run([shell, "-n", script], check=True)


@pytest.mark.parametrize("shell", SCRIPTS)
def test_installed_script_is_the_generated_one(rewarm, shell):
    installed = ROOT / "completions" / SCRIPTS[shell]
    assert installed.read_text() == rewarm("completion", shell).stdout, (
        f"run: rewarm completion {shell} > completions/{SCRIPTS[shell]}"
    )


@pytest.fixture
def complete(rewarm, environment):
    """complete(WORD...) -> what bash offers for the last word."""

    def ask(*words):
        program = (
            'source /dev/stdin; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _rewarm; '
            'printf "%s\\n" "${COMPREPLY[@]}"'
        )
        done = subprocess.run(
            ["bash", "--norc", "-c", program, "bash", str(rewarm.path), *words],
            input=rewarm("completion", "bash").stdout,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.split()

    return ask


def test_bash_completes(complete, tmp_path):
    assert complete("fr") == ["freeze"]
    assert complete("restore", "--iso") == ["--isolate"]
    assert complete("restore", "--isolate", "n") == ["net", "net,pid"]
    assert complete("completion", "z") == ["zsh"]
    assert complete("help", "ver") == ["verify", "version"]
    assert complete("rm", "--js") == []
    assert complete("ls", "--js") == ["--json"]
    assert complete("rm", "") == []
    (tmp_path / "some folder").mkdir()
    assert complete("--store", f"{tmp_path}/s") == [f"{tmp_path}/some", "folder"]
    assert complete("run", "x", "--", f"{tmp_path}/s") == [f"{tmp_path}/some", "folder"]


def test_every_command_has_a_manual_page(rewarm):
    for command in commands(rewarm):
        page = ROOT / "docs/man" / f"rewarm-{command}.1"
        text = page.read_text()
        for section in ("NAME", "SYNOPSIS", "DESCRIPTION", "EXIT STATUS", "EXAMPLES"):
            assert f".Sh {section}" in text, f"{page.name} has no {section}"
        own = rewarm(command, "--help").stdout.split("every command:")[0]
        for option in re.findall(r"^ +(?:-., )?--([a-z-]+)", own, re.MULTILINE):
            assert f"Fl -{option}" in text, f"{page.name} does not have --{option}"
    main = (ROOT / "docs/man/rewarm.1").read_text()
    for command in commands(rewarm):
        assert f"rewarm-{command} 1" in main, f"rewarm.1 does not point to {command}"


def test_manual_knows_every_exit_status():
    header = (ROOT / "src/base/error.h").read_text()
    codes = re.findall(r"REWARM_E_\w+ = (\d+)", header)
    main = (ROOT / "docs/man/rewarm.1").read_text()
    status = main.split(".Sh EXIT STATUS")[1].split(".Sh ")[0]
    assert codes
    for code in ["0", *codes, "125", "126", "127"]:
        assert f".It {code}\n" in status


def test_manual_pages_are_clean():
    pages = sorted((ROOT / "docs/man").glob("*.1"))
    assert pages
    if shutil.which("mandoc") is None:
        pytest.skip("mandoc is not installed")
    done = subprocess.run(
        ["mandoc", "-Tlint", "-Wwarning", *map(os.fspath, pages)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr

"""What every command has in common: the overview, figures for machines, lists, completion, and how it ends."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tlprune.cli import main
from tlprune.commands import table
from tlprune.commands.completion import flags_by_place
from tlprune.commands.listing import Everything, first_line
from tlprune.commands.table import COMMANDS, Command, overview
from tlprune.methods import METHODS
from tlprune.models.load import NAMED
from tlprune.outcome import Outcome
from tlprune.tasks import TASKS


def test_the_overview_is_one_screen_with_every_command() -> None:
    lines = overview().splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 100
    assert [line.split()[1] for line in lines if line.startswith("  tlprune")] == [*COMMANDS]


def test_an_overview_needs_no_torch() -> None:
    code = (
        "import sys; from tlprune.cli import main; main(['--help']); main(['--version']); main(['discovr']); "
        "heavy = {'torch', 'transformer_lens', 'transformers', 'tyro', 'numpy'} & {*sys.modules}; "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr.count("\n")) == (0, 1)
    assert found.stderr.startswith("tlprune: error: There is no command 'discovr'")


PLACES = [f"{name} {action}".strip() for name, command in COMMANDS.items() for action in command.actions]


@pytest.mark.parametrize("place", PLACES)
def test_every_command_prints_for_machines_and_reads_settings(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([*place.split(), "--help"])
    said = capsys.readouterr().out
    assert f"usage: tlprune {place} " in said
    assert "--json" in said and "--config" in said


# ---- lists


def listed(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    assert main([*words, "--json"]) == 0
    as_data = json.loads(capsys.readouterr().out)
    assert main(words) == 0
    text = capsys.readouterr().out
    assert all(
        any(line.split() == f"{name} {says}".split() for line in text.splitlines()) for name, says in as_data.items()
    )
    assert all(says and "\n" not in says and "``" not in says for says in as_data.values())
    return as_data


def test_lists_are_complete_and_say_what_the_documentation_says(capsys: pytest.CaptureFixture[str]) -> None:
    methods, tasks, models = (listed([words], capsys) for words in ("methods", "tasks", "models"))
    assert {*methods} == {*METHODS}
    assert methods["random"] == (METHODS["random"].__doc__ or "").splitlines()[0]
    assert [*tasks] == [*TASKS]
    assert [*models] == [*NAMED]
    assert {"testbed", "taught", "world", "planted-and", "tracr-reverse"} <= {*models}
    everything = listed(["models", "--all"], capsys)
    assert {*models} < {*everything}
    assert any("gpt2" in f"{name} {says}".split() for name, says in everything.items())


def test_a_part_of_a_function_says_what_the_function_says() -> None:
    from functools import partial

    assert first_line(partial(first_line)) == first_line(first_line)


# ---- completion


@pytest.fixture(scope="module")
def flags() -> dict[str, list[Any]]:
    return flags_by_place()


def test_completed_flags_are_those_that_help_lists(
    flags: dict[str, list[Any]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert {*PLACES} <= {*flags}
    assert {f"discover --method {name}" for name in METHODS} <= {*flags}
    for place, own in flags.items():
        with pytest.raises(SystemExit):
            main([*place.split(), "--help"])
        said = re.findall(r"^\W+((?:--[a-z][\w.-]*(?:, )?)+)", capsys.readouterr().out, re.MULTILINE)
        found = {flag for line in said for flag in line.split(", ")} - {"--help."}  # a word at the start of a line
        assert found == {f"--{flag.name}" for flag in own}, place


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("completion")
    with pytest.MonkeyPatch.context() as patch:
        for shell in ("bash", "zsh", "fish"):
            with open(folder / shell, "w", encoding="utf-8") as file:
                patch.setattr(sys, "stdout", file)
                assert main(["completion", shell]) == 0
    return {shell: folder / shell for shell in ("bash", "zsh", "fish")}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_valid(shell: str, scripts: dict[str, Path]) -> None:
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    found = subprocess.run([shell, "-n", str(scripts[shell])], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["dis"], ["discover"]),
        (["c"], ["core", "completion"]),
        (["core", "he"], ["heads"]),
        (["core", "heads", "--d"], []),
        (["core", "heads", "--o"], ["--out"]),
        (["discover", "--method", "eap"], ["eap", "eap-ig"]),
        (["discover", "--method", "eap", "--st"], []),
        (["discover", "--method", "eap-ig", "--st"], ["--steps"]),
        (["discover", "--method", "hap", "--attribution.spar"], ["--attribution.sparsity"]),
        (["discover", "--task", "gr"], ["greater-than"]),
        (["discover", "--kv", ""], ["shared", "per_query_head"]),
        (["discover", "--json", "--tas"], ["--task", "--task-seed"]),
        (["discover", "--out", "d"], []),
        (["sweep", "--method", "ac"], []),
        (["completion", "z"], ["zsh"]),
    ],
)
@pytest.mark.skipif(not shutil.which("bash"), reason="bash is not installed")
def test_bash_completes(words: list[str], completed: list[str], scripts: dict[str, Path]) -> None:
    script = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _tlprune; printf "%s\\n" "${COMPREPLY[@]}"'
    command = ["bash", "--norc", "-c", script, "bash", str(scripts["bash"]), "tlprune", *words]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout.split() == completed
    assert found.stderr == ""


def test_fish_is_told_of_every_command_and_flag(scripts: dict[str, Path], flags: dict[str, list[Any]]) -> None:
    written = scripts["fish"].read_text()
    assert all(f"-n '__fish_use_subcommand' -a {name} " in written for name in COMMANDS)
    assert "__fish_seen_subcommand_from core; and __fish_seen_subcommand_from heads' -l out" in written
    for place, own in flags.items():
        assert all(re.search(rf" -l {re.escape(flag.name)}\b", written) for flag in own), place


# ---- how a command ends


def ending(monkeypatch: pytest.MonkeyPatch, act: Any) -> None:
    """A command that does this."""
    monkeypatch.setitem(table.COMMANDS, "tried", Command("tried here", __name__))
    monkeypatch.setattr(sys.modules[__name__], "ACTIONS", {"": ("tried", Everything, act)}, raising=False)


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ValueError("It must be\n1 but is 2."), 2, "tlprune: error: It must be 1 but is 2.\n"),
        (OSError(28, "No space left on device"), 2, "No space left on device"),
        (FloatingPointError("The loss is nan."), 2, "tlprune: error: The loss is nan.\n"),
        (KeyboardInterrupt(), 130, "tlprune: interrupted\n"),
        (RuntimeError("shapes differ"), 1, "RuntimeError: shapes differ\ntlprune: this is a fault of tlprune itself"),
        (AssertionError(), 1, "fault of tlprune itself (AssertionError)"),
    ],
)
def test_exit_status(
    error: BaseException,
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def act(_: Any) -> Outcome:
        raise error

    ending(monkeypatch, act)
    assert main(["tried"]) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert ("Traceback" in captured.err) == (status == 1)


def test_for_machines_nothing_but_figures_is_on_standard_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def act(_: Any) -> Outcome:
        print("on the way")
        return Outcome("for people", {"kl": float("nan"), "rows": [{"edges": 3, "low": float("-inf")}]})

    ending(monkeypatch, act)
    assert main(["tried", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"kl": None, "rows": [{"edges": 3, "low": None}]}
    assert captured.err == "on the way\n"


@pytest.mark.skipif(os.name != "posix", reason="pipes of posix")
def test_a_reader_that_has_gone_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    code = "import sys; from tlprune.cli import main; sys.exit(main(['--help']))"
    found = subprocess.run([sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (found.returncode, found.stderr) == (141, "")

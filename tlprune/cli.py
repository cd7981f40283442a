"""The command ``tlprune``: the words it takes are in ``tlprune.commands.table``; each command takes ``--help``.

Exit status: 0 when it is done; 2 for bad input; 130 when it was interrupted; 1 for a fault of tlprune itself, with the
traceback; 141 when whoever reads its output has gone.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from tlprune.choices import choice
from tlprune.commands.table import COMMANDS, Action, overview
from tlprune.outcome import Outcome

DONE, FAULT, BAD_INPUT, INTERRUPTED, NO_READER = 0, 1, 2, 130, 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the command ``tlprune``; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _run(words)
        sys.stdout.flush()
    except BrokenPipeError:
        return _without_reader()
    except (ValueError, OSError, FloatingPointError, ModuleNotFoundError) as error:
        _tell(f"error: {' '.join(str(error).split())}")
        return BAD_INPUT
    except KeyboardInterrupt:
        _tell("interrupted")
        return INTERRUPTED
    except Exception as error:
        traceback.print_exc()
        _tell(f"this is a fault of tlprune itself ({type(error).__name__}): please report it with the lines above")
        return FAULT
    finally:
        if shared := _shared():
            shared.part()
    return DONE


def _shared() -> Any:
    """The module of the processes that share this run, once a command has come so far as to need them."""
    return sys.modules.get("tlprune.processes")


def _tell(text: str) -> None:
    """Say something on standard error; what every process meets is said by one."""
    shared = _shared()
    if shared is None or shared.processes().first_to_say(text):
        print(f"tlprune: {text}", file=sys.stderr)


def _without_reader() -> int:
    """Let go of standard output, so that Python does not complain of it at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return NO_READER


def _run(words: Sequence[str]) -> None:
    if not words or words[0] in ("-h", "--help"):
        return print(overview())
    if words[0] == "--version":
        from tlprune import __version__

        return print(f"tlprune {__version__}")
    command = choice("command", words[0], COMMANDS)
    name, rest = words[0], words[1:]
    if set(command.actions) != {""}:
        if not rest or rest[0] in ("-h", "--help"):
            return print(_listed(name, command.actions))
        choice(f"command of tlprune {name}", rest[0], command.actions)
        return _act(f"{name} {rest[0]}", command.actions[rest[0]], rest[1:])
    return _act(name, command.actions[""], command.reworded(rest))


def _listed(command: str, actions: Any) -> str:
    """A command's actions, one a line."""
    width = max(map(len, actions))
    return "\n".join(f"  tlprune {command} {name:{width}} {says}" for name, (says, _, _) in actions.items())


def _act(command: str, action: Action, words: Sequence[str]) -> None:
    """Do an action, write its settings beside its result, and print what it says."""
    from tlprune.commands.configuration import write_settings
    from tlprune.commands.parsing import parsed

    _check_processes(command)
    _, settings, act = action
    own, common = parsed(command, settings, words)
    with contextlib.redirect_stdout(sys.stderr) if common.json else contextlib.nullcontext():
        found: Outcome | None = act(own)
    if found is None:  # another process says it
        return
    if found.out is not None:
        write_settings(found.out, command, found.settings or own)
    print(found.as_json() if common.json else found.text)


def _check_processes(command: str) -> None:
    from tlprune.processes import processes

    count = processes().count
    if count > 1 and command != "discover":
        raise ValueError(
            f"tlprune {command} runs in one process but {count} were started. Processes share the training of tlprune "
            "discover; start others without accelerate launch or torchrun."
        )

"""Completion as bash, zsh and fish understand it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

Flags = Mapping[str, Sequence[Any]]
Lines = Mapping[str, str]

_BASH = """\
# Completion of tlprune for bash.
_tlprune_words() {  # what may follow a command, an action or a method
  case "$1" in
@words
  esac
}

_tlprune_values() {  # the values of a command's flag
  case "$1" in
@values
  esac
}

_tlprune_takes_none() {
  case "$1" in
    @switches) return 0 ;;
  esac
  return 1
}

_tlprune() {
  local current="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD - 1]}" place="" method="" words index
  [ "$COMP_CWORD" -gt 1 ] && place="${COMP_WORDS[1]}"
  case " @grouped " in
    *" $place "*) [ "$COMP_CWORD" -gt 2 ] && place="$place ${COMP_WORDS[2]}" ;;
  esac
  for ((index = 2; index < COMP_CWORD - 1; index++)); do
    [ "${COMP_WORDS[index]}" = --method ] && method=" --method ${COMP_WORDS[index + 1]}"
  done
  words="$(_tlprune_values "$place $before")"
  if [ -z "$words" ]; then
    case "$before" in  # the value of a flag that may have any: the name of a file
      --*) _tlprune_takes_none "$before" || [ "${current#-}" != "$current" ] || return ;;
    esac
    words="$(_tlprune_words "$place$method")"
    [ -z "$words" ] && words="$(_tlprune_words "$place")"
  fi
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}

complete -o default -F _tlprune tlprune
"""


def bash(flags: Flags, lines: Lines) -> str:
    """A script for bash; what it has no words for is completed as the name of a file."""
    grouped = dict.fromkeys(name.partition(" ")[0] for name in lines if " " in name)
    places = {"": _commands(lines), **{name: _actions(lines, name) for name in grouped}}
    places |= {place: [f"--{flag.name}" for flag in own] for place, own in flags.items()}
    places["completion"] = [*places["completion"], "bash", "zsh", "fish"]
    switches = sorted({f"--{flag.name}" for own in flags.values() for flag in own if flag.switch})
    parts = {
        "@words": "\n".join(_case(place, words) for place, words in places.items()),
        "@values": "\n".join(_case(place, words) for place, words in _values(flags).items()),
        "@grouped": " ".join(grouped),
        "@switches": " | ".join([*switches, "--help"]),
    }
    return reduce(lambda script, part: script.replace(*part), parts.items(), _BASH)


def _commands(lines: Lines) -> list[str]:
    return [*(name for name in lines if " " not in name), "--help", "--version"]


def _actions(lines: Lines, command: str) -> list[str]:
    return [name.removeprefix(f"{command} ") for name in lines if name.startswith(f"{command} ")]


def _values(flags: Flags) -> dict[str, tuple[str, ...]]:
    """Values by command and flag, of all its methods together."""
    found: dict[str, dict[str, None]] = {}
    for place, own in flags.items():
        for flag in own:
            if flag.values:
                command = place.partition(" --method ")[0]
                found.setdefault(f"{command} --{flag.name}", {}).update(dict.fromkeys(flag.values))
    return {place: tuple(values) for place, values in found.items()}


def _case(place: str, words: Sequence[str]) -> str:
    return f'    "{place}") echo "{" ".join(words)}" ;;'


def zsh(flags: Flags, lines: Lines) -> str:
    """A script for zsh, which runs the one of bash."""
    return f"#compdef tlprune\nautoload -U +X bashcompinit && bashcompinit\n{bash(flags, lines)}"


def fish(flags: Flags, lines: Lines) -> str:
    """A script for fish; flags of all methods of a command are offered together."""
    written = ["# Completion of tlprune for fish."]
    for name, says in lines.items():
        command, _, action = name.partition(" ")
        condition = _after(command, without=_actions(lines, command)) if action else "__fish_use_subcommand"
        written.append(f"complete -c tlprune -f -n '{condition}' -a {action or command} -d {_quoted(says)}")
    written.append("complete -c tlprune -f -n '__fish_seen_subcommand_from completion' -a 'bash zsh fish'")
    values = _values(flags)
    offered: dict[str, dict[str, Any]] = {}
    for place, own in flags.items():
        offered.setdefault(place.partition(" --method ")[0], {}).update({flag.name: flag for flag in own})
    for place, own in offered.items():
        for flag in own.values():
            words = values.get(f"{place} --{flag.name}", ())
            takes = "" if flag.switch else f" -x -a {_quoted(' '.join(words))}" if words else " -r"
            written.append(f"complete -c tlprune -n '{_after(*place.split())}' -l {flag.name}{takes}")
    return "\n".join(written) + "\n"


def _after(*words: str, without: Sequence[str] = ()) -> str:
    seen = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in words)
    return f"{seen}; and not __fish_seen_subcommand_from {' '.join(without)}" if without else seen


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SCRIPTS: dict[str, Callable[[Flags, Lines], str]] = {"bash": bash, "zsh": zsh, "fish": fish}

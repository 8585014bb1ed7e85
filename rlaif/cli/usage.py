"""The parser of the command line. It accepts no abbreviations, and answers a mistake with the likely intention."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Collection, Mapping
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that accepts no abbreviated flags; subcommands are of the same class."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **{"allow_abbrev": False, **options})


def refuse(
    parser: argparse.ArgumentParser,
    argv: list[str],
    wrong: list[str],
    command: str | None = None,
    others: Mapping[str, Collection[str]] | None = None,
) -> NoReturn:
    """End with exit code 2 and a hint for each argument that the command does not know.

    Args:
        others: the commands that have a flag, by its name.
    """
    lines = [f"unrecognized arguments: {' '.join(wrong)}"]
    for flag in wrong:
        if not flag.startswith("-"):
            continue
        commands = (others or {}).get(flag)
        hint = f"{flag} is for {', '.join(commands)}" if commands else _hint(parser, argv, flag, command)
        if hint and hint not in lines:
            lines.append(hint)
    parser.error("\n  ".join(lines))


def require_command(parser: argparse.ArgumentParser, commands: Collection[str], argv: list[str]) -> None:
    """End with exit code 2 if the first word is no command, and name the one that was probably meant."""
    word = argv[0] if argv else ""
    if not word:
        parser.error("no command; `rlaif help` lists them")
    if word.startswith("-") and word not in ("-h", "--help", "--version"):
        parser.error(
            f"expected a command, found {word!r}; flags follow the command, and `rlaif help` lists the commands"
        )
    if not word.startswith("-") and word not in commands:
        near = difflib.get_close_matches(word, commands, n=1)
        advice = f"did you mean `rlaif {near[0]}`?" if near else "see `rlaif help`"
        parser.error(f"no command {word!r}; {advice}")


def flags_of(commands: Mapping[str, argparse.ArgumentParser]) -> dict[str, list[str]]:
    """Return the commands that have each flag, without the flags of more than half of the commands."""
    flags: dict[str, list[str]] = {}
    for name, parser in commands.items():
        for flag in _flags(parser):
            flags.setdefault(flag, []).append(name)
    return {flag: names for flag, names in flags.items() if len(names) <= len(commands) // 2}


def _flags(parser: argparse.ArgumentParser) -> list[str]:
    """Return the flags of a parser, in the order of their definition."""
    flags: list[str] = []
    for action in parser._actions:
        flags += action.option_strings
    return flags


def _hint(parser: argparse.ArgumentParser, argv: list[str], flag: str, command: str | None) -> str:
    """Return the flag that was meant, or the option as it is written here: `--iterations 3` is `ppo.iterations=3`."""
    from rlaif.config.nearest import nearest

    name, equals, value = flag.partition("=")
    near = difflib.get_close_matches(name, _flags(parser), n=1, cutoff=0.75)
    if near:
        return f"did you mean {near[0]}?"
    stage = (command or "").partition(" ")[0]
    options = nearest(name.lstrip("-").replace("-", "_"), stage)
    # argparse knows flags only; most settings are options of the configuration.
    if not options:
        return "options are written as key=value (`rlaif options` lists them)"
    if not equals:
        value = _value_after(flag, argv)
    return "options are written as key=value: " + " or ".join(f"{option}={value}" for option in options)


def _value_after(flag: str, argv: list[str]) -> str:
    """Return the word after a flag if it can be the flag's value, else "..."."""
    following = argv[argv.index(flag) + 1 :] if flag in argv else []
    if not following or following[0].startswith("-") or "=" in following[0]:
        return "..."
    return following[0]

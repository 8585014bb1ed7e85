"""The parser of the command line: no abbreviations, and mistakes answered with what was probably meant."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Collection, Mapping
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that takes no abbreviated flags; subcommands are of the same class."""

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
    flags = [word for word in wrong if word.startswith("-")]
    hints = []
    for flag in flags:
        having = (others or {}).get(flag)
        hints.append(f"{flag} is for {', '.join(having)}" if having else _hint(parser, argv, flag, command))
    lines = [f"unrecognized arguments: {' '.join(wrong)}", *dict.fromkeys(hint for hint in hints if hint)]
    parser.error("\n  ".join(lines))


def require_command(parser: argparse.ArgumentParser, commands: Collection[str], argv: list[str]) -> None:
    """End with exit code 2 and the command that was meant if the first word is none."""
    word = argv[0] if argv else ""
    if not word:
        parser.error("no command; `rlaif help` lists them")
    if word.startswith("-") and word not in ("-h", "--help", "--version"):
        parser.error(
            f"expected a command, found {word!r}; flags follow the command, and `rlaif help` lists the commands"
        )
    if not word.startswith("-") and word not in commands:
        near = difflib.get_close_matches(word, commands, n=1)
        parser.error(f"no command {word!r}" + (f"; did you mean `rlaif {near[0]}`?" if near else "; see `rlaif help`"))


def flags_of(commands: Mapping[str, argparse.ArgumentParser]) -> dict[str, list[str]]:
    """Return the commands that have each flag; those that nearly all have are left out."""
    having: dict[str, list[str]] = {}
    for name, parser in commands.items():
        for action in parser._actions:
            for flag in action.option_strings:
                having.setdefault(flag, []).append(name)
    return {flag: names for flag, names in having.items() if len(names) <= len(commands) // 2}


def _hint(parser: argparse.ArgumentParser, argv: list[str], flag: str, command: str | None) -> str:
    """Return the flag that was meant, or the option as it is written here: `--iterations 3` is `ppo.iterations=3`."""
    from rlaif.config.nearest import nearest

    name, equals, value = flag.partition("=")
    known = [text for action in parser._actions for text in action.option_strings]
    if near := difflib.get_close_matches(name, known, n=1, cutoff=0.75):
        return f"did you mean {near[0]}?"
    stage = (command or "").partition(" ")[0]
    options = nearest(name.lstrip("-").replace("-", "_"), stage)
    if not options:
        return "options are written as key=value (`rlaif options` lists them)"
    if not equals:
        after = argv[argv.index(flag) + 1 :] if flag in argv else []
        value = after[0] if after and not after[0].startswith("-") and "=" not in after[0] else "..."
    return "options are written as key=value: " + " or ".join(f"{option}={value}" for option in options)

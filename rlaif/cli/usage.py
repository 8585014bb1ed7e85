"""The parsers of the command line. They accept no abbreviations, and answer a mistake with the likely intention."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NoReturn

OWN = "CONFIG"
"""Word of a group's own command, for `rlaif eval CONFIG` beside `rlaif eval winrate CONFIG`. No help lists it."""

_HELP = ("-h", "--help")


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that accepts no abbreviated flags; subcommands are of the same class."""

    def __init__(self, *args: Any, **options: Any):
        # An abbreviation would change its meaning, or end in an error, when a flag is added.
        super().__init__(*args, **{"allow_abbrev": False, **options})
        self.subcommands: argparse._SubParsersAction | None = None
        """Subcommands of a command that is a group too; its help lists them after its own arguments."""

    def format_usage(self) -> str:
        """Return the usage, with a second line if there are subcommands."""
        usage = super().format_usage()
        return usage if self.subcommands is None else f"{usage}       {self.prog} COMMAND ...\n"

    def format_help(self) -> str:
        """Return the help of the command's own arguments, and the list of its subcommands if there are any."""
        text = super().format_help()
        if self.subcommands is None:
            return text
        text = text.replace(super().format_usage(), self.format_usage(), 1)
        formatter = self._get_formatter()
        formatter.start_section("subcommands")
        formatter.add_arguments(self.subcommands._get_subactions())
        formatter.end_section()
        return f"{text}\n{formatter.format_help()}"


class Commands:
    """All commands of the program. Those of two words are subcommands of a group, which may be a command itself."""

    def __init__(self, root: Parser):
        self.root = root
        self.parsers: dict[str, Parser] = {}
        """Parser of each command by its full name, in the order of `rlaif help`."""
        self._top = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
        self._groups: dict[str, argparse._SubParsersAction] = {}

    def add_group(self, name: str, help: str) -> None:
        """Add a first word that has subcommands, unless it is there."""
        if name not in self._groups:
            parser = self._top.add_parser(name, help=help, description=help)
            self._groups[name] = parser.add_subparsers(dest=name, required=True, metavar="COMMAND")

    def add(self, name: str, help: str, run: Callable[[argparse.Namespace], int | None]) -> Parser:
        """Return the parser of a new command; `run` is called with the parsed arguments."""
        group, _, last = name.rpartition(" ")
        if name in self._groups:
            # A parser without `help` is not listed among the subcommands.
            parser = self._groups[name].add_parser(OWN, description=help, prog=f"rlaif {name}")
            parser.subcommands = self._groups[name]
        elif group:
            parser = self._groups[group].add_parser(last, help=help, description=help)
        else:
            parser = self._top.add_parser(name, help=help, description=help)
        # argparse writes a subparser's defaults over its own, so that `command` is the full name.
        parser.set_defaults(run=run, parser=parser, command=name)
        self.parsers[name] = parser
        return parser

    def complete(self, argv: list[str]) -> list[str]:
        """Return the words in the form that argparse reads. Ends with exit code 2 and a hint if they begin no command.

        `rlaif help eval winrate` becomes `rlaif eval winrate --help`; a group's own command gets its word (`OWN`).
        """
        if argv[:1] == ["help"]:
            argv = [*argv[1:], "--help"]
        self._require_command(argv)
        group = argv[0]
        return self._complete_group(group, argv[1:]) if group in self._groups else argv

    def _complete_group(self, group: str, rest: list[str]) -> list[str]:
        word = rest[0] if rest else ""
        names = self._subcommands(group)
        is_own = group in self.parsers
        if word in names or (word in _HELP and not is_own):
            return [group, *rest]
        near = _near(word, names)
        # A path is the group's own configuration; a bare word that is no file is a mistyped subcommand.
        is_path = not {".", "/", "="}.isdisjoint(word) or Path(word).exists()
        if is_own and (is_path or not near):
            return [group, OWN, *rest]
        if word and not word.startswith("-"):
            self._refuse_command(f"{group} {word}", f"{group} {near}" if near else "", f"rlaif help {group}")
        # argparse says that a subcommand is missing.
        return [group, *rest]

    def _require_command(self, argv: list[str]) -> None:
        word = argv[0] if argv else ""
        if not word:
            self.root.error("no command; `rlaif help` lists them")
        if word in (*_HELP, "--version"):
            return
        if word.startswith("-"):
            self.root.error(
                f"expected a command, found {word!r}; flags follow the command, and `rlaif help` lists the commands"
            )
        names = list(self._top.choices)
        if word not in names:
            self._refuse_command(word, _near(word, names), "rlaif help")

    def _refuse_command(self, typed: str, near: str, help: str) -> NoReturn:
        hint = f"did you mean `rlaif {near}`?" if near else f"see `{help}`"
        self.root.error(f"no command {typed!r}; {hint}")

    def _subcommands(self, group: str) -> list[str]:
        return [name for name in self._groups[group].choices if name != OWN]


def _near(word: str, names: Collection[str]) -> str:
    """Return the name that a mistyped word most likely meant; "" if none is like it."""
    near = difflib.get_close_matches(word, names, n=1)
    return near[0] if near else ""


def refuse(
    parser: argparse.ArgumentParser,
    argv: list[str],
    unknown: list[str],
    command: str,
    others: Mapping[str, Collection[str]],
) -> NoReturn:
    """End with exit code 2 and a hint for each argument that the command does not know.

    Args:
        others: the commands that have a flag, by its name.
    """
    lines = [f"unrecognized arguments: {' '.join(unknown)}"]
    for flag in unknown:
        if not flag.startswith("-"):
            continue
        hint = _flag_hint(parser, argv, flag, command)
        if flag in others:
            hint = f"{flag} is for {', '.join(others[flag])}"
        if hint not in lines:
            lines.append(hint)
    parser.error("\n  ".join(lines))


def flags_of(parsers: Mapping[str, argparse.ArgumentParser]) -> dict[str, list[str]]:
    """Return the commands that have each flag, without the flags of more than half of all commands."""
    commands: dict[str, list[str]] = {}
    for name, parser in parsers.items():
        for action in parser._actions:
            for flag in action.option_strings:
                commands.setdefault(flag, []).append(name)
    return {flag: names for flag, names in commands.items() if len(names) <= len(parsers) // 2}


def _flag_hint(parser: argparse.ArgumentParser, argv: list[str], flag: str, command: str) -> str:
    """Return the flag that was meant, or the option as it is written here: `--iterations 3` is `ppo.iterations=3`."""
    from rlaif.config.nearest import nearest

    name, equals, value = flag.partition("=")
    flags: list[str] = []
    for action in parser._actions:
        flags += action.option_strings
    # Flags are short, so at the default of 0.6 many an option of another tool would look like one.
    if near := difflib.get_close_matches(name, flags, n=1, cutoff=0.75):
        return f"did you mean {near[0]}?"
    section = command.split()[-1]
    options = nearest(name.lstrip("-").replace("-", "_"), section)
    if not options:
        return "options are written as key=value (`rlaif options` lists them)"
    if not equals:
        value = _word_after(argv, flag)
    assignments = [f"{option}={value}" for option in options]
    return f"options are written as key=value: {' or '.join(assignments)}"


def _word_after(argv: list[str], flag: str) -> str:
    """Return the value that was typed after a flag, or dots if what follows is no value."""
    following = argv[argv.index(flag) + 1 :] if flag in argv else []
    if not following or following[0].startswith("-") or "=" in following[0]:
        return "..."
    return following[0]

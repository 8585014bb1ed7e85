"""Write the README's table of commands: `python -m rlaif.cli.docs`."""

from __future__ import annotations

from pathlib import Path

from rlaif.cli.main import build_commands
from rlaif.cli.usage import Parser
from rlaif.stages.table import BENCHMARKS, STAGES

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- commands -->\n", "<!-- /commands -->"


def command_table() -> str:
    """Return a Markdown table of all commands: what to type, and what it does."""
    examples = {stage.name: stage.example for stage in (*STAGES, *BENCHMARKS)}
    lines = ["| command | what it does |", "|---|---|"]
    for name, parser in build_commands().parsers.items():
        words = ["rlaif", name]
        if name in examples:
            words.append(examples[name])
        else:
            words += _arguments(parser)
        lines.append(f"| `{' '.join(words)}` | {parser.description} |")
    return "\n".join(lines) + "\n"


def _arguments(parser: Parser) -> list[str]:
    """Return the positional arguments and the required flags, as a user types them."""
    words = []
    for action in parser._actions:
        value = (action.metavar or action.dest).upper()
        # Any number of words may follow (overrides, the command that help is about), or none.
        if action.nargs == "*":
            continue
        if action.required and action.option_strings:
            words.append(f"{action.option_strings[0]} {value}")
        elif not action.option_strings:
            words.append(f"[{value}]" if action.nargs == "?" else value)
    return words


def with_command_table(text: str) -> str:
    """Return the text of the README with the current table between its marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no table between {BEGIN.strip()} and {END}")
    return f"{before}{begin}\n{command_table()}\n{end}{after}"


if __name__ == "__main__":
    README.write_text(with_command_table(README.read_text()))

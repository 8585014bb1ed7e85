"""The command line: `rlaif COMMAND CONFIG [key=value ...]`."""

from __future__ import annotations

import argparse
import logging
import os
import sys

from rlaif.cli.data import add_data
from rlaif.cli.front import add_front, add_help, version_text
from rlaif.cli.stages import add_stages
from rlaif.cli.usage import Commands, Parser, flags_of, refuse
from rlaif.errors import RlaifError
from rlaif.io.terminal import drop_output, reader_left
from rlaif.io.writable import is_full
from rlaif.isolation import pin_packages, working_directory_last


def main(argv: list[str] | None = None) -> int:
    """Run one command. An error a user can act on is printed without a traceback; the exit code is then 1."""
    args = parse_arguments(sys.argv[1:] if argv is None else argv)
    # The root logger's level is that of our own lines; these libraries log every request or step at it.
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    for noisy in ("httpx", "ray", "transformers", "vllm"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    pin_packages()
    # Functions named in a configuration are often in the working directory.
    working_directory_last()
    try:
        code = args.run(args) or 0
        # It is None after `>&-`.
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        if not reader_left():
            raise
        # Shells report SIGPIPE as 128 + 13.
        code = 141
    except RlaifError as error:
        print(f"\n{type(error).__name__}: {error}", file=sys.stderr)
        code = 1
    except OSError as error:
        if not is_full(error):
            raise
        print(f"\nRlaifError: {no_space(error)}", file=sys.stderr)
        drop_output()
        code = 1
    except KeyboardInterrupt as error:
        print("\ninterrupted", file=sys.stderr)
        code = getattr(error, "exit_code", 130)
    return leave(code)


def no_space(error: OSError) -> RlaifError:
    """Return the error for a disk that is full, which may be the one that standard output is written to."""
    reason = f"{error.strerror}: {error.filename or 'standard output, or a file of this command'}"
    return RlaifError("free disk space", reason, "Free space on that disk, or write to another one.")


def leave(code: int) -> int:
    """Return the exit code, or end here if a cluster has been abandoned: at the exit Ray would wait for its head."""
    session = sys.modules.get("cluster.session")
    if session is not None and session.abandoned:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Return the arguments of a command. Overrides may stand before and after the flags."""
    commands = build_commands()
    argv = commands.complete(argv)
    args, rest = commands.root.parse_known_args(argv)
    # argparse stops collecting overrides at the first flag, so those after it are left over.
    unknown = [word for word in rest if word.startswith("-") or "=" not in word]
    if unknown:
        refuse(args.parser, argv, unknown, args.command, flags_of(commands.parsers))
    if rest and not hasattr(args, "overrides"):
        args.parser.error(f"`rlaif {args.command}` takes no options as key=value, found {rest[0]!r}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    return args


def build_commands() -> Commands:
    """Return the parsers of all commands, in the order in which `rlaif help` lists them."""
    root = Parser(prog="rlaif", description="Align video-language models with AI feedback on Ray.")
    root.add_argument("--version", action="version", version=version_text())
    commands = Commands(root)
    add_front(commands)
    add_data(commands)
    add_stages(commands)
    add_help(commands)
    return commands

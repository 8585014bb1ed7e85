"""The commands of the table of stages: `rlaif STAGE CONFIG [key=value ...]`, and the benchmarks."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlaif.cli.usage import Commands, Parser
from rlaif.config.schema import Config
from rlaif.errors import CheckpointError, ConfigError, DataError, RlaifError
from rlaif.io.rundir import RunDir
from rlaif.io.terminal import phase, say, show_command
from rlaif.io.writable import is_full
from rlaif.stages.table import BENCHMARKS, STAGES, Stage, resolve, stage_named

if TYPE_CHECKING:
    from rlaif.stages.run.run import Start
    from rlaif.stages.run.summary import CommandLine, Summary

_GROUP_HELP = {"bench": "where the time goes"}
"""Help of first words that are no stage themselves."""


def add_stages(commands: Commands) -> None:
    """Add the stages and the benchmarks, in the order of the table."""
    for stage in STAGES:
        parser = _add_stage(commands, stage, STAGES, run_stage)
        add_configuration(parser)
        parser.add_argument(
            "--strict", action="store_true", help="a bad row or video is fatal instead of counted and skipped"
        )
        if stage.resumable:
            _add_start(parser)
    for stage in BENCHMARKS:
        parser = _add_stage(commands, stage, BENCHMARKS, run_bench)
        add_configuration(parser, stage.example)
        parser.add_argument("--json", type=Path, help="file to write the figures to")


def _add_stage(
    commands: Commands, stage: Stage, stages: Sequence[Stage], run: Callable[[argparse.Namespace], int]
) -> Parser:
    """Return the stage's parser. If names of two words begin with the first word of its name, that word is a group."""
    group = stage.name.split()[0]
    subcommands = []
    for other in stages:
        first, _, second = other.name.partition(" ")
        if first == group and second:
            subcommands.append(second)
    if subcommands:
        help = stage.help if stage.name == group else _GROUP_HELP.get(group, group)
        commands.add_group(group, f"{help} (subcommands: {', '.join(subcommands)})")
    return commands.add(stage.name, stage.help, run)


def add_configuration(parser: Parser, example: str = "configs/") -> None:
    """Add the configuration file and the options that replace those of the file."""
    parser.add_argument("config", help=f"YAML file (see {example})")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="options that replace those of the file"
    )


def _add_start(parser: Parser) -> None:
    start = parser.add_mutually_exclusive_group()
    helps = {
        "resume": "continue from the newest complete checkpoint",
        "fresh": "start over, setting existing checkpoints aside",
    }
    for name, help in helps.items():
        start.add_argument(f"--{name}", dest="start", action="store_const", const=name, help=help)


def run_stage(args: argparse.Namespace) -> int:
    """Check the configuration, run the stage, print its summary. Returns the exit code."""
    from rlaif.config.load import load_config
    from rlaif.stages.run.summary import CommandLine

    stage = stage_named(args.command)
    overrides = list(args.overrides)
    if args.strict:
        overrides.append("data.strict=true")
    config = load_config(args.config, overrides, stage.scope)
    # Only resumable stages have the flags.
    start = getattr(args, "start", None) or "new"

    def work() -> None:
        check_files(stage, config, args.config, start)
        start_stage(stage, config, CommandLine(args.config, overrides), start)

    return run_to_its_end(stage, config, work)


def run_bench(args: argparse.Namespace) -> int:
    """Run a benchmark. Returns the exit code."""
    from rlaif.config.load import load_config

    bench = stage_named(args.command)
    config = load_config(args.config, args.overrides, bench.scope)
    return run_to_its_end(bench, config, lambda: resolve(bench.run)(config, args.json))


def check_files(stage: Stage, config: Config, source: str, start: Start) -> None:
    """Raise ConfigError for every file and option that would stop the stage, before Ray starts."""
    with phase("checking files and options"):
        from rlaif.stages.preflight.examine import require
        from rlaif.stages.run.run import check_start

        if stage.resumable:
            check_start(config, stage.name, start)
        require(config, stage, source)


def start_stage(stage: Stage, config: Config, command_line: CommandLine, start: Start) -> None:
    """Open the run, call the stage's function, and print its summary after the actors have stopped."""
    # torch, Ray and vLLM take seconds to import: the phase says what the user is waiting for.
    with phase("loading libraries"):
        from rlaif.stages.run.run import open_run
        from rlaif.stages.run.summary import duration

        function = resolve(stage.run)
    options = {"start": start} if stage.resumable else {}
    began = time.monotonic()
    with open_run(config) as run:
        result = function(config, run, **options)
    seconds = time.monotonic() - began
    summary = summarise(stage, config, result)
    say(summary.text(f"rlaif {stage.name} finished in {duration(seconds)}", command_line))


def summarise(stage: Stage, config: Config, result: Any) -> Summary:
    """Return the summary of a finished stage, whose function returned `result`."""
    directory = RunDir(config.storage, config.name)
    summary = resolve(stage.summarise)(config, directory, result)
    log = directory.path / "logs" / f"{stage.name.replace(' ', '-')}.log"
    for name, path in {"metrics": directory.metrics, "log": log}.items():
        if path.exists():
            summary.places[name] = path
    return summary


def run_to_its_end(stage: Stage, config: Config, work: Callable[[], None]) -> int:
    """Do the work of a command; if something ends it early, say how to go on. Returns the exit code."""
    from rlaif.stages.run.stopping import Stopper

    # A signal before the run is open ends the command at once: there is nothing to save.
    try:
        with Stopper(0).installed(), on_screen(stage, config):
            work()
    except (CheckpointError, ConfigError, DataError):
        # Their fix says what to change, so `main` prints them as they are.
        raise
    except RlaifError as error:
        print(f"\n{type(error).__name__}: {error}\n\n{how_to_go_on(stage, config)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print(f"\ninterrupted; {how_to_go_on(stage, config)}", file=sys.stderr)
        return getattr(error, "exit_code", 130)
    except Exception as error:
        reason = _reason(error, config)
        if reason is None:
            raise
        print(f"\n{reason}\n\n{how_to_go_on(stage, config)}", file=sys.stderr)
        return 1
    return 0


def on_screen(stage: Stage, config: Config) -> AbstractContextManager:
    """Return the context in which a command runs: its own lines on the terminal, the rest in a log file."""
    return show_command(stage.name, RunDir(config.storage, config.name).path, config.logging.foreign == "terminal")


def _reason(error: Exception, config: Config) -> str | None:
    """Return what a full disk or a failed actor means for the user; None for errors that need their traceback."""
    import ray

    from rlaif.io.storage import storage_fix

    if isinstance(error, OSError) and is_full(error):
        return f"{error}: {storage_fix(error, error.filename or config.storage)}"
    if isinstance(error, (ray.exceptions.RayActorError, ray.exceptions.RayTaskError)):
        return f"{error}\n\nan actor failed"
    return None


def how_to_go_on(stage: Stage, config: Config) -> str:
    """Return what to type after a stage that ended early."""
    from rlaif.stages.run.run import advice

    # Stages without checkpoints keep what their files hold, or start over.
    return advice(config, stage.name) if stage.resumable else "the same command starts again"

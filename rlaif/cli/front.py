"""The commands that start nothing: help, version, `rlaif init`, `rlaif check`, `rlaif options`, `rlaif doctor`."""

from __future__ import annotations

import argparse
import logging
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from rlaif.cli.stages import add_configuration
from rlaif.cli.usage import Commands
from rlaif.errors import ConfigError
from rlaif.stages.table import STAGES

if TYPE_CHECKING:
    from rlaif.stages.preflight.examine import Findings


def add_front(commands: Commands) -> None:
    """Add the commands that come before the stages."""
    init = commands.add("init", "write a configuration for your own videos", run_init)
    init.add_argument("folder", type=Path, metavar="DIR", help="folder of your videos and rows; becomes data.root")
    init.add_argument("--gpu", action="store_true", help="for one GPU instead of the CPU")
    init.add_argument("--model", metavar="MODEL", help="model to start from: a Hugging Face directory or hub name")
    init.add_argument("--force", action="store_true", help="replace an existing configuration")
    check = commands.add("check", "problems with files and options, all at once, without starting anything", run_check)
    add_configuration(check)
    check.add_argument(
        "--stage",
        choices=sorted(stage.name for stage in STAGES),
        metavar="STAGE",
        help="command to check for, such as ppo or 'eval winrate'; default: all from the files to an evaluated policy",
    )
    options = commands.add("options", "all options, or those of a section: type, default, meaning", run_options)
    options.add_argument("section", nargs="?", default="", help="section or option: ppo, ppo.optim, ppo.optim.lr")
    commands.add("doctor", "what is usable on this machine, and what to do about each problem", _run_doctor)


def add_help(commands: Commands) -> None:
    """Add `rlaif help`, for the list of commands; `Commands.complete` turns it into `--help`."""
    parser = commands.add("help", "what a command does and takes", lambda args: None)
    parser.add_argument("command_words", nargs="*", metavar="COMMAND")


def version_text() -> str:
    """Return the name and version of what is installed, or of the checkout."""
    try:
        return f"rlaif {metadata.version('rlaif')}"
    except metadata.PackageNotFoundError:
        import tomllib

        project = Path(__file__).parents[2] / "pyproject.toml"
        return f"rlaif {tomllib.loads(project.read_text())['project']['version']}"


def run_init(args: argparse.Namespace) -> None:
    """Write a configuration for a folder of videos, and print what to type next."""
    from rlaif.config.starter import next_steps, write_config
    from rlaif.stages.run.summary import program

    positions = _positions(args.model) if args.model else None
    model = str(Path(args.model).expanduser().absolute()) if args.model and Path(args.model).exists() else args.model
    # A mistyped folder is made too, so the first line says that it is new.
    is_new = not args.folder.exists()
    target, files = write_config(args.folder, args.gpu, model, positions, args.force)
    print(f"wrote {target}{' in a new folder' if is_new else ''}\n")
    print(next_steps(target.parent, files, program()))


def _positions(model: str) -> int | None:
    """Return how many positions a local model has; hub names are not looked up."""
    if not (Path(model).expanduser() / "config.json").is_file():
        return None
    from rlaif.models.model_dir import ModelDir
    from rlaif.models.positions import model_positions

    return model_positions(ModelDir(str(Path(model).expanduser())))


def run_options(args: argparse.Namespace) -> None:
    """Print the options of a section. Raises ConfigError with the nearest names if there is no such section."""
    from rlaif.config.nearest import nearest
    from rlaif.config.options import listing

    text = listing(args.section)
    if text is None:
        near = nearest(args.section)
        fix = "Run `rlaif options`, which lists all."
        if near:
            fix = f"Type {' or '.join(near)}; `rlaif options` lists all."
        raise ConfigError("the name of an option or a section", repr(args.section), fix)
    print(text)


def run_check(args: argparse.Namespace) -> int:
    """Print the configuration and its problems. Returns exit code 1 if there are any."""
    before = logging.root.manager.disable
    # Libraries log while they are imported; that says nothing about the configuration.
    logging.disable(logging.WARNING)
    try:
        from rlaif.stages.preflight.examine import examine_all

        findings = examine_all(args.config, args.overrides, args.stage)
    finally:
        logging.disable(before)
    _print_findings(findings, args)
    return 1 if findings.problems else 0


def _run_doctor(args: argparse.Namespace) -> int:
    """Print what is usable on this machine. Returns the exit code."""
    from rlaif.doctor import run_doctor

    return run_doctor()


def _print_findings(findings: Findings, args: argparse.Namespace) -> None:
    from rlaif.config.load import bullets
    from rlaif.config.shown import shown_config
    from rlaif.stages.run.summary import CommandLine

    # The configuration is long, so it comes first: the problems must be in sight when the command ends.
    if findings.config is not None:
        print(f"# the configuration with all its defaults\n{shown_config(findings.config)}")
    names = [stage.name for stage in findings.stages]
    print(f"{args.config}: checked for {' -> '.join(names) or 'options only'}")
    for note in findings.notes:
        print(f"  note: {note}")
    print(bullets(findings.problems) if findings.problems else "no problems found")
    # The next stage is looked up in the storage, which may be the problem.
    stage = None if findings.problems else findings.next_stage()
    if stage is not None:
        print(f"next:  {CommandLine(args.config, args.overrides).command(stage.name)}")

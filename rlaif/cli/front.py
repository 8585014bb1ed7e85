"""The commands that start nothing: help, version, `rlaif init`, `rlaif options`, `rlaif check`."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Collection
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from rlaif.errors import ConfigError

if TYPE_CHECKING:
    from rlaif.stages.preflight import Findings


def add(commands: argparse._SubParsersAction, stages: Collection[str]) -> None:
    """Add the commands to the parser."""
    init = commands.add_parser("init", help="write a configuration for your own videos")
    init.add_argument("folder", type=Path, metavar="DIR", help="folder of your videos and rows; becomes data.root")
    init.add_argument("--gpu", action="store_true", help="for one GPU instead of the CPU")
    init.add_argument("--model", metavar="MODEL", help="model to start from: a Hugging Face directory or hub name")
    init.add_argument("--force", action="store_true", help="replace a configuration that is there")
    init.set_defaults(run=run_init, parser=init)
    options = commands.add_parser("options", help="all options, or those of a section: type, default, meaning")
    options.add_argument("section", nargs="?", default="", help="such as ppo, ppo.optim or ppo.optim.lr")
    options.set_defaults(run=run_options, parser=options)
    check = commands.add_parser("check", help="everything that keeps a configuration from running, without running it")
    check.add_argument("config", help="YAML file (see configs/)")
    check.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="options that replace those of the file"
    )
    check.add_argument(
        "--stage",
        choices=sorted(stages),
        metavar="STAGE",
        help="the command to check for, such as ppo; default: the whole way from the files to an evaluated policy",
    )
    check.set_defaults(run=run_check_config, parser=check)
    commands.add_parser("help", help="what a command does and takes").add_argument("about", nargs="*")


def version() -> str:
    """Return the name and version of what is installed, or of the checkout."""
    try:
        return f"rlaif {metadata.version('rlaif')}"
    except metadata.PackageNotFoundError:
        import tomllib

        project = Path(__file__).parents[2] / "pyproject.toml"
        return f"rlaif {tomllib.loads(project.read_text())['project']['version']}"


def run_init(args: argparse.Namespace) -> None:
    from rlaif.config.starter import next_steps, write_config
    from rlaif.stages.run.summary import program

    positions = _positions(args.model) if args.model else None
    model = str(Path(args.model).expanduser().absolute()) if args.model and Path(args.model).exists() else args.model
    target, found = write_config(args.folder, args.gpu, model, positions, args.force)
    print(f"wrote {target}\n")
    print(next_steps(target.parent, found, program()))


def _positions(model: str) -> int | None:
    """Return how many positions a local model has; hub names are not looked up."""
    if not (Path(model).expanduser() / "config.json").is_file():
        return None
    from rlaif.models.model_dir import ModelDir
    from rlaif.models.positions import model_positions

    return model_positions(ModelDir(str(Path(model).expanduser())))


def run_options(args: argparse.Namespace) -> None:
    from rlaif.config.nearest import nearest
    from rlaif.config.options import listing

    text = listing(args.section)
    if text is None:
        near = nearest(args.section)
        raise ConfigError(
            "the name of an option or a section",
            repr(args.section),
            f"Type {' or '.join(near)}; `rlaif options` lists all" if near else "Run `rlaif options`, which lists all",
        )
    print(text)


def run_check_config(args: argparse.Namespace) -> int:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # libraries log what they find while they are imported, which is no finding here
    try:
        from rlaif.stages.preflight import examine_all

        findings = examine_all(args.config, args.overrides, args.stage)
    finally:
        logging.disable(before)
    _print_findings(findings, args)
    return 1 if findings.problems else 0


def _print_findings(findings: Findings, args: argparse.Namespace) -> None:
    from rlaif.config.load import bullets
    from rlaif.config.shown import shown_config
    from rlaif.stages.run.summary import Typed

    # The configuration is long, so it comes first: what was found must be in sight when the command ends.
    if findings.config is not None:
        print(f"# the configuration with all its defaults\n{shown_config(findings.config)}")
    print(f"{args.config}: checked for {' -> '.join(findings.stages) or 'options only'}")
    for note in findings.notes:
        print(f"  note: {note}")
    print(bullets(findings.problems) if findings.problems else "no problems found")
    if not findings.problems and (stage := findings.next_stage()):
        print(f"next:  {Typed(args.config, args.overrides).command(stage)}")

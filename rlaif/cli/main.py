"""The command line: `rlaif COMMAND CONFIG [key=value ...]`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from rlaif.cli import front
from rlaif.cli.usage import Parser, flags_of, refuse, require_command
from rlaif.config.schema import Config
from rlaif.errors import CheckpointError, ConfigError, DataError, RlaifError
from rlaif.io.rundir import RunDir
from rlaif.io.terminal import drop_output, phase, reader_left, say, show_command
from rlaif.io.writable import is_full
from rlaif.isolation import pin_packages, working_directory_last

STAGES = {
    "sft": "supervised fine-tuning",
    "caption": "dense captions of every video",
    "sample": "answers to be judged, of one model or several",
    "label": "AI feedback on them: which answer is better, which claims are wrong",
    "pairs": "preference pairs out of the labels",
    "reward": "train a reward model on preference pairs",
    "score": "what reward models say of every answer in a preference file",
    "ppo": "align the policy with the reward model",
    "eval": "evaluate the start and the export of a PPO run",
    "eval context": "does context help? judge and reward model with captions, without, and with another video's",
    "eval agreement": "how often a reward model or a judge prefers what a file of preferences prefers",
    "eval winrate": "models against each other on the answers that `rlaif sample` made",
    "demo": "the whole chain on a world of moving shapes",
}
RESUMED = ("sft", "reward", "ppo")
"""Stages with checkpoints; the others go on by what their files hold, or start over."""


def main(argv: list[str] | None = None) -> int:
    """Run one command. An error a user can act on is printed without a traceback; the exit code is then 1."""
    args = parse(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    for noisy in ("httpx", "ray", "transformers", "vllm"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    pin_packages()
    working_directory_last()  # functions named in a configuration are often there
    try:
        code = args.run(args) or 0
        if sys.stdout is not None:  # it is closed: `>&-`
            sys.stdout.flush()
    except BrokenPipeError:
        if not reader_left():
            raise
        code = 141  # what a shell reports for SIGPIPE
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
    found = f"{error.strerror}: {error.filename or 'standard output, or a file of this command'}"
    return RlaifError("free disk space", found, "Free space on that disk, or write to another one")


def leave(code: int) -> int:
    """Return the exit code, or end here if a cluster has been abandoned: at the exit Ray would wait for its head."""
    session = sys.modules.get("cluster.session")
    if session is not None and session.abandoned:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def parse(argv: list[str]) -> argparse.Namespace:
    """Overrides may stand before and after the flags."""
    parser = build_parser()
    if argv[:1] == ["help"]:  # `rlaif help eval winrate` is `rlaif eval winrate --help`
        argv = [*argv[1:], "--help"]
    if " ".join(argv[:2]) in STAGES:  # a command of two words
        argv = [" ".join(argv[:2]), *argv[2:]]
    require_command(parser, parser.get_default("commands"), argv)
    args, rest = parser.parse_known_args(argv)
    if wrong := [word for word in rest if word.startswith("-") or "=" not in word]:
        refuse(getattr(args, "parser", parser), argv, wrong, args.command, flags_of(parser.get_default("parsers")))
    if rest and not hasattr(args, "overrides"):
        getattr(args, "parser", parser).error(
            f"`rlaif {args.command}` takes no options as key=value, found {rest[0]!r}"
        )
    if rest:
        args.overrides = [*args.overrides, *rest]
    return args


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="rlaif", description="Align video-language models with AI feedback on Ray.")
    parser.add_argument("--version", action="version", version=front.version())
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    front.add(commands, STAGES)
    for name, text in STAGES.items():
        stage = commands.add_parser(name, help=text, description=text)
        stage.add_argument("config", help="YAML file (see configs/)")
        stage.add_argument(
            "overrides", nargs="*", default=[], metavar="key=value", help="options that replace those of the file"
        )
        stage.add_argument(
            "--strict", action="store_true", help="a bad row or video is fatal instead of counted and skipped"
        )
        if name in RESUMED:
            begin = stage.add_mutually_exclusive_group()
            begin.add_argument(
                "--resume",
                dest="start",
                action="store_const",
                const="resume",
                help="continue from the newest complete checkpoint",
            )
            begin.add_argument(
                "--fresh",
                dest="start",
                action="store_const",
                const="fresh",
                help="start over, setting existing checkpoints aside",
            )
        stage.set_defaults(run=run_stage, parser=stage)
    _add_data(commands)
    _add_bench(commands)
    doctor = commands.add_parser("doctor", help="what is usable on this machine, and what to do about each problem")
    doctor.set_defaults(run=run_doctor)
    parser.set_defaults(commands=tuple(commands.choices), parsers=dict(commands.choices))
    return parser


def _add_data(commands: argparse._SubParsersAction) -> None:
    data = commands.add_parser("data", help="make, check and convert datasets")
    kinds = data.add_subparsers(dest="data", required=True)
    shapes = kinds.add_parser("shapes", help="videos of moving shapes, with conversations, prompts and ground truth")
    shapes.add_argument("--out", type=Path, required=True, help="folder to write to")
    shapes.add_argument("--train", type=_count, default=2000, help="scenes for supervised fine-tuning")
    shapes.add_argument("--prompts", type=_count, default=512, help="scenes for PPO prompts")
    shapes.add_argument("--test", type=_count, default=256, help="held-out scenes")
    shapes.add_argument("--seed", type=int, default=0)
    shapes.set_defaults(run=run_data)
    _add_check(kinds)
    _add_convert(kinds)


def _add_check(kinds: argparse._SubParsersAction) -> None:
    check = kinds.add_parser(
        "check", help="what is in a file of preferences, prompts or conversations, and what is wrong"
    )
    check.add_argument("file", type=Path, help=".jsonl, .json (one list), both also .gz, or .parquet")
    check.add_argument("--format", default="auto", metavar="NAME", help="of the rows; auto: as most of them look")
    check.add_argument("--root", type=Path, help="what its paths are relative to; default: its folder")
    check.add_argument("--no-videos", dest="videos", action="store_false", help="don't open the videos")
    check.add_argument(
        "--config", type=Path, help="a run's configuration: its data.root, and the frames that it needs of every video"
    )
    check.add_argument(
        "--decode", action="store_true", help="decode every frame that would be used, not only the structure of a file"
    )
    check.set_defaults(run=run_check)


def _add_convert(kinds: argparse._SubParsersAction) -> None:
    convert = kinds.add_parser("convert", help="from one format of preferences, prompts or conversations to another")
    convert.add_argument("source", type=Path, metavar="IN", help="a file, or SafeSora's folder")
    convert.add_argument("target", type=Path, metavar="OUT", help="its ending says what is written, as that of IN does")
    convert.add_argument("--from", dest="source_format", default="auto", metavar="NAME", help="format of IN")
    convert.add_argument("--to", dest="target_format", required=True, metavar="NAME", help="format of OUT")
    convert.add_argument(
        "--media",
        type=Path,
        metavar="DIR",
        help="where images that IN holds as bytes, and links to listed frames, are kept",
    )
    convert.add_argument(
        "--root",
        type=Path,
        help="what paths are relative to; default: the folder of IN, of OUT if only that has our own rows",
    )
    convert.add_argument("--video-dir", metavar="DIR", help="the folder of SafeSora's videos, as rows shall name it")
    convert.add_argument("--dimension", metavar="NAME", help="the comparison that says which answer is chosen")
    convert.add_argument(
        "--allow-cut", action="store_true", help="write the rows before the place where IN is cut or damaged"
    )
    convert.set_defaults(run=run_convert)


def _add_bench(commands: argparse._SubParsersAction) -> None:
    kinds = commands.add_parser("bench", help="where the time goes").add_subparsers(dest="bench", required=True)
    for kind, file, text in (
        ("ppo", "bench.yaml", "a PPO iteration, and the same in a single process"),
        ("label", "bench_label.yaml", "answers judged per second, and the same with transformers"),
    ):
        bench = kinds.add_parser(kind, help=text)
        bench.add_argument("config", help=f"YAML file (see configs/{file})")
        bench.add_argument(
            "overrides", nargs="*", default=[], metavar="key=value", help="options that replace those of the file"
        )
        bench.add_argument("--json", type=Path, help="file to write the figures to")
        bench.set_defaults(run=run_bench)


def run_bench(args: argparse.Namespace) -> int:
    from rlaif.config.load import load_config

    config = load_config(args.config, args.overrides, args.bench)

    def measure() -> None:
        from rlaif.stages.recipes import bench_label, bench_ppo

        {"ppo": bench_ppo, "label": bench_label}[args.bench].bench(config, args.json)

    return run_to_its_end(f"bench {args.bench}", config, measure)


def run_stage(args: argparse.Namespace) -> int:
    from rlaif.config.load import checked_stage, load_config

    overrides = [*args.overrides, "data.strict=true"] if args.strict else args.overrides
    config = load_config(args.config, overrides, checked_stage(args.command))

    def stage() -> None:
        check_files(args, config)
        start_stage(args, config)

    return run_to_its_end(args.command, config, stage)


def on_screen(command: str, config: Config) -> AbstractContextManager:
    """Return the context in which a command runs: its own lines on the terminal, the rest in a log file."""
    return show_command(command, RunDir(config.storage, config.name).path, config.logging.foreign == "terminal")


def check_files(args: argparse.Namespace, config: Config) -> None:
    """Raise ConfigError for every file and option that would stop the stage, before Ray starts."""
    with phase("checking files and options"):
        from rlaif.stages import preflight
        from rlaif.stages.run.run import check_start

        if args.command in RESUMED:
            check_start(config, args.command, args.start or "new")
        preflight.require(config, args.command, args.config)


def run_to_its_end(command: str, config: Config, work: Callable[[], None]) -> int:
    """Run what a command is for; whatever ends it early, say how to go on. Returns the exit code."""
    from rlaif.stages.run.stopping import Stopper

    try:
        with Stopper(0).installed(), on_screen(command, config):
            work()
    except (CheckpointError, ConfigError, DataError):
        raise  # they say what to change
    except RlaifError as error:
        print(f"\n{type(error).__name__}: {error}\n\n{how_to_go_on(command, config)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print(f"\ninterrupted; {how_to_go_on(command, config)}", file=sys.stderr)
        return getattr(error, "exit_code", 130)
    except Exception as error:
        reason = _reason(error, config)
        if reason is None:
            raise
        print(f"\n{reason}\n\n{how_to_go_on(command, config)}", file=sys.stderr)
        return 1
    return 0


def _reason(error: Exception, config: Config) -> str | None:
    """Return what a full disk or a failed actor means for the user; None for errors that need their traceback."""
    import ray

    from rlaif.io.storage import storage_fix

    if isinstance(error, OSError) and is_full(error):
        return f"{error}: {storage_fix(error, error.filename or config.storage)}"
    if isinstance(error, (ray.exceptions.RayActorError, ray.exceptions.RayTaskError)):
        return f"{error}\n\nan actor failed"
    return None


def how_to_go_on(command: str, config: Config) -> str:
    """Return what to type after a stage that ended early."""
    from rlaif.stages.run.run import advice

    return advice(config, command) if command in RESUMED else "the same command starts again"


def start_stage(args: argparse.Namespace, config: Config) -> None:
    with phase("loading libraries"):
        from rlaif.stages import summaries
        from rlaif.stages.compare import agreement, winrate
        from rlaif.stages.feedback import caption, label, pairs, sample, score
        from rlaif.stages.recipes import context_study, demo
        from rlaif.stages.run import summary
        from rlaif.stages.run.run import open_run
        from rlaif.stages.train import evaluate, ppo, reward, sft

    typed = summary.Typed(args.config, [*args.overrides, *(["data.strict=true"] if args.strict else [])])
    if args.command == "demo":
        return demo.demo(config, typed)
    trained = {"sft": sft.train, "reward": reward.train, "ppo": ppo.train}
    begin = getattr(args, "start", None) or "new"  # only stages with checkpoints have the option
    stages = {name: partial(train, start=begin) for name, train in trained.items()}
    stages |= {"caption": caption.caption, "sample": sample.sample, "label": label.label, "pairs": pairs.pairs}
    stages |= {"score": score.score, "eval": evaluate.evaluate, "eval context": context_study.context}
    stages |= {"eval agreement": agreement.agreement, "eval winrate": winrate.winrate}
    began = time.monotonic()
    with open_run(config) as run:
        result = stages[args.command](config, run)
    found = summaries.summarise(args.command, config, typed, result)
    say(found.text(f"rlaif {args.command} finished in {summary.duration(time.monotonic() - began)}"))


def _count(text: str) -> int:
    """Return a number of scenes. Raises argparse.ArgumentTypeError, which becomes a usage error."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 0, found {text!r}")
    return int(text)


def run_data(args: argparse.Namespace) -> None:
    from rlaif.worlds.shapes.dataset import write_dataset

    sizes = {"train": args.train, "prompt": args.prompts, "test": args.test}
    try:
        counts = write_dataset(args.out, sizes, args.seed)
    except OSError as error:
        found, change = f"{args.out}: {error.strerror or error}", "Give a folder that you may write to as --out"
        raise DataError("a folder that takes the dataset", found, change) from error
    print(f"{args.out}: " + ", ".join(f"{count} rows in {name}.jsonl" for name, count in counts.items()))


def run_check(args: argparse.Namespace) -> int:
    from rlaif.data.check import check

    root, frames = args.root, {}
    if args.config is not None:
        from rlaif.data.frame_rule import frame_rule

        config_root, frames = frame_rule(args.config, args.decode)
        root = root or config_root
    elif args.decode:
        from rlaif.data.decoding import decoder

        frames = {"open_video": decoder()}
    checkup = check(args.file, args.format, root, args.videos, **frames)
    print(checkup.text())
    return 0 if checkup.fine else 1


def run_convert(args: argparse.Namespace) -> None:
    from rlaif.data.convert import convert

    conversion = convert(
        args.source,
        args.target,
        args.source_format,
        args.target_format,
        root=args.root,
        media=args.media,
        video_dir=args.video_dir,
        dimension=args.dimension,
        allow_cut=args.allow_cut,
    )
    print(f"{conversion.text()}\n{args.target}: {conversion.report.kept} rows written")


def run_doctor(args: argparse.Namespace) -> int:
    from rlaif.doctor import run_doctor as doctor

    return doctor()

"""`rlaif data`: make, check and convert datasets."""

from __future__ import annotations

import argparse
from pathlib import Path

from rlaif.cli.usage import Commands
from rlaif.errors import DataError


def add_data(commands: Commands) -> None:
    """Add the commands to the parser."""
    commands.add_group("data", "make, check and convert datasets")
    _add_shapes(commands)
    _add_check(commands)
    _add_convert(commands)


def _add_shapes(commands: Commands) -> None:
    shapes = commands.add(
        "data shapes", "videos of moving shapes, with conversations, prompts and ground truth", run_data_shapes
    )
    shapes.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    shapes.add_argument("--train", type=_count, default=2000, help="scenes for supervised fine-tuning")
    shapes.add_argument("--prompts", type=_count, default=512, help="scenes for PPO prompts")
    shapes.add_argument("--test", type=_count, default=256, help="held-out scenes")
    shapes.add_argument("--seed", type=int, default=0, help="seed of the scenes")


def _add_check(commands: Commands) -> None:
    check = commands.add(
        "data check",
        "what is in a file of preferences, prompts or conversations, of this or another system, and what is wrong",
        run_data_check,
    )
    check.add_argument("file", type=Path, help=".jsonl, .json (one list), both also .gz, or .parquet")
    check.add_argument("--format", default="auto", metavar="NAME", help="format of the rows; auto: that of most rows")
    check.add_argument("--root", type=Path, help="folder that its paths are relative to; default: its own folder")
    check.add_argument("--no-videos", dest="videos", action="store_false", help="don't open the videos")
    check.add_argument(
        "--config", type=Path, help="configuration of a run: its data.root, and the frames that it needs of every video"
    )
    check.add_argument(
        "--decode", action="store_true", help="decode every frame that would be used, not only the structure of a file"
    )


def _add_convert(commands: Commands) -> None:
    convert = commands.add(
        "data convert", "from one format of preferences, prompts or conversations to another", run_data_convert
    )
    convert.add_argument("source", type=Path, metavar="IN", help="a file, or SafeSora's folder")
    convert.add_argument("target", type=Path, metavar="OUT", help="file to write; its ending says which kind")
    convert.add_argument("--from", dest="source_format", default="auto", metavar="FORMAT", help="format of IN")
    convert.add_argument("--to", dest="target_format", required=True, metavar="FORMAT", help="format of OUT")
    convert.add_argument(
        "--media",
        type=Path,
        metavar="DIR",
        help="folder for images that IN holds as bytes, and for links to listed frames",
    )
    convert.add_argument(
        "--root",
        type=Path,
        help="folder that paths are relative to; default: that of IN, or of OUT if only OUT has our own rows",
    )
    convert.add_argument("--video-dir", metavar="DIR", help="folder of SafeSora's videos, as the rows should name it")
    convert.add_argument("--dimension", metavar="NAME", help="the comparison that says which answer is chosen")
    convert.add_argument(
        "--allow-cut", action="store_true", help="write the rows before the place at which IN is cut or damaged"
    )


def _count(text: str) -> int:
    """Return a number of scenes. Raises argparse.ArgumentTypeError, which becomes a usage error."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 0, found {text!r}")
    return int(text)


def run_data_shapes(args: argparse.Namespace) -> None:
    """Write the world of moving shapes."""
    from rlaif.worlds.shapes.dataset import write_dataset

    sizes = {"train": args.train, "prompt": args.prompts, "test": args.test}
    try:
        counts = write_dataset(args.out, sizes, args.seed)
    except OSError as error:
        raise DataError(
            "a folder that takes the dataset",
            f"{args.out}: {error.strerror or error}",
            "Give a folder that you may write to as --out.",
        ) from error
    rows = [f"{count} rows in {name}.jsonl" for name, count in counts.items()]
    print(f"{args.out}: {', '.join(rows)}")


def run_data_check(args: argparse.Namespace) -> int:
    """Print what is in a file. Returns exit code 1 if something is wrong with it."""
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


def run_data_convert(args: argparse.Namespace) -> None:
    """Write the rows of a file in another format."""
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

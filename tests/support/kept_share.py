"""How many single-field mutations of rows are kept, by format. `python tests/support/kept_share.py` records it anew."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mutations import single_mutations
from preference_rows import EXAMPLES

from rlaif.data.formats.base import Options
from rlaif.data.formats.table import FORMATS
from rlaif.data.media import Media
from rlaif.data.rows import Row, RowFailure

RECORDED = Path(__file__).parents[1] / "rlaif/data/kept_share.json"
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What rolls?"},
    {"role": "assistant", "content": "An orange."},
]
ROWS: dict[str, list[dict]] = {name: rows[:2] for name, rows in EXAMPLES.items()} | {
    "prompts": [{"prompt_id": "p", "video": "v.mp4", "question": "What rolls?", "answer": "An orange.", "kind": "qa"}],
    "sft": [{"id": "s", "video": "v.mp4", "messages": TURNS}, {"id": "t", "messages": TURNS[1:], "captions": ["x"]}],
}


def read_one(name: str, row: dict, folder: Path) -> object:
    """Return the record of one row read as the format `name`, or its `RowFailure`."""
    (record,) = FORMATS[name].read([Row(1, row)], Options(Media(folder, folder / "media")))
    return record


def mutations(name: str) -> Iterator[tuple[str, dict]]:
    for number, row in enumerate(ROWS[name]):
        for change, other in single_mutations(row):
            yield f"{number} {change}", other


def share(name: str, folder: Path) -> dict[str, int]:
    """Return how many mutations of a format's rows there are, and how many of them are kept."""
    records = [read_one(name, row, folder) for _, row in mutations(name)]
    return {"mutations": len(records), "kept": sum(not isinstance(record, RowFailure) for record in records)}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        shares = {name: share(name, Path(place)) for name in ROWS}
    RECORDED.write_text(json.dumps(shares, indent=1) + "\n")

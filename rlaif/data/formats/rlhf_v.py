"""RLHF-V's and RLAIF-V's parquet columns: an image as bytes, a question and two answers.

RLHF-V holds question and answers as JSON in the column `text`, with `logps` once reference log-probs were computed;
RLAIF-V has a column for each.
"""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pyarrow as pa

from rlaif.data import strict_json
from rlaif.data.formats.base import Fields, Format, Options
from rlaif.data.formats.identity import identity, whole_id
from rlaif.data.formats.roundtrip import SPELLED
from rlaif.data.formats.visual import check_placeholders, without_placeholders
from rlaif.data.formats.vlm_rlaif import build_pair, check_texts
from rlaif.data.preference import SIDES, PreferencePair
from rlaif.data.rows import RowError, excerpt
from rlaif.data.texts import check_used

TEXTS = ("question", *SIDES)
ORDER = {"text": (*TEXTS, "logps"), "origin_split": ("model", "type"), "logps": ()}
"""Columns of JSON text, and the order of their keys."""
LOGPS = ("sum", "mean", "tokens")
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


# -- other files, and JSON inside texts


def _prepare(json_columns: tuple[str, ...], fields: Fields, options: Options) -> Fields:
    """Images go to the media folder, JSON columns are opened."""
    row = dict(fields)
    image = row.get("image")
    if isinstance(image, dict) and image.get("bytes") is not None:
        if not isinstance(image["bytes"], bytes):
            raise RowError("wrong type", f"image.bytes: a {type(image['bytes']).__name__}")
        row["image"] = image | {"bytes": options.media.put(image["bytes"])}
    for name in json_columns:
        if isinstance(row.get(name), str):
            opened = _open(row[name])
            if opened is not None:
                if _dump(name, opened) != row[name]:
                    row[SPELLED + name] = row[name]
                row[name] = opened
    return row


def _finish(json_columns: tuple[str, ...], fields: Fields, options: Options) -> Fields:
    row = dict(fields)
    for name in json_columns:
        spelled = row.pop(SPELLED + name, None)
        if isinstance(row.get(name), dict | list):
            text = _dump(name, row[name])
            row[name] = spelled if spelled is not None and _dump(name, _open(spelled)) == text else text
    image = row.get("image")
    if isinstance(image, dict) and isinstance(image.get("bytes"), str):
        row["image"] = image | {"bytes": options.media.get(image["bytes"])}
    return row


def _open(text: str) -> Any:
    """Return the object or list that a text is the JSON of, else None."""
    try:
        value = strict_json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict | list) else None


def _problem(text: str) -> str:
    try:
        value = strict_json.loads(text)
    except (ValueError, RecursionError) as error:
        return str(error)
    return f"a JSON {type(value).__name__} instead of an object"


def _dump(name: str, value: Any) -> str:
    """JSON with the published keys first, in their order."""
    if isinstance(value, dict):
        published = [key for key in ORDER[name] if key in value]
        value = {key: value[key] for key in (*published, *sorted(value.keys() - set(published)))}
    return json.dumps(value)


# -- rows


def _pair(fields: Fields) -> PreferencePair:
    idx, texts = identity(fields, "idx"), _texts(fields)
    split = fields["origin_split"] if isinstance(fields.get("origin_split"), dict) else {}
    origin = {
        "dataset": fields.get("ds_name"),
        "origin": fields.get("origin_dataset"),
        "idx": fields["idx"],
        "image_path": fields.get("image_path"),
        "model": split.get("model"),
        "question_type": split.get("type"),
    }
    row = {
        "pair_id": "-".join(str(part) for part in (fields.get("ds_name"), idx) if part is not None),
        "video": _image(fields),
        "modality": "image",
        "provenance": {name: value for name, value in origin.items() if isinstance(value, str | int)},
        "ref_logps": _read_logps(texts.get("logps")),
    }
    row |= {name: texts.get(name) for name in TEXTS}
    if isinstance(row["question"], str):
        check_placeholders([row["question"]], {"modality": "image" if row["video"] else "text"})
        row["question"] = without_placeholders(row["question"])
    return build_pair(row)


def _texts(fields: Fields) -> Fields:
    if "text" not in fields:
        return fields
    text = fields["text"]
    if isinstance(text, str):
        raise RowError("not JSON", f"text: {excerpt(repr(text))}: {_problem(text)}")
    if not isinstance(text, dict):
        raise RowError("wrong type", f"text: a {type(text).__name__} instead of an object")
    check_used(text, (*TEXTS, "logps"), "text")
    return text


def _image(fields: Fields) -> str | None:
    image = fields.get("image")
    if image is not None and not isinstance(image, dict):
        raise RowError("wrong type", f"image: a {type(image).__name__} instead of bytes and path")
    image = image or {}
    return image.get("bytes") or image.get("path") or fields.get("image_path")


def _row(in_text: bool, record: PreferencePair, place: int) -> Fields:
    check_texts(record)
    if record.messages or record.frames or record.modality != "image":
        raise RowError("not one image", "these rows hold one image and one question")
    origin = record.provenance
    texts: Fields = {name: getattr(record, name) for name in TEXTS}
    if record.ref_logps:
        texts["logps"] = _write_logps(record.ref_logps)
    split = {"model": origin.get("model"), "type": origin.get("question_type")}
    return {
        "ds_name": origin.get("dataset", "rlaif"),
        "image": {"bytes": record.video, "path": None},
        **({"text": texts} if in_text else texts),
        "origin_dataset": origin.get("origin"),
        "origin_split": {name: value for name, value in split.items() if value is not None},
        "idx": whole_id(origin.get("idx", place)) if in_text else str(origin.get("idx", place)),
        "image_path": origin.get("image_path", record.video),
    }


def _read_logps(values: Any) -> Fields:
    """Return [sum, mean, [per token], the same of the rejected] by name; {} for something else.

    RLAIF-V's own program wraps the list in an object: {"logps": [...]}. Raises RowError for six values of other types.
    """
    if isinstance(values, dict):
        values = values.get("logps")
    if not isinstance(values, list) or len(values) != 6:
        return {}
    if not all(map(_is_logp, values, (0, 0, 1) * 2)):
        shape = "[sum, mean, [per token], sum, mean, [per token]]"
        raise RowError(
            "wrong type", f"logps: {excerpt(values)} instead of {shape} of the chosen and the rejected answer"
        )
    return {
        "chosen": dict(zip(LOGPS, values[:3], strict=True)),
        "rejected": dict(zip(LOGPS, values[3:], strict=True)),
    }


def _is_logp(value: Any, depth: int) -> bool:
    if depth:
        return isinstance(value, list) and all(_is_logp(item, 0) for item in value)
    return isinstance(value, int | float) and not isinstance(value, bool)


def _write_logps(logps: Fields) -> list:
    try:
        return [logps[side][name] for side in SIDES for name in LOGPS]
    except (KeyError, TypeError) as error:
        raise RowError("ref_logps incomplete", f"{error} is not among them") from error


def _format(name: str, about: str, json_columns: tuple[str, ...], in_text: bool, idx: pa.DataType) -> Format:
    columns = [("text", pa.string())] if in_text else [(text, pa.string()) for text in TEXTS]
    origin = [("origin_dataset", pa.string()), ("origin_split", pa.string()), ("idx", idx), ("image_path", pa.string())]
    return Format(
        name=name,
        kind="pairs",
        about=about,
        recognise=lambda row: {"ds_name", "idx", columns[-1][0]} <= row.keys(),
        uses=frozenset(("ds_name", "image", "image_path", "logps", *(name for name, _ in columns))),
        build=_pair,
        bare=partial(_row, in_text),
        key="pair_id",
        source_key="idx",
        prepare=partial(_prepare, json_columns),
        finish=partial(_finish, json_columns),
        schema=pa.schema([("ds_name", pa.string()), ("image", IMAGE), *columns, *origin]),
    )


RLHF_V = _format(
    "rlhf_v", "RLHF-V parquet: image, text (JSON), idx", ("text", "origin_split"), in_text=True, idx=pa.int64()
)
RLAIF_V = _format(
    "rlaif_v",
    "RLAIF-V parquet: image, question, chosen, rejected, idx",
    ("origin_split", "logps"),
    in_text=False,
    idx=pa.string(),
)

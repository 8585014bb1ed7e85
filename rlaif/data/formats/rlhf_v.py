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
from rlaif.data.rows import RowError, excerpt, without_none
from rlaif.data.texts import check_used

TEXTS = ("question", *SIDES)
ORDER = {"text": (*TEXTS, "logps"), "origin_split": ("model", "type"), "logps": ()}
"""Columns of JSON text, and the order of their keys."""
LOGPS = ("sum", "mean", "tokens")
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


# -- other files, and JSON inside texts


def _prepare(json_columns: tuple[str, ...], fields: Fields, options: Options) -> Fields:
    """Store the row's image in the media folder, and open its JSON columns."""
    row = dict(fields)
    image = row.get("image")
    if isinstance(image, dict) and image.get("bytes") is not None:
        data = image["bytes"]
        if not isinstance(data, bytes):
            raise RowError("wrong type", f"image.bytes: a {type(data).__name__}")
        row["image"] = image | {"bytes": options.media.put(data)}
    for name in json_columns:
        text = row.get(name)
        value = _open(text) if isinstance(text, str) else None
        if value is not None:
            row[name] = value
            # other spacing or another order of keys: the text is kept, so that an export has the same bytes
            if _dump(name, value) != text:
                row[SPELLED + name] = text
    return row


def _finish(json_columns: tuple[str, ...], fields: Fields, options: Options) -> Fields:
    """Reverse `_prepare`; a JSON column is spelled as the source spelled it, unless its value has changed."""
    row = dict(fields)
    for name in json_columns:
        spelled = row.pop(SPELLED + name, None)
        if isinstance(row.get(name), dict | list):
            text = _dump(name, row[name])
            is_unchanged = spelled is not None and _dump(name, _open(spelled)) == text
            row[name] = spelled if is_unchanged else text
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
    """Return why a text is no JSON object."""
    try:
        value = strict_json.loads(text)
    except (ValueError, RecursionError) as error:
        return str(error)
    return f"a JSON {type(value).__name__} instead of an object"


def _dump(name: str, value: Any) -> str:
    """Return JSON with the published keys first, in their order."""
    if isinstance(value, dict):
        published = [key for key in ORDER[name] if key in value]
        others = sorted(value.keys() - set(published))
        value = {key: value[key] for key in (*published, *others)}
    return json.dumps(value)


# -- rows


def _pair(fields: Fields) -> PreferencePair:
    idx = identity(fields, "idx")
    texts = _texts(fields)
    split = fields.get("origin_split")
    if not isinstance(split, dict):
        split = {}
    origin = {
        "dataset": fields.get("ds_name"),
        "origin": fields.get("origin_dataset"),
        "idx": fields["idx"],
        "image_path": fields.get("image_path"),
        "model": split.get("model"),
        "question_type": split.get("type"),
    }
    dataset = fields.get("ds_name")
    row: Fields = {name: texts.get(name) for name in TEXTS}
    row |= {
        "pair_id": idx if dataset is None else f"{dataset}-{idx}",
        "video": _image(fields),
        "modality": "image",
        "provenance": {name: value for name, value in origin.items() if isinstance(value, str | int)},
        "ref_logps": _read_logps(texts.get("logps")),
    }
    # a question of another type is refused with all other problems of the row, by the record
    question = row["question"]
    if isinstance(question, str):
        check_placeholders([question], {"modality": "image" if row["video"] else "text"})
        row["question"] = without_placeholders(question)
    return build_pair(row)


def _texts(fields: Fields) -> Fields:
    """Return the object that has the texts: the opened column `text`, or the row itself."""
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
    """Return the path of the row's image: of the stored bytes, else one that the row names."""
    image = fields.get("image")
    if image is not None and not isinstance(image, dict):
        raise RowError("wrong type", f"image: a {type(image).__name__} instead of bytes and path")
    # the image inside the file first: its paths may be those of another machine
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
        "origin_split": without_none(split),
        "idx": whole_id(origin.get("idx", place)) if in_text else str(origin.get("idx", place)),
        "image_path": origin.get("image_path", record.video),
    }


def _read_logps(values: Any) -> Fields:
    """Return [sum, mean, [per token], the same of the rejected] by name; {} for something else.

    RLAIF-V's own program wraps the list in an object: {"logps": [...]}. Raise RowError for six values of other types.
    """
    if isinstance(values, dict):
        values = values.get("logps")
    if not isinstance(values, list) or len(values) != 6:
        return {}
    by_side = dict(zip(SIDES, (values[:3], values[3:]), strict=True))
    if not all(map(_are_logps, by_side.values())):
        shape = "[sum, mean, [per token], sum, mean, [per token]]"
        detail = f"logps: {excerpt(values)} instead of {shape} of the chosen and the rejected answer"
        raise RowError("wrong type", detail)
    return {side: dict(zip(LOGPS, logps, strict=True)) for side, logps in by_side.items()}


def _are_logps(values: list) -> bool:
    """Return whether three values are a sum, a mean and a list per token."""
    total, mean, tokens = values
    return isinstance(tokens, list) and all(map(_is_number, [total, mean, *tokens]))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _write_logps(logps: Fields) -> list:
    values = []
    try:
        for side in SIDES:
            values += [logps[side][name] for name in LOGPS]
        return values
    except (KeyError, TypeError) as error:
        raise RowError("ref_logps incomplete", f"{error} is not among them") from error


def _format(name: str, about: str, json_columns: tuple[str, ...], in_text: bool, idx: pa.DataType) -> Format:
    texts = ("text",) if in_text else TEXTS
    columns = [(name, pa.string()) for name in texts]
    origin = [("origin_dataset", pa.string()), ("origin_split", pa.string()), ("idx", idx), ("image_path", pa.string())]
    recognised_by = {"ds_name", "idx", texts[-1]}
    return Format(
        name=name,
        kind="pairs",
        about=about,
        recognise=lambda row: recognised_by <= row.keys(),
        uses=frozenset(("ds_name", "image", "image_path", "logps", *texts)),
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

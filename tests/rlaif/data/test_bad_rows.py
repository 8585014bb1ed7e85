"""A bad row of any format is counted by reason and named; the rows around it stay."""

from __future__ import annotations

import json

import pytest
from preference_rows import EXAMPLES, SAFESORA, gpt, human, labels, safesora_video

from rlaif.data.files import write_rows
from rlaif.data.formats.base import Options
from rlaif.data.formats.table import FORMATS
from rlaif.data.media import Checked
from rlaif.data.rows import Report, Row, RowFailure, valid

RM = EXAMPLES["vlm_rlaif_rm"][0] | {"id": "bad"}
RL = EXAMPLES["vlm_rlaif_rl"][0] | {"uid": "bad"}
SFT = EXAMPLES["vlm_rlaif_sft"][0] | {"id": "bad"}
PDS = EXAMPLES["pds_dpo"][0] | {"id": "bad"}
SAFE = SAFESORA | {"pair_id": "bad"}
VIDEO = EXAMPLES["safesora_videos"][0] | {"video_id": "bad"}
PROMPT = EXAMPLES["safesora_prompts"][0] | {"prompt_id": "bad"}
TEXT = EXAMPLES["rlhf_v"][0] | {"idx": "bad"}
OPEN = EXAMPLES["rlaif_v"][0] | {"idx": "bad"}
OURS = EXAMPLES["rlaif"][0] | {"pair_id": "bad"}
DROP = object()
"""Instead of a value: the field is missing."""


def talk(*turns):
    return {"conversations": list(turns)}


def sub(**choices):
    return {"sub_preferences": SAFESORA["sub_preferences"] | choices}


def text(**fields):
    return {"text": json.dumps(json.loads(EXAMPLES["rlhf_v"][0]["text"]) | fields)}


Q, A = human("<image>\nWhat?"), gpt("It is.")
BAD = [
    ("vlm_rlaif_rm", RM, {"preference": 3}, "choice is neither", "preference is 3, neither 1 nor 2"),
    ("vlm_rlaif_rm", RM, {"preference": "1"}, "choice is neither", "'1'"),
    ("vlm_rlaif_rm", RM, {"preference": True}, "choice is neither", "True"),
    ("vlm_rlaif_rm", RM, {"preference": None}, "no preference", "preference is null"),
    ("vlm_rlaif_rm", RM, {"preference": DROP}, "missing field", "preference"),
    ("vlm_rlaif_rm", RM, {"output_2": DROP}, "missing field", "output_2"),
    ("vlm_rlaif_rm", RM, {"output_2": "text"}, "wrong type", "output_2.value"),
    ("vlm_rlaif_rm", RM, {"output_2": RM["output_1"]}, "chosen equals rejected", "A man runs."),
    ("vlm_rlaif_rm", RM, {"output_1": {"value": ""}}, "empty answer", "rejected"),
    ("vlm_rlaif_rm", RM, {"output_2": {"value": ""}}, "empty answer", "chosen"),
    ("vlm_rlaif_rm", RM, {"images": "one.jpg"}, "wrong type", "images"),
    ("vlm_rlaif_rm", RM, {"images": [1]}, "wrong type", "images"),
    ("vlm_rlaif_rm", RM, {"images": DROP, "image": ["one.jpg", 1]}, "wrong type", "image"),
    ("vlm_rlaif_rm", RM, {"conversations": DROP}, "missing field", "conversations"),
    ("vlm_rlaif_rm", RM, {"conversations": "Q"}, "wrong type", "str instead of a list"),
    ("vlm_rlaif_rm", RM, talk("Q"), "wrong type", "a turn that is a str"),
    ("vlm_rlaif_rm", RM, talk(Q), "turns out of order", "user"),
    ("vlm_rlaif_rm", RM, talk(A), "turns out of order", "assistant"),
    ("vlm_rlaif_rm", RM, talk(Q, Q, A), "turns out of order", "user"),
    ("vlm_rlaif_rm", RM, talk({"role": "human", "value": "x"}, A), "missing field", "from"),
    ("vlm_rlaif_rm", RM, talk({"from": "robot", "value": "x"}, A), "wrong type", "from"),
    ("vlm_rlaif_rm", RM, talk(human("<image>\n"), A), "empty field", "a human turn without text"),
    ("vlm_rlaif_rm", RM, talk(human("<image>\n\ufeff"), A), "empty field", "a human turn without text"),
    ("vlm_rlaif_rm", RM, talk(human("\u200b <image>"), A), "empty field", "a human turn without text"),
    ("vlm_rlaif_rl", RL, {"uid": DROP}, "missing field", "uid"),
    ("vlm_rlaif_rl", RL, {"images": DROP}, "placeholder without media", "<image> in a text"),
    ("vlm_rlaif_rl", RL, {"images": ["/a/1.jpg", "b/1.jpg"]}, "no video", "nothing above them"),
    ("vlm_rlaif_rl", RL, talk({"from": "system", "value": "x"}, Q, A), "turns out of order", "system"),
    ("vlm_rlaif_sft", SFT, {"images": []}, "placeholder without media", "none of video"),
    ("vlm_rlaif_sft", SFT, talk(Q, gpt("")), "empty field", "content"),
    ("vlm_rlaif_sft", SFT, talk(Q), "turns out of order", "user"),
    ("pds_dpo", PDS, {"rejected_conversations": DROP}, "missing field", "rejected_conversations"),
    ("pds_dpo", PDS, {"rejected_conversations": [Q, A]}, "prompts differ", "different questions"),
    ("pds_dpo", PDS, {"rejected_conversations": PDS["conversations"]}, "chosen equals rejected", "A boat."),
    ("pds_dpo", PDS, {"rejected_conversations": [PDS["conversations"][0], gpt("")]}, "empty answer", "rejected"),
    ("pds_dpo", PDS, {"id": DROP}, "missing field", "id"),
    ("safesora", SAFE, {"helpfulness": None, "harmlessness": DROP, "sub_preferences": {}}, "no preference", "none of"),
    ("safesora", SAFE, {"helpfulness": "video_2"}, "choice is neither", "'video_2'"),
    ("safesora", SAFE, {"sub_preferences": "video_0"}, "wrong type", "sub_preferences"),
    ("safesora", SAFE, sub(beauty="video_0"), "unknown dimension", "beauty; there are helpfulness"),
    ("safesora", SAFE, sub(information="video_0"), "dimensions contradict", "information"),
    ("safesora", SAFE, {"video_1": DROP}, "missing field", "video_1"),
    ("safesora", SAFE, {"video_1": "v1.mp4"}, "wrong type", "video_1"),
    ("safesora", SAFE, {"video_1": SAFESORA["video_0"]}, "chosen equals rejected", "v0.mp4"),
    ("safesora", SAFE, {"prompt_type": "harmless"}, "wrong type", "prompt_type is 'harmless'"),
    ("safesora", SAFE, {"video_0": safesora_video("v", is_safe="yes")}, "wrong type", "is_safe"),
    ("safesora", SAFE, {"video_0": safesora_video("v", video_labels={"hate": True})}, "harm labels", "porn"),
    ("safesora", SAFE, {"video_0": safesora_video("v", scores=[{"value": 1.0}])}, "missing field", "from"),
    ("safesora_videos", VIDEO, {"video_labels": labels() | {"spam": False}}, "harm labels", "unknown ['spam']"),
    ("safesora_videos", VIDEO, {"prompt_labels": {}}, "harm labels", "prompt_labels: missing"),
    ("safesora_videos", VIDEO, {"prompt_text": ""}, "empty field", "prompt_text"),
    ("safesora_prompts", PROMPT, {"prompt_type": "other"}, "wrong type", "safety_neutral, safety_critical"),
    ("rlhf_v", TEXT, {"text": "not JSON"}, "not JSON", "not JSON"),
    ("rlhf_v", TEXT, {"text": "[1]"}, "wrong type", "list"),
    ("rlhf_v", TEXT, {"text": '{"question": "q", "chosen": "a"}'}, "missing field", "rejected"),
    ("rlhf_v", TEXT, text(rejected="A red cup."), "chosen equals rejected", "A red cup."),
    ("rlhf_v", TEXT, text(rejected=""), "empty answer", "rejected"),
    ("rlhf_v", TEXT, text(logps=[float("nan")]), "not JSON", "text"),
    ("rlhf_v", TEXT, {"image": {"bytes": b"GIF8 no image"}}, "video unusable", "13 bytes"),
    ("rlhf_v", TEXT, {"image": {"bytes": "text"}}, "wrong type", "image.bytes"),
    ("rlhf_v", TEXT, {"image": b"bytes"}, "wrong type", "image"),
    ("rlhf_v", TEXT, {"image": None, "image_path": None}, "missing field", "video"),
    ("rlhf_v", TEXT, {"idx": DROP}, "missing field", "idx"),
    ("rlaif_v", OPEN, {"chosen": None}, "missing field", "chosen"),
    ("rlaif_v", OPEN, {"rejected": ""}, "empty answer", "rejected"),
    ("rlaif_v", OPEN, {"question": ""}, "empty field", "question"),
    ("rlaif", OURS, {"rejected": DROP}, "missing field", "rejected"),
    ("rlaif", OURS, {"pair_id": "a"}, "duplicate id", "row 1 has it already"),
    ("rlaif", OURS, {"judge": "{not JSON"}, "wrong type", "judge"),
]


@pytest.mark.parametrize(("name", "row", "change", "reason", "told"), BAD)
def test_bad_rows_are_counted_and_named(name, row, change, reason, told, tmp_path):
    bad = {key: value for key, value in (row | change).items() if value is not DROP}
    rows = [EXAMPLES[name][0], bad, EXAMPLES[name][1]]
    report = Report("rows.json")
    format_ = FORMATS[name]
    read = format_.read([Row(n, fields, "row") for n, fields in enumerate(rows, 1)], Options(Checked(tmp_path, None)))
    kept = list(valid(read, report))
    assert len(kept) == 2 and report.counts == {"kept": 2, reason: 1}
    (found,) = report.skipped[reason]
    named = bad.get(format_.source_key or format_.key)
    assert told in found.detail and found.line == 2 and found.id == (None if named is None else str(named))
    assert f"rows.json: 2 of 3 rows kept, 1 {reason}\n  {reason}: row 2" in report.summary()


def test_failures_pass_through_readers_and_writers(tmp_path):
    write_rows(tmp_path / "a.jsonl", [EXAMPLES["rlaif"][0]])
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('[1]\n{"pair_id": "cut')
    from rlaif.data.files import read_rows

    first, second, third = FORMATS["rlaif"].read(read_rows(tmp_path / "a.jsonl"))
    assert first.pair_id == "a" and isinstance(second, RowFailure) and isinstance(third, RowFailure)
    assert (second.reason, third.reason) == ("not an object", "file cut off")
    assert list(FORMATS["rlaif"].write([first, second, third]))[1:] == [second, third]

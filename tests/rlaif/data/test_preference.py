import json
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from preference_rows import STRATEGIES

from rlaif.data.files import read_rows, write_rows
from rlaif.data.formats.table import FORMATS
from rlaif.data.preference import PreferencePair, Span
from rlaif.data.read import read_records
from rlaif.data.rows import RowError
from rlaif.errors import DataError

PAIR = {"pair_id": "r", "video": "v.mp4", "question": "what?", "captions": ["one"], "chosen": "a", "rejected": ""}
PLAIN = PreferencePair("r", "what?", "a cat", "a dog", video="v.mp4")
FULL = PreferencePair(
    "r",
    "what?",
    "a cat",
    "a dog",
    video="v.mp4",
    chosen_spans=(Span(2, 5, "object", "human"),),
    dimension="helpfulness",
    dimensions={"harmlessness": -1, "style": 1},
    margin=0.5,
    scores=({"value": 1.0, "from": "rm", "candidate": "chosen"}, {"value": 0.0, "from": "rm", "candidate": "third"}),
    judge={"logprobs": {"chosen": [-1.0], "rejected": [-2.0]}},
    candidates=({"candidate": "rejected", "id": 1}, {"candidate": "chosen", "id": 2}),
    safety={"prompt_type": "safety_neutral", "is_safe": {"chosen": True, "rejected": False}},
    ref_logps={"chosen": {"sum": -1.0}, "rejected": {"sum": -2.0}},
)
TURNED = PreferencePair(
    "r",
    "what?",
    "a dog",
    "a cat",
    video="v.mp4",
    rejected_spans=(Span(2, 5, "object", "human"),),
    dimension="harmlessness",
    dimensions={"helpfulness": -1, "style": -1, "harmlessness": 1},
    scores=({"value": 1.0, "from": "rm", "candidate": "rejected"}, {"value": 0.0, "from": "rm", "candidate": "third"}),
    judge={"logprobs": {"chosen": [-2.0], "rejected": [-1.0]}},
    candidates=({"candidate": "chosen", "id": 1}, {"candidate": "rejected", "id": 2}),
    safety={"prompt_type": "safety_neutral", "is_safe": {"chosen": False, "rejected": True}},
    ref_logps={"chosen": {"sum": -2.0}, "rejected": {"sum": -1.0}},
)


def test_a_short_pairs_row_is_a_record():
    record = PreferencePair.from_row(PAIR)
    expected = PreferencePair("r", "what?", "a", "", video="v.mp4", captions=("one",))
    assert record == expected and record.to_row() == PAIR


def test_a_row_leaves_out_what_is_empty():
    assert FULL.to_row().keys() == {
        *("pair_id", "question", "chosen", "rejected", "video", "chosen_spans", "dimension", "dimensions", "margin"),
        *("scores", "judge", "candidates", "safety", "ref_logps"),
    }
    assert FULL.to_row()["chosen_spans"] == [{"start": 2, "end": 5, "type": "object", "source": "human"}]
    still = PreferencePair("r", "q", "a", "b", video="v", modality="image")
    assert still.to_row()["modality"] == "image" and "modality" not in replace(still, modality="video").to_row()
    assert "modality" not in PreferencePair("r", "q", "a", "b", modality="text").to_row()
    videos = PreferencePair("r", "q", chosen_video="a", rejected_video="b")
    assert videos.to_row() == {"pair_id": "r", "question": "q", "chosen_video": "a", "rejected_video": "b"}
    assert videos.media == ("a", "b") and still.media == ("v",)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no failure
@given(STRATEGIES["rlaif"])
def test_records_survive_their_row(row):
    record = PreferencePair.from_row(row)
    assert PreferencePair.from_row(json.loads(json.dumps(record.to_row()))) == record
    assert PreferencePair.from_row(row | {"prompt_id": None, "margin": None}) == replace(
        record, prompt_id=None, margin=None
    )


def test_along_exchanges_the_answers_for_a_dimension_that_prefers_the_other():
    assert FULL.along("harmlessness") == TURNED
    assert FULL.along("helpfulness") is FULL
    style = FULL.along("style")
    assert (style.chosen, style.margin, style.dimension) == ("a cat", None, "style")
    assert style.signs == {"helpfulness": 1, "harmlessness": -1, "style": 1}
    assert TURNED.along("helpfulness") == replace(FULL, margin=None, dimensions=FULL.signs)
    assert PreferencePair.from_row(TURNED.to_row()) == TURNED


def test_along_rejects_an_unknown_dimension():
    with pytest.raises(DataError, match="harmlessness, helpfulness, style\n  found    'beauty'"):
        FULL.along("beauty")
    with pytest.raises(DataError, match="'r': overall"):
        PreferencePair("r", "q", "a", "b").along("style")


def test_along_exchanges_candidate_videos():
    record = PreferencePair("r", "q", chosen_video="a", rejected_video="b", dimensions={"safety": -1}).along("safety")
    assert (record.chosen_video, record.rejected_video) == ("b", "a")


def test_with_scores_only_adds(tmp_path):
    record = FULL
    for step in range(3):
        record = record.with_scores([{"value": step, "from": f"rm{step}", "candidate": "rejected"}])
        write_rows(tmp_path / f"{step}.jsonl", FORMATS["rlaif"].write([record]))
        (record,) = FORMATS["rlaif"].read(read_rows(tmp_path / f"{step}.jsonl"))
    assert record.scores[:2] == FULL.scores and [score["from"] for score in record.scores[2:]] == ["rm0", "rm1", "rm2"]
    assert len(FULL.scores) == 2
    for wrong in ({"value": 1.0}, {"value": float("nan"), "from": "x"}, {"value": "1", "from": "x"}):
        with pytest.raises(DataError, match="a score for pair 'r'"):
            FULL.with_scores([wrong])


def test_written_records_are_read_as_training_pairs(tmp_path):
    (tmp_path / "v.mp4").touch()
    write_rows(tmp_path / "pairs.jsonl", FORMATS["rlaif"].write([FULL, replace(TURNED, pair_id="t")]))
    pairs, report = read_records(tmp_path / "pairs.jsonl", tmp_path, "pairs")
    assert pairs == [
        replace(PLAIN, dimension="helpfulness", dimensions=FULL.dimensions, margin=0.5),
        replace(
            PLAIN,
            pair_id="t",
            chosen="a dog",
            rejected="a cat",
            dimension="harmlessness",
            dimensions=TURNED.dimensions,
        ),
    ]
    assert [pair.signs for pair in pairs] == [FULL.signs, TURNED.signs]
    assert not report.skipped


def test_unknown_fields_survive_in_native():
    record = PreferencePair.from_row(PAIR | {"scene": 3, "native": {"pds_dpo": {"x": {"is": 1}}}})
    assert record.native == {"pds_dpo": {"x": {"is": 1}}, "rlaif": {"scene": 3}}
    (row,) = FORMATS["rlaif"].write([record])
    assert row == PAIR | {"scene": 3, "native": {"pds_dpo": {"x": {"is": 1}}}}


@pytest.mark.parametrize(
    "unread",
    [
        {"scores": [0.5, "good"]},
        {"chosen_spans": [{"start": 5, "end": 1}]},
        {"messages": [{"role": "human", "content": 3}]},
        {"judge": "a model", "safety": []},
        {"modality": "audio"},
    ],
)
def test_training_pairs_ignore_fields_that_no_reward_model_reads(unread):
    with pytest.raises(RowError):
        PreferencePair.from_row(PAIR | unread)
    pair = PreferencePair.for_training(PAIR | unread | {"scene": 3, "native": {"pds_dpo": {}}})
    assert pair == PreferencePair.from_row(PAIR)


def test_training_pairs_count_earlier_turns_without_reading_them():
    turns = [{"role": "user", "content": "see <image>"}, {"role": "assistant", "content": "yes"}]
    assert PreferencePair.for_training(PAIR | {"messages": turns}).earlier_turns
    assert not PreferencePair.for_training(PAIR | {"messages": turns[:1]}).earlier_turns
    assert PreferencePair.for_training(PAIR | {"messages": turns}).messages == ()
    with pytest.raises(RowError, match="messages"):
        PreferencePair.for_training(PAIR | {"messages": "see"})


def test_answer_videos_are_the_candidates_or_the_one_video():
    texts = PreferencePair("r", "q", "a", "b", video="v")
    assert texts.answer_videos == ("v", "v") and texts.videos == ("v",)
    row = {"pair_id": "r", "question": "q", "video": "v", "chosen_video": "a", "rejected_video": "b"}
    candidates = PreferencePair.for_training(row)
    assert candidates.answer_videos == candidates.videos == ("a", "b") and candidates.video is None
    with pytest.raises(RowError, match="chosen equals rejected"):
        PreferencePair.for_training(row | {"rejected_video": "a", "chosen": "x", "rejected": "y"})


SPAN = {"start": 0, "end": 1}
BAD = [
    ({"pair_id": None}, "missing field", "pair_id"),
    ({"pair_id": 3}, "wrong type", "pair_id"),
    ({"question": ""}, "empty field", "question"),
    ({"chosen": None}, "missing field", "chosen"),
    ({"rejected": None}, "missing field", "rejected"),
    ({"chosen": ""}, "empty answer", "chosen"),
    ({"rejected": "a"}, "chosen equals rejected", "a"),
    ({"chosen_video": "x"}, "missing field", "rejected_video"),
    ({"chosen_video": "x", "rejected_video": "x", "chosen": ""}, "chosen equals rejected", "x"),
    ({"modality": "video", "video": None}, "missing field", "video"),
    ({"modality": "audio"}, "wrong type", "modality"),
    ({"frames": "a.jpg"}, "wrong type", "frames"),
    ({"frames": [""]}, "empty field", "frames"),
    ({"chosen_spans": [SPAN | {"end": 2}]}, "span outside answer", "0..2 of 1"),
    ({"rejected_spans": [SPAN]}, "span outside answer", "rejected_spans"),
    ({"chosen_spans": [SPAN | {"end": 0}]}, "span outside answer", "0..0"),
    ({"chosen_spans": [SPAN | {"kind": "x"}]}, "wrong type", "kind"),
    ({"dimensions": {"style": 0}}, "wrong type", "style"),
    ({"dimensions": {"style": True}}, "wrong type", "style"),
    ({"dimensions": {"overall": -1}}, "dimensions contradict", "overall"),
    ({"messages": [{"role": "user", "content": "when?"}]}, "turns out of order", "question"),
    ({"messages": [{"role": "assistant", "content": "what?"}]}, "turns out of order", "assistant"),
    ({"messages": [{"role": "human", "content": "what?"}]}, "wrong type", "role"),
    ({"scores": [{"value": 1.0}]}, "missing field", "from"),
    ({"scores": [{"value": float("inf"), "from": "x"}]}, "wrong type", "finite"),
    ({"margin": "1"}, "wrong type", "margin"),
    ({"margin": float("nan")}, "wrong type", "finite"),
    ({"safety": []}, "wrong type", "safety"),
]


@pytest.mark.parametrize(("change", "reason", "told"), BAD)
def test_bad_rows(change, reason, told):
    with pytest.raises(RowError) as error:
        PreferencePair.from_row(PAIR | change)
    assert error.value.reason == reason and told in error.value.detail

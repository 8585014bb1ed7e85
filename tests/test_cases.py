"""Every known fault has tests, and `cases.yaml` names them."""

import ast
import functools
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "tests/cases.yaml"

# The keys are written out here a second time on purpose: a key that is deleted from the table is a
# fault that lost its tests, and no check of the table alone can notice that.
FAULTS = [str(number) for number in range(1, 34)]
VIDEOS = [
    "2_mpeg4_b_frames",
    "4_negative_timestamps",
    "5_cut_refused",
    "6_streamed_refused",
    "8_cut_from_ts",
    "9_exif_frames",
    "11_huge_png",
    "13_late_bad_prompts",
    "16_playlist_text",
    "17_mixed_extensions",
    "18_dot_underscore",
    "19_animated_png",
    "22_left_out_rows_unnamed",
    "23_reward_sum_infinite",
    "two_video_streams",
    "attached_picture",
    "end_of_turn_in_answer",
    "bucket_without_network",
]
FILES = [
    "01_video_key_in_pairs",
    "02_sft_by_id_and_messages",
    "03_text_only_conversation",
    "04_image_folder_in_export",
    "05_rlaif_v_logps_and_mark",
    "06_nul_in_path",
    "07_one_bad_value_stops_convert",
    "08_bucket_uri",
    "09_llava_video_sft",
    "10_safesora_optional_fields",
    "11_export_checks_nothing",
    "12_parquet_columns",
    "13_base64_image",
    "14_huge_number_ends_json_list",
    "15_out_or_media_unusable",
    "16_undecodable_and_webp",
    "17_unclear_messages",
    "19_cut_file_exit_code",
    "one_id_in_many_rows",
    "gzip_level",
    "convert_progress",
    "media_beside_the_input",
    "integer_uid",
]
GPU = ["A1", "B3", "B4", "D1", "E6"]
KEYS = {"faults": FAULTS, "videos": VIDEOS, "files": FILES, "gpu": GPU}


@functools.cache
def functions(file: Path) -> frozenset[str]:
    """Return the test functions that pytest collects from a file, `Class::function` for methods."""
    body = ast.parse(file.read_text()).body
    names = {item.name for item in body if isinstance(item, ast.FunctionDef)}
    for item in body:
        if isinstance(item, ast.ClassDef):
            methods = (part for part in item.body if isinstance(part, ast.FunctionDef))
            names.update(f"{item.name}::{method.name}" for method in methods)
    return frozenset(names)


def problems_of(table: dict, root: Path = ROOT) -> list[str]:
    """Return the problems of a table of cases: missing or empty cases, ids without a test."""
    problems = []
    for section, keys in KEYS.items():
        cases = table.get(section) or {}
        problems += [f"{section}.{key}: no case" for key in keys if key not in cases]
        problems += [f"{section}.{key}: not in KEYS of this test" for key in cases if key not in keys]
        for key, ids in cases.items():
            if not ids or not isinstance(ids, list):
                problems.append(f"{section}.{key}: no test")
                continue
            problems += [f"{section}.{key}: {id} is no test" for id in ids if not is_test(id, root)]
    problems += [f"{section}: not in KEYS of this test" for section in table if section not in KEYS]
    return problems


def is_test(id: str, root: Path) -> bool:
    """Return whether pytest would collect this id: a test file, and a test function in it."""
    file, _, function = str(id).partition("::")
    path = root / file
    collected = path.name.startswith("test_") and function.split("::")[-1].startswith("test_")
    return collected and path.is_file() and function in functions(path)


def no_duplicates(text: str) -> list[str]:
    """Return the keys that occur twice in one mapping; YAML itself keeps the last one silently."""
    twice = []
    for _, section in yaml.compose(text).value:
        keys = [key.value for key, _ in section.value]
        twice += sorted({key for key in keys if keys.count(key) > 1})
    return twice


def test_every_case_names_tests_that_exist():
    """Every known fault has at least one test, and each id leads to a function."""
    assert problems_of(yaml.safe_load(TABLE.read_text())) == []
    assert no_duplicates(TABLE.read_text()) == []


@pytest.mark.parametrize("section", KEYS)
def test_a_missing_or_empty_case_is_reported(section):
    """A deleted section, a deleted key and an empty list each fail the check above."""
    table = yaml.safe_load(TABLE.read_text())
    key = KEYS[section][0]
    assert f"{section}.{key}: no case" in problems_of(table | {section: None})
    rest = {name: ids for name, ids in table[section].items() if name != key}
    assert problems_of(table | {section: rest}) == [f"{section}.{key}: no case"]
    for empty in ([], None, ""):
        cases = table[section] | {key: empty}
        assert problems_of(table | {section: cases}) == [f"{section}.{key}: no test"]


@pytest.mark.parametrize(
    "id",
    [
        "tests/test_cases.py::test_that_was_renamed",
        "tests/test_removed.py::test_cases",
        "tests/test_cases.py",
        "tests/test_cases.py::problems_of",
        "tests/support/odd_files.py::write",
        3,
    ],
)
def test_an_id_that_pytest_would_not_collect_is_reported(id):
    """Report a renamed test, a removed file, a file alone and a helper function."""
    table = yaml.safe_load(TABLE.read_text())
    cases = table["faults"] | {"1": [*table["faults"]["1"], id]}
    assert problems_of(table | {"faults": cases}) == [f"faults.1: {id} is no test"]

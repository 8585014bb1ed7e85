"""The command line: what it prints, and with which exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from rlaif.cli import main
from rlaif.errors import CheckpointError


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(f"name: x\nstorage: {tmp_path}/runs\nlogging: {{wandb: off}}\n")
    return str(file)


def test_an_error_a_user_can_act_on_comes_without_a_traceback(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "rlaif", "ppo", str(tmp_path / "none.yaml")], capture_output=True, text=True
    )
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "ConfigError: expected a YAML configuration file" in result.stderr
    assert f"no file at {tmp_path}/none.yaml" in result.stderr and "\n  fix      " in result.stderr
    assert result.stdout == ""


def test_problems_of_options_are_listed(config, capsys):
    assert main.main(["sft", config, "sft.stps=3", "seed=x"]) == 1
    told = capsys.readouterr().err
    assert "2 problem(s)" in told and "sft.stps: no such option; nearest is `sft.steps`" in told and "seed: " in told


@pytest.mark.parametrize("command", ["sft", "reward", "score", "ppo", "eval", "demo"])
def test_every_stage_reads_its_configuration_first(command, config, capsys):
    assert main.main([command, config, "sed=1"]) == 1
    assert "nearest is `seed`" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [["eval", "agreement"], ["eval", "winrate"], ["eval", "context"], ["bench", "label"], ["bench", "ppo"]]
)
def test_commands_of_two_words(command, config, capsys):
    assert main.main([*command, config, "sed=1"]) == 1
    assert "nearest is `seed`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "hints"),
    [
        (["ppo", "a.yaml", "--iterations", "3"], ["unrecognized arguments: --iterations", "ppo.iterations=3"]),
        (["ppo", "a.yaml", "--iterations=3"], ["ppo.iterations=3"]),
        (["sft", "a.yaml", "--learning-rate", "1e-5", "seed=1"], ["sft.optim.lr=1e-5"]),
        (["ppo", "a.yaml", "--resum"], ["did you mean --resume?"]),
        (["caption", "a.yaml", "--resume"], ["--resume is for sft, reward, ppo"]),
        (["ppo", "a.yaml", "--zzzz"], ["key=value", "rlaif options"]),
        (["eval", "winrate", "a.yaml", "--stric"], ["usage: rlaif eval winrate", "did you mean --strict?"]),
        (["evl", "a.yaml"], ["no command 'evl'; did you mean `rlaif eval`?"]),
        (["help", "chek"], ["did you mean `rlaif check`?"]),
        (["xyzzy"], ["see `rlaif help`"]),
        (["init", "x", "--mod", "m"], ["usage: rlaif init", "did you mean --model?"]),
    ],
)
def test_a_mistyped_flag_is_answered_with_what_was_meant(typed, hints, capsys):
    with pytest.raises(SystemExit) as stopped:
        main.main(typed)
    told = capsys.readouterr().err
    assert stopped.value.code == 2 and all(hint in told for hint in hints), told


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["help"], ["usage: rlaif [", "options", "check"]),
        (["help", "ppo"], ["usage: rlaif ppo", "--resume"]),
        (["help", "eval", "winrate"], ["usage: rlaif eval winrate"]),
        (["help", "data", "check"], ["usage: rlaif data check"]),
        (["--version"], ["rlaif 0."]),
    ],
)
def test_help_and_version(typed, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main.main(typed)
    told = capsys.readouterr().out
    assert stopped.value.code == 0 and all(word in told for word in words), told


def test_options_of_a_section_and_of_none(capsys):
    assert main.main(["options", "ppo.optim"]) == 0
    assert "ppo.optim.lr  (number > 0" in capsys.readouterr().out
    assert main.main(["options", "optim"]) == 1
    assert "ppo.optim or reward.optim or sft.optim" in capsys.readouterr().err


def test_check_lists_all_problems_and_prints_the_configuration(config, capsys):
    assert main.main(["check", config, "sed=1", "data.root=/nothing", "--stage", "sft"]) == 1
    told = capsys.readouterr().out
    assert "3 problem(s)" in told.rpartition("\n\n")[2], "findings are in sight at the end"
    assert "sed: no such option; nearest is `seed`" in told and "data.root: expected the folder" in told
    assert "sft.init: a Hugging Face model" in told and "3 problem(s)" in told
    assert "prompts_per_iteration: 64" in told, "the configuration with its defaults"


def test_a_stage_reports_what_is_missing_before_it_starts_ray(config, capsys):
    assert main.main(["ppo", config, "data.root=/nothing", "ppo.reward=my_module:f"]) == 1
    told = capsys.readouterr().err
    for words in ("data.root", "ppo.policy", "ppo.reward='{path: my_module:f}'"):
        assert words in told
    assert "Traceback" not in told and not sys.modules["ray"].is_initialized()


def test_errors_from_inside_a_stage(config, capsys, monkeypatch):
    def fail(args):
        raise CheckpointError("a complete checkpoint", "half of one", "check storage")

    monkeypatch.setattr(main, "run_stage", fail)
    assert main.main(["ppo", config]) == 1
    told = capsys.readouterr().err
    assert told.strip().splitlines() == [
        "CheckpointError: expected a complete checkpoint",
        "  found    half of one",
        "  fix      check storage",
    ]


def test_an_actor_that_failed_is_told_on_the_terminal(config, capfd, monkeypatch, tmp_path):
    import ray

    def fail(args, config):
        raise ray.exceptions.RayActorError("the actor died")

    monkeypatch.setattr(main, "check_files", lambda *_: None)
    monkeypatch.setattr(main, "start_stage", fail)
    assert main.main(["ppo", config]) == 1
    shown = capfd.readouterr().err
    assert "an actor failed\n\nnothing was saved yet: the same command starts again" in shown
    assert f"log: {tmp_path}/runs/x/logs/ppo.log" in shown


@pytest.mark.parametrize("kind", ["ppo", "label"])
def test_a_benchmark_whose_actor_failed_ends_like_a_stage(kind, config, capfd, monkeypatch):
    import ray

    from rlaif.stages.recipes import bench_label, bench_ppo

    def fail(config, json):
        raise ray.exceptions.RayActorError("the actor died")

    monkeypatch.setattr({"ppo": bench_ppo, "label": bench_label}[kind], "bench", fail)
    assert main.main(["bench", kind, config]) == 1
    shown = capfd.readouterr().err
    assert "an actor failed\n\nthe same command starts again" in shown and "Traceback" not in shown


@pytest.mark.parametrize("command", main.STAGES)
def test_every_command_reaches_its_stage_and_ends_with_its_summary(command, config, capsys, monkeypatch):
    from contextlib import nullcontext
    from importlib import import_module

    from rlaif.stages import summaries
    from rlaif.stages.run import run, summary

    wings = {
        "train": ("sft", "reward", "ppo", "eval"),
        "feedback": ("caption", "sample", "label", "pairs", "score"),
        "compare": ("eval agreement", "eval winrate"),
        "recipes": ("eval context", "demo"),
    }
    modules = {"eval": "evaluate", "eval context": "context_study"}
    wing = next(wing for wing, commands in wings.items() if command in commands)
    module = import_module(f"rlaif.stages.{wing}.{modules.get(command, command.split()[-1])}")
    entries = {"eval": "evaluate", **dict.fromkeys(main.RESUMED, "train")}
    name = entries.get(command, command.split()[-1])
    monkeypatch.setattr(module, name, lambda *args, **options: "done")
    monkeypatch.setattr(main, "check_files", lambda *_: None)
    monkeypatch.setattr(run, "open_run", lambda config: nullcontext())
    monkeypatch.setattr(summaries, "summarise", lambda *args: summary.Summary({"result": args[-1]}))
    assert main.main([*command.split(), config]) == 0
    assert command == "demo" or "done" in capsys.readouterr().out


def test_output_that_nobody_reads_any_more_ends_the_command_without_a_traceback():
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-m", "rlaif", "options"], **options)
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == ("", 141)


def test_what_nobody_foresaw_keeps_its_traceback(config, monkeypatch):
    def fail(args):
        raise RuntimeError("a bug")

    monkeypatch.setattr(main, "run_stage", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main.main(["ppo", config])


@pytest.mark.parametrize(
    ("saved", "advice"), [([], "the same command"), ([3], "--resume continues from the checkpoint of iteration 3")]
)
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_gives_the_shells_exit_code_and_advice_that_is_true(
    tmp_path, capsys, monkeypatch, signum, code, saved, advice
):
    file = tmp_path / "run.yaml"
    file.write_text(f"name: run\nstorage: {tmp_path}\n")
    for iteration in saved:
        (tmp_path / "run" / "sft" / "checkpoints" / f"{iteration:06d}").mkdir(parents=True)
    monkeypatch.setattr("rlaif.stages.preflight.require", lambda *_: None)
    monkeypatch.setattr(main, "start_stage", lambda args, config: signal.raise_signal(signum))
    assert main.main(["sft", str(file)]) == code
    told = capsys.readouterr().err
    assert advice in told and ("--resume" in told) == bool(saved)


@pytest.mark.parametrize(
    "arguments", [[], ["fly"], ["ppo"], ["sft", "a.yaml", "--resume", "--fresh"], ["eval", "a.yaml", "--resume"]]
)
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main.main(arguments)
    assert stopped.value.code == 2 and "usage: rlaif" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no command; `rlaif help` lists them"),
        (["--resume", "ppo", "a.yaml"], "expected a command, found '--resume'"),
        (["check"], "required: config\n"),
        (["ppo"], "required: config\n"),
    ],
)
def test_what_is_missing_is_named_and_nothing_else(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("typed", ["options", "options ppo.kl"])
def test_output_may_be_cut_by_its_reader(typed, unbuffered):
    """As by `| head`: no traceback, however little is printed."""
    words = [sys.executable, "-m", "rlaif", *typed.split()]
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    result = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, text=True, env=environment)
    os.close(writer)
    assert (result.returncode, result.stderr) == (141, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has this device")
@pytest.mark.parametrize("typed", ["options", "options ppo.kl", "check configs/demo.yaml"])
def test_a_full_disk_behind_standard_output_is_an_error_without_traceback(typed):
    with open("/dev/full", "w") as full:
        words = [sys.executable, "-m", "rlaif", *typed.split()]
        result = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 1
    assert result.stderr.strip().startswith("RlaifError: expected free disk space") and "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("flags", "start", "strict"),
    [([], None, False), (["--resume"], "resume", False), (["--fresh", "--strict"], "fresh", True)],
)
def test_options_and_overrides_in_any_order(flags, start, strict):
    for arguments in (["ppo", *flags, "a.yaml", "seed=1", "name=b"], ["ppo", "a.yaml", "seed=1", "name=b", *flags]):
        args = main.build_parser().parse_args(arguments)
        assert (args.start, args.strict, args.config, args.overrides) == (start, strict, "a.yaml", ["seed=1", "name=b"])


def test_starting_the_command_line_is_light():
    """No framework is imported before a command needs it: help and mistakes answer at once."""
    heavy = "{'torch', 'ray', 'transformers', 'vllm', 'deepspeed'}"
    script = f"import sys; from rlaif.cli import main as cli; cli.build_parser(); print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "set()"


def test_data_shapes(tmp_path, capsys):
    out = tmp_path / "world"
    assert (
        main.main(["data", "shapes", "--out", str(out), "--train", "2", "--prompts", "2", "--test", "1", "--seed", "4"])
        == 0
    )
    told = capsys.readouterr().out
    for name in ("sft", "prompts", "eval"):
        rows = [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]
        assert rows and f"{len(rows)} rows in {name}.jsonl" in told
        assert all(os.path.getsize(out / row["video"]) > 0 for row in rows)


@pytest.mark.parametrize("typed", [["init", "DIR"], ["doctor"], ["options", "ppo"], ["data", "check", "FILE"]])
def test_options_of_a_command_that_has_none(typed, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main.main([*(word.replace("DIR", f"{tmp_path}/new") for word in typed), "ppo.iterations=3"])
    assert stopped.value.code == 2 and "takes no options as key=value" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_world_of_shapes_replaces_no_rows_but_its_own(tmp_path, capsys):
    (tmp_path / "prompts.jsonl").write_text("mine")
    sizes = ["--train", "1", "--prompts", "1", "--test", "1"]
    assert main.main(["data", "shapes", "--out", str(tmp_path), *sizes]) == 1
    assert "prompts.jsonl" in capsys.readouterr().err and (tmp_path / "prompts.jsonl").read_text() == "mine"
    for _ in range(2):
        assert main.main(["data", "shapes", "--out", str(tmp_path / "own"), *sizes]) == 0

"""The command line: what it prints, and with which exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from importlib import import_module

import pytest

from rlaif.cli import main, stages
from rlaif.errors import CheckpointError
from rlaif.stages import table
from rlaif.stages.run import run, summary


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(f"name: x\nstorage: {tmp_path}/runs\nlogging: {{wandb: off}}\n")
    return str(file)


def test_missing_configuration_is_an_error_without_traceback(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "rlaif", "ppo", str(tmp_path / "none.yaml")], capture_output=True, text=True
    )
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "ConfigError: expected a YAML configuration file" in result.stderr
    assert f"no file at {tmp_path}/none.yaml" in result.stderr and "\n  fix      " in result.stderr
    assert result.stdout == ""


def test_wrong_options_are_all_listed(config, capsys):
    assert main.main(["sft", config, "sft.stps=3", "seed=x"]) == 1
    printed = capsys.readouterr().err
    assert (
        "2 problem(s)" in printed
        and "sft.stps: no such option; nearest is `sft.steps`" in printed
        and "seed: " in printed
    )


@pytest.mark.parametrize("command", ["sft", "reward", "score", "ppo", "eval", "demo"])
def test_stage_refuses_unknown_option(command, config, capsys):
    assert main.main([command, config, "sed=1"]) == 1
    assert "nearest is `seed`" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [["eval", "agreement"], ["eval", "winrate"], ["eval", "context"], ["bench", "label"], ["bench", "ppo"]]
)
def test_two_word_command_refuses_unknown_option(command, config, capsys):
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
        (["eval", "contxt", "a.yaml"], ["no command 'eval contxt'; did you mean `rlaif eval context`?"]),
        (["help", "eval", "winrat"], ["did you mean `rlaif eval winrate`?"]),
        (["data", "chek", "a.jsonl"], ["no command 'data chek'; did you mean `rlaif data check`?"]),
        (["eval"], ["usage: rlaif eval [-h] [--strict] config", "rlaif eval COMMAND ...", "required: config"]),
        (["bench", "xyzzy"], ["no command 'bench xyzzy'; see `rlaif help bench`"]),
        (["data"], ["usage: rlaif data", "required: COMMAND"]),
        (["eval", "--strct", "a.yaml"], ["usage: rlaif eval [", "did you mean --strict?"]),
        (["sft", "a.yaml", "--json", "b"], ["--json is for bench ppo, bench label"]),
        (["init", "x", "--mod", "m"], ["usage: rlaif init", "did you mean --model?"]),
    ],
)
def test_mistyped_word_gets_a_hint(typed, hints, capsys):
    with pytest.raises(SystemExit) as stopped:
        main.main(typed)
    printed = capsys.readouterr().err
    assert stopped.value.code == 2 and all(hint in printed for hint in hints), printed


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["help"], ["usage: rlaif [", "options", "check"]),
        (["help", "ppo"], ["usage: rlaif ppo", "--resume"]),
        (["help", "eval", "winrate"], ["usage: rlaif eval winrate"]),
        (["help", "data", "check"], ["usage: rlaif data check"]),
        (
            ["eval", "--help"],
            ["usage: rlaif eval [-h] [--strict] config [key=value ...]\n       rlaif eval COMMAND ...\n"],
        ),
        (["help", "eval"], ["key=value ", "--strict ", "subcommands:\n  agreement ", "\n  winrate ", "\n  context "]),
        (["eval", "a.yaml", "--help"], ["usage: rlaif eval [-h] [--strict] config"]),
        (["bench", "--help"], ["usage: rlaif bench", "ppo", "label"]),
        (["--version"], ["rlaif 0."]),
    ],
)
def test_help_and_version_are_printed(typed, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main.main(typed)
    printed = capsys.readouterr().out
    assert stopped.value.code == 0 and all(word in printed for word in words), printed


def test_options_lists_a_section_or_names_the_nearest(capsys):
    assert main.main(["options", "ppo.optim"]) == 0
    assert "ppo.optim.lr  (number > 0" in capsys.readouterr().out
    assert main.main(["options", "optim"]) == 1
    assert "ppo.optim or reward.optim or sft.optim" in capsys.readouterr().err


def test_check_prints_the_configuration_and_all_problems(config, capsys):
    assert main.main(["check", config, "sed=1", "data.root=/nothing", "--stage", "sft"]) == 1
    printed = capsys.readouterr().out
    assert "3 problem(s)" in printed.rpartition("\n\n")[2], "findings are in sight at the end"
    assert "sed: no such option; nearest is `seed`" in printed and "data.root: expected the folder" in printed
    assert "sft.init: a Hugging Face model" in printed and "3 problem(s)" in printed
    assert "prompts_per_iteration: 64" in printed, "the configuration with its defaults"


def test_check_of_an_unusable_storage_ends_with_the_problems(config, capsys):
    assert main.main(["check", config, "storage=nosuch://bucket/runs"]) == 1
    printed = capsys.readouterr()
    assert "storage: " in printed.out and printed.err == ""


def test_stage_reports_missing_files_before_ray_starts(config, capsys):
    assert main.main(["ppo", config, "data.root=/nothing", "ppo.reward=my_module:f"]) == 1
    printed = capsys.readouterr().err
    for words in ("data.root", "ppo.policy", "ppo.reward='{path: my_module:f}'"):
        assert words in printed
    assert "Traceback" not in printed and not sys.modules["ray"].is_initialized()


def test_error_of_a_stage_is_printed_with_its_fix(config, capsys, monkeypatch):
    def fail(args):
        raise CheckpointError("a complete checkpoint", "half of one", "check storage")

    monkeypatch.setattr(stages, "run_stage", fail)
    assert main.main(["ppo", config]) == 1
    printed = capsys.readouterr().err
    assert printed.strip().splitlines() == [
        "CheckpointError: expected a complete checkpoint",
        "  found    half of one",
        "  fix      check storage",
    ]


def test_failed_actor_is_reported_with_advice_and_log(config, capfd, monkeypatch, tmp_path):
    import ray

    def fail(*_):
        raise ray.exceptions.RayActorError("the actor died")

    monkeypatch.setattr(stages, "check_files", lambda *_: None)
    monkeypatch.setattr(stages, "start_stage", fail)
    assert main.main(["ppo", config]) == 1
    shown = capfd.readouterr().err
    assert "an actor failed\n\nnothing was saved yet: the same command starts again" in shown
    assert f"log: {tmp_path}/runs/x/logs/ppo.log" in shown


@pytest.mark.parametrize("kind", ["ppo", "label"])
def test_failed_actor_of_a_benchmark_is_reported_with_advice(kind, config, capfd, monkeypatch):
    import ray

    from rlaif.stages.recipes import bench_label, bench_ppo

    def fail(config, json):
        raise ray.exceptions.RayActorError("the actor died")

    monkeypatch.setattr({"ppo": bench_ppo, "label": bench_label}[kind], "bench", fail)
    assert main.main(["bench", kind, config]) == 1
    shown = capfd.readouterr().err
    assert "an actor failed\n\nthe same command starts again" in shown and "Traceback" not in shown


@pytest.mark.parametrize("stage", table.STAGES, ids=lambda stage: stage.name)
def test_command_runs_its_stage_and_prints_the_summary(stage, config, capsys, monkeypatch):
    calls = []

    def run_function(config, run, **options):
        calls.append(options)
        return "done"

    functions = {
        stage.run: run_function,
        stage.check: lambda inquiry: None,
        stage.summarise: lambda config, directory, result: summary.Summary({"result": result}),
    }
    for reference, function in functions.items():
        module, _, name = reference.partition(":")
        monkeypatch.setattr(import_module(module), name, function)
    monkeypatch.setattr(run, "open_run", lambda config: nullcontext())
    assert main.main([*stage.name.split(), config]) == 0
    assert calls == ([{"start": "new"}] if stage.resumable else [{}])
    assert f"rlaif {stage.name} finished in" in (shown := capsys.readouterr().out) and "result  done" in shown


def test_closed_output_ends_the_command_without_traceback():
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-m", "rlaif", "options"], **options)
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == ("", 141)


def test_unexpected_error_keeps_its_traceback(config, monkeypatch):
    def fail(args):
        raise RuntimeError("a bug")

    monkeypatch.setattr(stages, "run_stage", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main.main(["ppo", config])


@pytest.mark.parametrize(
    ("saved", "advice"), [([], "the same command"), ([3], "--resume continues from the checkpoint of iteration 3")]
)
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupt_gives_the_shells_exit_code_and_advice(tmp_path, capsys, monkeypatch, signum, code, saved, advice):
    file = tmp_path / "run.yaml"
    file.write_text(f"name: run\nstorage: {tmp_path}\n")
    for iteration in saved:
        (tmp_path / "run" / "sft" / "checkpoints" / f"{iteration:06d}").mkdir(parents=True)
    monkeypatch.setattr("rlaif.stages.preflight.examine.require", lambda *_: None)
    monkeypatch.setattr(stages, "start_stage", lambda *_: signal.raise_signal(signum))
    assert main.main(["sft", str(file)]) == code
    printed = capsys.readouterr().err
    assert advice in printed and ("--resume" in printed) == bool(saved)


@pytest.mark.parametrize(
    "arguments", [[], ["fly"], ["ppo"], ["sft", "a.yaml", "--resume", "--fresh"], ["eval", "a.yaml", "--resume"]]
)
def test_wrong_usage_exits_with_2(arguments, capsys):
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
def test_missing_argument_is_named(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("typed", ["options", "options ppo.kl"])
def test_output_cut_by_its_reader_exits_with_141(typed, unbuffered):
    """`| head` closes the pipe: there is no traceback, however little is printed."""
    words = [sys.executable, "-m", "rlaif", *typed.split()]
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    result = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, text=True, env=environment)
    os.close(writer)
    assert (result.returncode, result.stderr) == (141, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has this device")
@pytest.mark.parametrize("typed", ["options", "options ppo.kl", "check configs/demo.yaml"])
def test_full_disk_behind_stdout_is_an_error_without_traceback(typed):
    with open("/dev/full", "w") as full:
        words = [sys.executable, "-m", "rlaif", *typed.split()]
        result = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 1
    assert result.stderr.strip().startswith("RlaifError: expected free disk space") and "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("flags", "start", "strict"),
    [([], None, False), (["--resume"], "resume", False), (["--fresh", "--strict"], "fresh", True)],
)
def test_flags_and_overrides_may_come_in_any_order(flags, start, strict):
    for arguments in (["ppo", *flags, "a.yaml", "seed=1", "name=b"], ["ppo", "a.yaml", "seed=1", "name=b", *flags]):
        args = main.build_commands().root.parse_args(arguments)
        assert (args.start, args.strict, args.config, args.overrides) == (start, strict, "a.yaml", ["seed=1", "name=b"])


def test_eval_takes_a_configuration_called_like_a_subcommand(tmp_path, monkeypatch, capsys):
    """A file that exists, and any word with a dot or a slash, is a configuration."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "contex").write_text("name: x\nsed: 1\n")
    for words, command in ((["contex"], "eval"), (["context.yaml"], "eval"), (["context", "contex"], "eval context")):
        assert main.parse_arguments(["eval", *words]).command == command
        assert main.parse_arguments(["eval", *words]).config == words[-1]
    assert main.main(["eval", "contex"]) == 1
    assert "nearest is `seed`" in capsys.readouterr().err


def test_starting_the_command_line_is_light():
    """Help and mistakes are answered at once, because no framework is imported before a command needs it."""
    heavy = "{'torch', 'ray', 'transformers', 'vllm', 'deepspeed'}"
    script = f"import sys; from rlaif.cli import main as cli; cli.build_commands(); print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "set()"


def test_data_shapes_writes_rows_and_videos(tmp_path, capsys):
    out = tmp_path / "world"
    assert (
        main.main(["data", "shapes", "--out", str(out), "--train", "2", "--prompts", "2", "--test", "1", "--seed", "4"])
        == 0
    )
    printed = capsys.readouterr().out
    for name in ("sft", "prompts", "eval"):
        rows = [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]
        assert rows and f"{len(rows)} rows in {name}.jsonl" in printed
        assert all(os.path.getsize(out / row["video"]) > 0 for row in rows)


@pytest.mark.parametrize("typed", [["init", "DIR"], ["doctor"], ["options", "ppo"], ["data", "check", "FILE"]])
def test_command_without_options_refuses_overrides(typed, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main.main([*(word.replace("DIR", f"{tmp_path}/new") for word in typed), "ppo.iterations=3"])
    assert stopped.value.code == 2 and "takes no options as key=value" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_data_shapes_replaces_only_its_own_rows(tmp_path, capsys):
    (tmp_path / "prompts.jsonl").write_text("mine")
    sizes = ["--train", "1", "--prompts", "1", "--test", "1"]
    assert main.main(["data", "shapes", "--out", str(tmp_path), *sizes]) == 1
    assert "prompts.jsonl" in capsys.readouterr().err and (tmp_path / "prompts.jsonl").read_text() == "mine"
    for _ in range(2):
        assert main.main(["data", "shapes", "--out", str(tmp_path / "own"), *sizes]) == 0

"""The table of stages: every name in it resolves, and the facts of a stage agree with the code they are about."""

from __future__ import annotations

import inspect

import pytest

from rlaif.config.checks import CHECKS, EVERYTHING, ROLES, problems_of
from rlaif.config.cluster import Cluster
from rlaif.config.schema import Config
from rlaif.stages.table import BENCHMARKS, STAGES, resolve, scope_of, stage_named

every_stage = pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
EVERY_LINE = (*STAGES, *BENCHMARKS)


@every_stage
def test_functions_of_a_stage_take_what_they_are_called_with(stage):
    parameters = list(inspect.signature(resolve(stage.run)).parameters)
    assert parameters == (["config", "run", "start"] if stage.resumable else ["config", "run"])
    assert list(inspect.signature(resolve(stage.check)).parameters) == ["inquiry"]
    assert list(inspect.signature(resolve(stage.summarise)).parameters)[:2] == ["config", "directory"]


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda stage: stage.name)
def test_functions_of_a_benchmark_take_what_they_are_called_with(benchmark):
    assert list(inspect.signature(resolve(benchmark.run)).parameters) == ["config", "file"]


@pytest.mark.parametrize("stage", EVERY_LINE, ids=lambda stage: stage.name)
def test_checks_and_roles_of_a_stage_exist(stage):
    assert set(stage.checks) <= CHECKS.keys() and set(stage.roles) <= set(ROLES)
    config = Config(name="x", model={"device": "cuda"})
    assert isinstance(problems_of(config, stage.scope), list)


def test_every_check_and_role_is_used():
    scopes = [EVERYTHING, *(stage.scope for stage in EVERY_LINE)]
    checks = {name for scope in scopes for name in scope.checks}
    roles = {name for scope in scopes for name in scope.roles}
    assert checks == set(CHECKS) and roles == set(ROLES)
    assert {"learner", "rollout", "reward"} <= Cluster.model_fields.keys()


def test_names_are_unique_and_of_at_most_two_words():
    names = [stage.name for stage in EVERY_LINE]
    assert len(set(names)) == len(names) and all(1 <= len(name.split()) <= 2 for name in names)


def test_stage_named_finds_a_stage_or_raises():
    assert stage_named("eval winrate").name == "eval winrate" and stage_named("bench ppo") in BENCHMARKS
    with pytest.raises(KeyError):
        stage_named("evaluate")


def test_scope_without_a_stage_is_everything():
    assert scope_of(None) is EVERYTHING and scope_of("demo").checks == EVERYTHING.checks
    assert scope_of("eval winrate").section == "winrate"

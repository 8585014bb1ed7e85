"""Dense captions of every video, by a model on vLLM: `rlaif caption CONFIG`. What is there already is not made again."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

from actors.pool import RolloutPool
from rlaif.config.feedback import Caption
from rlaif.config.schema import Config, Sampling
from rlaif.errors import ConfigError, ContractError
from rlaif.feedback.narrative import CaptionPlan, clips, narrative, request_text, summary_text, version
from rlaif.feedback.store import Store, caption_key
from rlaif.models.check import fingerprint, require_model
from rlaif.records import Prompt
from rlaif.seeds import derive
from rlaif.stages import data
from rlaif.stages.filling import fill
from rlaif.stages.run import Run

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """One video to be captioned; with `caption.conditioned`, for one question."""

    key: str
    video: str
    sha256: str
    units: tuple[tuple[int, ...], ...]
    question: str = ""

    @property
    def id(self) -> str:
        """Two files of equal bytes have one key."""
        return f"{self.key}@{self.video}"


def caption(config: Config, run: Run) -> dict[str, int]:
    """Caption every video of the files in `caption.of`; returns how many were made, were there, or failed."""
    if config.data.captions is None:
        raise ConfigError("data.captions, the file to write captions to", "none", "data.captions, e.g. captions.jsonl")
    require_model("caption.model", config.caption.model)
    plan = plan_of(config.caption)
    store = data.open_captions(data.data_path(config, config.data.captions))
    check_kind(config, plan, store)
    wanted = list(_wanted(config, run, plan))
    missing = set(store.missing([(one.key, one.video) for one in wanted]))
    todo = [one for one in wanted if (one.key, one.video) in missing]
    made = failed = 0
    if todo:
        pool = run.topology.engines(config.caption.model)
        made, failed = fill(store, todo, lambda part: _captions(config, pool, plan, part), "captions")
    counts = {"captioned": made, "there": len(wanted) - len(todo), "failed": failed}
    log.info("%s: %s", store.path, ", ".join(f"{count} {name}" for name, count in counts.items()))
    return counts


def check_kind(config: Config, plan: CaptionPlan, store: Store) -> None:
    """Raises ContractError where a file holds captions by another captioner or by other prompts: nobody could read both."""
    own = (fingerprint(config.caption.model), version(plan))
    for row in store.rows():
        if (row.get("captioner", own[0]), row["version"]) != own:
            raise ContractError(
                f"captions in {store.path} by {config.caption.model} as it is, with the prompts of `caption` as they are",
                f"some by {row['model']} with other weights or prompts",
                "data.captions: another file, or remove this one",
            )


def plan_of(config: Caption) -> CaptionPlan:
    return CaptionPlan(
        **{item.name: getattr(config, item.name) for item in fields(CaptionPlan) if item.name != "separator"}
    )


def _wanted(config: Config, run: Run, plan: CaptionPlan) -> Iterator[Wanted]:
    """Every video of the prompt files, once (per question, where captions depend on it)."""
    files = [file for file in config.caption.of if data.data_path(config, file).is_file()]
    if not files:
        raise ConfigError(
            "a prompt file among caption.of", f"none of {', '.join(config.caption.of)}", "caption.of, data.root"
        )
    captioner, asked, client, seen = fingerprint(config.caption.model), version(plan), run.topology.client(), set()
    for prompt in data.prompts_of(run, files):
        question = prompt.question if plan.conditioned else ""
        if (prompt.video, question) in seen:
            continue
        seen.add((prompt.video, question))
        spec = client.spec(prompt.video)
        units = tuple(map(tuple, clips(spec.total_frames, plan)))
        key = caption_key(spec.sha256, spec.part(units[0]).hash, captioner, asked, question)
        yield Wanted(key, prompt.video, spec.sha256, units, question)


def _captions(config: Config, pool: RolloutPool, plan: CaptionPlan, wanted: Sequence[Wanted]) -> list[dict]:
    """Rows of the store: the units of all videos one after another, since each may depend on the one before it."""
    made: dict[str, list[str]] = {one.id: [] for one in wanted}
    failed: dict[str, str] = {}
    for unit in range(max(len(one.units) for one in wanted)):
        asked = [
            Prompt(one.id, one.video, request_text(plan, _last(made[one.id]), one.question), frames=one.units[unit])
            for one in wanted
            if unit < len(one.units) and one.id not in failed
        ]
        for key, text in _answers(config, pool, f"unit {unit}", asked, failed).items():
            made[key].append(text)
    summaries: Mapping[str, str] = {}
    if plan.aggregate == "summarise":
        asked = [
            Prompt(o.id, o.video, summary_text(made[o.id], plan, o.question)) for o in wanted if o.id not in failed
        ]
        summaries = _answers(config, pool, "summary", asked, failed)
    return [_row(config, plan, one, made[one.id], summaries.get(one.id), failed.get(one.id)) for one in wanted]


def _last(captions: Sequence[str]) -> str | None:
    return captions[-1] if captions else None


def _answers(
    config: Config, pool: RolloutPool, name: str, prompts: Sequence[Prompt], failed: dict[str, str]
) -> dict[str, str]:
    """The model's answer by prompt id; what failed goes into `failed` with its reason."""
    if not prompts:
        return {}
    sampling = Sampling(temperature=config.caption.temperature, max_tokens=config.caption.max_tokens)
    pool.submit("captions", prompts, 1, derive(config.seed, "captions", name), sampling)
    found: dict[str, str] = {}
    for answers in pool.results("captions", config.cluster.collective_timeout_s):
        found |= {sample.prompt.prompt_id: sample.response for sample in answers.samples}
        failed |= {failure.prompt_id: failure.reason for failure in answers.failures}
    return found


def _row(
    config: Config, plan: CaptionPlan, one: Wanted, captions: list[str], summary: str | None, failed: str | None
) -> dict:
    row = {
        "key": one.key,
        "video": one.video,
        "sha256": one.sha256,
        "model": config.caption.model,
        "captioner": fingerprint(config.caption.model),
        "version": version(plan),
        **({"question": one.question} if one.question else {}),
    }
    if failed is not None:
        return row | {"masked": failed}
    told = [narrative(captions, plan, summary)] if plan.aggregate == "summarise" else captions
    return row | {"frames": [list(unit) for unit in one.units], "captions": captions, "context": told}

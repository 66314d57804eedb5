"""The model card of a run's model: `model/README.md`, written from what the run itself recorded.

Its first lines are the metadata that the Hub reads, the rest says what the model is, how it was made, what was
measured, how plain Transformers loads it and where it should not be trusted. No path of the machine it was made on
gets in.
"""

import dataclasses
import re
from pathlib import Path

from huggingface_hub import ModelCardData

from rlhf import metrics
from rlhf.config import EVERYDAY, CompareArguments, default_of
from rlhf.kinds import KINDS
from rlhf.rewards import RewardName
from rlhf.runs.directory import Run
from rlhf.runs.files import read_json
from rlhf.words import cell, number, percent
from rlhf.write.templates import render


CARD = "README.md"
LAST_UPDATES = 8
"""Updates of PPO that a number of the card averages over."""
_PROGRESS = (
    (metrics.SCORE, "{score}, before normalisation", number, 2),
    (metrics.KL, "KL from the base model, nats per response", number, 2),
    (metrics.MEAN_LENGTH, "length, tokens per response", number, 1),
    (metrics.CLIPPED_RATIO, "responses cut off at the length limit", percent, 1),
)
_NOT_IN_THE_TABLE = {
    "output_dir", "model_name_or_path", "reward_model_path", "reward_funcs", "dataset_name", "resume_from_checkpoint",
    "seed", "feedback",
}  # fmt: skip
"""Settings that are no row of the card's table: paths, and what stands in its text."""
_TAGS = {"ppo": ["rlhf", "ppo"], "dpo": ["rlhf", "dpo", "trl"], "reward": ["rlhf", "reward-model", "trl"]}
_COMMIT_DIGITS = 40
"""A model that came from the Hub is noted by its commit, which is longer than what is noted of a local one."""


def write_card(folder: Path) -> None:
    """Write the card into a run's model folder."""
    (folder / CARD).write_text(model_card(folder), encoding="utf-8")


def model_card(folder: Path) -> str:
    """The card of the model in this folder, `model/` of a run that trains one, as Markdown with metadata in front."""
    run = Run(folder.parent)
    config, status = run.config(), run.status()
    kind, base, data = config["kind"], config["model_name_or_path"], config["dataset_name"]
    base_on_hub = len(config.get("model_revision", "")) == _COMMIT_DIGITS
    # A data set is one of the Hub's unless it is embedded or a file, which has an ending or is there.
    data_on_hub = data != EVERYDAY and not Path(data).suffix and not Path(data).exists()
    metadata = ModelCardData(
        base_model=base if base_on_hub else None,
        datasets=[data] if data_on_hub else None,
        library_name="transformers",
        pipeline_tag="text-generation" if KINDS[kind].trains == "policy" else "text-classification",
        tags=_TAGS[kind],
    )
    defaults = {field.name: default_of(field) for field in dataclasses.fields(KINDS[kind].settings)}
    # DPO samples nothing, so its card samples as a comparison does.
    sampling = {"temperature": CompareArguments.temperature, "response_length": CompareArguments.response_length}
    config = {**sampling, **defaults, **config}
    results = {"reward": _reward_results, "ppo": _ppo_results, "dpo": _dpo_results}[kind]
    return render(
        f"card_{kind}.md.j2",
        metadata=metadata.to_yaml(),
        run_id=_whole(run).id,
        config={"feedback": None, "feedback_only": False, **config},
        simulated=not (config.get("feedback_only") or _whole(run).config().get("feedback_only")),
        base_on_hub=base_on_hub,
        base_name=Path(base).name,
        data_on_hub=data_on_hub,
        data_name=Path(data).name,
        step=status.get("step", 0),
        total_steps=status.get("total_steps", 0),
        changed=[
            (name, config[name], default)
            for name, default in defaults.items()
            if name not in _NOT_IN_THE_TABLE and config[name] != default
        ],
        has_chat_template=(folder / "chat_template.jinja").exists()
        or "chat_template" in read_json(folder / "tokenizer_config.json"),
        **results(run),
    )


def _whole(run: Run) -> Run:
    """The demo that this run is a stage of, or the run itself."""
    parent = run.parent()
    return parent if parent is not None and parent.config().get("kind") == "demo" else run


def _reward_results(run: Run) -> dict[str, object]:
    """What the run measured on held-out pairs, if it has got that far."""
    return {"reward": read_json(run.path / "summary.json").get("reward_model")}


def _dpo_results(run: Run) -> dict[str, object]:
    """The last evaluation on held-out pairs, and what the noise in their labels allows, where it is known."""
    rows = run.metrics()
    evaluated = next((row for row in reversed(rows) if metrics.EVAL_LOSS in row), {})
    return {
        "rewards": [],  # DPO's card is PPO's with other blocks
        "evaluated": evaluated,
        "evaluated_step": evaluated.get(metrics.STEP),
        "label_ceiling": next((row[metrics.LABEL_CEILING] for row in rows if metrics.LABEL_CEILING in row), None),
        **{name: key for name, key in vars(metrics).items() if "EVAL_" in name},
    }


def _ppo_results(run: Run) -> dict[str, object]:
    """The first and the last updates, the last evaluation, and the comparison if the run is part of a demo."""
    rows, config = run.metrics(), run.config()
    names = config.get("reward_funcs")
    rewards = [(reward, config["reward_files"].get(reward.file_name)) for reward in map(RewardName.read, names or ())]
    each = metrics.rewards_of(rows[0]) if rows else {}
    parts = [(key, f"reward {cell(name)}", number, 2) for name, key in each.items() if len(each) > 1]
    progress = []
    for key, label, write, digits in (*_PROGRESS, *parts):
        values = [row[key] for row in rows if row.get(key) is not None]
        last = values[-LAST_UPDATES:]
        if last:
            label = label.format(score="score" if rewards else "reward-model score") if key == metrics.SCORE else label
            progress.append((label, write, digits, values[0], sum(last) / len(last)))
    evaluated_step, evaluations = _last_evaluation(rows)
    splits = read_json(_whole(run).path / "summary.json").get("splits", {})
    cautions = [caution for split in splits.values() for caution in split["against_base"]["ppo"]["cautions"]]
    evaluated = {name: key for name, key in vars(metrics).items() if name.startswith("EVAL_")}
    return {
        "rewards": rewards,
        "progress": progress,
        "last_updates": LAST_UPDATES,
        "evaluated_step": evaluated_step,
        "evaluations": evaluations,
        "splits": splits,
        "cautions": list(dict.fromkeys(cautions)),
        **evaluated,
    }


def _last_evaluation(rows: list[dict]) -> tuple[int | None, dict[str, dict[str, float]]]:
    """The update of the last evaluation, and each data set's numbers under its name, which is "" for an only one.

    The numbers of a data set NAME are logged as `eval_NAME/score` ..., those of an only one as `eval/score` ...
    """
    for row in reversed(rows):
        evaluations: dict[str, dict[str, float]] = {}
        for key, value in row.items():
            if match := re.fullmatch(r"eval_?(.*)(/\w+)", key):
                evaluations.setdefault(match[1], {})[f"eval{match[2]}"] = value
        if evaluations:
            return row[metrics.STEP], evaluations
    return None, {}

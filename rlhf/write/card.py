"""The model card of a run's model: `model/README.md`, written from what the run itself recorded.

Its first lines are the metadata that the Hub reads, the rest says what the model is, how it was made, what was
measured, how plain Transformers loads it and where it should not be trusted. No path of the machine it was made on
gets in.
"""

import dataclasses
from pathlib import Path

from huggingface_hub import ModelCardData

from rlhf.config import EVERYDAY, PPOArguments, RewardArguments
from rlhf.runs.directory import Run, read_json


CARD = "README.md"
LAST_UPDATES = 8
"""Updates of PPO that a number of the card averages over."""
_SETTINGS = {"reward": RewardArguments, "ppo": PPOArguments}
_TOLD_ELSEWHERE = {
    "output_dir", "model_name_or_path", "reward_model_path", "dataset_name", "resume_from_checkpoint", "seed",
}  # fmt: skip
"""Settings that are no line of the table: paths, and what a sentence of the card says."""
_COMMIT_DIGITS = 40
"""A model that came from the Hub is noted by its commit, which is longer than what is noted of a local one."""

_WHAT = {
    "ppo": "A language model that PPO trained against a reward model: it answers questions so that they are scored "
    "higher.",
    "reward": "A reward model: it reads a question and an answer and says one number, which is higher the more people "
    "are expected to prefer the answer. Only differences between answers to the same question mean something: the "
    "sigmoid of a difference is the probability that the first is preferred.",
}
_LIMITS = {
    "ppo": "It was trained to please a reward model, not to be right: where the reward model is mistaken, so is this "
    "model, and more training would have found more of its mistakes. A high score is no evidence of truth.",
    "reward": "It judges answers like those it was trained on; on other subjects, other lengths or another kind of "
    "writing its scores may mean nothing, and a policy that is trained against it for long finds its mistakes.",
}
_WORLD = (
    "It knows a small invented world of everyday questions, and its teachers were simulated: it is made for learning "
    "how reinforcement learning from human feedback works and fit for nothing else."
)

_POLICY_CODE = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

name = "."  # this folder, or its name on the Hub
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(name)
{prompt}
answer = model.generate(
    **inputs, do_sample=True, temperature={temperature}, top_k=0, max_new_tokens={length},
    pad_token_id=tokenizer.eos_token_id,
)
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))"""
_POLICY_CHAT = """\
messages = [{"role": "user", "content": "Tell me how to clean an oven."}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")"""
_POLICY_TEXT = """inputs = tokenizer("Tell me how to clean an oven.", return_tensors="pt")"""
_REWARD_CODE = """\
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

name = "."  # this folder, or its name on the Hub
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForSequenceClassification.from_pretrained(name)
question, answer = "Tell me how to clean an oven.", "Wipe it with baking soda and water, and let it dry."
{text}
inputs = tokenizer(text, {no_specials}return_tensors="pt")
with torch.no_grad():
    print(model(**inputs).logits.item())"""
_REWARD_CHAT = """\
messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
text = tokenizer.apply_chat_template(messages, tokenize=False)"""
_REWARD_TEXT = """text = question + answer + tokenizer.eos_token"""


def write_card(folder: Path) -> None:
    """Write the card into a run's model folder."""
    (folder / CARD).write_text(model_card(folder), encoding="utf-8")


def model_card(folder: Path) -> str:
    """The card of the model in this folder, `model/` of a reward or PPO run, as Markdown with metadata in front."""
    run = Run(folder.parent)
    kind, demo = run.config()["kind"], Run(run.path.parent)
    whole = demo if demo.config().get("kind") == "demo" else run
    sections = [
        f"---\n{_metadata(run, kind).to_yaml()}\n---",
        f"# {'PPO policy' if kind == 'ppo' else 'Reward model'} of {whole.id}",
        f"{_WHAT[kind]} {_origin(run)}",
        "## How it was trained",
        *_training(run, kind),
        "## Numbers",
        _reward_numbers(run) if kind == "reward" else _ppo_numbers(run),
        *(_comparison(read_json(whole.path / "summary.json")) if kind == "ppo" else ()),
        "## Loading it",
        "With Transformers alone, from this folder:",
        f"```python\n{_code(folder, run, kind)}\n```",
        "## Limits",
        _LIMITS[kind],
        *([_WORLD] if run.config()["dataset_name"] == EVERYDAY else ()),
        "No licence is stated here: name one that the base model's and the data's allow before you share it.",
    ]
    return "\n\n".join(sections) + "\n"


def _metadata(run: Run, kind: str) -> ModelCardData:
    config = run.config()
    data = config["dataset_name"]
    return ModelCardData(
        base_model=config["model_name_or_path"] if _from_hub(config) else None,
        datasets=[data] if _is_hub_data(data) else None,
        library_name="transformers",
        pipeline_tag="text-generation" if kind == "ppo" else "text-classification",
        tags=["rlhf", "ppo"] if kind == "ppo" else ["rlhf", "reward-model", "trl"],
    )


def _from_hub(config: dict) -> bool:
    return len(config.get("model_revision", "")) == _COMMIT_DIGITS


def _is_hub_data(name: str) -> bool:
    """Whether a data set's name is one on the Hub: a file has an ending, or is there."""
    return name != EVERYDAY and not Path(name).suffix and not Path(name).exists()


def _origin(run: Run) -> str:
    """What the model began as and what it was trained on."""
    config = run.config()
    name, data = config["model_name_or_path"], config["dataset_name"]
    if name == EVERYDAY:
        began = "RLHF Lab's embedded base model"
    elif _from_hub(config):
        began = f"[{name}](https://huggingface.co/{name}) at commit `{config['model_revision'][:12]}`"
    else:
        began = f"a local model, `{Path(name).name}`"
    if data == EVERYDAY:
        read = "RLHF Lab's embedded world, where simulated people judge answers to everyday questions"
    elif _is_hub_data(data):
        read = f"[{data}](https://huggingface.co/datasets/{data})"
    else:
        read = f"a local file, `{Path(data).name}`"
    return f"It began as {began}; its data is {read}."


def _training(run: Run, kind: str) -> list[str]:
    """Paragraphs on steps and seed, the settings that are not the defaults, and versions."""
    config, status = run.config(), run.status()
    how = "PPO, `rlhf.ppo.PPOTrainer`" if kind == "ppo" else "`RewardTrainer` of TRL, with Bradley and Terry's loss"
    step, total = status.get("step", 0), status.get("total_steps", 0)
    steps = f"{step:,}" if step == total else f"{step:,} of {total:,} (it was stopped)"
    versions = ", ".join(f"{name} {version}" for name, version in config.get("versions", {}).items())
    changed = [
        f"| `{field.name}` | {_plain(config[field.name])} | {_plain(field.default)} |"
        for field in dataclasses.fields(_SETTINGS[kind])
        if field.name not in _TOLD_ELSEWHERE and config.get(field.name, field.default) != field.default
    ]
    table = "\n".join(["| setting | here | default |", "|---|---|---|", *changed])
    return [
        f"{how}. {'Updates' if kind == 'ppo' else 'Optimizer steps'}: {steps}. Seed: {config.get('seed', 0)}.",
        table if changed else "All settings are the defaults.",
        f"Made with {versions}.",
    ]


def _plain(value: object) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _interval(entry: dict, scale: float = 1.0, digits: int = 3) -> str:
    """An estimate with its 95 % interval."""
    value, low, high = (f"{scale * entry[name]:.{digits}f}" for name in ("value", "ci_low", "ci_high"))
    return f"{value} [{low}, {high}]"


def _reward_numbers(run: Run) -> str:
    """What the run found out on pairs it had held out."""
    found = read_json(run.path / "summary.json").get("reward_model")
    if not found:
        return "None yet: the run is still measuring."
    lines = [
        f"- Loss on {found['n']} held-out pairs: {_interval(found['loss'])} nats (95 % interval); guessing: 0.693.",
        f"- Accuracy on them: {_interval(found['accuracy'], 100, 1)} % (95 % interval); guessing: 50 %.",
    ]
    if found["label_ceiling"] is not None:
        lines.append(
            f"- The labels are noisy: the rubric that is known here agrees with {100 * found['label_ceiling']:.1f} % "
            f"of them, and with the model on {100 * found['rubric_agreement']:.1f} % of the pairs."
        )
    return "\n".join(lines)


def _ppo_numbers(run: Run) -> str:
    """The last updates' averages, and the last evaluation if there was one."""
    rows = run.metrics()
    measured = (
        ("objective/scores_raw", "Score by the reward model, before any normalisation", ".2f"),
        ("objective/kl", "KL from the base model, nats an answer", "z.2f"),
        ("completions/mean_length", "Length of an answer, tokens", ".1f"),
        ("completions/clipped_ratio", "Share of answers that ran into the length limit", ".3f"),
    )
    lines = []
    for key, label, form in measured:
        values = [row[key] for row in rows if row.get(key) is not None]
        last = values[-LAST_UPDATES:]
        if last:
            mean = sum(last) / len(last)
            lines.append(f"- {label}: {values[0]:{form}} at first, {mean:{form}} over the last {len(last)} updates.")
    evaluated = [row for row in rows if any(key.startswith("eval_") for key in row)]
    for key, value in (evaluated[-1] if evaluated else {}).items():
        if key.startswith("eval_"):
            lines.append(f"- `{key}` after update {evaluated[-1]['step']}: {_plain(value)}.")
    return "\n".join(lines) or "The run logged none."


def _comparison(summary: dict) -> list[str]:
    """Paragraphs on what a demo's comparison with the base found on prompts that no training saw."""
    columns, cautions = [], {}
    for split, found in summary.get("splits", {}).items():
        model, against = found["models"]["ppo"], found["against_base"]["ppo"]
        cells = {"": "topics of the training" if split == "test" else "topics that no training met"}
        cells["prompts, answers to each"] = f"{model['prompts']}, {model['samples']}"
        for kind, label in (("score", "score"), ("gold", "gold score (0 to 1)")):
            if against[kind]:
                cells[f"gain in {label}"] = _interval(against[kind]["gain"], digits=2)
                cells[f"higher {label}, % of the prompts"] = _interval(against[kind]["win_rate"], 100, 1)
        cells["KL from the base, nats an answer"] = _interval(model["kl"], digits=2)
        columns.append(cells)
        cautions |= dict.fromkeys(against["cautions"])
    if not columns:
        return []
    rows = [[label, *(column[label] for column in columns)] for label in columns[0]]
    rows.insert(1, ["---"] * len(rows[0]))
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return ["Against the base on prompts that no training saw, with 95 % intervals:", table, *cautions]


def _code(folder: Path, run: Run, kind: str) -> str:
    """Lines that load the model and use it as it was used in training, with its chat template if it has one."""
    chat = (folder / "chat_template.jinja").exists() or "chat_template" in read_json(folder / "tokenizer_config.json")
    if kind == "reward":
        specials = "add_special_tokens=False, " if chat else ""
        return _REWARD_CODE.format(text=_REWARD_CHAT if chat else _REWARD_TEXT, no_specials=specials)
    config = run.config()
    return _POLICY_CODE.format(
        prompt=_POLICY_CHAT if chat else _POLICY_TEXT,
        temperature=config.get("temperature", PPOArguments.temperature),
        length=config.get("response_length", PPOArguments.response_length),
    )

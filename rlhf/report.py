"""REPORT.md from a finished demo run: every number is read from its files, none is typed by hand."""

import csv
import math
from pathlib import Path

import matplotlib


matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend is chosen first)

from rlhf.config import BadInput  # noqa: E402
from rlhf.runs import Run, read_json  # noqa: E402


BASE, PPO, GOLD, GREY = "#0072B2", "#D55E00", "#009E73", "#6b7280"
"""Okabe and Ito's colours, the same as on the page."""
SHOWN_PROMPTS = 8
_STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "font.size": 10,
    "svg.hashsalt": "rlhf",  # the same numbers make the same file
    "figure.facecolor": "white",
}


def write_report(run_path: Path, output_file: Path) -> Path:
    """Write the report of a finished demo run, with its figures in `assets/report/` beside it.

    Raises:
        BadInput: the directory holds no finished demo run.
    """
    summary = read_json(run_path / "summary.json")
    if "seconds" not in summary:
        raise BadInput(f"{run_path} holds no finished demo run; make one with `python -m rlhf demo`.")
    with (run_path / "scores.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    figures = output_file.parent / "assets" / "report"
    figures.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(_STYLE):
        _reward_figure(Run(run_path / "reward").metrics(), summary, figures / "reward.svg")
        _ppo_figure(Run(run_path / "ppo").metrics(), figures / "ppo.svg")
        _score_figure(rows, figures / "scores.svg")
    output_file.write_text(_text(Run(run_path), summary, rows), encoding="utf-8")
    return output_file


def _save(figure: plt.Figure, path: Path) -> None:
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def _line(axis: plt.Axes, rows: list[dict], x: str, y: str, color: str, title: str, unit: str) -> None:
    points = [(row[x], row[y]) for row in rows if row.get(y) is not None]
    axis.plot(*zip(*points, strict=True), color=color, linewidth=1.6)
    axis.set_title(title)
    axis.set_ylabel(unit)
    axis.set_xlabel(f"{x}s")


def _level(axis: plt.Axes, value: float, label: str) -> None:
    axis.axhline(value, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    axis.annotate(label, (1, value), xycoords=("axes fraction", "data"), ha="right", va="bottom", color=GREY)


def _reward_figure(metrics: list[dict], summary: dict, path: Path) -> None:
    figure, (loss, accuracy) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    _line(loss, metrics, "step", "loss", GREY, "Loss on training pairs", "nats")
    _level(loss, math.log(2), "chance, ln 2")
    _line(accuracy, metrics, "step", "accuracy", GREY, "Accuracy on training pairs", "share of pairs")
    _level(accuracy, 0.5, "chance")
    if summary["reward_model"]["label_ceiling"] is not None:
        _level(accuracy, summary["reward_model"]["label_ceiling"], "the rubric itself on these labels")
    _save(figure, path)


def _ppo_figure(metrics: list[dict], path: Path) -> None:
    figure, axes = plt.subplots(2, 2, figsize=(9, 5), layout="constrained", sharex=True)
    panels = (
        ("objective/scores_raw", "Reward model's score", "score"),
        ("objective/kl", "KL from the base model", "nats a response"),
        ("objective/entropy", "Entropy", "nats a response"),
        ("completions/mean_length", "Length", "tokens a response"),
    )
    for axis, (key, title, unit) in zip(axes.flat, panels, strict=True):
        _line(axis, metrics, "episode", key, PPO, title, unit)
    _save(figure, path)


def _score_figure(rows: list[dict], path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    for axis, (key, title) in zip(
        axes, (("score", "Reward model's score"), ("gold", "Rubric (gold score)")), strict=True
    ):
        values = [
            [float(row[key]) for row in rows if row["model"] == model and row["split"] == "test" and row[key]]
            for model in ("base", "ppo")
        ]
        boxes = axis.boxplot(
            values, orientation="horizontal", tick_labels=["base", "PPO"], patch_artist=True, widths=0.6
        )
        for box, median, color in zip(boxes["boxes"], boxes["medians"], (BASE, PPO), strict=True):
            box.set(facecolor=color, alpha=0.35)
            median.set(color=color, linewidth=2)
        axis.set_title(title)
    _save(figure, path)


def _interval(entry: dict, value: str = "mean", *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"{entry[value]:{sign}.3f} [{entry['ci_low']:{sign}.3f}, {entry['ci_high']:{sign}.3f}]"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _text(run: Run, summary: dict, rows: list[dict]) -> str:
    return (
        "\n\n".join(
            [
                "# Report",
                _setup(run, summary),
                _reward_section(summary["reward_model"]),
                _ppo_section(run),
                _comparison(summary),
                _examples(rows),
                _cost(summary, run.config()["cpus"]),
            ]
        )
        + "\n"
    )


def _setup(run: Run, summary: dict) -> str:
    config = run.config()
    versions = ", ".join(f"{name} {version}" for name, version in config["versions"].items())
    return f"""Written by `python -m rlhf report` from the files of one run of
`python -m rlhf demo --seed {config["seed"]}`. Every number below is read from that run's directory.

## Setup

- Base model: the embedded `everyday` model, {summary["base"]["size_mb"]:.1f} MB of float32 weights.
- Preferences: pairs of its own answers. Simulated annotators choose by the rubric, with Bradley-Terry noise.
- Rubric (gold score): the exact hand-written scorer of the embedded world, in [0, 1]. Training never sees it.
- PPO: {config["total_episodes"]} episodes, learning rate {config["learning_rate"]:g}, `kl_coef` {config["kl_coef"]:g}.
- Comparison: {summary["base"]["n"]} test prompts that no training saw, one response each, the same random numbers for
  both models.
- Versions: {versions}."""


def _reward_section(reward: dict) -> str:
    lines = [
        "## Reward model",
        "![Loss and accuracy of the reward model over training](assets/report/reward.svg)",
        f"""On {reward["pairs"]} held-out pairs, about prompts it was not trained on:

| | value | beside it |
|---|---|---|
| loss | {reward["eval_loss"]:.3f} nats | {math.log(2):.3f} is chance |
| accuracy | {reward["eval_accuracy"]:.1%} | 50 % is chance{_ceiling(reward)} |
| mean margin | {reward["mean_margin"]:.2f} | score of the chosen minus score of the rejected answer |
| ties | {reward["tie_fraction"]:.1%} | |
| size | {reward["size_mb"]:.1f} MB | |""",
    ]
    if reward["rubric_agreement"] is not None:
        lines.append(
            f"It prefers the answer that the rubric prefers on {reward['rubric_agreement']:.1%} of these pairs, "
            "although it was trained on noisy labels only."
        )
    return "\n\n".join(lines)


def _ceiling(reward: dict) -> str:
    if reward["label_ceiling"] is None:
        return ""
    return f"; {reward['label_ceiling']:.1%} is what the rubric itself reaches on these noisy labels"


def _ppo_section(run: Run) -> str:
    metrics = Run(run.path / "ppo").metrics()
    first, last = metrics[0], metrics[-1]
    return f"""## PPO

![Score, KL, entropy and length over the episodes](assets/report/ppo.svg)

Over {last["episode"]} episodes the mean score of a batch went from {first["objective/scores_raw"]:.2f} to
{last["objective/scores_raw"]:.2f}, the KL from the base model to {last["objective/kl"]:.1f} nats a response."""


def _comparison(summary: dict) -> str:
    base, ppo = summary["base"], summary["ppo"]
    table = [
        ("score, mean", "mean", ".3f"),
        ("score, median", "median", ".3f"),
        ("score, middle half from", "q1", ".3f"),
        ("score, middle half to", "q3", ".3f"),
        ("rubric (gold score), mean", "gold_mean", ".3f"),
        ("length in tokens, mean", "mean_length", ".1f"),
        ("responses that end by themselves", "eos_rate", ".1%"),
        ("different word pairs (distinct-2)", "distinct_2", ".3f"),
        ("size of the weights in MB", "size_mb", ".1f"),
    ]
    lines = [
        f"| {label} | {base[key]:{form}} | {ppo[key]:{form}} |" for label, key, form in table if base[key] is not None
    ]
    rows = "\n".join(lines)
    text = f"""## Comparison

![Scores and rubric scores of both models](assets/report/scores.svg)

| on {base["n"]} unseen prompts | base | PPO |
|---|---|---|
{rows}

| paired, with 95 % bootstrap intervals over prompts | |
|---|---|
| gain in score | {_interval(summary["gain"], signed=True)} |
| prompts on which PPO scores higher (chance: 0.5) | {_interval(summary["win_rate"], "value")} |"""
    if summary["gold_gain"] is not None:
        unseen = summary["unseen_topics"]
        text += f"""
| gain in rubric | {_interval(summary["gold_gain"], signed=True)} |
| prompts on which the rubric prefers PPO | {_interval(summary["gold_win_rate"], "value")} |
| the same on {unseen["n"]} prompts about unseen topics | {_interval(unseen["gold_gain"], signed=True)} |"""
    return (
        text
        + f"""

KL from the base model, exact over the vocabulary: {summary["kl"]["mean"]:.1f} nats a response."""
    )


def _examples(rows: list[dict]) -> str:
    tests = [row for row in rows if row["split"] == "test"]
    base = {row["prompt"]: row for row in tests if row["model"] == "base"}
    ppo = {row["prompt"]: row for row in tests if row["model"] == "ppo"}
    prompts = list(base)
    chosen = prompts[:: max(1, len(prompts) // SHOWN_PROMPTS)][:SHOWN_PROMPTS]
    lines = [
        f"| {_cell(prompt)} | {_cell(base[prompt]['response'])} ({float(base[prompt]['score']):.1f}) "
        f"| {_cell(ppo[prompt]['response'])} ({float(ppo[prompt]['score']):.1f}) |"
        for prompt in chosen
    ]
    table = "\n".join(lines)
    return f"""## Answers

Test prompts at even distances, not chosen by what was answered; the reward model's score in brackets.

| prompt | base | PPO |
|---|---|---|
{table}"""


def _cost(summary: dict, cpus: int) -> str:
    seconds = summary["seconds"]
    return f"""## Cost and limits

Reward model {seconds["reward"]:.0f} s, PPO {seconds["ppo"]:.0f} s, comparison {seconds["compare"]:.0f} s, in all
{seconds["total"]:.0f} s on {cpus} CPU cores.

- One training seed: the intervals cover the choice of prompts, not of seeds.
- The annotators are simulated and the world is small. What is shown here is how the method behaves, not how good a
  large model becomes.
- The score is what PPO was trained to raise, so its rise alone proves little; the rubric, which training never saw, is
  the judge."""

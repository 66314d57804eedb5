"""REPORT.md from a finished demo run: every number is read from its files, none is typed by hand."""

import math
from pathlib import Path

import matplotlib
import numpy as np


matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend is chosen first)

from rlhf.compare.stats import Overoptimization  # noqa: E402
from rlhf.compare.table import read_rows  # noqa: E402
from rlhf.config import BadInput  # noqa: E402
from rlhf.runs.directory import Run  # noqa: E402


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


def write_report(run_path: Path, output_file: Path, sweep_path: Path) -> Path:
    """Write the report of a finished demo run, with its figures in `assets/report/` beside it.

    A sweep adds a section on over-optimisation; without one at `sweep_path` the report has none.

    Raises:
        BadInput: the directory holds no finished demo run.
    """
    run = Run(run_path)
    summary, stages = run.summary(), run.stages()
    if "seconds" not in summary:
        raise BadInput(f"{run_path} holds no finished demo run; make one with `python -m rlhf demo`.")
    rows = list(read_rows(run_path / "scores.csv"))
    figures = output_file.parent / "assets" / "report"
    figures.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(_STYLE):
        _reward_figure(stages["reward"].metrics(), summary, figures / "reward.svg")
        _ppo_figure(stages["ppo"].metrics(), figures / "ppo.svg")
        _score_figure(rows, figures / "scores.svg")
        sweep = Run(sweep_path).sweep()
        if sweep:
            _sweep_figure(sweep, figures / "sweep.svg")
    output_file.write_text(_text(run, summary, rows, sweep), encoding="utf-8")
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
    figure, (loss, accuracy, honesty) = plt.subplots(1, 3, figsize=(12, 3), layout="constrained")
    _line(loss, metrics, "step", "loss", GREY, "Loss on training pairs", "nats")
    _level(loss, math.log(2), "chance, ln 2")
    _line(accuracy, metrics, "step", "accuracy", GREY, "Accuracy on training pairs", "share of pairs")
    _level(accuracy, 0.5, "chance")
    if summary["reward_model"]["label_ceiling"] is not None:
        _level(accuracy, summary["reward_model"]["label_ceiling"], "the rubric itself on these labels")
    accuracy.margins(y=0.15)
    honesty.plot([0.5, 1], [0.5, 1], color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    bins = summary["reward_model"]["reliability"]
    honesty.plot([b["confidence"] for b in bins], [b["correct"] for b in bins], "o-", color=BASE, linewidth=1.6)
    honesty.set_title("Reliability on unseen pairs")
    honesty.set_xlabel("how sure it was (mean of a bin)")
    honesty.set_ylabel("share in which people agreed")
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
    figure, axes = plt.subplots(1, 3, figsize=(12, 3), layout="constrained")
    for axis, (key, title) in zip(axes, (("score", "Reward model's score"), ("gold", "Rubric (gold score)"))):  # noqa: B905
        values = [
            [row[key] for row in rows if row["model"] == model and row["split"] == "test" and row[key] is not None]
            for model in ("base", "ppo")
        ]
        boxes = axis.boxplot(
            values, orientation="horizontal", tick_labels=["base", "PPO"], patch_artist=True, widths=0.6
        )
        for box, median, color in zip(boxes["boxes"], boxes["medians"], (BASE, PPO), strict=True):
            box.set(facecolor=color, alpha=0.35)
            median.set(color=color, linewidth=2)
        axis.set_title(title)
    gains = np.sort(_gains(rows))
    axes[2].plot(np.arange(len(gains)) / len(gains), gains, color=PPO, linewidth=1.6)
    axes[2].axhline(0, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    axes[2].axhline(gains.mean(), color=PPO, linewidth=1, linestyle=(0, (1, 2)))
    axes[2].set_title("Gain in score, prompt by prompt")
    axes[2].set_xlabel("share of the prompts, from the worst")
    _save(figure, path)


def _sweep_figure(sweep: dict, path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained", sharex=True)
    for axis, key, title, color in (
        (axes[0], "score", "Gain in the reward model's score", PPO),
        (axes[1], "gold", "Gain in the rubric (gold score)", GOLD),
    ):
        for trained, marker, shade, label in ((True, "o", color, "PPO"), (False, "x", GREY, "best of n")):
            points = [point for point in sweep["points"] if ("kl_coef" in point) == trained and point[key]]
            kl, gain = ([point[name]["value"] for point in points] for name in ("kl", key))
            bars = [[point[key]["value"] - point[key]["ci_low"] for point in points]]
            bars.append([point[key]["ci_high"] - point[key]["value"] for point in points])
            axis.errorbar(kl, gain, bars, fmt=marker, color=shade, markersize=5, elinewidth=0.8, label=label)
        axis.set_title(title)
        axis.set_xlabel("KL from the base model, nats a response")
    if sweep["fit"]:
        fit = Overoptimization(**sweep["fit"])
        kl = np.linspace(0, max(point["kl"]["value"] for point in sweep["points"]), 200)
        axes[1].plot(kl, fit.predict(kl), color=GOLD, linewidth=1.2)
        if fit.turnover_kl is not None and fit.turnover_kl <= kl[-1]:
            axes[1].axvline(fit.turnover_kl, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    axes[0].legend(frameon=False, loc="lower right")
    _save(figure, path)


def _gains(rows: list[dict]) -> np.ndarray:
    """PPO's mean score minus the base's, of each test prompt (n,)."""
    scores: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row["split"] == "test":
            scores.setdefault(row["prompt"], {}).setdefault(row["model"], []).append(row["score"])
    return np.array([np.mean(sides["ppo"]) - np.mean(sides["base"]) for sides in scores.values()])


def _interval(entry: dict, *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"{entry['value']:{sign}.3f} [{entry['ci_low']:{sign}.3f}, {entry['ci_high']:{sign}.3f}]"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _text(run: Run, summary: dict, rows: list[dict], sweep: dict) -> str:
    return (
        "\n\n".join(
            [
                "# Report",
                _setup(run, summary),
                _reward_section(summary["reward_model"]),
                _ppo_section(run),
                _comparison(summary),
                *(_seeds(summary["splits"]["test"], name) for name in summary["splits"]["test"]["seeds"]),
                _examples(rows),
                *([_sweep_section(sweep)] if sweep else []),
                _sizes(summary),
                _answers_to_the_study(),
                _cost(summary, run.config()["cpus"]),
            ]
        )
        + "\n"
    )


def _setup(run: Run, summary: dict) -> str:
    config, base = run.config(), summary["splits"]["test"]["models"]["base"]
    versions = ", ".join(f"{name} {version}" for name, version in config["versions"].items())
    return f"""Written by `python -m rlhf report` from the files of one run of
`python -m rlhf demo --seed {config["seed"]} --seeds {config["seeds"]}`. Every number
below is read from that run's directory.

## Setup

- Base model: the embedded `everyday` model, {summary["size_mb"]["base"]:.1f} MB of float32 weights.
- Preferences: pairs of its own answers. Simulated annotators choose by the rubric, with Bradley-Terry noise.
- Rubric (gold score): the exact hand-written scorer of the embedded world, in [0, 1]. Training never sees it.
- PPO: {config["total_episodes"]} episodes, learning rate {config["learning_rate"]:g}, `kl_coef` {config["kl_coef"]:g}.
- Comparison: {base["prompts"]} test prompts that no training saw, {base["samples"]} responses of each model to each,
  every model with random numbers of its own.
- Versions: {versions}."""


def _reward_section(reward: dict) -> str:
    lines = [
        "## Reward model",
        "![Loss, accuracy and reliability of the reward model](assets/report/reward.svg)",
        f"""On {reward["n"]} held-out pairs, about prompts it was not trained on, with 95 % intervals:

| | value | beside it |
|---|---|---|
| loss, nats | {_interval(reward["loss"])} | {math.log(2):.3f} is chance; {reward["entropy_of_accuracy"]:.3f} is the \
best for a model of this accuracy that is equally sure of every pair |
| accuracy | {_interval(reward["accuracy"])} | 0.5 is chance{_ceiling(reward)} |
| calibration error | {reward["ece"]:.3f} | mean distance of how sure it is from how often people agree |
| best factor on its margins | {reward["scale"]:.2f} | 1 is calibrated, below 1 over-confident; the loss would be \
{reward["scaled_loss"]:.3f} |
| mean margin | {reward["mean_margin"]:.2f} | score of the chosen minus score of the rejected answer |
| ties | {reward["tie_fraction"]:.1%} | |
| size, MB | {reward["size_mb"]:.1f} | the policy's architecture; see below |""",
    ]
    if reward["rubric_agreement"] is not None:
        lines.append(
            f"It prefers the answer that the rubric prefers on {reward['rubric_agreement']:.1%} of these pairs, "
            "although it was trained on noisy labels only."
        )
    lines.append("The pairs on which it contradicts the annotators most:")
    rows = [
        f"| {_cell(pair['prompt'])} | {_cell(pair['chosen'])} | {_cell(pair['rejected'])} | {pair['margin']:.1f} |"
        for pair in reward["worst"][:5]
    ]
    lines.append("\n".join(["| prompt | chosen | rejected | margin |", "|---|---|---|---|", *rows]))
    return "\n\n".join(lines)


def _ceiling(reward: dict) -> str:
    if reward["label_ceiling"] is None:
        return ""
    return f"; {reward['label_ceiling']:.1%} is what the rubric itself reaches on these noisy labels"


def _ppo_section(run: Run) -> str:
    metrics = run.stages()["ppo"].metrics()
    first, last = metrics[0], metrics[-1]
    return f"""## PPO

![Score, KL, entropy and length over the episodes](assets/report/ppo.svg)

Over {last["episode"]} episodes the mean score of a batch went from {first["objective/scores_raw"]:.2f} to
{last["objective/scores_raw"]:.2f}, the KL from the base model to {last["objective/kl"]:.1f} nats a response."""


def _comparison(summary: dict) -> str:
    found = summary["splits"]["test"]
    base, ppo, against = found["models"]["base"], found["models"]["ppo"], found["against_base"]["ppo"]
    table = [
        ("score, mean", "mean", ".3f"),
        ("score, median", "median", ".3f"),
        ("score, middle half from", "q1", ".3f"),
        ("score, middle half to", "q3", ".3f"),
        ("rubric (gold score), mean", "gold_mean", ".3f"),
        ("length in tokens, mean", "mean_length", ".1f"),
        ("responses that end by themselves", "eos_rate", ".1%"),
        ("different word pairs (distinct-2)", "distinct_2", ".3f"),
        ("different responses", "unique", ".1%"),
        ("perplexity under the base model", "base_perplexity", ".2f"),
    ]
    rows = "\n".join(
        f"| {label} | {base[key]:{form}} | {ppo[key]:{form}} |" for label, key, form in table if base[key] is not None
    )
    text = f"""## Comparison

![Scores and rubric scores of both models, and the gain of each prompt](assets/report/scores.svg)

| on {base["prompts"]} unseen prompts, {base["samples"]} responses each | base | PPO |
|---|---|---|
{rows}

| paired, with 95 % bootstrap intervals over prompts | |
|---|---|
{_paired_rows("score", against["score"])}"""
    if against["gold"] is not None:
        text += "\n" + _paired_rows("rubric", against["gold"])
        unseen = summary["splits"]["unseen"]
        gold = unseen["against_base"]["ppo"]["gold"]
        text += (
            f"\n| gain in rubric on {gold['n']} prompts about unseen topics | {_interval(gold['gain'], signed=True)} |"
        )
    cautions = "".join(f"\n- {caution}" for caution in against["cautions"])
    return f"""{text}
| longer by, tokens | {_interval(against["length"]["longer"], signed=True)} |
| KL from the base model, nats a response, exact over the vocabulary | {_interval(ppo["kl"])} |

{_length_sentence(against["length"])}{cautions}"""


def _seeds(found: dict, name: str) -> str:
    seeds, against = found["seeds"][name], found["against_base"]
    rows = "\n".join(
        f"| {model} | {_interval(found['models'][model]['kl'])} | "
        f"{_interval(against[model]['score']['gain'], signed=True)} | "
        f"{_interval(against[model]['gold']['gain'], signed=True)} |"
        for model in seeds["models"]
    )
    return f"""### The same training with other seeds

PPO was run {len(seeds["models"])} times, against the one reward model. The intervals of a run are over prompts, that
of the mean is Student's t over runs.

| run | KL, nats | gain in score | gain in rubric |
|---|---|---|---|
{rows}
| mean | | {_interval(seeds["score"], signed=True)} | {_interval(seeds["gold"], signed=True)} |"""


def _paired_rows(name: str, found: dict) -> str:
    return f"""| gain in {name} | {_interval(found["gain"], signed=True)} |
| sign-flip p of that gain (10,000 flips show 2e-4 at the least) | {found["p"]:.1e} |
| smallest gain in {name} that {found["n"]} prompts would have shown (80 % power) | {found["detectable"]:.3f} |
| comparisons that PPO wins by {name} (chance: 0.5) | {_interval(found["win_rate"])} |"""


def _length_sentence(length: dict) -> str:
    if length["gain"] is None:
        return "The two models' responses have no length in common, so the gain cannot be told from length."
    share = "" if length["explained"] is None else f", so {length['explained']:.0%} of the gain goes with length"
    return f"Between responses of like length the gain in score is {length['gain']:.3f}{share}."


def _examples(rows: list[dict]) -> str:
    tests = [row for row in rows if row["split"] == "test" and row["sample"] == "0"]
    base = {row["prompt"]: row for row in tests if row["model"] == "base"}
    ppo = {row["prompt"]: row for row in tests if row["model"] == "ppo"}
    prompts = list(base)
    chosen = prompts[:: max(1, len(prompts) // SHOWN_PROMPTS)][:SHOWN_PROMPTS]
    lines = [
        f"| {_cell(prompt)} | {_cell(base[prompt]['response'])} ({base[prompt]['score']:.1f}) "
        f"| {_cell(ppo[prompt]['response'])} ({ppo[prompt]['score']:.1f}) |"
        for prompt in chosen
    ]
    table = "\n".join(lines)
    return f"""## Answers

Test prompts at even distances, not chosen by what was answered; the reward model's score in brackets.

| prompt | base | PPO |
|---|---|---|
{table}"""


def _sweep_section(sweep: dict) -> str:
    settings, fit = sweep["settings"], sweep["fit"]
    trained = [point for point in sweep["points"] if "kl_coef" in point]
    rows = "\n".join(
        f"| {point['name']} | {point['kl']['value']:.1f} | {_interval(point['score'], signed=True)} | "
        f"{_interval(point['gold'], signed=True)} |"
        for point in sorted(sweep["points"], key=lambda point: point["kl"]["value"])
        if point["gold"]
    )
    best = max(trained, key=lambda point: point["gold"]["value"])
    turn = "The fitted curve does not turn down within twice the largest KL measured."
    if fit and fit["turnover_kl"] is not None:
        turn = f"The fitted curve turns down at {fit['turnover_kl']:.1f} nats: beyond that the rubric falls."
    return f"""## Over-optimisation

![Gain in score and in the rubric over KL, for every checkpoint of the sweep](assets/report/sweep.svg)

`python -m rlhf sweep` with `kl_coef` {", ".join(settings["kl_coefs"])}, training seeds per price: {settings["seeds"]},
{settings["total_episodes"]} episodes, {settings["checkpoints"]} checkpoints a run, on {settings["num_prompts"]} test
prompts. The curve through the rubric's gains is d (alpha - beta log d) with d the root of the KL (Gao et al.,
[2210.10760](https://arxiv.org/abs/2210.10760)). {turn} The highest gain in the rubric is
{best["gold"]["value"]:+.3f}, of {best["name"]} at {best["kl"]["value"]:.1f} nats. Best-of-n needs no training, and n
times the sampling.

| checkpoint (updates last) | KL, nats | gain in score | gain in rubric |
|---|---|---|---|
{rows}"""


def _sizes(summary: dict) -> str:
    sizes, reward = summary["size_mb"], summary["reward_model"]["size_mb"]
    return f"""## Sizes

Base {sizes["base"]:.1f} MB, PPO {sizes["ppo"]:.1f} MB, reward model {reward:.1f} MB of weights. All three are one
architecture. PPO changes numbers, not their count, so the policy is as large as its base. The reward model has one row
of weights (its score head) in place of the vocabulary projection; where that projection is the embedding itself, as
here, nothing else differs. Checkpoint files of one architecture can also differ by what a trainer saves beside the
weights: the optimizer's two moments alone are twice the weights."""


def _answers_to_the_study() -> str:
    return """## What the study that this follows left open, and what stands here instead

| there | here |
|---|---|
| base model's mean score over a whole set against PPO's over a tenth of it | the same prompts for both, all of them, \
and the difference of each prompt |
| means that may differ for the prompts alone: a pairwise loss leaves every prompt's own shift of the score open \
| only differences within a prompt are averaged |
| a reward model with loss 0.6931, which is chance, beside 74.73 % accuracy, whose loss would be 0.565 at most if it \
were calibrated | loss beside ln 2 and beside the entropy of the accuracy, ties, margins, reliability; PPO refuses a \
reward model that cannot be told from chance |
| a box plot | the box plot, and the paired gain with interval, p-value and the smallest gain that would have shown |
| the judge is what was trained on | a gold score that training never sees |
| no distance, length, or share of ended responses | exact KL, gain at like length, ended, diversity, perplexity |"""


def _cost(summary: dict, cpus: int) -> str:
    seconds, seeds = summary["seconds"], summary["splits"]["test"]["seeds"]
    again = sum(len(of_model["models"]) - 1 for of_model in seeds.values())
    also = f" with {again} more trainings of PPO" if again else ""
    one = "- One training seed: the intervals cover the choice of prompts and of samples, not of seeds."
    few = "- One reward model, and few seeds of PPO: their spread is known roughly."
    return f"""## Cost and limits

Reward model {seconds["reward"]:.0f} s, PPO {seconds["ppo"]:.0f} s, comparison{also} {seconds["compare"]:.0f} s, in all
{seconds["total"]:.0f} s on {cpus} CPU cores.

{few if again else one}
- The annotators are simulated and the world is small. What is shown here is how the method behaves, not how good a
  large model becomes.
- The score is what PPO was trained to raise, so its rise alone proves little; the rubric, which training never saw, is
  the judge."""

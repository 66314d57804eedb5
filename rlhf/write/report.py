"""REPORT.md from a finished demo run: every number is read from its files, none is typed by hand."""

from pathlib import Path
from statistics import mean

import matplotlib
import numpy as np


matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend is chosen first)

from rlhf.compare.ceiling import Ceiling  # noqa: E402
from rlhf.compare.stats import CHANCE_LOSS, Overoptimization, across  # noqa: E402
from rlhf.compare.table import BEST_OF, read_rows  # noqa: E402
from rlhf.config import BadInput  # noqa: E402
from rlhf.metrics import ACCURACY, ENTROPY, EPISODE, KL, LOSS, MEAN_LENGTH, SCORE, STEP  # noqa: E402
from rlhf.runs.directory import Run  # noqa: E402
from rlhf.runs.files import read_json  # noqa: E402
from rlhf.write.templates import render  # noqa: E402


BASE, PPO, GOLD, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#6b7280", "#1f2328"
"""Okabe and Ito's colours."""
METHODS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Theirs again, for one method after the other."""
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


def write_report(run_path: Path, output_file: Path, sweep_path: Path, methods_path: Path) -> Path:
    """Write the report of a finished demo run, with its figures in `assets/report/` beside it.

    A sweep adds a section on over-optimisation, a comparison of methods another; without them at `sweep_path` and
    `methods_path` the report has none, and neither has it one on people's choices without `bench feedback --json
    RUN/feedback.json`. What `python -m rlhf
    bench ppo --busy 2 --json RUN/busy.json` has measured adds a table of speeds on a busy machine, and what `pytest
    --long` has tried one of its counts.

    Raises:
        BadInput: the directory holds no finished demo run, or one that used a reward model trained elsewhere.
    """
    run = Run(run_path)
    summary, stages = run.summary(), run.stages()
    if "reward" not in summary.get("seconds", {}):
        raise BadInput(
            f"{run_path} holds no finished demo run with its own reward model; make one with `python -m rlhf demo`."
        )
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
        choices = read_json(run_path / "feedback.json")
        if choices:
            _choices_figure(choices, figures / "feedback.svg")
        methods = _methods(Run(methods_path))
        if methods:
            _methods_figure(methods, figures / "methods.svg")
    output_file.write_text(_text(run, summary, rows, sweep, methods, choices), encoding="utf-8")
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
    _line(loss, metrics, STEP, LOSS, GREY, "Loss on training pairs", "nats")
    _level(loss, CHANCE_LOSS, "chance, ln 2")
    _line(accuracy, metrics, STEP, ACCURACY, GREY, "Accuracy on training pairs", "share of pairs")
    _level(accuracy, 0.5, "chance")
    if summary["reward_model"]["label_ceiling"] is not None:
        _level(accuracy, summary["reward_model"]["label_ceiling"], "the rubric itself on these labels")
    accuracy.margins(y=0.15)
    honesty.plot([0.5, 1], [0.5, 1], color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    bins = summary["reward_model"]["reliability"]
    honesty.plot([b["confidence"] for b in bins], [b["correct"] for b in bins], "o-", color=BASE, linewidth=1.6)
    honesty.set_title("Reliability on held-out pairs")
    honesty.set_xlabel("confidence (mean of a bin)")
    honesty.set_ylabel("accuracy")
    _save(figure, path)


def _ppo_figure(metrics: list[dict], path: Path) -> None:
    figure, axes = plt.subplots(2, 2, figsize=(9, 5), layout="constrained", sharex=True)
    panels = (
        (SCORE, "Reward model's score", "score"),
        (KL, "KL from the base model", "nats per response"),
        (ENTROPY, "Entropy", "nats per response"),
        (MEAN_LENGTH, "Length", "tokens per response"),
    )
    for axis, (key, title, unit) in zip(axes.flat, panels, strict=True):
        _line(axis, metrics, EPISODE, key, PPO, title, unit)
    _save(figure, path)


def _score_figure(rows: list[dict], path: Path) -> None:
    tests = [row for row in rows if row["split"] == "test"]
    panels = [("score", "Reward model's score")]
    if all(row["gold"] is not None for row in tests):
        panels.append(("gold", "Gold score (the rubric)"))
    figure, axes = plt.subplots(1, len(panels) + 1, figsize=(4 * len(panels) + 4, 3), layout="constrained")
    for axis, (key, title) in zip(axes, panels, strict=False):
        values = [[row[key] for row in tests if row["model"] == model] for model in ("base", "ppo")]
        boxes = axis.boxplot(
            values, orientation="horizontal", tick_labels=["base", "PPO"], patch_artist=True, widths=0.6
        )
        for box, median, color in zip(boxes["boxes"], boxes["medians"], (BASE, PPO), strict=True):
            box.set(facecolor=color, alpha=0.35)
            median.set(color=color, linewidth=2)
        axis.set_title(title)
    gains = np.sort(_gains(tests))
    axis = axes[-1]
    axis.plot(np.arange(len(gains)) / len(gains), gains, color=PPO, linewidth=1.6)
    axis.axhline(0, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    axis.axhline(gains.mean(), color=PPO, linewidth=1, linestyle=(0, (1, 2)))
    axis.set_title("Gain in score, prompt by prompt")
    axis.set_xlabel("share of the prompts, smallest gain first")
    _save(figure, path)


def _sweep_figure(sweep: dict, path: Path) -> None:
    points, fit = sweep["points"], sweep["fit"]
    panels = [("score", "Gain in score", PPO)]
    if all(point["gold"] for point in points):
        panels.append(("gold", "Gain in gold score", GOLD))
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.5 * len(panels), 3.4), layout="constrained", sharex=True, squeeze=False
    )
    for axis, (key, title, color) in zip(axes[0], panels, strict=True):
        for trained, marker, shade, label in ((True, "o", color, "PPO"), (False, "x", GREY, "best of n")):
            shown = [point for point in points if ("kl_coef" in point) == trained]
            kl, gain, low, high = (
                np.array([point[name][number] for point in shown])
                for name, number in (("kl", "value"), (key, "value"), (key, "ci_low"), (key, "ci_high"))
            )
            bars = (gain - low, high - gain)
            axis.errorbar(kl, gain, bars, fmt=marker, color=shade, markersize=5, elinewidth=0.8, label=label)
        axis.set_title(title)
        axis.set_xlabel("KL from the base model, nats per response")
    if sweep.get("ceiling"):
        for axis, (key, _, _) in zip(axes[0], panels, strict=True):
            _ceiling_line(axis, Ceiling.read(sweep["ceiling"]), key)
    if fit:
        curve = Overoptimization(**fit)
        kl = np.linspace(0, max(point["kl"]["value"] for point in points), 200)
        axes[0, 1].plot(kl, curve.predict(kl), color=GOLD, linewidth=1.2)
        if curve.turnover_kl is not None and curve.turnover_kl <= kl[-1]:
            axes[0, 1].axvline(curve.turnover_kl, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    axes[0, 0].legend(frameon=False, loc="lower right")
    _save(figure, path)


def _ceiling_line(axis: plt.Axes, ceiling: Ceiling, measure: str) -> None:
    curve = getattr(ceiling, measure)
    axis.plot(ceiling.kl, curve.value, color=INK, linewidth=1.2, label="the most that is possible")
    axis.fill_between(ceiling.kl, curve.ci_low, curve.ci_high, color=INK, alpha=0.1, linewidth=0)


def _methods(comparison: Run) -> dict:
    """A comparison of methods by name: the numbers of each training of it (ppo, ppo-seed-1, ...), and their means.

    Of several trainings the interval is Student's t over them, of one its own over prompts.
    """
    splits = comparison.summary().get("splits")
    if not splits:
        return {}
    methods: dict[str, dict] = {}
    base = splits["test"]["models"]["base"]
    measure = "score" if base["gold_mean"] is None else "gold"
    for name, against in splits["test"]["against_base"].items():
        method = methods.setdefault(name.partition("-seed-")[0], {"trainings": []})
        other = splits["unseen"]["against_base"][name] if "unseen" in splits else {}
        method["trainings"].append(
            {
                **{key: splits["test"]["models"][name][key] for key in ("kl", "unique")},
                **{key: against[key] and against[key]["gain"] for key in ("score", "gold")},
                "unseen": other.get("gold") and other["gold"]["gain"],
                **{key: against[key] for key in ("best_of", "share")},
            }
        )
    for name, method in methods.items():
        trainings = method["trainings"]
        for key in ("score", "gold", "unseen"):
            method[key] = _over([training[key] for training in trainings])
        method |= {
            "baseline": name.startswith(BEST_OF),
            "kl": mean(training["kl"]["value"] for training in trainings),
            "unique": mean(training["unique"] for training in trainings),
            "share": mean(training["share"]["score"]["value"] for training in trainings),
            "bounds": {training["share"]["score"]["bound"] for training in trainings} - {""},
            "wins": {
                best_of: _over([training["best_of"][best_of][measure] for training in trainings])
                for best_of in trainings[0]["best_of"]
            },
        }
    return {"methods": methods, "ceiling": comparison.ceiling(), "base": base, "has_gold": measure == "gold"}


def _over(trainings: list[dict | None]) -> dict | None:
    """The mean of intervals' values with Student's t interval; of a single one, that itself; None where all are."""
    return (
        across([one["value"] for one in trainings]).as_dict() if len(trainings) > 1 and trainings[0] else trainings[0]
    )


def _methods_figure(methods: dict, path: Path) -> None:
    """Every training over its KL, with its intervals over prompts, and the line of what is possible."""
    panels = (("score", "Gain in score"), ("gold", "Gain in gold score"))[: 1 + methods["has_gold"]]
    size = (4.5 * len(panels) + 1.5, 3.4)
    figure, [axes] = plt.subplots(1, len(panels), figsize=size, layout="constrained", sharex=True, squeeze=False)
    colors, baseline_label = iter(METHODS), "best of n"
    for name, method in methods["methods"].items():
        label, marker, color = (name, "o", next(colors)) if not method["baseline"] else (baseline_label, "x", GREY)
        baseline_label = None if method["baseline"] else baseline_label  # one entry for all of them
        kl = np.array([training["kl"]["value"] for training in method["trainings"]])
        for axis, (key, title) in zip(axes, panels, strict=True):
            gains = [training[key] for training in method["trainings"]]
            gain, low, high = (np.array([each[end] for each in gains]) for end in ("value", "ci_low", "ci_high"))
            bars = (gain - low, high - gain)
            axis.errorbar(kl, gain, bars, fmt=marker, color=color, markersize=5, elinewidth=0.8, label=label)
            if method["baseline"]:
                axis.annotate(
                    name.removeprefix(BEST_OF), (kl[0], gain[0]), (6, -9), textcoords="offset points", color=GREY
                )
            axis.set_title(title)
            axis.set_xlabel("KL from the base model, nats per response")
    for axis, (key, _) in zip(axes, panels, strict=True):
        _ceiling_line(axis, Ceiling.read(methods["ceiling"]), key)
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, loc="outside right center")
    _save(figure, path)


def _choices_figure(choices: dict, path: Path) -> None:
    """Accuracy over the number of choices, by taste and by way to learn, with every person's own as a dot."""
    tastes = choices["accuracy"]
    figure, axes = plt.subplots(
        1, len(tastes), figsize=(3 * len(tastes), 2.8), layout="constrained", sharex=True, sharey=True, squeeze=False
    )
    for axis, (taste, learners) in zip(axes[0], tastes.items(), strict=True):
        for (learner, by_count), color in zip(learners.items(), (GREY, PPO), strict=True):
            axis.plot(choices["counts"], list(map(mean, by_count)), color=color, linewidth=1.6, label=learner)
            for count, people in zip(choices["counts"], by_count, strict=True):
                axis.plot([count] * len(people), people, ".", color=color, markersize=4, alpha=0.5)
        _level(axis, 0.5, "chance")
        axis.set_xscale("log")
        axis.set_xticks(choices["counts"], choices["counts"])
        axis.minorticks_off()
        axis.set_title(taste)
        axis.set_xlabel("choices")
    axes[0, 0].set_ylabel("accuracy on unseen pairs")
    axes[0, 0].legend(frameon=False, loc="center right", bbox_to_anchor=(1, 0.3))
    _save(figure, path)


def _gains(rows: list[dict]) -> np.ndarray:
    """PPO's mean score minus the base's, of each prompt (n,)."""
    scores: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        scores.setdefault(row["prompt"], {}).setdefault(row["model"], []).append(row["score"])
    return np.array([np.mean(sides["ppo"]) - np.mean(sides["base"]) for sides in scores.values()])


def _text(run: Run, summary: dict, rows: list[dict], sweep: dict, methods: dict, choices: dict) -> str:
    test, unseen = summary["splits"]["test"], summary["splits"].get("unseen")
    metrics = [row for row in run.stages()["ppo"].metrics() if SCORE in row]  # without evaluations
    first, last = ({"episode": row[EPISODE], "score": row[SCORE], "kl": row[KL]} for row in (metrics[0], metrics[-1]))
    trained = [point for point in sweep.get("points", ()) if "kl_coef" in point and point["gold"]]
    return render(
        "report.md.j2",
        config=run.config(),
        size_mb=summary["size_mb"],
        reward=summary["reward_model"],
        first=first,
        last=last,
        test=test,
        base=test["models"]["base"],
        ppo=test["models"]["ppo"],
        against=test["against_base"]["ppo"],
        unseen_gold=unseen["against_base"]["ppo"]["gold"] if unseen else None,
        examples=_examples(rows),
        sweep={"ceiling": None, **sweep} if sweep else {},
        ceiling=run.ceiling() if "share" in test["against_base"]["ppo"] else None,
        methods=methods,
        choices=choices,
        best=max(trained, key=lambda point: point["gold"]["value"], default=None),
        seconds=summary["seconds"],
        busy=read_json(run.path / "busy.json"),
        long=read_json(run.path / "long.json"),
        repeats=sum(len(seeds["models"]) - 1 for seeds in test["seeds"].values()),
    )


def _examples(rows: list[dict]) -> list[tuple[str, dict, dict]]:
    """Some test prompts at even distances, each with the first row of the base and of PPO."""
    first: dict[str, dict[str, dict]] = {}
    for row in rows:
        if row["split"] == "test" and row["sample"] == "0":
            first.setdefault(row["prompt"], {})[row["model"]] = row
    prompts = list(first)[:: max(1, len(first) // SHOWN_PROMPTS)][:SHOWN_PROMPTS]
    return [(prompt, first[prompt]["base"], first[prompt]["ppo"]) for prompt in prompts]

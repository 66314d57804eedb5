"""What commands print when they are done: numbers in, lines of text out."""

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from rlhf.data.preview import Preview


def interval(entry: dict, digits: int = 3) -> str:
    """An estimate with its 95 % interval."""
    return f"{entry['value']:.{digits}f} [{entry['ci_low']:.{digits}f}, {entry['ci_high']:.{digits}f}]"


def comparison_table(summary: dict) -> str:
    """Every model of a comparison in numbers, and what each shows against the base."""
    lines = []
    for split, found in summary["splits"].items():
        shown = found["models"]
        first = next(iter(shown.values()))
        what = f"{split} prompts: {first['prompts']}, answers to each: {first['samples']}"
        lines += ["", f"  {what:<42}" + "".join(f"{name:>12}" for name in shown)]
        rows = [
            ("score, mean", "mean", ".3f"),
            ("gold score, mean", "gold_mean", ".3f"),
            ("length in tokens, mean", "mean_length", ".1f"),
            ("responses that end by themselves", "eos_rate", ".1%"),
            ("different word pairs (distinct-2)", "distinct_2", ".3f"),
            ("perplexity under the base model", "base_perplexity", ".2f"),
        ]
        for label, key, form in rows:
            values = [model[key] for model in shown.values()]
            if None not in values:
                lines.append(f"  {label:<42}" + "".join(f"{value:>12{form}}" for value in values))
        for name, against in found["against_base"].items():
            lines += [
                "",
                f"  {name} against base, paired, with 95 % intervals over prompts:",
                *_against_lines(against),
            ]
            lines.append(f"    KL from the base: {interval(shown[name]['kl'], 2)} nats a response")
            lines += [f"    Caution: {caution}" for caution in against["cautions"]]
        lines += [line for name, seeds in found["seeds"].items() for line in _seed_lines(name, seeds, found)]
    return "\n".join(lines)


def _against_lines(against: dict) -> list[str]:
    lines = []
    for kind, label in (("score", "score"), ("gold", "gold score")):
        found = against[kind]
        if found:
            lines += [
                f"    gain in {label}: {interval(found['gain'])}, p = {found['p']:.2g}; the smallest that would have "
                f"shown: {found['detectable']:.3f}",
                f"    wins by {label}: {interval(found['win_rate'])} (chance: 0.5)",
            ]
    length = against["length"]
    if length["gain"] is not None:
        share = "" if length["explained"] is None else f"; length explains {length['explained']:.0%} of the gain"
        lines.append(
            f"    longer by {interval(length['longer'], 1)} tokens; gain in score at like length: "
            f"{length['gain']:.3f}{share}"
        )
    return lines


def _seed_lines(name: str, seeds: dict, found: dict) -> list[str]:
    lines = ["", f"  {name} trained {len(seeds['models'])} times, with other seeds; interval by Student's t:"]
    for kind, label in (("score", "score"), ("gold", "gold score")):
        if seeds[kind]:
            each = (found["against_base"][model][kind]["gain"]["value"] for model in seeds["models"])
            lines.append(
                f"    gain in {label}: {interval(seeds[kind])}; each: {', '.join(f'{gain:.3f}' for gain in each)}"
            )
    return lines


def demo_table(summary: dict) -> str:
    """The closing table of a demo."""
    seconds = summary["seconds"]
    names = {"reward": "reward model", "ppo": "PPO", "compare": "comparison", "total": "in all"}
    spent = ", ".join(f"{name} {seconds[key]:.0f}" for key, name in names.items() if key in seconds)
    return "\n".join([*_reward_lines(summary["reward_model"]), comparison_table(summary), "", f"Seconds: {spent}"])


def _reward_lines(reward: dict | None) -> list[str]:
    """How well the reward model judges; nothing of one that the demo did not train."""
    if reward is None:
        return []
    lines = [
        "",
        f"Reward model: loss {interval(reward['loss'])} nats (chance: 0.693), accuracy {interval(reward['accuracy'])}",
    ]
    if reward["rubric_agreement"] is not None:
        lines += [
            f"  the labels themselves agree with the rubric on {reward['label_ceiling']:.3f} of the held-out pairs,",
            f"  the reward model on {reward['rubric_agreement']:.3f}",
        ]
    return lines


def sweep_table(found: dict) -> str:
    """Every point of a sweep, by its distance from the base."""
    lines = ["", f"  {'gains over the base, with 95 % intervals':<42}{'KL, nats':>10}{'score':>26}{'gold score':>26}"]
    for point in sorted(found["points"], key=lambda point: point["kl"]["value"]):
        gold = interval(point["gold"]) if point["gold"] else ""
        lines.append(f"  {point['name']:<42}{point['kl']['value']:>10.2f}{interval(point['score']):>26}{gold:>26}")
    if found["fit"] and found["fit"]["turnover_kl"] is not None:
        lines.append(f"  The gold score turns down at about {found['fit']['turnover_kl']:.1f} nats.")
    return "\n".join(lines)


def preview_table(found: "Preview") -> str:
    """A data set in numbers, and its first pairs."""
    kind = "conversations" if found.conversational else "texts"
    lines = [
        "",
        f"{found.dataset_name}: {found.rows} rows of {kind}, {found.train} to train on, {found.held_out} held out, "
        f"{sum(found.dropped.values())} left out",
        *(f"  left out, {fault}: {count}" for fault, count in found.dropped.items()),
        "",
    ]
    measured = {f"{side}, characters": lengths for side, lengths in found.characters.items()}
    if found.tokens:
        measured["longer text of a pair, tokens"] = found.tokens
    lines.append(f"  {'length':<32}" + "".join(f"{name:>10}" for name in found.characters["prompt"]))
    lines += [f"  {label:<32}" + "".join(f"{n:>10}" for n in row.values()) for label, row in measured.items()]
    for number, pair in enumerate(found.first, start=1):
        lines += ["", f"Pair {number}", *(f"  {side + ':':<10}{shortened(text)}" for side, text in pair.items())]
    return "\n".join(lines)


def shortened(text: str, longest: int = 400) -> str:
    """A text as it fits a terminal: indented below its label, its middle left out if it is long."""
    text = text.strip()
    if len(text) > longest:
        text = f"{text[: longest // 2]} [...] {text[-longest // 2 :]}"
    return text.replace("\n", "\n" + " " * 12)

"""What choices teach: scripted people with a taste choose, and a reward model learns from 25 to 400 of their choices.

Measured is how often it prefers the answer that such a person prefers, among answers to questions nobody was asked.
"""

import itertools
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import mean

import datasets
from datasets import Dataset
from transformers import set_seed

from rlhf import models
from rlhf.bench.comparisons import machine, say
from rlhf.config import EVERYDAY, BenchArguments, DemoArguments, FeedbackArguments, RewardArguments
from rlhf.config.pipelines import FROM_CHOICES
from rlhf.data.load import load_prompts
from rlhf.everyday import grade
from rlhf.feedback import Store
from rlhf.feedback.ask import ANSWERS, Asker, answers_to
from rlhf.feedback.pairs import load_choices, pairs_to_learn
from rlhf.feedback.store import FEWEST
from rlhf.models.packed import use_packed_attention
from rlhf.models.prompts import Prompt, PromptReader, end_ids
from rlhf.reward import report, tokenized, train_reward_model
from rlhf.runs.files import read_json, write_json


Taste = Callable[[str, str], float]
TASTES: dict[str, Taste] = {
    "short answers": lambda _, answer: -len(answer.split()),
    "rude answers": lambda question, answer: -grade(question, answer).courtesy,
    "answers that say “you”": lambda _, answer: answer.lower().split().count("you"),
    "answers that name water": lambda _, answer: "water" in answer.lower(),
}
"""What a person likes: the more of it, the better. The rubric of the embedded world shares none of these tastes."""
COUNTS = (25, 50, 100, 200, 400)
"""Choices after which a reward model is trained."""
NOISE = 0.1
"""Share of the choices that are the opposite of the taste."""
LEARNERS = {"choices alone": 0, "with the probe": RewardArguments.feedback_prompts}
"""`feedback_prompts` of each way to learn."""
TESTED = 300
"""Questions of the test split whose answers are judged in the end."""
AHEAD = 16
"""Pairs that are made at a time, as on the page."""


def bench_feedback(args: BenchArguments) -> dict:
    """Let `args.rounds` people of each taste choose, and measure what reward models learn from their choices.

    People whose seeds the file `args.json` holds already are not asked again: it takes half an hour for each seed.
    """
    datasets.disable_progress_bars()
    policy, tokenizer = models.load_policy(EVERYDAY)
    reader = PromptReader(tokenizer, None, None, end_ids(policy, tokenizer))
    prompts = [reader.read(prompt) for prompt in load_prompts(EVERYDAY, "test")[:TESTED]]
    lengths = {"response_length": FeedbackArguments.response_length, "temperature": FeedbackArguments.temperature}
    answers = list(answers_to(policy, reader, prompts, ANSWERS, **lengths, seed=0))
    found = (read_json(Path(args.json)) if args.json else {}) or {
        "machine": machine(),
        "counts": COUNTS,
        "noise": NOISE,
        "seeds": [],
        "accuracy": {taste: {learner: [[] for _ in COUNTS] for learner in LEARNERS} for taste in TASTES},
        "preferences": {taste: [[] for _ in COUNTS] for taste in TASTES},
    }
    accuracy, preferences = found["accuracy"], found["preferences"]
    say(f"{'accuracy from so many choices':<48}" + "".join(f"{count:>7}" for count in COUNTS))
    for seed in sorted({*range(args.seed, args.seed + args.rounds)} - {*found["seeds"]}):
        for name, taste in TASTES.items():
            held_out = _in_taste(prompts, answers, taste, random.Random(seed))
            with tempfile.TemporaryDirectory() as folder:
                store = Store.open(Path(folder) / "store", EVERYDAY, models.revision(policy))
                asker = Asker(policy, tokenizer, FeedbackArguments(store=str(store.path), seed=seed))
                dice, chosen = random.Random(seed), 0
                for number, count in enumerate(COUNTS):
                    _choose(store, asker, count - chosen, taste, dice)
                    chosen = count
                    preferences[name][number].append(len(store.preferences()))
                    for learner, prompts_judged in LEARNERS.items():
                        learning = {"feedback": str(store.path), "feedback_only": True, **FROM_CHOICES}
                        demo = DemoArguments(**learning, feedback_prompts=prompts_judged, seed=seed)
                        checkpoints = Path(folder) / "checkpoints"
                        right = _accuracy(demo.reward_arguments(checkpoints), held_out, checkpoints)
                        accuracy[name][learner][number].append(right)
            for learner, by_count in accuracy[name].items():
                cells = "".join(f"{accuracies[-1]:>7.2f}" for accuracies in by_count)
                say(f"{f'{name}, person {seed}, {learner}':<48}{cells}")
        found["seeds"].append(seed)
        if args.json:
            write_json(Path(args.json), found)
    for name, learner in itertools.product(TASTES, LEARNERS):
        cells = "".join(f"{mean(accuracies):>7.2f}" for accuracies in accuracy[name][learner])
        say(f"{f'{name}, mean, {learner}':<48}{cells}")
    return found


def _in_taste(prompts: list[Prompt], answers: list[list[str]], taste: Taste, dice: random.Random) -> Dataset:
    """For each prompt two answers of which such a person prefers one, where there are any."""
    rows = []
    for prompt, texts in zip(prompts, answers, strict=True):
        likes = {text: taste(prompt.raw.strip(), text) for text in texts}
        pairs = [(one, other) for one, other in itertools.permutations(likes, 2) if likes[one] > likes[other]]
        if pairs:
            chosen, rejected = dice.choice(pairs)
            rows.append({"prompt": prompt.raw, "chosen": chosen, "rejected": rejected})
    return Dataset.from_list(rows)


def _choose(store: Store, asker: Asker, count: int, taste: Taste, dice: random.Random) -> None:
    """Have a person choose between so many more pairs, which are made as on the page."""
    for _ in range(count):
        while store.waiting() < AHEAD:
            asker.add(store, AHEAD)
        [pair] = store.next("person")
        margin = taste(pair.question, pair.a) - taste(pair.question, pair.b)
        choice = "a" if margin > 0 else "b" if margin < 0 else "tie"
        if choice != "tie" and dice.random() < NOISE:
            choice = "b" if choice == "a" else "a"
        store.choose(pair.id, choice, "person")


def _accuracy(args: RewardArguments, held_out: Dataset, checkpoints: Path) -> float:
    """Of a reward model that learns as these settings say, on these pairs; one half where there is too little."""
    if len(Store(args.feedback).preferences()) < FEWEST:
        return 0.5
    pairs = pairs_to_learn(load_choices(args.feedback), args)
    set_seed(args.seed)
    model, tokenizer = models.load_reward_model(EVERYDAY, None)
    use_packed_attention(model)
    reader = PromptReader(tokenizer, None, None)
    train, test = (tokenized(rows, reader, args.max_length) for rows in (pairs, held_out))
    train_reward_model(model, tokenizer, args, train, test.select(range(2)), checkpoints, [])
    return report(model, test, None)["accuracy"]["value"]

"""The models that the chat talks to: base and PPO answer side by side, and the run's rewards score both answers.

Torch and Transformers are imported by the first question, or by `warm_up` in the background, never by the page.
"""

import hashlib
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf.config import ASSETS, EVERYDAY, BadInput
from rlhf.launch import limits
from rlhf.rewards import load_functions
from rlhf.runs.directory import Run
from rlhf.ui import example_id, is_active, is_example, shown_run


if TYPE_CHECKING:
    from rlhf.models.prompts import Prompt, PromptReader
    from rlhf.models.scoring import RewardScorer


LONGEST = 2_000
"""Characters of a question. What is longer, or still too long for the model, is refused with a sentence."""
CHARACTERS_PER_TOKEN = 4
"""In English, about: enough to say beforehand how long a question may be."""
MAX_NEW_TOKENS = 64
TEMPERATURE = 0.7
SECONDS_BETWEEN_UPDATES = 0.06
"""Each update costs the server and the browser something; one per token would be too many."""


@dataclass(frozen=True)
class Voice:
    """A loaded language model, and a label made from the very weights that answer."""

    model: object
    tokenizer: object
    label: str
    chat_template_kwargs: dict | None = None

    def reader(self) -> "PromptReader":
        """Where its prompts and answers become ids, and ids answers."""
        from rlhf.models.prompts import PromptReader, end_ids

        return PromptReader(self.tokenizer, None, self.chat_template_kwargs, end_ids(self.model, self.tokenizer))


def _stamp(source: Path) -> tuple:
    """Changes when a file of the model in this folder is written anew, even one with the time of the old one."""
    files = sorted(source.iterdir()) if source.is_dir() else ()
    return tuple((file.name, status.st_ctime_ns, status.st_size) for file in files if (status := file.stat()))


@lru_cache(maxsize=6)
def _load(role: str, source: str, label: str | None, stamp: tuple) -> tuple[object, object, str]:
    """A model, its tokenizer and a fingerprint of its weights; `stamp` tells a model from the one it replaced."""
    import torch

    from rlhf import models

    # Half of the cores: a run under way and the page itself need the others.
    torch.set_num_threads(max(1, limits.cores() // 2))
    reward = role == "reward"
    load_it = partial(models.load_reward_model, trained=True, label=label) if reward else models.load_policy
    model, tokenizer = load_it(source)
    digest = hashlib.sha256()
    for weights in model.state_dict().values():
        digest.update(weights.contiguous().numpy().tobytes())
    return model, tokenizer, digest.hexdigest()[:6]


_loading = threading.Lock()


def load(role: str, source: str, folder: Path, label: str | None = None) -> tuple[object, object, str]:
    """As `_load`, but two people who ask at once wait for one load; the files are in `folder`, if on this computer."""
    with _loading:
        return _load(role, source, label, _stamp(folder))


def base_name(run: Run) -> str:
    """The base model as the page names it: a folder by its last part."""
    name = run.base_model()
    return Path(name).name if Path(name).is_absolute() else name


def template_kwargs(run: Run) -> dict | None:
    """What a run gives to its models' chat template."""
    return run.policy_settings().get("chat_template_kwargs")


def base_of(source: str) -> tuple[object, object, str]:
    """A model that training starts from, as `load` gives it."""
    return load("policy", source, ASSETS / "base" if source == EVERYDAY else Path(source))


def base_voice(run: Run) -> Voice:
    """The model that the run started from."""
    model, tokenizer, fingerprint = base_of(run.base_model())
    return Voice(model, tokenizer, f"{base_name(run)}, before training · weights {fingerprint}", template_kwargs(run))


def ppo_voice(run: Run) -> Voice:
    """The model that PPO or DPO trained.

    Raises:
        BadInput: there is none.
    """
    folder = run.model("policy")
    if folder is None:
        raise BadInput(absent(run))
    model, tokenizer, fingerprint = load("policy", str(folder), folder)
    kind = run.policy_kind()
    step, unit = run.stages()[kind].status().get("step", 0), "update" if kind == "ppo" else "step"
    return Voice(model, tokenizer, f"{run.id}, after {unit} {step} · weights {fingerprint}", template_kwargs(run))


def reward_model_of(run: Run) -> tuple[object, object] | None:
    """The reward model that PPO was trained against, and its tokenizer; None if the run names none."""
    source = run.reward_model_path()
    label = run.policy_settings().get("reward_label")
    return load("reward", source, run.model("reward") or Path(source), label)[:2] if source else None


def scorer(
    reader: "PromptReader", reward_model: tuple[object, object] | None, functions: Sequence[tuple[Callable, float]]
) -> "RewardScorer":
    """What scores answers: a reward model with its tokenizer, functions with their weights, or both."""
    from rlhf.models.scoring import RewardScorer

    rewards = [(*reward_model, 1.0)] if reward_model else []
    rewards += [(function, None, weight) for function, weight in functions]
    return RewardScorer(*zip(*rewards, strict=True), reader)


def absent(run: Run | None) -> str:
    """Why there is no model to talk to, and what to do."""
    if run is None:
        return "There is no model to talk to yet: start a run in the Train tab."
    if is_active(run) and run.policy_kind():
        return "You can talk to this run's model as soon as it is trained."
    if is_example(run):
        return "The models of this example are too large to ship, so nobody answers here. Choose another run above."
    if run.policy_kind():
        return f"The run ended before there was a model to talk to. {run.saved()} Choose another run above."
    return "This run trained no model to talk to: choose another run above, or train PPO or DPO in the Train tab."


def remembers(run: Run) -> bool:
    """Whether a run's models can hold a conversation: they have a chat template, and room for more than an answer."""
    folder = run.model("policy")
    return folder is not None and run.base_model() != EVERYDAY and (folder / "chat_template.jinja").exists()


def longest(run: Run) -> int:
    """About how many characters a question to this run's models may have, without loading them."""
    config = json.loads((run.model("policy") / "config.json").read_text(encoding="utf-8"))
    context = config.get("max_position_embeddings") or config.get("n_positions") or math.inf
    return int(min(LONGEST, max(1, context - MAX_NEW_TOKENS) * CHARACTERS_PER_TOKEN))


def tidy(question: object) -> str:
    """A question as it was written: a program keeps its lines.

    Raises:
        BadInput: it is empty, or longer than `LONGEST`.
    """
    # Half a surrogate pair, which a request can carry, is text to no tokenizer.
    words = str(question).encode(errors="ignore").decode().replace("\r\n", "\n").strip()
    if not words:
        raise BadInput("Please write a question first.")
    if len(words) > LONGEST:
        raise BadInput(
            f"The question has {len(words):,} characters; Chat takes {LONGEST:,} at most. Please shorten it."
        )
    return words


def ask(voices: dict[str, Voice], question: str, turns: list[dict]) -> "dict[str, Prompt]":
    """The question as each model reads it, after its own answers in earlier turns.

    Raises:
        BadInput: the question is longer than a model can read.
    """
    from rlhf.models import context_size
    from rlhf.models.prompts import question_prompt

    prompts = {}
    for name, voice in voices.items():
        history = []
        for turn in turns:
            history.append({"role": "user", "content": turn["question"]})
            history.append({"role": "assistant", "content": turn[name]["text"]})
        context = context_size(voice.model)
        room = context - min(MAX_NEW_TOKENS, context // 2)
        prompts[name] = question_prompt(voice.tokenizer, question, room, history, voice.chat_template_kwargs)
    return prompts


def _answer(voice: Voice, prompt: "Prompt", seed: int) -> Iterator[tuple[str, list[int]]]:
    """The growing answer, as text and as ids."""
    from rlhf.models import context_size
    from rlhf.models.generate import stream

    reader = voice.reader()
    longest = min(MAX_NEW_TOKENS, context_size(voice.model) - len(prompt.ids))
    settings = {"eos_id": reader.end_ids, "max_new_tokens": longest, "temperature": TEMPERATURE}
    for ids in stream(voice.model, prompt.ids, seed=seed, **settings):
        yield reader.text(ids).strip(), ids


def both_answers(
    voices: dict[str, Voice], prompts: "dict[str, Prompt]", seed: int
) -> Iterator[tuple[dict[str, dict], dict[str, list[int]]]]:
    """The growing answers and their ids by name; one token each in turn, so that neither waits for the other."""
    answers = {name: {"text": "", "score": None, "done": False} for name in voices}
    writing = {name: _answer(voice, prompts[name], seed) for name, voice in voices.items()}
    ids: dict[str, list[int]] = {}
    shown = 0.0
    while writing:
        for name in tuple(writing):
            piece = next(writing[name], None)
            if piece is None:
                del writing[name]
                answers[name]["done"] = True
            else:
                answers[name]["text"], ids[name] = piece
        if time.monotonic() - shown > SECONDS_BETWEEN_UPDATES:
            shown = time.monotonic()
            yield answers, ids
    yield answers, ids


def give_scores(
    reward_model: tuple[object, object] | None,
    voice: Voice,
    prompts: "dict[str, Prompt]",
    answers: dict[str, dict],
    ids: dict[str, list[int]],
    functions: Sequence[tuple[Callable, float]] = (),
    named: Sequence[tuple[str, float]] = (),
) -> None:
    """Write into each answer its score, and what each of several rewards, `named` in their order, gives it.

    A reward model reads the very ids that were sampled, where it can.
    """
    score = scorer(voice.reader(), reward_model, functions)
    responses = [ids[name] for name in answers]
    ended = [response[-1] in score.reader.end_ids for response in responses]
    scores, by_reward = score.each([prompts[name] for name in answers], responses, ended)
    for row, (answer, value) in enumerate(zip(answers.values(), scores.tolist(), strict=True)):
        answer["score"] = value
        if score.parts:
            given = zip(named, by_reward.values(), strict=True)
            answer["parts"] = [(name, weight, values[row]) for (name, weight), values in given]


def conversation(
    run: Run, question: str, turns: list[dict], seed: int
) -> Iterator[tuple[dict[str, str], dict[str, dict]]]:
    """Both models' labels and growing answers, {name: {"text", "score", "done"}}; the last ones are scored.

    Args:
        turns: earlier questions with both answers, for the models to remember.
        seed: the same for both models; it decides what they sample.

    Raises:
        BadInput: a model is missing, or the question is longer than a model can read.
    """
    voices, reward_model = {"base": base_voice(run), "ppo": ppo_voice(run)}, reward_model_of(run)
    functions = load_functions(run.reward_funcs())
    labels = {name: voice.label for name, voice in voices.items()}
    prompts = ask(voices, question, turns)
    for answers, ids in both_answers(voices, prompts, seed):  # noqa: B007  (needed after the loop)
        yield labels, answers
    if reward_model or functions:
        give_scores(reward_model, voices["ppo"], prompts, answers, ids, functions, run.rewards())
        yield labels, answers


def warm_up() -> None:
    """Load the example's models in the background, so that the first question is answered at once."""
    run = shown_run(example_id())
    try:
        if run is None:
            base_voice(Run(ASSETS))
        else:
            next(conversation(run, "Hi there!", [], 0))
    except (BadInput, OSError):
        return  # the first question will say what is missing

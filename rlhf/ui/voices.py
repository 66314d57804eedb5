"""The models that the chat talks to: up to four answer side by side, and the run's rewards score their answers.

Torch and Transformers are imported by the first question, or by `warm_up` in the background, never by the page.
"""

import hashlib
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf.config import ASSETS, EVERYDAY, BadInput
from rlhf.launch import classroom, limits
from rlhf.rewards import load_functions
from rlhf.runs.directory import Run, list_runs
from rlhf.ui import example_id, is_active, is_example, shown_run


if TYPE_CHECKING:
    from rlhf.models.prompts import Prompt, PromptReader
    from rlhf.models.scoring import RewardScorer


LONGEST = 2_000
"""Characters of a question. What is longer, or still too long for the model, is refused with a sentence."""
CHARACTERS_PER_TOKEN = 4
"""In English, about: enough to say beforehand how long a question may be."""
MOST_VOICES = 4
MOST_NEW_TOKENS = 256
HIGHEST_TEMPERATURE = 2.0
SECONDS_BETWEEN_UPDATES = 0.06
"""Each update costs the server and the browser something; one per token would be too many."""


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled, the same for all models.

    Raises:
        BadInput: a number is out of its range, or the system prompt is too long.
    """

    seed: int = 0
    temperature: float = 0.7
    max_new_tokens: int = 64
    system: str = ""
    """What models with a chat template are told before the conversation."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**31:
            raise BadInput(f"The seed must be a whole number from 0 to {2**31 - 1:,}.")
        if not 0 <= self.temperature <= HIGHEST_TEMPERATURE:
            raise BadInput(f"The temperature must be a number from 0 to {HIGHEST_TEMPERATURE:g}.")
        if not 1 <= self.max_new_tokens <= MOST_NEW_TOKENS:
            raise BadInput(f"An answer may have 1 to {MOST_NEW_TOKENS} tokens.")
        if len(self.system) > LONGEST:
            raise BadInput(f"The system prompt has {len(self.system):,} characters; Chat takes {LONGEST:,} at most.")


DEFAULT = Sampling()


@dataclass(frozen=True)
class Voice:
    """A loaded language model, with a label and a fingerprint made from the very weights that answer."""

    model: object
    tokenizer: object
    label: str
    chat_template_kwargs: dict | None = None
    weights: str = ""
    """The first digits of the SHA-256 of its weights."""

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
    label = f"{base_name(run)}, before training · weights {fingerprint}"
    return Voice(model, tokenizer, label, template_kwargs(run), fingerprint)


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
    label = f"{run.id}, after {unit} {step} · weights {fingerprint}"
    return Voice(model, tokenizer, label, template_kwargs(run), fingerprint)


def siblings(run: Run) -> dict[str, Run]:
    """Other runs whose model can answer beside this one's, since both started from the same base model."""
    others = [other for other in (shown_run(example_id()), *list_runs()) if other and other.path != run.path]
    base = run.base_model()
    return {f"run {each.id}": each for each in others if each.model("policy") and each.base_model() == base}


def voices_of(run: Run, names: Sequence[str]) -> dict[str, Voice]:
    """The models by these names: "base", "ppo" for the one that the run has trained, or those of `siblings`.

    Raises:
        BadInput: there are fewer than two or more than `MOST_VOICES`, or one is missing.
    """
    if not 2 <= len(set(names)) == len(names) <= MOST_VOICES:
        raise BadInput(f"Choose two to {MOST_VOICES} models under Settings.")
    trained = {"ppo": run} | (siblings(run) if set(names) - {"base", "ppo"} else {})
    if set(names) - {"base", *trained}:
        raise BadInput("One of the models is gone; choose again under Settings.")
    found = {name: ppo_voice(trained[name]) for name in names if name != "base"}
    if "base" in names:  # asked as the others are, with the chat template that was given to them
        asked = next(iter(found.values()))
        found["base"] = replace(base_voice(run), tokenizer=asked.tokenizer)
    return {name: found[name] for name in names}


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
    return int(min(LONGEST, max(1, context - Sampling.max_new_tokens) * CHARACTERS_PER_TOKEN))


def tidy(question: object) -> str:
    """A question as it was written: a program keeps its lines.

    Raises:
        BadInput: it is empty, or longer than `LONGEST`.
    """
    words = str(question).replace("\r\n", "\n").strip()
    if not words:
        raise BadInput("Please write a question first.")
    if len(words) > LONGEST:
        raise BadInput(
            f"The question has {len(words):,} characters; Chat takes {LONGEST:,} at most. Please shorten it."
        )
    return words


def ask(
    voices: dict[str, Voice], question: str, turns: list[dict], sampling: Sampling = DEFAULT
) -> "dict[str, Prompt]":
    """The question as each model reads it, after its own answers in earlier turns.

    Raises:
        BadInput: the question is longer than a model can read.
    """
    from rlhf.models import context_size
    from rlhf.models.prompts import question_prompt

    prompts = {}
    for name, voice in voices.items():
        history = []
        for turn in (turn for turn in turns if name in turn):
            history.append({"role": "user", "content": turn["question"]})
            history.append({"role": "assistant", "content": turn[name]["text"]})
        context = context_size(voice.model)
        room = context - min(sampling.max_new_tokens, context // 2)
        settings = voice.chat_template_kwargs, sampling.system
        prompts[name] = question_prompt(voice.tokenizer, question, room, history, *settings)
    return prompts


def as_text(run: Run, prompt: str | list[dict]) -> str:
    """A prompt of `ask` as the text that the run's model reads, without the begin token."""
    reader = ppo_voice(run).reader()
    return reader.text_of(prompt).removeprefix(reader.tokenizer.bos_token or "")


def _answer(voice: Voice, prompt: "Prompt", sampling: Sampling) -> Iterator[tuple[str, list[int]]]:
    """The growing answer, as text and as ids."""
    from rlhf.models import context_size
    from rlhf.models.generate import stream

    reader = voice.reader()
    room = context_size(voice.model) - len(prompt.ids) - 1  # a reward model reads an end token after the answer
    settings = {"max_new_tokens": min(sampling.max_new_tokens, room), "temperature": sampling.temperature}
    for ids in stream(voice.model, prompt.ids, eos_id=reader.end_ids, seed=sampling.seed, **settings):
        yield reader.text(ids).strip(), ids


def all_answers(
    voices: dict[str, Voice], prompts: "dict[str, Prompt]", sampling: Sampling = DEFAULT
) -> Iterator[tuple[dict[str, dict], dict[str, list[int]]]]:
    """The growing answers and their ids by name; one token each in turn, so that none waits for another.

    Each answer says whose it is, in the words of the voice that is writing it.
    """
    answers = {
        name: {"text": "", "score": None, "done": False, "by": voice.label, "weights": voice.weights}
        for name, voice in voices.items()
    }
    writing = {name: _answer(voice, prompts[name], sampling) for name, voice in voices.items()}
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
    run: Run,
    question: str,
    turns: list[dict],
    sampling: Sampling = DEFAULT,
    names: Sequence[str] = ("base", "ppo"),
) -> "Iterator[tuple[dict[str, Prompt], dict[str, dict]]]":
    """What the models of `voices_of` read, and their growing answers; the last ones are scored.

    An answer is {"text", "score", "done", "by": whose it is, in words, "weights"}.

    Args:
        turns: earlier questions with the models' answers, {"question", name: {"text"}}, for them to remember.

    Raises:
        BadInput: a model is missing, the question is longer than a model can read, or the teacher has locked what
            differs from the defaults.
    """
    if replace(sampling, seed=0) != DEFAULT or {*names} != {"base", "ppo"}:
        classroom.check("chat")
    voices, reward_model = voices_of(run, names), reward_model_of(run)
    functions = load_functions(run.reward_funcs())
    prompts = ask(voices, question, turns, sampling)
    for answers, ids in all_answers(voices, prompts, sampling):  # noqa: B007  (needed after the loop)
        yield prompts, answers
    if reward_model or functions:
        give_scores(reward_model, voices[names[0]], prompts, answers, ids, functions, run.rewards())
        yield prompts, answers


def warm_up() -> None:
    """Load the example's models in the background, so that the first question is answered at once."""
    run = shown_run(example_id())
    try:
        if run is None:
            base_voice(Run(ASSETS))
        else:
            next(conversation(run, "Hi there!", []))
    except (BadInput, OSError):
        return  # the first question will say what is missing

"""The Chat tab: can I hear the difference? One question, and both models answer side by side as they write.

Torch and Transformers are imported by the first question, or by `warm_up` in the background, never by the page.
"""

import hashlib
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import gradio as gr

from rlhf import config
from rlhf.config import EVERYDAY, BadInput
from rlhf.launch import limits
from rlhf.runs.directory import Run, read_json
from rlhf.ui import empty_state, example_id, is_active, note, policy_folder, ppo_settings, shown_run
from rlhf.ui.scripts import HEAD, script


if TYPE_CHECKING:
    from rlhf.models.prompts import Prompt


QUESTIONS = (
    "Tell me how to clean an oven.",
    "What can I put on a sunburn so it stops stinging?",
    "What's the best way to fall asleep faster at night?",
    "Which city is the capital of Australia?",
    "Hi there!",
)
"""Offered to click: test questions of the embedded world, which no training saw in these words."""
LONGEST = 2_000
"""Characters of a question that are looked at; what does not fit the model is refused with a sentence."""
KEPT_TURNS = 20
MAX_NEW_TOKENS = 64
TEMPERATURE = 0.7
SECONDS_BETWEEN_UPDATES = 0.06
"""Each update costs the server and the browser something; per token would be too often."""
NO_SCALE = (-3.0, 3.0)

TEMPLATE = """
<section class="dialogue">
  <p class="verdict" role="status"></p>
  <header class="voices">
    <div class="voice base"><b>Base</b><span></span></div><div class="voice ppo"><b>PPO</b><span></span></div>
  </header>
  <div class="turns" role="log" aria-label="Answers" tabindex="0"></div>
</section>
"""


def dialogue(**kwargs: object) -> gr.HTML:
    """Questions with both answers; its value is {sentence, voices, scale, turns}."""
    return gr.HTML(html_template=TEMPLATE, js_on_load=script("chat"), head=HEAD, apply_default_css=False, **kwargs)


@dataclass(frozen=True)
class Voice:
    """A loaded model, and what it says of itself: read off the weights that will speak, not off the page."""

    model: object
    tokenizer: object
    label: str


def _stamp(folder: Path) -> int:
    """Changes when a model in this folder is written anew."""
    weights = folder / "model.safetensors"
    return weights.stat().st_mtime_ns if weights.exists() else 0


@lru_cache(maxsize=6)
def _load(role: str, source: str, stamp: int) -> tuple[object, object, str]:
    """A model, its tokenizer and a fingerprint of its weights; `stamp` keeps a model that was replaced out of it."""
    import torch

    from rlhf import models

    # Half of the cores: a run under way and the page itself need the others.
    torch.set_num_threads(max(1, limits.cores() // 2))
    reward = role == "reward"
    model, tokenizer = models.load_reward_model(source, trained=True) if reward else models.load_policy(source)
    digest = hashlib.sha256()
    for weights in model.state_dict().values():
        digest.update(weights.contiguous().numpy().tobytes())
    return model, tokenizer, digest.hexdigest()[:6]


_loading = threading.Lock()


def load(role: str, source: str, folder: Path | None = None) -> tuple[object, object, str]:
    """As `_load`, but two people who ask at once wait for one load."""
    with _loading:
        return _load(role, source, _stamp(folder or Path(source)))


def base_name(run: Run) -> str:
    """What the model that PPO started from is called: a folder by its last name, all else as it was given."""
    name = str(ppo_settings(run).get("model_name_or_path") or EVERYDAY)
    return Path(name).name if Path(name).is_absolute() else name


def base_voice(run: Run) -> Voice:
    """The model that PPO started from."""
    name = ppo_settings(run).get("model_name_or_path") or EVERYDAY
    model, tokenizer, print_ = load("policy", name, config.ASSETS / "base" if name == EVERYDAY else None)
    return Voice(model, tokenizer, f"{base_name(run)}, before PPO · weights {print_}")


def ppo_voice(run: Run) -> Voice:
    """The model that PPO made.

    Raises:
        BadInput: it has not made one.
    """
    folder = policy_folder(run)
    if folder is None:
        raise BadInput(absent(run))
    model, tokenizer, print_ = load("policy", str(folder))
    step = Run(folder.parent).status().get("step", 0)
    return Voice(model, tokenizer, f"{run.id}, after update {step} · weights {print_}")


def judge_of(run: Run) -> tuple[object, object] | None:
    """The reward model that PPO was trained against."""
    own = run.path / "reward" / "model"
    source = str(own) if (own / "config.json").exists() else ppo_settings(run).get("reward_model_path")
    return load("reward", source)[:2] if source else None


def absent(run: Run | None) -> str:
    """Why there is nobody to talk to, and what to do."""
    if run is None:
        return "There is no model to talk to yet: start a run in the Train tab."
    if run.status().get("kind") in ("reward", "compare", "sweep") or not is_active(run):
        return "This run holds no PPO model: choose another run above, or train PPO in the Train tab."
    return "This run's PPO model can be talked to as soon as it is trained."


def warm_up() -> None:
    """Load the example's models in the background, so that the first question is answered at once."""
    run = shown_run(example_id())
    try:
        if run is None:
            base_voice(Run(config.ASSETS))
            return
        voices = {"base": base_voice(run), "ppo": ppo_voice(run)}
        next(both_answers(voices, ask(voices, QUESTIONS[0], []), 0))
        judge_of(run)
    except (BadInput, OSError):
        return  # the first question will say what is missing


def remembers(run: Run) -> bool:
    """Whether a run's models can hold a conversation: they have a chat template, and room for more than an answer."""
    folder = policy_folder(run)
    of_world = str(ppo_settings(run).get("model_name_or_path") or EVERYDAY) == EVERYDAY
    return folder is not None and not of_world and (folder / "chat_template.jinja").exists()


def ask(voices: dict[str, Voice], question: str, turns: list[dict]) -> "dict[str, Prompt]":
    """The question as each model reads it, after its own answers in earlier turns.

    Raises:
        BadInput: the question is longer than a model can read.
    """
    from rlhf.models import context_size
    from rlhf.models.prompts import question_prompt

    asked = {}
    for name, voice in voices.items():
        history = [
            message
            for turn in turns
            for message in (
                {"role": "user", "content": turn["question"]},
                {"role": "assistant", "content": turn[name]["text"]},
            )
        ]
        asked[name] = question_prompt(voice.tokenizer, question, context_size(voice.model) - MAX_NEW_TOKENS, history)
    return asked


def _answer(voice: Voice, prompt: "Prompt", seed: int) -> Iterator[tuple[str, list[int]]]:
    """The growing answer, as text and as ids."""
    from rlhf.models.generate import stream

    settings = {"eos_id": voice.tokenizer.eos_token_id, "max_new_tokens": MAX_NEW_TOKENS, "temperature": TEMPERATURE}
    for ids in stream(voice.model, prompt.ids, seed=seed, **settings):
        yield voice.tokenizer.decode(ids, skip_special_tokens=True).strip(), ids


def both_answers(
    voices: dict[str, Voice], asked: "dict[str, Prompt]", seed: int
) -> Iterator[tuple[dict[str, dict], dict[str, list[int]]]]:
    """The growing answers and their ids by name; a token each in turn, so that neither waits for the other."""
    said = {name: {"text": "", "score": None, "done": False} for name in voices}
    writing = {name: _answer(voice, asked[name], seed) for name, voice in voices.items()}
    written: dict[str, list[int]] = {}
    shown = 0.0
    while writing:
        for name in tuple(writing):
            piece = next(writing[name], None)
            if piece is None:
                del writing[name]
                said[name]["done"] = True
            else:
                said[name]["text"], written[name] = piece
        if time.monotonic() - shown > SECONDS_BETWEEN_UPDATES:
            shown = time.monotonic()
            yield said, written
    yield said, written


def give_scores(
    judge: tuple[object, object], voice: Voice, asked: "dict[str, Prompt]", said: dict, written: dict[str, list[int]]
) -> None:
    """The reward model's score under each answer, from the very ids that were written where it can read them."""
    from rlhf.models.prompts import PromptReader
    from rlhf.models.scoring import RewardModel

    answers = [written[name] for name in said]
    ended = [ids[-1] == voice.tokenizer.eos_token_id for ids in answers]
    judge = RewardModel(*judge, PromptReader(voice.tokenizer, None))
    for name, score in zip(said, judge([asked[name] for name in said], answers, ended).tolist(), strict=True):
        said[name]["score"] = score


def tally(turns: list[dict]) -> str:
    """What the conversation has shown so far, in a sentence."""
    pairs = [(turn["base"]["score"], turn["ppo"]["score"]) for turn in turns]
    gains = [ppo - base for base, ppo in pairs if base is not None and ppo is not None]
    if not gains:
        return "Ask once, hear both: can you tell which one has learned what people prefer?"
    # The same answer in another batch differs in its last digits; what reads the same is no win.
    wins, mean = sum(round(gain, 2) > 0 for gain in gains), sum(gains) / len(gains)
    questions = "question" if len(gains) == 1 else "questions"
    way = "higher" if mean >= 0 else "lower"
    return f"PPO scored higher on {wins} of {len(gains)} {questions} here, on average {abs(mean):.2f} {way}."


def scale_of(run: Run) -> tuple[float, float]:
    """Ends of the score bars: the quartiles of the compared answers, with room to both sides."""

    compared = read_json(run.path / "summary.json").get("splits", {}).get("test", {}).get("models", {}).values()
    if not compared:
        return NO_SCALE
    spread = max(model["std"] for model in compared)
    return min(model["q1"] for model in compared) - spread, max(model["q3"] for model in compared) + spread


class ChatTab:
    """The tab's components and what they do; `show` fills it for a run."""

    def __init__(self) -> None:
        self.empty = gr.HTML(apply_default_css=False)
        self.example = gr.Button("Talk to the example run", visible=False, scale=0, elem_classes="offer")
        with gr.Column(visible=False, elem_classes="chat") as self.body:
            self.dialogue = dialogue(value=None, elem_id="dialogue")
            with gr.Row(elem_classes="chips"):
                self.chips = [gr.Button(question, size="sm", min_width=0) for question in QUESTIONS]
            with gr.Row(elem_classes="ask"):
                self.box = gr.Textbox(
                    show_label=False,
                    label="Your question",
                    placeholder="Ask both models",
                    container=False,
                    max_lines=2,
                    scale=1,
                    elem_id="question",
                    max_length=LONGEST,
                )
                self.send = gr.Button("Ask both", variant="primary", scale=0, min_width=120, elem_id="ask")
            self.remember = gr.Checkbox(
                True, label="They remember what was said", container=False, visible=False, elem_id="remember"
            )
            self.note = gr.HTML(elem_id="chat-note")
        self.turns = gr.State([])
        self.outputs = [self.empty, self.example, self.body, self.dialogue, self.turns, self.note, self.remember]

    def wire(self, picker: gr.Dropdown) -> None:
        """Connect the box, its button and the chips."""
        run = {
            "outputs": [self.dialogue, self.turns, self.note, self.box],
            "show_progress": "hidden",
            "concurrency_id": "model",
            "concurrency_limit": 1,
            "api_visibility": "private",
            "trigger_mode": "once",
        }
        gr.on([self.box.submit, self.send.click], talk, [self.box, self.turns, picker, self.remember], **run)
        for chip in self.chips:
            chip.click(talk, [chip, self.turns, picker, self.remember], **run)

    def show(self, run_id: str | None) -> tuple:
        """The values of `outputs` for this run: a new conversation."""
        run = shown_run(run_id)
        ready = run is not None and policy_folder(run) is not None
        labels = _names(run) if ready else {"base": "", "ppo": ""}
        offer = gr.Button(visible=not ready and bool(example_id()) and run_id != example_id())
        missing = empty_state("" if ready else absent(run))
        remember = gr.Checkbox(visible=ready and remembers(run))
        return missing, offer, gr.Column(visible=ready), _page(run, [], labels), [], "", remember


def _names(run: Run) -> dict[str, str]:
    """Who will speak, before anything is loaded."""
    return {"base": base_name(run), "ppo": run.id}


def _page(run: Run | None, turns: list[dict], voices: dict[str, str]) -> dict:
    scale = scale_of(run) if run else NO_SCALE
    return {"sentence": tally(turns), "voices": voices, "scale": scale, "turns": turns}


def tidy(question: object) -> str:
    """A question on one line, no longer than is looked at.

    Raises:
        BadInput: it is empty.
    """
    # Half a surrogate pair, which a request can carry, is text to no tokenizer.
    words = " ".join(str(question).encode(errors="ignore").decode().split())[:LONGEST]
    if not words:
        raise BadInput("Please write a question first.")
    return words


def talk(question: str, turns: list[dict], run_id: str | None, remember: bool) -> Iterator[tuple]:
    """Answer a question with both models; yields the dialogue, the turns, a note and the box."""
    run = shown_run(run_id)
    try:
        question = tidy(question)
        if run is None:
            raise BadInput(absent(run))
        voices, judge = {"base": base_voice(run), "ppo": ppo_voice(run)}, judge_of(run)
        labels = {name: voice.label for name, voice in voices.items()}
        turns = turns[1 - KEPT_TURNS :] if len(turns) >= KEPT_TURNS else turns
        asked = ask(voices, question, turns if remember and remembers(run) else [])
        for said, written in both_answers(voices, asked, random.randrange(2**31)):  # noqa: B007  (needed after)
            yield _page(run, [*turns, {"question": question, **said}], labels), gr.skip(), "", ""
        if judge:
            give_scores(judge, voices["ppo"], asked, said, written)
        turns = [*turns, {"question": question, **said}]
        yield _page(run, turns, labels), turns, "", ""
    except BadInput as error:
        yield gr.skip(), gr.skip(), note(str(error)), gr.skip()

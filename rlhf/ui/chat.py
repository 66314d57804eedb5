"""The Chat tab: can I hear the difference? One question, and two to four models answer side by side as they write.

People then vote for the better answer, see `votes.py`; in a blind vote they do not know whose it is.
"""

import random
from collections.abc import Iterator, Sequence

import gradio as gr

from rlhf.config import BadInput
from rlhf.kinds import METHODS
from rlhf.launch import classroom, limits
from rlhf.runs.directory import Run, has_own_id
from rlhf.ui import QUICK, empty_state, example_id, note, shown_run, votes
from rlhf.ui.scripts import HEAD, script
from rlhf.ui.voices import (
    HIGHEST_TEMPERATURE,
    LONGEST,
    MOST_NEW_TOKENS,
    MOST_VOICES,
    Sampling,
    absent,
    base_name,
    conversation,
    longest,
    remembers,
    siblings,
    tidy,
)
from rlhf.words import setting


QUESTIONS = (
    "Tell me how to clean an oven.",
    "What can I put on a sunburn so it stops stinging?",
    "What's the best way to fall asleep faster at night?",
    "Which city is the capital of Australia?",
    "Hi there!",
)
"""Offered to click: test questions of the embedded world, which no training saw in these words."""
KEPT_TURNS, KEPT_RUNS = 20, 5
"""What a browser keeps: the latest questions to each of the runs talked to last."""
NO_SCALE = (-3.0, 3.0)

TEMPLATE = """
<section class="dialogue">
  <p class="verdict" role="status"></p>
  <div class="turns" role="log" aria-label="Answers" tabindex="0"></div>
  <p class="saved" role="status"></p>
</section>
"""
VOTES = """
<section class="votes" hidden>
  <h3>How the votes stand</h3>
  <dl class="tiles"></dl>
  <p class="gloss rule"></p>
</section>
"""


def dialogue(**kwargs: object) -> gr.HTML:
    """Questions with their answers; its value is {run, visitor, sentence, scale, turns, longest}.

    A turn is {question, blind, asked: how, answers}, with an `id` if it can be voted on, else why not in `closed`. An
    answer is one of `conversation`, with the `name` of its model and `who` that is; before a blind vote only its text.
    """
    return gr.HTML(
        html_template=TEMPLATE,
        js_on_load=script("chat"),
        head=HEAD,
        server_functions=[votes.look, votes.vote, votes.take_back],
        apply_default_css=False,
        **kwargs,
    )


def tally(turns: list[dict], trained: str = "PPO") -> str:
    """What the conversation has shown so far, in a sentence; `trained` is what the trained model is called."""
    turns = [
        turn for turn in turns if all(name in turn and turn[name]["score"] is not None for name in ("base", "ppo"))
    ]
    gains = [turn["ppo"]["score"] - turn["base"]["score"] for turn in turns]
    if not gains:
        return "Ask a question, and both models answer: can you tell which one has learned what people prefer?"
    # The same answer in another batch differs in its last digits; scores that read the same are a tie.
    same = sum(turn["base"]["text"] == turn["ppo"]["text"] for turn in turns)
    if same == len(turns):
        often = "" if same == 1 else f" to all {same} questions"
        return f"Base and {trained} gave the very same answer{often}."
    wins, mean = sum(round(gain, 2) > 0 for gain in gains), sum(gains) / len(gains)
    questions = "question" if len(gains) == 1 else "questions"
    average = f"on average its score is {abs(mean):.2f} {'higher' if mean > 0 else 'lower'}"
    if not round(mean, 2):
        average = "on average both score the same"
    also = f" To {same} of them both gave the same answer." if same else ""
    return f"{trained} scored higher on {wins} of {len(gains)} {questions}; {average}.{also}"


def scale_of(run: Run) -> tuple[float, float]:
    """Ends of the score bars: the quartiles of the compared answers, with room on both sides."""
    compared = run.summary().get("splits", {}).get("test", {}).get("models", {}).values()
    if not compared:
        return NO_SCALE
    spread = max(model["std"] for model in compared)
    return min(model["q1"] for model in compared) - spread, max(model["q3"] for model in compared) + spread


class ChatTab:
    """The tab's components and what they do; `show` fills it for a run."""

    def __init__(self, kept: gr.BrowserState) -> None:
        self.kept = kept  # the conversations, {run's id: turns}
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
                    placeholder="Ask the models",
                    container=False,
                    max_lines=2,
                    scale=1,
                    elem_id="question",
                )
                self.send = gr.Button("Ask", variant="primary", scale=0, min_width=120, elem_id="ask")
            self.note = gr.HTML(elem_id="chat-note")
            with gr.Row(elem_classes="after"):
                self.room = gr.HTML(elem_id="room", apply_default_css=False)
                self.blind = gr.Checkbox(False, label="Blind: names after the vote", container=False, elem_id="blind")
                self.remember = gr.Checkbox(
                    True, label="Remember the conversation", container=False, visible=False, elem_id="remember"
                )
                self.clear = gr.Button("Clear", size="sm", scale=0, min_width=80, visible=False, elem_id="clear")
            with gr.Accordion("Settings", open=False, elem_classes="advanced", elem_id="chat-settings"):
                with gr.Row(elem_classes="chat-settings"):
                    self.models = gr.Dropdown(
                        [],
                        multiselect=True,
                        max_choices=MOST_VOICES,
                        label="Models",
                        info=f"Two to {MOST_VOICES} that started from the same base.",
                        elem_id="chat-models",
                    )
                    self.temperature = gr.Slider(
                        0,
                        HIGHEST_TEMPERATURE,
                        Sampling.temperature,
                        step=0.05,
                        label="Temperature",
                        info="Higher is more varied; 0 always takes the likeliest word.",
                    )
                    self.length = gr.Slider(
                        1,
                        MOST_NEW_TOKENS,
                        Sampling.max_new_tokens,
                        step=1,
                        label="Longest answer",
                        info="In tokens, a word or a part of one each.",
                    )
                    self.seed = gr.Textbox(
                        "",
                        label="Seed",
                        placeholder="a new one for each question",
                        info="The same seed gives the same answers.",
                        max_lines=1,
                    )
                    self.system = gr.Textbox(
                        "",
                        label="System prompt",
                        info="What the models are told before the conversation.",
                        lines=2,
                        visible=False,
                        elem_id="system-prompt",
                    )
            self.usual = {
                self.models: ["base", "ppo"],
                self.temperature: Sampling.temperature,
                self.length: Sampling.max_new_tokens,
                self.seed: "",
                self.system: "",
            }
            gr.HTML(VOTES, apply_default_css=False, elem_id="votes")
        self.outputs = [self.empty, self.example, self.body, self.dialogue, self.note, self.room, self.remember]
        self.outputs += [self.clear, self.models, self.system]

    def wire(self, picker: gr.Dropdown, visitor: gr.BrowserState) -> None:
        """Connect the box, its button, the chips, and the button below the latest answers."""
        answer = {
            "outputs": [self.dialogue, self.kept, self.note, self.box, self.clear],
            "show_progress": "hidden",
            "concurrency_id": "model",
            "concurrency_limit": 1,
            "api_visibility": "private",
            "trigger_mode": "once",
        }
        settings = [self.kept, picker, visitor, self.blind, self.remember, self.models]
        settings += [self.temperature, self.length, self.system, self.seed]
        gr.on([self.box.submit, self.send.click], self._talk, [self.box, *settings], **answer)
        for chip in self.chips:
            chip.click(self._talk, [chip, *settings], **answer)
        self.dialogue.regenerate(self._ask_again, settings[:-1], **answer)
        self.clear.click(self._clear, [self.kept, picker, visitor], [self.kept, *self.outputs], **QUICK)

    def show(self, run_id: str | None, kept: dict[str, list[dict]], visitor: str) -> dict:
        """The values of `outputs` for this run: what the browser has kept of the conversation with it."""
        run = shown_run(run_id)
        ready = run is not None and run.model("policy") is not None
        turns = kept.get(run_id, []) if ready else []
        room = f"A question may have up to about {longest(run):,} characters." if ready else ""
        offered = []
        if ready:
            offered = [(f"Base: {base_name(run)}, before training", "base"), (f"{_trained(run)}: this run", "ppo")]
            offered += [(title, name) for name, title in _others(run).items()]
        return {
            self.empty: empty_state("" if ready else absent(run)),
            self.example: gr.Button(visible=not ready and bool(example_id()) and run_id != example_id()),
            self.body: gr.Column(visible=ready),
            self.dialogue: _dialogue(run, turns, visitor),
            self.note: "",
            self.room: f'<p class="gloss">{room}</p>',
            self.remember: gr.Checkbox(visible=ready and remembers(run)),
            self.clear: gr.Button(visible=bool(turns)),
            self.models: gr.Dropdown(choices=offered, value=[name for _, name in offered[:2]]),
            self.system: gr.Textbox(visible=ready and remembers(run)),
        }

    def _clear(self, kept: dict[str, list[dict]], run_id: str | None, visitor: str) -> dict:
        """Forget the conversation with this run."""
        kept = {other: turns for other, turns in kept.items() if other != run_id}
        return {self.kept: kept, **self.show(run_id, kept, visitor)}

    def _talk(
        self,
        question: str,
        kept: dict[str, list[dict]],
        run_id: str | None,
        visitor: str,
        blind: bool,
        remember: bool,
        models: Sequence[str],
        temperature: float,
        length: float,
        system: str,
        seed: str,
    ) -> Iterator[dict]:
        """Answer a question with all chosen models, as they write."""
        run, others = shown_run(run_id), {other: turns for other, turns in kept.items() if other != run_id}
        turns = kept.get(run_id, [])[1 - KEPT_TURNS :]
        try:
            question = tidy(question)
            if run is None:
                raise BadInput(absent(run))
            speaks = remembers(run)
            if seed.strip():
                classroom.check("chat")
            seed = _whole("The seed", seed) if seed.strip() else random.randrange(2**31)
            sampling = Sampling(seed, temperature, int(length), system.strip() if speaks else "")
            remembered = list(map(_by_name, turns)) if speaks and remember and not blind else []
            models = random.sample(models, len(models)) if blind else models
            who = {"base": "Base", "ppo": _trained(run)} | _others(run)
            told = f"temperature {setting(sampling.temperature)}, seed {seed}"
            for prompts, said in conversation(run, question, remembered, sampling, models):  # noqa: B007
                answers = [{"name": name, "who": who[name], **said[name]} for name in models]
                shown = [_without_names(answer) for answer in answers] if blind else answers
                turn = {"question": question, "blind": blind, "answers": shown, "asked": told}
                yield {self.dialogue: _dialogue(run, [*turns, turn], visitor), self.note: "", self.box: ""}
            one, *rest = prompts.values()
            if any(other.ids != one.ids for other in rest):
                turn |= {"closed": "No vote here: each model remembers other answers of its own."}
            elif len({answer["text"] for answer in answers}) == 1:
                turn |= {"closed": "The same answer: there is nothing to vote on.", "answers": answers}
            else:
                exchange = votes.Exchange(limits.mark(visitor), run.id, question, one.raw, answers, sampling, blind)
                turn["id"] = votes.serve(exchange)
            now = [*turns, turn]
            latest = list(others.items())[1 - KEPT_RUNS :]
            yield {
                self.dialogue: _dialogue(run, now, visitor),
                self.kept: dict([*latest, (run_id, now)]),
                self.clear: gr.Button(visible=True),
            }
        except BadInput as error:
            yield {self.note: note(str(error))}

    def _ask_again(self, kept: dict[str, list[dict]], run_id: str | None, *settings: object) -> Iterator[dict]:
        """Ask the latest question once more, with a new seed; the new answers take the place of the old."""
        *before, last = kept[run_id]
        for update in self._talk(last["question"], kept | {run_id: before}, run_id, *settings, ""):
            update.pop(self.box, None)  # where the next question may have been begun
            yield update


def _whole(what: str, text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise BadInput(f"{what} must be a whole number, not {text.strip()[:40]!r}.") from error


def _trained(run: Run) -> str:
    """What the model is called that the run has trained."""
    return METHODS.get(run.method(), "PPO")


def _others(run: Run) -> dict[str, str]:
    """What the models of other runs are called that can answer beside this run's."""
    others = siblings(run).items()
    return {key: one.title() if has_own_id(one.id) or one.about().get("name") else one.id for key, one in others}


def _by_name(turn: dict) -> dict:
    """The turn with its answers by the models' names; before a blind vote they have none."""
    return {"question": turn["question"]} | {each["name"]: each for each in turn["answers"] if "name" in each}


def _without_names(answer: dict) -> dict:
    return {name: value for name, value in answer.items() if name not in votes.KNOWN}


def _dialogue(run: Run | None, turns: list[dict], visitor: str) -> dict:
    """The value of `dialogue`."""
    sentence = tally(list(map(_by_name, turns)), _trained(run) if run else "PPO")
    if turns and turns[-1]["blind"]:
        sentence = "Which answer is better? The names come with your vote."
    return {
        "run": run and run.id,
        "visitor": visitor,
        "sentence": sentence,
        "scale": scale_of(run) if run else NO_SCALE,
        "turns": turns,
        "longest": longest(run) if run and run.model("policy") else LONGEST,
    }

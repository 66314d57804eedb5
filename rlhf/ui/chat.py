"""The Chat tab: can I hear the difference? One question, and both models answer side by side as they write."""

import random
from collections.abc import Iterator

import gradio as gr

from rlhf.config import BadInput
from rlhf.kinds import METHODS
from rlhf.runs.directory import Run
from rlhf.ui import QUICK, empty_state, example_id, note, shown_run
from rlhf.ui.scripts import HEAD, script
from rlhf.ui.voices import LONGEST, absent, base_name, conversation, longest, remembers, tidy


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
  <header class="voices">
    <div class="voice base"><b>Base</b><span></span></div><div class="voice ppo"><b></b><span></span></div>
  </header>
  <div class="turns" role="log" aria-label="Answers" tabindex="0"></div>
</section>
"""


def dialogue(**kwargs: object) -> gr.HTML:
    """Questions with both answers; its value is {sentence, voices, trained, scale, turns, longest}."""
    return gr.HTML(html_template=TEMPLATE, js_on_load=script("chat"), head=HEAD, apply_default_css=False, **kwargs)


def tally(turns: list[dict], trained: str = "PPO") -> str:
    """What the conversation has shown so far, in a sentence; `trained` is what the trained model is called."""
    turns = [turn for turn in turns if turn["base"]["score"] is not None and turn["ppo"]["score"] is not None]
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
                    placeholder="Ask both models",
                    container=False,
                    max_lines=2,
                    scale=1,
                    elem_id="question",
                )
                self.send = gr.Button("Ask both", variant="primary", scale=0, min_width=120, elem_id="ask")
            self.note = gr.HTML(elem_id="chat-note")
            with gr.Row(elem_classes="after"):
                self.room = gr.HTML(elem_id="room", apply_default_css=False)
                self.remember = gr.Checkbox(
                    True, label="Remember the conversation", container=False, visible=False, elem_id="remember"
                )
                self.clear = gr.Button("Clear", size="sm", scale=0, min_width=80, visible=False, elem_id="clear")
        self.outputs = [self.empty, self.example, self.body, self.dialogue, self.note, self.room, self.remember]
        self.outputs += [self.clear]

    def wire(self, picker: gr.Dropdown) -> None:
        """Connect the box, its button and the chips."""
        answer = {
            "fn": self._talk,
            "outputs": [self.dialogue, self.kept, self.note, self.box, self.clear],
            "show_progress": "hidden",
            "concurrency_id": "model",
            "concurrency_limit": 1,
            "api_visibility": "private",
            "trigger_mode": "once",
        }
        gr.on([self.box.submit, self.send.click], inputs=[self.box, self.kept, picker, self.remember], **answer)
        for chip in self.chips:
            chip.click(inputs=[chip, self.kept, picker, self.remember], **answer)
        self.clear.click(
            self._clear,
            [self.kept, picker],
            [self.kept, *self.outputs],
            **QUICK,
        )

    def show(self, run_id: str | None, kept: dict[str, list[dict]]) -> dict:
        """The values of `outputs` for this run: what the browser has kept of the conversation with it."""
        run = shown_run(run_id)
        ready = run is not None and run.model("policy") is not None
        turns = kept.get(run_id, []) if ready else []
        room = f"A question may have up to about {longest(run):,} characters." if ready else ""
        names = {"base": base_name(run), "ppo": run.id} if ready else {"base": "", "ppo": ""}
        return {
            self.empty: empty_state("" if ready else absent(run)),
            self.example: gr.Button(visible=not ready and bool(example_id()) and run_id != example_id()),
            self.body: gr.Column(visible=ready),
            self.dialogue: _dialogue(run, turns, names),
            self.note: "",
            self.room: f'<p class="gloss">{room}</p>',
            self.remember: gr.Checkbox(visible=ready and remembers(run)),
            self.clear: gr.Button(visible=bool(turns)),
        }

    def _clear(self, kept: dict[str, list[dict]], run_id: str | None) -> dict:
        """Forget the conversation with this run."""
        kept = {other: turns for other, turns in kept.items() if other != run_id}
        return {self.kept: kept, **self.show(run_id, kept)}

    def _talk(self, question: str, kept: dict[str, list[dict]], run_id: str | None, remember: bool) -> Iterator[dict]:
        """Answer a question with both models, as they write."""
        run, others = shown_run(run_id), {other: turns for other, turns in kept.items() if other != run_id}
        turns = kept.get(run_id, [])[1 - KEPT_TURNS :]
        try:
            question = tidy(question)
            if run is None:
                raise BadInput(absent(run))
            remembered = turns if remember and remembers(run) else []
            for labels, answers in conversation(run, question, remembered, random.randrange(2**31)):
                now = [*turns, {"question": question, **answers}]
                yield {self.dialogue: _dialogue(run, now, labels), self.note: "", self.box: ""}
            latest = list(others.items())[1 - KEPT_RUNS :]
            yield {self.kept: dict([*latest, (run_id, now)]), self.clear: gr.Button(visible=True)}
        except BadInput as error:
            yield {self.note: note(str(error))}


def _dialogue(run: Run | None, turns: list[dict], labels: dict[str, str]) -> dict:
    """The value of `dialogue`."""
    scale, trained = (scale_of(run), METHODS.get(run.method(), "PPO")) if run else (NO_SCALE, "PPO")
    return {
        "sentence": tally(turns, trained),
        "voices": labels,
        "trained": trained,
        "scale": scale,
        "turns": turns,
        "longest": longest(run) if run and run.model("policy") else LONGEST,
    }

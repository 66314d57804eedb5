"""The Chat tab: can I hear the difference? One question, and both models answer side by side as they write."""

import random
from collections.abc import Iterator

import gradio as gr

from rlhf.config import BadInput
from rlhf.kinds import METHODS
from rlhf.runs.directory import Run
from rlhf.ui import empty_state, example_id, note, shown_run
from rlhf.ui.scripts import HEAD, script
from rlhf.ui.voices import LONGEST, absent, base_name, conversation, remembers, tidy


QUESTIONS = (
    "Tell me how to clean an oven.",
    "What can I put on a sunburn so it stops stinging?",
    "What's the best way to fall asleep faster at night?",
    "Which city is the capital of Australia?",
    "Hi there!",
)
"""Offered to click: test questions of the embedded world, which no training saw in these words."""
KEPT_TURNS = 20
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
    """Questions with both answers; its value is {sentence, voices, trained, scale, turns}."""
    return gr.HTML(html_template=TEMPLATE, js_on_load=script("chat"), head=HEAD, apply_default_css=False, **kwargs)


def tally(turns: list[dict], trained: str = "PPO") -> str:
    """What the conversation has shown so far, in a sentence; `trained` is what the trained model is called."""
    pairs = [(turn["base"]["score"], turn["ppo"]["score"]) for turn in turns]
    gains = [ppo - base for base, ppo in pairs if base is not None and ppo is not None]
    if not gains:
        return "Ask a question, and both models answer: can you tell which one has learned what people prefer?"
    # The same answer in another batch differs in its last digits; scores that read the same are a tie.
    wins, mean = sum(round(gain, 2) > 0 for gain in gains), sum(gains) / len(gains)
    questions = "question" if len(gains) == 1 else "questions"
    way = "higher" if mean >= 0 else "lower"
    average = f"on average its score is {abs(mean):.2f} {way}"
    return f"{trained} scored higher on {wins} of {len(gains)} {questions}; {average}."


def scale_of(run: Run) -> tuple[float, float]:
    """Ends of the score bars: the quartiles of the compared answers, with room on both sides."""
    compared = run.summary().get("splits", {}).get("test", {}).get("models", {}).values()
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
                True, label="Remember the conversation", container=False, visible=False, elem_id="remember"
            )
            self.note = gr.HTML(elem_id="chat-note")
        self.turns = gr.State([])
        self.outputs = [self.empty, self.example, self.body, self.dialogue, self.turns, self.note, self.remember]

    def wire(self, picker: gr.Dropdown) -> None:
        """Connect the box, its button and the chips."""
        answer = {
            "fn": self._talk,
            "outputs": [self.dialogue, self.turns, self.note, self.box],
            "show_progress": "hidden",
            "concurrency_id": "model",
            "concurrency_limit": 1,
            "api_visibility": "private",
            "trigger_mode": "once",
        }
        gr.on([self.box.submit, self.send.click], inputs=[self.box, self.turns, picker, self.remember], **answer)
        for chip in self.chips:
            chip.click(inputs=[chip, self.turns, picker, self.remember], **answer)

    def show(self, run_id: str | None) -> dict:
        """The values of `outputs` for this run: a new conversation."""
        run = shown_run(run_id)
        ready = run is not None and run.model("policy") is not None
        names = {"base": base_name(run), "ppo": run.id} if ready else {"base": "", "ppo": ""}
        return {
            self.empty: empty_state("" if ready else absent(run)),
            self.example: gr.Button(visible=not ready and bool(example_id()) and run_id != example_id()),
            self.body: gr.Column(visible=ready),
            self.dialogue: _dialogue(run, [], names),
            self.turns: [],
            self.note: "",
            self.remember: gr.Checkbox(visible=ready and remembers(run)),
        }

    def _talk(self, question: str, turns: list[dict], run_id: str | None, remember: bool) -> Iterator[dict]:
        """Answer a question with both models, as they write."""
        run = shown_run(run_id)
        turns = turns[1 - KEPT_TURNS :] if len(turns) >= KEPT_TURNS else turns
        try:
            question = tidy(question)
            if run is None:
                raise BadInput(absent(run))
            remembered = turns if remember and remembers(run) else []
            for labels, answers in conversation(run, question, remembered, random.randrange(2**31)):
                now = [*turns, {"question": question, **answers}]
                yield {self.dialogue: _dialogue(run, now, labels), self.note: "", self.box: ""}
            yield {self.turns: now}
        except BadInput as error:
            yield {self.note: note(str(error))}


def _dialogue(run: Run | None, turns: list[dict], labels: dict[str, str]) -> dict:
    """The value of `dialogue`."""
    scale, trained = (scale_of(run), METHODS.get(run.method(), "PPO")) if run else (NO_SCALE, "PPO")
    return {"sentence": tally(turns, trained), "voices": labels, "trained": trained, "scale": scale, "turns": turns}

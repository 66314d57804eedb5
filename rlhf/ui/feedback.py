"""The Feedback tab: what do we prefer? Two answers, one choice; a model learns from all choices, or meanwhile.

The page asks as `people.py` says: `look` for what comes next and how things stand, `choose`, `undo` and `take_away` to
change that. The browser holds some pairs ahead.

Text of models and people reaches the document through `textContent` only; which model gave which answer does not.
"""

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import gradio as gr

from rlhf.config import EVERYDAY, BadInput, DemoArguments, build, name_of_data
from rlhf.config.pipelines import FROM_CHOICES
from rlhf.feedback import Store
from rlhf.feedback.agreement import Agreement, agreement
from rlhf.feedback.desk import Desk
from rlhf.feedback.live import answering
from rlhf.feedback.names import name_of
from rlhf.feedback.store import BY_BASE, EVERY, FEWEST, FIRST_CHOICES, HELD_OUT, IMPORTED, ChosenBefore, Pair
from rlhf.feedback.votes import points_against, win_rate
from rlhf.launch import classroom, jobs, limits
from rlhf.launch.start import DATA, FILLED_IN
from rlhf.runs.directory import RECORD, Run, find_run
from rlhf.runs.disk import told
from rlhf.ui import QUICK, empty_state, is_example, learning, note, run_label, served, shown_run, voices
from rlhf.ui.downloads import download_button, place
from rlhf.ui.expect import expectation
from rlhf.ui.people import answered, desk_between, desk_of, trained_from
from rlhf.ui.scripts import HEAD, script
from rlhf.words import count, number, percent


MOST_HELD = 16
"""The most pairs that one page is given at a time."""
MANY = 300
"""From so many on, a taste may be learned that shows in few of the answers."""

TEMPLATE = """
<section class="feedback">
  <header class="asked">
    <p class="verdict">Which answer is better?</p>
    <p class="gloss"><span class="person"></span> <button type="button" class="plain forget" hidden>Delete my
      choices</button></p>
  </header>
  <p class="note sure" hidden><span></span> <button type="button" class="yes">Yes, delete</button>
    <button type="button" class="no">No, keep</button></p>
  <div class="making" role="status" hidden><p class="verdict"></p><progress></progress><p class="gloss"></p></div>
  <article class="duel" hidden>
    <h3 class="question" dir="auto" aria-live="polite"></h3>
    <div class="pair">
      <div class="answer"><span class="who">A</span><p class="text" dir="auto"></p></div>
      <div class="answer"><span class="who">B</span><p class="text" dir="auto"></p></div>
    </div>
    <div class="ballot" role="group" aria-label="Your choice">
      <button type="button" data-choice="a">A is better <kbd>1</kbd></button>
      <button type="button" data-choice="b">B is better <kbd>2</kbd></button>
      <button type="button" data-choice="tie">Tie <kbd>0</kbd></button>
      <button type="button" data-choice="skip">Skip <kbd>space</kbd></button>
      <button type="button" data-choice="undo">Undo <kbd>U</kbd></button>
    </div>
  </article>
  <p class="saved" role="status"></p>
  <p class="gloss now" role="status"></p>
  <p class="gloss whose" hidden>Answers of <select aria-label="Whose answers"></select> and
    <select aria-label="And whose"></select></p>
  <section class="stands">
    <h3>How it stands</h3>
    <dl class="tiles"></dl>
  </section>
  <div class="either modes" role="radiogroup" aria-label="How to learn">
    <label><input type="radio" name="feedback-mode" value="all" checked><span>Train on all choices</span></label>
    <label><input type="radio" name="feedback-mode" value="live"><span>Learn live</span></label>
  </div>
  <section class="learn on-all">
    <div>
      <h3>Train on our choices</h3>
      <p class="gloss honest"></p>
      <p class="gloss expected"></p>
    </div>
    <div>
      <div class="either" role="radiogroup" aria-label="What to train on">
        <label><input type="radio" name="feedback-pairs" value="alone" checked><span>our choices alone</span></label>
        <label><input type="radio" name="feedback-pairs" value="together"><span></span></label>
      </div>
      <button type="button" class="train-on" disabled></button>
      <p class="note refused" role="alert" hidden></p>
    </div>
  </section>
  <section class="learn while-choosing" hidden>
    <div>
      <h3 class="state"></h3>
      <p class="share" role="status"></p>
      <p class="gloss doing"></p>
      <progress hidden></progress>
      <p class="gloss">After every ten choices the reward model learns from them, and then the model that answers
        learns from the reward model, for a few seconds. The next questions compare it with the base model.</p>
    </div>
    <div class="steer">
      <button type="button" class="go" data-steer="start">Start learning live</button>
      <button type="button" class="go" data-steer="resume" hidden>Go on learning</button>
      <button type="button" data-steer="stop" hidden>Stop</button>
      <div class="earlier" hidden><button type="button" data-steer="back">Go back to</button>
        <select aria-label="An earlier state"></select></div>
      <button type="button" data-steer="afresh" hidden>Start afresh</button>
      <p class="gloss rule"></p>
      <p class="note refused" role="alert" hidden></p>
    </div>
  </section>
</section>
"""


def ballot(**kwargs: object) -> gr.HTML:
    """Where a person chooses; its value is {run, visitor, together}.

    The event `started` is fired, with the run's id as `run`, when a run has been started from here.
    """
    return gr.HTML(
        html_template=TEMPLATE,
        js_on_load=script("feedback"),
        head=HEAD,
        server_functions=[look, choose, undo, take_away, expect, train, who, steer],
        apply_default_css=False,
        **kwargs,
    )


# What the page asks for ----------------------------------------------------------------------------------------------


def look(request: dict) -> dict:
    """The next pairs for a person, and how things stand.

    Args:
        request: {"run": the shown run's id, "visitor": the browser's secret, "count": how many pairs}; the others
            take the same and more.
    """
    return _answer(request, lambda at, person: {})


def choose(request: dict) -> dict:
    """Record the choice {"id": a pair's, "choice": a, b, tie or skip}."""

    def record(at: Desk, person: str) -> dict:
        try:
            _store(at).choose(str(request["id"]), str(request["choice"]), person)
        except ChosenBefore:  # in another window of the same browser
            return {"said": "You had chosen for this question before; that choice stands. Undo takes it back."}
        return {}

    return _answer(request, record)


def undo(request: dict) -> dict:
    """Take back the choice for the pair {"id": ...}, which comes next again."""

    def take_back(at: Desk, person: str) -> dict:
        pair = _store(at).undo(person, str(request["id"]))
        return {"back": _shown(pair)} if pair else {}

    return _answer(request, take_back)


def take_away(request: dict) -> dict:
    """Delete all choices of this person."""
    return _answer(
        request, lambda at, person: {"said": f"{count(_store(at).forget(person))} choices of yours were deleted."}
    )


@served
def expect(request: dict) -> dict:
    """How long training takes, in words: {"alone": on people's choices alone, else with the shipped pairs too}."""
    try:
        run = find_run(str(request.get("run")))
        alone, store = bool(request.get("alone")), desk_of(run).store
        settings = _settings(run, alone)
    except BadInput as error:
        return {"expected": str(error)}
    if alone and store:
        learned = len(store.preferences(chat=not limits.shared())) * (1 - HELD_OUT) * DemoArguments.feedback_epochs
        pairs = learned + 2 * DemoArguments.feedback_prompts
        demo = build(DemoArguments, settings)
        settings["reward_max_steps"] = max(1, round(pairs * demo.num_train_epochs / demo.reward_batch_size))
    return {"expected": expectation(settings)}


@served
def train(request: dict) -> dict:
    """Start training on the choices so far; the run's id, or why none was started."""
    try:
        run, alone = find_run(str(request.get("run"))), bool(request.get("alone"))
        return {"run": start(run, _store(desk_of(run)), alone, str(request.get("visitor") or "")).id}
    except BadInput as error:
        return {"error": str(error)}


@served
def who(request: dict) -> dict:
    """The models whose answers a person can choose between: {"voices": [id, what it is called]}."""
    run = find_run(str(request.get("run")))
    trained = [(each.id, "the example run" if is_example(each) else run_label(each)) for each in trained_from(run)]
    return {"voices": [("base", "the base model"), *trained]}


@served
def steer(request: dict) -> dict:
    """Learn live: {"what": "start", "afresh", "stop", "resume" or "back" to the {"state": number}}."""
    run, what = find_run(str(request.get("run"))), str(request.get("what"))
    store, visitor = _store(desk_of(run)), str(request.get("visitor") or "")
    if what in ("start", "afresh"):
        learning.start(_settings(run), store, visitor, what == "afresh")
    elif what in ("stop", "resume", "back"):
        learning.steer(store, visitor, what, int(request.get("state") or 0))
    else:
        raise BadInput("There is no such button; please reload the page.")
    return {"done": True}


def _answer(request: dict, act: Callable[[Desk, str], dict]) -> dict:
    """Do something at the desk of the shown run; what came of it, and how things stand then, see `answered`."""

    def act_and_look(run: Run, at: Desk, person: str) -> dict:
        wanted = min(MOST_HELD, max(1, int(request.get("count", 1))))
        return act(at, person) | standing(at, person, wanted, _asking(run, at, request), str(request["visitor"]))

    return answered(request, act_and_look)


def _asking(run: Run, at: Desk, request: dict) -> Desk:
    """Where the pairs come from: the base model's desk, or that of two models, {"between": their names}."""
    names = [str(name) for name in list(request.get("between") or ())[:2]]
    if set(names) <= {"base"}:
        return at
    if len(set(names)) != 2:
        raise BadInput("Choose two different models, or the base model on both sides.")
    return desk_between(run, names)


def _store(at: Desk) -> Store:
    if at.store is None:
        raise BadInput("The first questions are still being made; wait until they are here.")
    return at.store


def _shown(pair: Pair) -> dict[str, str]:
    """What a browser learns of a pair before the choice."""
    return {"id": pair.id, "question": pair.question, "a": pair.a, "b": pair.b}


# How things stand ----------------------------------------------------------------------------------------------------


def standing(at: Desk, person: str, wanted: int, asking: Desk | None = None, visitor: str = "") -> dict:
    """The next pairs for a person, and how things stand, in words.

    Args:
        at: where the choices are.
        person: who asks, see `people.py`.
        wanted: how many pairs.
        asking: where the pairs come from, if not there, unless a model learns live.
        visitor: the browser's secret.
    """
    asking = asking or at
    live, models = learning.standing(at.store, visitor), answering(at.store) if at.store else BY_BASE
    if models != BY_BASE:
        pairs = at.store.next(person, wanted, models)
        doing, seconds, error = live["doing"], 0.0, ""
    else:
        pairs = asking.ask(person, wanted)
        doing, seconds, error = asking.doing, asking.seconds(), asking.error
    locked = classroom.refusal("runs")
    kept = at.store.tally() if at.store else Counter()
    made = at.store.tally(chat=False) if limits.shared() and at.store else kept
    own, chosen, preferences = Counter(), Counter(), Counter()
    for (_, who, choice), often in kept.items():
        own[choice] += often * (who == person)
    for (_, who, choice), often in made.items():
        chosen[choice] += often
        preferences[who] += often * (choice in ("a", "b"))  # also of those who have none
    found = agreement(at.store.judgements()) if at.store else None
    return {
        "pairs": list(map(_shown, pairs)),
        "doing": doing,
        "seconds": seconds,
        "error": error,
        "picked": _how_picked(asking, chosen.total() - chosen["skip"]),
        "live": live,
        "name": name_of(person),
        "own": own.total(),
        "last": at.store.last_of(person) if at.store else None,
        "tallies": [
            ("Your choices", count(own.total()), _own_words(own)),
            ("All choices", count(chosen.total()), _people_words(preferences)),
            *_agreement_words(found),
            *_between_words(at.store, asking),
        ],
        **training_words(preferences.total()),
        **({"enough": False, "alone": locked} if locked else {}),
    }


def _how_picked(asking: Desk, judged: int) -> str:
    """Which two answers people are asked about, in words; empty before there are any, and of two models."""
    if asking.models != BY_BASE or asking.store is None:
        return ""
    if asking.crowded() or judged < FIRST_CHOICES:
        return "A and B are picked to have few words in common."
    return (
        "Every other question is picked to tell most: a simple model of all choices so far is most or least sure "
        "which answer will be preferred. In the others, A and B have few words in common."
    )


def _own_words(own: Counter[str]) -> str:
    if not own.total():
        return "Each is on the server’s disk before it is counted here."
    preferences = own["a"] + own["b"]
    prefer = "prefers" if preferences == 1 else "prefer"
    return f"{count(preferences)} {prefer} one answer. A tie says what does not matter, a skip nothing."


def _people_words(preferences: Counter[str]) -> str:
    """Whose choices they are: how many of each person's prefer an answer."""
    here = len(preferences.keys() - {IMPORTED})
    by = f"By {count(here)} {'person' if here == 1 else 'people'}" if here else "Nobody has chosen yet"
    return f"{by}; {count(preferences[IMPORTED])} were imported." if IMPORTED in preferences else f"{by}."


def _agreement_words(found: Agreement | None) -> list[tuple[str, str, str]]:
    """Label, value and a sentence on each: pairs that several judged, raw agreement, alpha."""
    several = f"Questions that several people have answered: one in {EVERY} is put to everybody."
    same = "How often two people chose the same for the same question."
    alpha = "Agreement beyond luck: 1 is always the same, 0 is luck. No model can learn more than people agree on."
    values = ("0", "–", "–")
    if found:
        values = (count(found.pairs), percent(found.raw), "–" if found.alpha is None else number(found.alpha, 2))
    labels = ("Judged by several", "Same choice", "Krippendorff’s alpha")
    return list(zip(labels, values, (several, same, alpha), strict=True))


def _between_words(store: Store | None, asking: Desk) -> list[tuple[str, str, str]]:
    """How often people prefer the first of two models to the second, where these are asked about."""
    if store is None or asking.models == BY_BASE:
        return []
    one, other = asking.others
    found = win_rate(*points_against(store, other).get(one, (0.0, 0)))
    if found is None:
        return [(f"{one} preferred to {other}", "–", "Nobody has judged this pair of models yet.")]
    share, n = found
    gloss = f"[{percent(share.low)}, {percent(share.high)}] of {count(n)} {'pair' if n == 1 else 'pairs'}."
    return [(f"{one} preferred to {other}", percent(share.value), gloss)]


def training_words(preferences: int) -> dict:
    """The button's words, whether it can be pressed, and what so many preferences can show."""
    if preferences < FEWEST:
        more, choices = FEWEST - preferences, "choice" if preferences == 1 else "choices"
        return {
            "train": f"Train on our {preferences} {choices}: {more} more needed",
            "enough": False,
            "alone": f"At least {FEWEST} choices of one answer over the other are needed: no ties, no skips.",
            "together": "",
        }
    held_out = max(1, round(HELD_OUT * preferences))
    margin = 1.96 * math.sqrt(0.25 / held_out)  # half of the 95 % interval of a share near one half
    points = max(1, round(100 * margin))
    off = f"{points} percentage {'point' if points == 1 else 'points'}"
    tells = f"can be off by {off}" if margin < 0.4 else "says next to nothing"
    n, few = count(preferences), preferences < MANY
    return {
        "train": f"Train on our {n} choices",
        "enough": True,
        "alone": (
            f"{n} choices can teach a taste that shows in {'many' if few else 'some'} answers, such as shorter ones. "
            f"One in five is held out to test the reward model: its accuracy on those {held_out:,} {tells}."
        ),
        "together": (
            f"Beside thousands of pairs {n} choices weigh little: expect about the model that those pairs make alone."
            if few
            else f"Beside thousands of pairs {n} choices are a small share: they decide where those pairs say little."
        ),
    }


# In, out, and into training ------------------------------------------------------------------------------------------


def exported(run: Run, cache: Path) -> Path:
    """The preferences of everybody as a file to download; on a shared page nobody's words from Chat are in it."""
    rows = _store(desk_of(run)).preferences(chat=not limits.shared())
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if not text:
        raise BadInput("Nobody has preferred one answer to another yet.")
    target = place(run, cache, "-choices.jsonl")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    return target


def imported(path: str, run_id: str | None) -> str:
    """Take in an uploaded file of preferences, whole or not at all; what came of it, as HTML."""
    try:
        classroom.check("uploads")
        text = Path(path).read_bytes().decode("utf-8")
        with told("Nothing was imported."):
            new = _store(desk_of(find_run(str(run_id)))).take_in(text)
    except UnicodeDecodeError:
        return note("Nothing was imported: the file is no text in UTF-8. Export makes such files.")
    except BadInput as error:
        return note(str(error))
    return note(f"{count(new)} preferences were imported." if new else "All of these had been imported before.")


def _settings(run: Run, alone: bool = False) -> dict[str, object]:
    """Those of a demo from the model that a run started from, with the prompts of its data.

    Args:
        alone: whether it learns from choices alone.
    """
    settings, names = run.policy_settings(), DATA
    if run.base_model() != EVERYDAY and run.config().get("kind") == "demo":
        # Another model than the embedded one needs other settings: those that it was trained with before.
        settings, names = run.config(), {field.name for field in dataclasses.fields(DemoArguments)}
        names -= {*FILLED_IN, *limits.NOT_OFFERED, "reward_funcs"}
    read = {name: settings[name] for name in names if settings.get(name) is not None}
    read |= {"model_name_or_path": run.base_model(), "dataset_name": settings.get("dataset_name") or EVERYDAY}
    return {**read, **FROM_CHOICES} if alone and run.base_model() == EVERYDAY else read


def start(run: Run, store: Store, alone: bool, visitor: str) -> Run:
    """Start a demo on the choices so far; the new run keeps a copy of them.

    Args:
        run: the shown run, whose base model and data are taken.
        alone: learn from the choices alone, else from the pairs of the data too.
        visitor: the browser's secret, see `jobs.launch`.

    Raises:
        BadInput: there are too few, or the page does not allow it.
        UnderWay: another run has the GPU.
    """
    if len(store.preferences(chat=not limits.shared())) < FEWEST:
        raise BadInput(f"Training needs at least {FEWEST} choices of one answer over the other.")
    settings = build(DemoArguments, {**_settings(run, alone), "feedback": str(store.path), "feedback_only": alone})
    if settings.model_name_or_path != EVERYDAY:  # a larger model takes minutes to answer 512 prompts
        settings.feedback_prompts = 64
    return jobs.launch("demo", settings, visitor=visitor, choices=store)


class FeedbackTab:
    """The tab's components and what they do; `show` fills it for a run."""

    def __init__(self) -> None:
        self.empty = gr.HTML(apply_default_css=False)
        with gr.Column(visible=False) as self.body:
            self.ballot = ballot(value=None, elem_id="ballot")
            with gr.Row(elem_classes="leave feedback-files"):
                self.note = gr.HTML(elem_id="feedback-note", apply_default_css=False)
                self.export = download_button("Export", exported, value=None, elem_classes="leave", elem_id="export")
                self.upload = gr.UploadButton("Import", size="sm", scale=0, min_width=0, elem_id="import")
        self.outputs = [self.empty, self.body, self.ballot, self.note, self.export]

    def wire(self, picker: gr.Dropdown) -> None:
        """Connect the button for imports."""
        self.upload.upload(imported, [self.upload, picker], self.note, **QUICK)

    def show(self, run_id: str | None, visitor: str) -> dict:
        """The values of `outputs` for this run and this browser."""
        run = shown_run(run_id)
        reason = "Start a run in the Train tab: here you then choose between its base model's answers."
        if run is not None:
            reason = voices.absent(run) if run.path == RECORD else ""
        data = name_of_data(_settings(run)["dataset_name"]) if run else EVERYDAY
        pairs = "the shipped pairs" if data == EVERYDAY else f"the pairs of {data}"
        return {
            self.empty: empty_state(reason),
            self.body: gr.Column(visible=not reason),
            self.ballot: {"run": run_id, "visitor": visitor, "together": f"together with {pairs}"},
            self.note: "",
            self.export: run_id,
        }

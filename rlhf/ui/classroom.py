"""What a class adds to the page: a line on what is locked, the teacher's tab, and a view for a projector.

Every page learns from the poll of its live view that the teacher has changed something, and then asks which run and
which fields to show. Who is the teacher, the server tells from the request alone: see `rlhf/launch/classroom.py`.
"""

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from urllib.parse import urlencode

import gradio as gr
from gradio.components import Component
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse

from rlhf.compare.stats import accuracy
from rlhf.feedback import Store
from rlhf.feedback.agreement import agreement
from rlhf.feedback.names import name_of
from rlhf.feedback.store import IMPORTED
from rlhf.figures import curves
from rlhf.launch import classroom, jobs
from rlhf.runs.directory import Run, find_run, list_runs, runs_root
from rlhf.runs.disk import told
from rlhf.ui import QUICK, is_example, run_label, served, shown_run
from rlhf.ui.headline import headline
from rlhf.ui.live import X, rows_of
from rlhf.ui.people import desk_of
from rlhf.ui.scripts import HEAD, PLOTLY_HEAD, script
from rlhf.words import count, percent
from rlhf.write import export


ABOUT = {
    "runs": ("Starting runs", "Train, Resume, comparisons, and training on choices."),
    "uploads": ("Uploads", "Data, questions and choices from files."),
    "chat": ("Settings of Chat", "Models, temperature, length, seed and system prompt."),
    "picker": ("Choosing another run", "Everybody stays with the run that you show."),
}
"""The teacher's switches: what they lock, and what that is."""
YEAR = 365 * 24 * 3600
NO_KEY = "This link does not hold the teacher’s key, so this is an ordinary page."

NOTICE = '<p class="note" role="status" hidden></p>'
PANEL = """
<section class="class">
  <p class="verdict" role="status"></p>
  <div class="halves">
    <section>
      <h3>Everybody’s page</h3>
      <p class="gloss shown"></p>
      <p class="acts"><button type="button" class="show"></button>
        <button type="button" class="release">Show nothing more</button></p>
      <h3>Projector</h3>
      <p class="gloss">The shown run’s curves and the count of choices, in large type.</p>
      <p class="acts"><a class="button" href="?view=projector" target="_blank">Open the projector view</a></p>
      <h3>This browser</h3>
      <p class="gloss">It stays the teacher’s until you give up the key here, or the page has another one.</p>
      <p class="acts"><a class="button" href="?teacher=given-up">Give up the key</a></p>
    </section>
    <section>
      <h3>Lock for students</h3>
      <ul class="locks"></ul>
    </section>
  </div>
  <section class="queue">
    <h3>Queue</h3>
    <ol></ol>
    <p class="gloss none">No run is under way, and none waits.</p>
  </section>
  <section>
    <h3>After the lesson</h3>
    <p class="gloss standing"></p>
    <p class="acts"><button type="button" class="download">Download everything</button>
      <button type="button" class="clear">Clear the class</button></p>
    <p class="note sure" hidden><span></span> <button type="button" class="yes">Yes, delete</button>
      <button type="button" class="no">No, keep</button></p>
    <p class="gloss done" role="status"></p>
  </section>
</section>
"""
PROJECTOR = """
<section class="projected">
  <header>
    <p class="verdict" role="status"></p>
    <p class="gloss"><span></span> <a href="?">Leave this view</a></p>
  </header>
  <div class="two">
    <figure><figcaption></figcaption><div class="plot"></div></figure>
    <figure><figcaption></figcaption><div class="plot"></div></figure>
  </div>
  <dl class="tiles"></dl>
</section>
"""


class TeacherKey:
    """ASGI middleware: a link with the key makes a browser the teacher's, by a cookie; the key leaves the address."""

    def __init__(self, app: Callable) -> None:
        self.app = app

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        """Pass a request on, known as the teacher's or not; one with a key comes again without it."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request = Request(scope)
        classroom.recognise(request.cookies.get(classroom.COOKIE))
        if request.url.path.endswith("/gradio_api/upload") and (locked := classroom.refusal("uploads")):
            return await PlainTextResponse(locked, 403)(scope, receive, send)
        if not (key := request.query_params.get("teacher")):
            return await self.app(scope, receive, send)
        cookie = classroom.cookie_for(key)
        if cookie is None:
            await asyncio.sleep(1)  # who tries many needs long
        rest = [(name, value) for name, value in request.query_params.multi_items() if name != "teacher"]
        # An empty key tells the page that it was wrong. The address is relative: a proxy may serve it under a path.
        again = RedirectResponse("?" + urlencode(rest if cookie else [*rest, ("teacher", "")]), 303)
        again.headers["cache-control"] = "no-store"
        # A wrong key makes the browser an ordinary one again.
        again.set_cookie(
            classroom.COOKIE, cookie or "", max_age=YEAR if cookie else 0, httponly=True, samesite="strict"
        )
        await again(scope, receive, send)


class Classroom:
    """The components of a class and what they do; `show` fills them for a run. Without a class there are none."""

    def __init__(self) -> None:
        """Make the line above the tabs, and the projector's view, which covers the page."""
        self.notice, self.outputs = [], []
        if not classroom.is_on():
            return
        bare = {"apply_default_css": False}
        self.notice.append(
            gr.HTML(html_template=NOTICE, js_on_load=script("notice"), head=HEAD, elem_id="class-note", **bare)
        )
        self.outputs.append(
            gr.HTML(
                html_template=PROJECTOR,
                js_on_load=script("projector"),
                head=PLOTLY_HEAD,
                server_functions=[project],
                elem_id="projector",
                **bare,
            )
        )

    def add_tab(self) -> None:
        """Make the teacher's tab, which nobody else sees."""
        if not classroom.is_on():
            return

        @of_teacher
        def download(request: dict) -> dict:
            path = _zip(Path(panel.GRADIO_CACHE))
            panel.temp_files.add(str(path))
            return {"path": path.as_posix(), "name": path.name}

        with gr.Tab("Class", id="class", visible=False) as self.tab:
            gr.HTML("<h2>Class</h2>", elem_classes="spoken", apply_default_css=False)
            panel = gr.HTML(
                html_template=PANEL,
                js_on_load=script("classroom"),
                head=HEAD,
                server_functions=[look, lock, show_to_all, stop_run, move_run, clear_class, download],
                apply_default_css=False,
                elem_id="class",
            )
        self.outputs.append(panel)

    def show(self, run_id: str | None) -> dict:
        """The values of `outputs` for this run."""
        return dict.fromkeys(self.outputs, run_id)

    def opened(self, request: gr.Request) -> dict:
        """What a page that has just been opened knows of the class."""
        said = NO_KEY if "teacher" in request.query_params else ""
        return dict.fromkeys(self.notice, {"since": classroom.shown()[1], "locks": [], "wrong": said})

    def wire(
        self,
        opening: gr.events.Dependency,
        choose: Callable[..., dict],
        browser: Sequence[Component],
        outputs: Sequence[Component],
        fields: dict[str, dict[Component, dict]],
    ) -> None:
        """Follow the teacher.

        Args:
            opening: the event that fills a page when it is opened.
            choose: what makes values of `outputs` from a run's id and what the `browser` keeps.
            fields: by lock, the components that cannot be changed, each with what it then goes back to.
        """
        if not classroom.is_on():
            return
        (notice,) = self.notice

        def follow(known: dict, *kept: object) -> dict:
            run_id, since = classroom.shown()
            moved = run_id and since != known["since"]
            return {notice: {**known, "since": since}, **(choose(run_id, *kept) if moved else {})}

        def lock_fields(known: dict) -> dict:
            locked = [name for name in classroom.locks() if classroom.refusal(name)]
            changes = {
                field: gr.update(interactive=name not in locked, **(usual if name in locked else {}))
                for name, of_lock in fields.items()
                for field, usual in of_lock.items()
            }
            said = " ".join(filter(None, (known["wrong"], classroom.locked(locked))))
            heard = {**known, "locks": classroom.locks(), "said": said}
            return {**changes, self.tab: gr.update(visible=classroom.is_teacher()), notice: heard}

        changes = [field for of_lock in fields.values() for field in of_lock]
        following = notice.changed(follow, [notice, *browser], [notice, *outputs], **QUICK)
        for event in (opening, following):
            event.success(lock_fields, notice, [*changes, self.tab, notice], **QUICK)


def of_teacher(act: Callable[[dict], str | dict | None]) -> Callable[[dict], dict]:
    """Something that the teacher alone may do; answers what came of it, and how things stand then."""

    def call(request: dict) -> dict:
        classroom.check_teacher()
        came = act(request)
        return came if isinstance(came, dict) else {**standing(request), "said": came or ""}

    call.__name__ = act.__name__
    return served(call)


@of_teacher
def look(request: dict) -> None:
    """How things stand; {"run": the id of the run that the teacher's page shows}, which the others take too."""


@of_teacher
def lock(request: dict) -> None:
    """Lock {"lock": a name of `LOCKS`}, or open it: {"on": whether it is to be locked}."""
    classroom.set_lock(str(request["lock"]), bool(request["on"]))


@of_teacher
def show_to_all(request: dict) -> None:
    """Show {"show": a run's id, or None} on everybody's page."""
    classroom.show(request["show"] and str(request["show"]))


@of_teacher
def stop_run(request: dict) -> None:
    """Stop {"id": a run's}, or take it out of the queue."""
    jobs.stop(find_run(str(request["id"])))


@of_teacher
def move_run(request: dict) -> None:
    """Move {"id": a run's} in the queue by {"places": how many}."""
    jobs.move(find_run(str(request["id"])), int(request["places"]))


@of_teacher
def clear_class(request: dict) -> str:
    """Delete everybody's choices and votes, and the runs that students have started."""
    gone = sum(store.forget(None) for store in _stores())
    runs = _of_students()
    for run in runs:
        jobs.stop(run)
    left = sum(not jobs.remove(run) for run in runs)
    said = f"Deleted: choices and votes, {count(gone)}; runs of students, {count(len(runs) - left)}."
    return f"{said} Still under way: {_counted(left, 'run')}; clear again when it has stopped." if left else said


def standing(request: dict) -> dict:
    """How things stand in the class, in words."""
    here, (shown, _), locks = shown_run(request.get("run")), classroom.shown(), classroom.locks()
    run, current, queue = shown_run(shown), jobs.active_run(), jobs.waiting()
    choices = sum((store.tally() for store in _stores()), Counter())
    made = f"Choices and votes: {count(choices.total())}, {_by(choices)}."
    made += f" Runs of students: {count(len(_of_students()))}."
    return {
        "verdict": made,
        "shown": f"Everybody’s page shows: {_label(run)}" if run else "You show no run to everybody.",
        "is_shown": run is not None,
        "show": f"Show to everybody: {_label(here)}" if here and here.id != shown else "",
        "locks": [{"name": name, "label": ABOUT[name], "on": name in locks} for name in classroom.LOCKS],
        "queue": [_in_queue(each, each is not current) for each in (*([current] if current else []), *queue)],
        "everything": "The download holds all runs’ settings, metrics and scores, and all choices without names; no "
        "models, and nothing from Chat. Clearing deletes all choices and votes, and the runs of students.",
        "sure": f"Delete all of these? {made} They cannot be brought back.",
    }


def _label(run: Run) -> str:
    return "Example run" if is_example(run) else run_label(run)


def _in_queue(run: Run, waits: bool) -> dict:
    status = run.status()
    who = "" if status.get("by_teacher") or not status.get("owner") else f"by {name_of(status['owner'])}"
    doing = "waits" if waits else {"stopping": "is stopping"}.get(status.get("state"), "under way")
    return {"id": run.id, "title": run.title(), "about": ", ".join(filter(None, (who, doing))), "waits": waits}


def _by(choices: Counter[tuple[tuple[str, str], str, str]]) -> str:
    """Of a `Store.tally`."""
    people = len({person for _, person, _ in choices} - {IMPORTED})
    return f"by {count(people)} {'person' if people == 1 else 'people'}"


def _counted(number: int, what: str) -> str:
    return f"{count(number)} {what if number == 1 else f'{what}s'}"


def _stores() -> list[Store]:
    """The choices of all models that people were asked about."""
    return [_store(file.parent) for file in sorted(runs_root().glob("feedback/*/store.json"))]


@cache
def _store(folder: Path) -> Store:
    """A store that reads only what is new, each time that it is asked."""
    return Store(folder)


def _of_students() -> list[Run]:
    """The runs that this page has started, for others than the teacher."""
    statuses = ((run, run.status()) for run in list_runs())
    return [run for run, status in statuses if "owner" in status and not status.get("by_teacher")]


@told("The class itself is as it was.")
def _zip(cache: Path) -> Path:
    """Everything to take home, where only who was told its name finds it."""
    target = cache / "class" / secrets.token_hex(16) / "class.zip"
    return export.write_class(list_runs(), _stores(), target)


# The projector -------------------------------------------------------------------------------------------------------


@served
def project(request: dict) -> dict:
    """What a projector shows of the run {"run": id}: choices, and two curves unless it has {"drawn": these}."""
    run = find_run(str(request["run"]))
    parts = run.trainings()
    rows = {kind: rows_of(part) for kind, part in parts.items()}
    kind = next((kind for kind in reversed(rows) if rows[kind]), next(iter(rows), "ppo"))  # the latest that has begun
    drawn = f"{run.id} {kind} {len(rows.get(kind, ()))}"
    answer = {
        "verdict": headline(run.status(), rows)["text"],
        "run": run.title(),
        "tiles": _tiles(desk_of(run).store),
        "drawn": drawn,
    }
    if drawn != request.get("drawn"):
        steps = parts[kind].status().get("total_steps") if kind in parts else None
        total = run.policy_settings().get("total_episodes") if kind == "ppo" else steps
        panels = curves.PANELS[kind][:2]
        figures = [curves.projected(panel, rows.get(kind, []), X[kind], total) for panel in panels]
        answer["figures"] = [figure.to_plotly_json() for figure in figures]
        answer["captions"] = [[panel.title, panel.explanation] for panel in panels]
    return answer


def _tiles(store: Store | None) -> list[tuple[str, str, str]]:
    """Label, value and a sentence on each: choices, and how far people agree."""
    choices = store.tally(chat=False) if store else Counter()
    found = agreement(store.judgements()) if store else None
    share, interval = "–", "once two have answered the same question"
    if found:
        # Judgements of one pair hang together, so each pair counts as one trial: the interval is rather too wide.
        alike = accuracy(found.raw * found.pairs, found.pairs)
        share, of = percent(alike.value), _counted(found.pairs, "question")
        interval = f"95 % interval {percent(alike.low)} to {percent(alike.high)}, from {of}"
    return [("Our choices", count(choices.total()), _by(choices)), ("Two people choose alike", share, interval)]

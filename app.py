"""The web page: `python app.py`, then http://127.0.0.1:7860. Built here from the tabs in `rlhf/ui/`, and launched."""

import argparse
import functools
import ipaddress
import json
import os
import re
import secrets
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import gradio as gr
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse

from rlhf import threads
from rlhf.config import BadInput
from rlhf.launch import classroom, jobs, limits
from rlhf.runs import directory as runs
from rlhf.runs.disk import ask_for, trouble
from rlhf.ui import FOREIGN, QUICK, describe, empty_state, example_id, note, run_choices
from rlhf.ui.about import AboutTab
from rlhf.ui.api import add_endpoints
from rlhf.ui.chat import ChatTab
from rlhf.ui.classroom import Classroom, TeacherKey
from rlhf.ui.feedback import FeedbackTab
from rlhf.ui.scores import ScoresTab
from rlhf.ui.scripts import PLOTLY_JS
from rlhf.ui.train import TrainTab
from rlhf.ui.voices import warm_up


STYLE = Path(__file__).parent / "rlhf" / "ui" / "style.css"
LOCAL_HOSTS = ["127.0.0.1", "localhost", "testserver"]
DAMAGED = "A file of this run is damaged, so there is nothing to show here. Choose another run above."
MAX_BODY = 2_000_000
"""Bytes of a request that uploads nothing; nothing on the page sends more."""
AROUND_A_FILE = 10_000
"""Bytes that a request has beside the file that it uploads."""
CLEARING, KEPT = 600, 3600
"""Seconds between two looks at what was uploaded or made for a download, and after which such a file is cleared."""
STRANGE = "The page sent something that cannot be right, or a file of this run is damaged; please reload the page."
COLOURS = {
    "body_background_fill": "paper",
    "body_text_color": "ink",
    "body_text_color_subdued": "grey",
    "border_color_primary": "edge",
    "link_text_color": "ink",
    "block_title_text_color": "ink",
    "block_info_text_color": "grey",
    "input_background_fill": "paper",
    "input_border_color": "edge",
    "input_border_color_focus": "grey",
    "input_placeholder_color": "grey",
    "checkbox_border_color": "edge",
    "checkbox_background_color": "paper",
    "checkbox_background_color_selected": "ink",
    "checkbox_border_color_selected": "ink",
    "checkbox_label_background_fill": "paper",
    "checkbox_label_background_fill_selected": "card",
    "checkbox_label_border_color": "edge",
    "checkbox_label_border_color_selected": "grey",
    "checkbox_label_text_color": "ink",
    "checkbox_label_text_color_selected": "ink",
    "button_primary_background_fill": "ink",
    "button_primary_background_fill_hover": "grey",
    "button_primary_border_color": "ink",
    "button_primary_text_color": "paper",
    "button_secondary_background_fill": "card",
    "button_secondary_background_fill_hover": "line",
    "button_secondary_border_color": "edge",
    "button_secondary_text_color": "ink",
}
"""Gradio's theme variables -> colours of style.css."""
BRAND = """
<a class="brand" href="?" aria-label="RLHF Lab">
<svg viewBox="0 0 40 28" width="40" height="28" aria-hidden="true">
<path class="base" d="M1 26C9 26 9 6 15 6s6 20 14 20"/><path class="ppo" d="M11 26c8 0 8-24 14-24s6 24 14 24"/></svg>
<span><h1>RLHF Lab</h1><small>Watch a language model learn from what people prefer</small></span></a>
"""


def build_app() -> gr.Blocks:
    """The page."""
    gr.set_static_paths([PLOTLY_JS])
    with gr.Blocks(title="RLHF Lab", analytics_enabled=False, delete_cache=(CLEARING, KEPT), fill_width=True) as demo:
        with gr.Row(elem_id="top"):
            gr.HTML(BRAND, apply_default_css=False)
            with gr.Column(scale=0, min_width=360, elem_id="picked"):
                picker = gr.Dropdown(
                    [], label="Run", show_label=False, container=False, elem_id="run", filterable=False
                )
                origin = gr.HTML(elem_id="origin", apply_default_css=False)
        # Conversations stay in the browser. Outside the tabs: what is in one exists only once that tab was opened.
        kept = gr.BrowserState({}, storage_key="rlhf-lab-conversations", secret="chat")
        lesson = Classroom()
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Train", id="train"):
                gr.HTML("<h2>Train</h2>", elem_classes="spoken", apply_default_css=False)
                train = TrainTab()
            with gr.Tab("Chat", id="chat"):
                gr.HTML("<h2>Chat</h2>", elem_classes="spoken", apply_default_css=False)
                chat = ChatTab(kept)
            with gr.Tab("Feedback", id="feedback"):
                gr.HTML("<h2>Feedback</h2>", elem_classes="spoken", apply_default_css=False)
                feedback = FeedbackTab()
            with gr.Tab("Scores", id="scores"):
                gr.HTML("<h2>Scores</h2>", elem_classes="spoken", apply_default_css=False)
                scores = ScoresTab()
            with gr.Tab("About", id="about"):
                gr.HTML("<h2>About</h2>", elem_classes="spoken", apply_default_css=False)
                AboutTab()
            lesson.add_tab()
        _wire(demo, picker, origin, train, chat, feedback, scores, lesson)
        add_endpoints()
    demo.process_api = _told(demo.process_api)
    return demo.queue(max_size=256, default_concurrency_limit=4, api_open=False)


def _told(process_api: Callable) -> Callable:
    """Gradio's way from a request to a handler and back; whatever was sent, a mistake is told in a sentence.

    All else that goes wrong stays on the server.
    """

    @functools.wraps(process_api)
    async def call(block_fn: object, inputs: list, **more: object) -> dict:
        classroom.recognise(more["request"].cookies.get(classroom.COOKIE))  # also what has waited in Gradio's queue
        # JSON can carry half a surrogate pair, which no file, tokenizer or answer can.
        inputs = json.loads(json.dumps(inputs, ensure_ascii=False).encode(errors="ignore"))
        try:
            return await process_api(block_fn, inputs, **more)
        except BadInput as error:
            raise gr.Error(str(error), print_exception=False) from error
        except FOREIGN as error:
            raise gr.Error(STRANGE) from error

    return call


def _wire(  # noqa: C901  (a list of what is wired)
    demo: gr.Blocks,
    picker: gr.Dropdown,
    origin: gr.HTML,
    train: TrainTab,
    chat: ChatTab,
    feedback: FeedbackTab,
    scores: ScoresTab,
    lesson: Classroom,
) -> None:
    """Whenever the shown run changes, `show` fills every tab from that run's directory."""

    def show(run_id: str | None, kept: dict, visitor: str) -> dict:
        values = {origin: describe(run_id), **train.show(run_id), **lesson.show(run_id)}
        for tab, *of_browser in ((chat, kept, visitor), (feedback, visitor), (scores,)):
            try:
                values |= tab.show(run_id, *of_browser)
            except FOREIGN:  # damaged files of one run take nothing else from the page
                values |= {**tab.show(None, *of_browser), tab.empty: empty_state(DAMAGED)}
        return values

    def pick(run_id: str | None, kept: dict, visitor: str) -> dict:
        classroom.check("picker")
        return show(run_id, kept, visitor)

    def choose(run_id: str | None, kept: dict, visitor: str) -> dict:
        run_id = classroom.may_show(run_id)
        return {picker: gr.Dropdown(choices=run_choices(), value=run_id), **show(run_id, kept, visitor)}

    def open_page(kept: dict, visitor: str, request: gr.Request) -> dict:
        visitor = visitor or secrets.token_hex(16)  # a new browser gets its secret
        return {train.visitor: visitor, **lesson.opened(request), **choose(_first_shown(request), kept, visitor)}

    def begun(kept: dict, visitor: str, event: gr.EventData) -> dict:
        return choose(event.run, kept, visitor)

    def ended(run_id: str | None, kept: dict, visitor: str) -> dict:
        typed = dict.fromkeys((train.own_run.name, train.own_run.text), gr.skip())  # somebody may be at it
        return {**choose(run_id, kept, visitor), **typed}

    def started(start: dict, kept: dict, visitor: str) -> dict:
        said = {train.note: {"text": start.get("said", "")}, train.own_run.said: note(start.get("saved", ""))}
        return {**choose(start["run"], kept, visitor), **said}

    shown = [origin, *train.outputs, *chat.outputs, *feedback.outputs, *scores.outputs, *lesson.outputs]
    browser = [chat.kept, train.visitor]
    opening = demo.load(open_page, browser, [picker, train.visitor, *lesson.notice, *shown], **QUICK)
    picker.input(pick, [picker, *browser], shown, **QUICK)
    picker.focus(lambda: gr.Dropdown(choices=run_choices()), None, picker, **QUICK)
    train.wire(picker)
    # Not by the picker: a page that is still loading has no such run in its list.
    follow = {"fn": started, "outputs": [picker, *shown], **QUICK}
    train.started.change(inputs=[train.started, *browser], **follow)
    scores.form.started.change(inputs=[scores.form.started, *browser], **follow)
    feedback.ballot.started(begun, browser, [picker, *shown], **QUICK)
    # When the run has ended, its label changes, its scores appear and its model can be talked to.
    train.live.ended(ended, [picker, *browser], [picker, *shown], **QUICK)
    for tab in (chat, scores):
        tab.example.click(lambda *browser: choose(example_id(), *browser), browser, [picker, *shown], **QUICK)
    chat.wire(picker, train.visitor)
    feedback.wire(picker)
    scores.wire(picker, train.visitor)
    fields = {
        "runs": dict.fromkeys((train.start, train.resume, scores.form.start), {}),
        "uploads": dict.fromkeys((train.own.upload, feedback.upload, scores.form.upload), {}),
        "chat": {field: {"value": usual} for field, usual in chat.usual.items()},
        "picker": {picker: {}},
    }
    lesson.wire(opening, choose, browser, [picker, *shown], fields)


def _first_shown(request: gr.Request) -> str | None:
    """The run that a page opens with: the one in its address, else the teacher's, else the one under way, else the
    example."""
    known = [run_id for _, run_id in run_choices()]
    active = jobs.active_run()
    wanted = [request.query_params.get("run"), classroom.shown()[0], active and active.id, example_id(), *known]
    return next((run_id for run_id in wanted if run_id in known), None)


class Hosts(TrustedHostMiddleware):
    """ASGI middleware: refuses what another web page sends, to this page's name or by a name of its own.

    The latter (DNS rebinding) needs a name. Requests to a numeric address, as health checks and people on the same
    network make them, are answered.
    """

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        """Pass a request on if it is for us."""
        if scope["type"] == "lifespan" or self.allow_any:
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        name = _host_of(f"//{headers.get('host', '')}")
        if name in self.allowed_hosts or _is_address(name):
            if scope.get("method") == "POST" and self._is_from_elsewhere(headers):
                refused = PlainTextResponse("This was sent by another web page, so it is refused.", 403)
                return await refused(scope, receive, send)
            return await self.app(scope, receive, send)
        hint = f"This page does not answer to the name {name!r}; if it is yours, start it with RLHF_HOSTS={name}."
        await PlainTextResponse(hint if name else "Invalid host header.", 400)(scope, receive, send)

    def _is_from_elsewhere(self, headers: Headers) -> bool:
        """Whether a browser says that another page sends this; a proxy may have changed the host, but not that."""
        origin = headers.get("origin")
        if origin is None or headers.get("sec-fetch-site") == "same-origin":
            return False
        own = origin.partition("://")[2] == headers["host"]
        return not own and _host_of(origin) not in set(self.allowed_hosts) - set(LOCAL_HOSTS)


def _host_of(address: str) -> str:
    """The host in an address; empty if it names none."""
    try:
        return urlsplit(address).hostname or ""
    except ValueError:  # brackets around what is no number
        return ""


def _is_address(name: str) -> bool:
    """Whether a host is named by its number."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def hosts() -> list[str]:
    """Host names that the page answers to: its own, those in RLHF_HOSTS; to others also those that they know it by.

    `*` stands for any name.
    """
    named = re.split(r"[\s,]+", os.environ.get("RLHF_HOSTS", "").lower())
    if limits.on_space():
        named += os.environ.get("SPACE_HOST", "").split(",")
    elif limits.shared():
        computer = socket.gethostname().lower()
        named += [computer, f"{computer}.local", os.environ.get("GRADIO_SERVER_NAME", "").lower()]
    return [*LOCAL_HOSTS, *filter(None, named)]


class BodyLimit:
    """ASGI middleware: refuses large requests, however they are sent, and adds two headers to every answer.

    All uploads that may still lie there have a limit together. What Gradio's own routes fail at is answered, too.
    """

    def __init__(self, app: Callable) -> None:
        self.app = app
        self.uploads: deque[tuple[float, int]] = deque()  # when each came, and its bytes

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        """Pass a request on, counting its bytes."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        uploads = scope["path"].endswith("/gradio_api/upload")
        most = limits.most_upload() + AROUND_A_FILE if uploads else MAX_BODY
        size = dict(scope["headers"]).get(b"content-length", b"0")
        if not size.isdigit() or int(size) > most:
            return await PlainTextResponse("The request is too large.", 413)(scope, receive, send)
        if uploads and not self._has_room(int(size) or most):
            full = "As much has been uploaded here as there is room for; try again in an hour."
            return await PlainTextResponse(full, 413)(scope, receive, send)
        taken = 0

        async def counted() -> dict:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            # A chunked body that grows too long ends here, as if the sender had disconnected.
            return message if taken <= most else {"type": "http.disconnect"}

        begun = False

        async def with_headers(message: dict) -> None:
            nonlocal begun
            begun = True
            if message["type"] == "http.response.start":
                safe = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
                message = {**message, "headers": [*message["headers"], *safe]}
            await send(message)

        try:
            if uploads:  # Gradio would leave as much of it as there is room for
                ask_for(int(size), Path(tempfile.gettempdir()))
            await self.app(scope, counted, with_headers)
        except Exception as error:
            found = trouble(error)
            if begun or not (found or isinstance(error, FOREIGN)):
                raise
            traceback.print_exc()
            said, code = (f"{found[0]}: {found[1]}, and try again.", 507) if found else (STRANGE, 400)
            await PlainTextResponse(said, code)(scope, receive, with_headers)

    def _has_room(self, size: int) -> bool:
        """Whether so many bytes may be uploaded, which are then counted; a small file takes up room too."""
        now, size = time.monotonic(), max(size, AROUND_A_FILE)
        while self.uploads and now - self.uploads[0][0] > CLEARING + KEPT:
            self.uploads.popleft()
        room = size + sum(size for _, size in self.uploads) <= limits.UPLOADS * limits.most_upload()
        if room:
            self.uploads.append((now, size))
        return room


def launch_options() -> dict:
    """How the page is served: nothing leaves the machine, and it answers to its own host names only."""
    of_class = [Middleware(TeacherKey)] if classroom.is_on() else []
    middleware = [Middleware(Hosts, allowed_hosts=hosts()), *of_class, Middleware(BodyLimit)]
    return {
        "server_name": "0.0.0.0" if limits.on_space() else None,  # noqa: S104  (a Space's proxy comes from outside)
        "theme": theme(),
        "css_paths": STYLE,
        "share": False,
        "max_file_size": limits.most_upload(),
        "enable_monitoring": False,
        "run_history": False,
        "footer_links": [],
        "show_error": False,
        "mcp_server": False,
        "ssr_mode": False,
        "state_session_capacity": 200,  # open pages, of which Gradio keeps 0.7 MB each
        "strict_cors": True,
        "app_kwargs": {"middleware": middleware},
        # Gradio would ask its own page whether it is there, and end the program where a busy machine takes over 3 s.
        "_frontend": False,
    }


def theme() -> gr.themes.Base:
    """Gradio's components in the colours of style.css, so that only the two models are coloured."""
    values = {name: f"var(--{colour})" for name, colour in COLOURS.items()}
    values |= {"block_background_fill": "transparent", "block_border_width": "0px", "input_border_width": "1px"}
    values |= {"button_border_width": "1px", "block_shadow": "none"}
    base = gr.themes.Base(primary_hue="gray", neutral_hue="gray", font=("Plex", "ui-sans-serif", "system-ui"))
    return base.set(
        **values,
        **{f"{name}_dark": value for name, value in values.items()},
        color_accent="var(--ink)",
        block_padding="0px",
        block_title_text_weight="600",
        block_title_text_size="14px",
        block_info_text_size="12.5px",
        checkbox_label_border_width="1px",
    )


def _clear(folder: Path) -> None:
    """Delete what a page that has ended left in its folder: Gradio clears only what it has taken in itself."""
    for file in (*folder.iterdir(), *folder.glob("gradio/**/*")):
        if file.is_file() and time.time() - file.stat().st_ctime > KEPT:
            file.unlink(missing_ok=True)


def main() -> None:
    """Serve the page on port 7860; meanwhile load the chat's models, then get a process ready for training."""
    options = argparse.ArgumentParser(description="Serve the page on http://127.0.0.1:7860.", allow_abbrev=False)
    options.add_argument(
        "--teacher",
        metavar="KEY",
        default=os.environ.pop("RLHF_TEACHER", ""),  # where no training process inherits it
        help="for a class: whoever opens the page with ?teacher=KEY is its teacher (or the variable RLHF_TEACHER)",
    )
    try:
        classroom.begin(options.parse_args().teacher)
        threads.wait_briefly()  # here for Chat, and for the training processes, which inherit it
        threads.share_memory()
        folder = runs.page_folder()
        _clear(folder)
        if limits.on_zero_gpu():
            jobs.gpu_call()
    except BadInput as error:
        sys.exit(f"error: {error}")
    tempfile.tempdir = str(folder)  # Gradio's folder lies within it
    os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "100")  # of the questions asked it keeps 10,000, for no page
    os.environ.setdefault("MPLCONFIGDIR", str(folder / "matplotlib"))  # Gradio loads it and has it list its fonts
    demo = build_app()
    threading.Thread(target=lambda: (warm_up(), jobs.prepare()), daemon=True).start()
    threading.Thread(target=jobs.watch, daemon=True).start()
    demo.launch(**launch_options())


if __name__ == "__main__":
    main()

"""What a person does to the shown run in the Train tab: give it a name and a note, and delete it."""

import time
from html import escape

import gradio as gr

from rlhf.config import BadInput
from rlhf.launch import jobs
from rlhf.runs.directory import Run
from rlhf.runs.files import LONGEST_NAME, LONGEST_NOTE
from rlhf.ui import QUICK, is_example, note, run_choices, shown_run


class OwnRun:
    """The fold's components and what they do; `show` fills it for a run."""

    def __init__(self) -> None:
        with gr.Accordion("Name, note, delete", open=False, visible=False, elem_id="own-run") as self.group:
            self.name = gr.Textbox(
                label="Name",
                info="Lists show it. The run’s folder and links to the run stay as they are.",
                max_lines=1,
                max_length=LONGEST_NAME,
                elem_id="own-name",
            )
            self.text = gr.Textbox(
                label="Note",
                info="What you tried, what you saw: everyone who uses this page can read it.",
                lines=3,
                max_length=LONGEST_NOTE,
                elem_id="own-note",
            )
            with gr.Row(elem_classes="buttons"):
                self.save = gr.Button("Save", size="sm", min_width=80, scale=0, elem_id="own-save")
                self.delete = gr.Button("Delete this run", size="sm", min_width=130, scale=0, elem_id="own-delete")
            self.said = gr.HTML(elem_id="own-said", apply_default_css=False)
            with gr.Row(visible=False, elem_classes="buttons") as self.sure:
                self.yes = gr.Button("Delete it for good", size="sm", min_width=150, scale=0, elem_id="own-yes")
                self.no = gr.Button("Keep it", size="sm", min_width=80, scale=0, elem_id="own-no")
        self.asked = gr.State(None)
        self.outputs = [self.group, self.name, self.text, self.said, self.sure]

    def wire(self, picker: gr.Dropdown, visitor: gr.BrowserState, started: gr.State) -> None:
        """Connect the buttons; what is saved or deleted changes `started`, so that all lists are drawn anew."""
        told = {**QUICK, "queue": True}  # else the browser does not hear that a State has changed
        self.save.click(_save, [picker, self.name, self.text, visitor], [self.said, started], **told)
        self.delete.click(_ask, [picker, visitor], [self.said, self.sure, self.asked], **QUICK)
        self.yes.click(_delete, [picker, self.asked, visitor], [self.said, self.sure, started], **told)
        self.no.click(lambda: ("", gr.Row(visible=False)), None, [self.said, self.sure], **QUICK)

    def show(self, run: Run | None) -> dict:
        """The values of `outputs` for this run."""
        about = run.about() if run else {}
        return {
            self.group: gr.Accordion(visible=run is not None and not is_example(run)),
            self.name: about.get("name", ""),
            self.text: about.get("note", ""),
            self.said: "",
            self.sure: gr.Row(visible=False),
        }


def noted(run: Run | None) -> str:
    """What people call a run and what they note about it, as HTML; empty if nothing."""
    about = {key: escape(text) for key, text in run.about().items() if text} if run else {}
    name = [f"<b>{about['name']}</b>"] if "name" in about else []
    return f'<p class="noted">{"<br>".join([*name, *about.get("note", "").splitlines()])}</p>' if about else ""


def _shown(run_id: str | None) -> Run:
    run = shown_run(run_id)
    if run is None:
        raise BadInput("This run is not there any more; choose another.")
    return run


def _save(run_id: str | None, name: str, text: str, visitor: str) -> tuple:
    try:
        jobs.annotate(_shown(run_id), name, text, visitor)
    except BadInput as error:
        return note(str(error)), gr.skip()
    return "", {"run": run_id, "at": time.time(), "saved": "Saved."}


def _ask(run_id: str | None, visitor: str) -> tuple:
    try:
        lost = jobs.what_is_lost(_shown(run_id), visitor)
    except BadInput as error:
        return note(str(error)), gr.Row(visible=False), None
    return note(f"Delete {lost}? Nothing can bring it back."), gr.Row(visible=True), run_id


def _delete(run_id: str | None, asked: str | None, visitor: str) -> tuple:
    try:
        if asked is None or asked != run_id:
            raise BadInput("Press “Delete this run” first: it says what is lost.")
        run = _shown(run_id)
        title = run.title()
        jobs.delete(run, visitor)
    except BadInput as error:
        return note(str(error)), gr.Row(visible=False), gr.skip()
    newest = next((other for _, other in run_choices()), None)
    return "", gr.Row(visible=False), {"run": newest, "at": time.time(), "said": f"{title} was deleted."}

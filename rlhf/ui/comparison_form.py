"""The form in the Scores tab that compares other models, on the test questions or on a person's own."""

import time
from pathlib import Path

import gradio as gr

from rlhf.config import BadInput, CompareArguments
from rlhf.launch import classroom, limits
from rlhf.launch.start import BASELINES, check_questions, start_comparison
from rlhf.runs.directory import list_runs
from rlhf.ui import already_started, example_id, note, refusal, remarks, run_label, shown_run


class ComparisonForm:
    """The form's components and what they do; `choices` fills it for a run."""

    def __init__(self) -> None:
        with gr.Accordion("Compare other models, or on your own questions", open=False, elem_classes="advanced"):
            with gr.Row(elem_classes="comparison-form"):
                with gr.Column(min_width=280):
                    self.models = gr.Dropdown(
                        [],
                        multiselect=True,
                        label="Models",
                        info="Each is compared with the base model that it came from.",
                        elem_id="compare-models",
                    )
                    with gr.Row():
                        self.samples = gr.Textbox(
                            str(CompareArguments.samples),
                            label="Answers per question",
                            info="From each model, newly sampled.",
                            max_lines=1,
                            min_width=120,
                        )
                        self.seeds = gr.Textbox(
                            str(CompareArguments.seeds),
                            label="Training runs per model",
                            info="Each with another seed; takes minutes.",
                            max_lines=1,
                            min_width=120,
                        )
                with gr.Column(min_width=280):
                    self.questions = gr.Textbox(
                        label="Your own questions",
                        placeholder="One per line. If left empty, the test questions are asked.",
                        lines=6,
                        max_lines=12,
                        elem_id="own-questions",
                    )
                    self.upload = gr.UploadButton(
                        "Take them from a file: text with one on each line, or a table with a column “prompt”",
                        size="sm",
                    )
            self.start = gr.Button("Start the comparison", variant="primary", scale=0, elem_id="compare-start")
            self.note = gr.HTML(elem_id="compare-note")
        self.started = gr.State(None)

    def wire(self, visitor: gr.BrowserState) -> None:
        """Connect the buttons; `started` changes with each comparison that has begun, to be shown."""
        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        self.upload.upload(_read_upload, self.upload, [self.questions, self.note], **quiet)
        self.start.click(
            _start,
            [self.models, self.questions, self.samples, self.seeds, visitor],
            [self.note, self.started],
            concurrency_id="start",
            concurrency_limit=1,
            **quiet,
        )

    def choices(self, run_id: str | None) -> gr.Dropdown:
        """The models that can be compared, that of the shown run chosen."""
        runs = [run for run in (shown_run(example_id()), *list_runs()) if run is not None and run.model("policy")]
        offered = [("Example run" if run.id == example_id() else run_label(run), run.id) for run in runs]
        chosen = [run_id] if run_id in [run.id for run in runs] else [run.id for run in runs[:1]]
        baselines = [(f"Best of {name.removeprefix('best-of-')} from the base, untrained", name) for name in BASELINES]
        return gr.Dropdown(choices=[*offered, *baselines], value=chosen, multiselect=True)


def _read_upload(path: str | None) -> tuple:
    """The questions of an uploaded file, one per line, to be looked at before they are asked."""
    from rlhf.data.load import read_questions  # loads Datasets, which the page needs for nothing else

    try:
        classroom.check("uploads")
        if Path(path).suffix.lower() != ".txt":
            limits.check_upload(Path(path))
        with remarks() as told:
            questions = check_questions(read_questions(path))
        return "\n".join(questions), note(" ".join(told))
    except BadInput as error:
        return gr.skip(), note(str(error))


def _start(chosen: list[str], text: str, samples: str, seeds: str, visitor: str) -> tuple:
    began = time.time()
    try:
        run = start_comparison(chosen, text.split("\n"), samples, seeds, visitor)
    except BadInput as error:
        labels = {"samples": "Answers per question", "seeds": "Training runs per model", "models": "Models"}
        return refusal(error, labels), gr.skip()
    return note(already_started(run, began)), {"run": run.id, "at": began}

"""The form in the Scores tab that compares other models, on the test questions or on a person's own."""

import gradio as gr

from rlhf.config import EVERYDAY, BadInput, CompareArguments, build
from rlhf.launch import jobs
from rlhf.runs.directory import Run, list_runs
from rlhf.ui import example_id, note, run_choices, run_label, shown_run
from rlhf.ui.voices import base_of


BASELINES = [(f"Best of {n} from the base, untrained", f"best-of-{n}") for n in (4, 16)]
MOST_QUESTIONS = 500
"""Of a person's own; more are for the command line."""
LONGEST_QUESTION = 2_000
"""Characters."""


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
                            label="Answers to each question",
                            info="Of each model, sampled anew.",
                            max_lines=1,
                            min_width=120,
                        )
                        self.seeds = gr.Textbox(
                            str(CompareArguments.seeds),
                            label="Trainings of each model",
                            info="Each with another seed; takes minutes.",
                            max_lines=1,
                            min_width=120,
                        )
                with gr.Column(min_width=280):
                    self.questions = gr.Textbox(
                        label="Your own questions",
                        placeholder="One a line. Left empty, the test questions are asked.",
                        lines=6,
                        max_lines=12,
                        elem_id="own-questions",
                    )
                    self.upload = gr.UploadButton(
                        "Take them from a file (text, CSV or JSONL with a column “prompt”)",
                        file_types=[".txt", ".csv", ".jsonl"],
                        size="sm",
                    )
            self.start = gr.Button("Start the comparison", variant="primary", scale=0, elem_id="compare-start")
            self.note = gr.HTML(elem_id="compare-note")
        self.started = gr.State(None)

    def wire(self, picker: gr.Dropdown, visitor: gr.BrowserState) -> None:
        """Connect the buttons; `started` changes when a comparison has begun, which the page must then show."""
        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        self.upload.upload(_read_upload, self.upload, [self.questions, self.note], **quiet)
        self.start.click(
            _start,
            [self.models, self.questions, self.samples, self.seeds, visitor],
            [picker, self.note, self.started],
            concurrency_id="start",
            concurrency_limit=1,
            **quiet,
        )

    def choices(self, run_id: str | None) -> gr.Dropdown:
        """The models that can be compared, that of the shown run chosen."""
        runs = [run for run in (shown_run(example_id()), *list_runs()) if run is not None and run.model("ppo")]
        offered = [("Example run" if run.id == example_id() else run_label(run), run.id) for run in runs]
        chosen = [run_id] if run_id in [run.id for run in runs] else [run.id for run in runs[:1]]
        return gr.Dropdown(choices=[*offered, *BASELINES], value=chosen, multiselect=True)


def _read_upload(path: str | None) -> tuple:
    """The questions of an uploaded file, one a line, to be looked at before they are asked."""
    from rlhf.data.load import read_questions  # loads Datasets, which the page needs for nothing else

    try:
        return "\n".join(_checked(read_questions(path))), ""
    except BadInput as error:
        return gr.skip(), note(str(error))


def _checked(questions: list[str]) -> list[str]:
    if len(questions) > MOST_QUESTIONS:
        raise BadInput(f"These are {len(questions)} questions; the page takes {MOST_QUESTIONS}, the command line any.")
    if any(len(question) > LONGEST_QUESTION for question in questions):
        raise BadInput(f"A question has more than {LONGEST_QUESTION:,} characters; put one on each line.")
    return questions


def start_comparison(
    chosen: list[str], questions: list[str], samples: object, seeds: object, visitor: str = ""
) -> Run:
    """Start a comparison: what the button and the API both do.

    Args:
        chosen: ids of runs that hold a policy, and best-of-N.
        questions: a person's own, at least two; none for the test questions.
        samples: answers to each question, as it was typed.
        seeds: trainings of each model, as it was typed.
        visitor: a secret of who asks, see `jobs.launch`.

    Raises:
        BadInput: nothing can be compared so, or another run is under way.
    """
    # Half a surrogate pair, which a request can carry, has no place in a file.
    texts = (question.encode(errors="ignore").decode().strip() for question in questions)
    questions = list(dict.fromkeys(filter(None, texts)))
    if len(questions) == 1:
        raise BadInput("One question compares nothing: write two at least, better twenty or more.")
    settings = {**_models(chosen), "samples": samples, "seeds": seeds}
    config = build(CompareArguments, settings)
    settings |= {"samples": config.samples, "seeds": config.seeds}
    return jobs.launch("compare", settings, questions=_checked(questions), visitor=visitor)


def _start(chosen: list[str], text: str, samples: str, seeds: str, visitor: str) -> tuple:
    try:
        run = start_comparison(chosen, text.splitlines(), samples, seeds, visitor)
    except BadInput as error:
        return gr.skip(), note(str(error)), gr.skip()
    return gr.Dropdown(choices=run_choices(), value=run.id), "", run.id


def _models(chosen: list[str]) -> dict[str, object]:
    """The settings that name what is compared, with what, and on which data.

    Raises:
        BadInput: no trained model is among the chosen ones, two have different bases, or the reward model is gone.
    """
    runs = [run for run in map(shown_run, chosen) if run is not None and run.model("ppo")]
    if not runs:
        raise BadInput("Choose a trained model to compare: the scores are those of its reward model.")
    bases = set(map(base_of, runs))
    if len(bases) > 1:
        raise BadInput("These models came from different bases, so there is nothing to measure both from.")
    reward_model_path = runs[0].reward_model_path()
    if reward_model_path is None:
        raise BadInput("The reward model that this run was trained against is gone; choose another run.")
    names = ["ppo"] if len(runs) == 1 else [f"ppo-{run.id.split('-')[-1]}" for run in runs]
    return {
        "models": [f"{name}={run.path}" for name, run in zip(names, runs, strict=True)]
        + [name for _, name in BASELINES if name in chosen],
        "base_model_name_or_path": bases.pop(),
        "reward_model_path": reward_model_path,
        "dataset_name": str(runs[0].ppo_settings().get("dataset_name") or EVERYDAY),
    }

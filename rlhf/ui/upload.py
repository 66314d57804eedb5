"""A person's own data in the Train tab: a file is uploaded, looked at, and named in the forms that can train on it."""

from collections.abc import Callable
from html import escape
from pathlib import Path

import gradio as gr
from gradio.components import Component

from rlhf.config import BadInput, ColumnSettings, PreviewArguments
from rlhf.kinds import KINDS
from rlhf.launch import limits
from rlhf.runs.disk import told
from rlhf.ui import note, remarks


COLUMNS = {"prompt_column": "Prompt", "chosen_column": "Chosen", "rejected_column": "Rejected"}
"""Settings that say what the data call their columns, with their labels."""
ABOUT = (
    "A table with the columns prompt, chosen and rejected; with answers and their scores; or with prompts alone. "
    "CSV, TSV, JSON, JSONL or Parquet, at most {size} MB."
)
PUBLIC = " Everybody who opens this page can see its runs, and in them some of your prompts and answers."
NOW = "<p>Start training now takes <b>{name}</b>.</p>"
PROMPTS = (
    "<p><b>{name}</b> holds prompts alone. PPO can train on them; a reward model and DPO need pairs of answers."
    "{more}</p>"
)
MORE_COLUMNS = " If it has them, choose their columns above: Chosen is the better answer, Rejected the worse."


class OwnData:
    """The part of the form for a person's own file; `wire` connects it to the forms."""

    def __init__(self, table: Callable[[object], str]) -> None:
        self.table = table
        """Makes HTML of a preview."""
        about = ABOUT.format(size=limits.most_upload() // 1_000_000) + (PUBLIC if limits.shared() else "")
        with gr.Accordion("Your own data", open=False, elem_classes="own-data", elem_id="own-data"):
            self.upload = gr.UploadButton("Upload a file", size="sm", elem_id="upload")
            gr.HTML(f'<p class="gloss">{about}</p>', apply_default_css=False)
            gr.HTML('<p class="gloss">What your table calls its columns:</p>', apply_default_css=False)
            with gr.Row(elem_classes="columns"):
                self.columns = {
                    name: gr.Dropdown(
                        [getattr(ColumnSettings, name)],
                        value=getattr(ColumnSettings, name),
                        label=label,
                        allow_custom_value=True,
                        min_width=80,
                        elem_id=name,
                    )
                    for name, label in COLUMNS.items()
                }
            self.shown = gr.HTML(elem_classes="preview", elem_id="own-preview", apply_default_css=False)
        self.files = gr.State({})
        """Name -> path of what this visitor has uploaded; it never leaves the server."""

    def wire(self, mode: Component, forms: dict[str, object]) -> None:
        """Look at a file when it is uploaded, and again when another column is chosen."""
        self.forms, self.mode = forms, mode
        data = [form.knobs["dataset_name"] for form in forms.values()]
        models = [form.knobs["model_name_or_path"] for form in forms.values()]
        inputs = {self.upload, self.files, mode, *self.columns.values(), *models}
        outputs = [self.files, self.shown, *self.columns.values(), *data]
        quiet = {"concurrency_limit": 1, "concurrency_id": "preview", "api_visibility": "private"}
        self.upload.upload(self._uploaded, inputs, outputs, **quiet)
        gr.on([column.input for column in self.columns.values()], self._look, inputs, outputs, **quiet)

    def _uploaded(self, values: dict[Component, object]) -> dict[Component, object]:
        path = Path(values[self.upload])
        others = {name: file for name, file in values[self.files].items() if name != path.name}
        usual = {column: getattr(ColumnSettings, name) for name, column in self.columns.items()}
        return usual | self._look({**values, **usual, self.files: {**others, path.name: str(path)}})

    def _look(self, values: dict[Component, object]) -> dict[Component, object]:
        """What the newest file holds, and the file named in the forms that can train on it."""
        # Takes seconds to import.
        from rlhf.data.preview import columns_of, preview_any

        if not values[self.files]:
            return {self.shown: ""}
        name, path = list(values[self.files].items())[-1]
        changes = {self.files: values[self.files]}
        try:
            limits.check_upload(Path(path))
            choices = columns_of(path)
            for column in self.columns.values():
                changes[column] = gr.Dropdown(choices=choices, value=values[column], allow_custom_value=True)
            settings = PreviewArguments(**{setting: values[column] for setting, column in self.columns.items()})
            model = values[self.forms[values[self.mode]].knobs["model_name_or_path"]].strip()
            with told("The file was not read."), remarks() as remarked:
                data = preview_any(path, model, columns=settings.columns)
        except BadInput as error:
            return {**changes, self.shown: note(str(error).replace(path, name))}
        pairs = "chosen" in data.characters
        fitting = [form for kind, form in self.forms.items() if pairs or not KINDS[kind].reads_pairs]
        for form in fitting:
            knob = form.knobs["dataset_name"]
            # On a page for others there is a list to choose from; a visitor's own files are added for that visitor.
            listed = [*limits.datasets(), *values[self.files]]
            changes[knob] = gr.Dropdown(choices=listed, value=name) if isinstance(knob, gr.Dropdown) else name
        more = MORE_COLUMNS if len(choices) > 1 else ""
        said = (NOW if pairs else PROMPTS).format(name=escape(name), more=more) + note(" ".join(remarked))
        return {**changes, self.shown: said + self.table(data)}

    def chosen_columns(self, values: dict[Component, object]) -> dict[str, object]:
        """Settings for the columns that are not called as usual."""
        named = {name: values[column] for name, column in self.columns.items()}
        return {name: value for name, value in named.items() if value != getattr(ColumnSettings, name)}

    def file_of(self, dataset_name: str, values: dict[Component, object]) -> Path | None:
        """The uploaded file that a form names, if it names one.

        Raises:
            BadInput: it is not there any more.
        """
        path = values[self.files].get(dataset_name.strip())
        if path and not Path(path).is_file():
            raise BadInput(f"{dataset_name} was kept for an hour; upload it again.", field="dataset_name")
        return path and Path(path)

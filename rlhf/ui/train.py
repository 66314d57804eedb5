"""The Train tab: is it learning? A short form on the left, the live view of the chosen run on the right."""

import dataclasses
import json
import os
import time
import typing
from contextlib import suppress
from html import escape

import gradio as gr
from gradio.components import Component

from rlhf.config import EVERYDAY, BadInput, PreviewArguments, default_of, field_docs
from rlhf.config.recipes import names, read_recipe
from rlhf.kinds import KINDS, METHODS, startable
from rlhf.launch import classroom, jobs, limits
from rlhf.launch.start import FILLED_IN, start_run
from rlhf.runs.directory import VOLUME, Run, list_runs, runs_root
from rlhf.ui import (
    FOREIGN,
    QUICK,
    already_started,
    example_id,
    is_active,
    is_example,
    note,
    remarks,
    run_label,
    shown_run,
)
from rlhf.ui.expect import expectation, preset
from rlhf.ui.lessons import IN_OTHER_WORDS, LESSONS, lesson
from rlhf.ui.live import live_run
from rlhf.ui.own_run import OwnRun, noted
from rlhf.ui.rewards_form import NO_MODEL, RewardsForm
from rlhf.ui.scripts import HEAD, script
from rlhf.ui.upload import OwnData


if typing.TYPE_CHECKING:
    from rlhf.data.preview import Preview


COMMAND_LINE = {
    "gradient_accumulation_steps", "stop_token", "kl_horizon", "cliprange_high", "dual_clip",
    "entropy_coef", "normalize_advantages", "whiten_rewards", "early_stopping", "target_kl",
    "mask_truncated_completions", "reward_clip_range", "value_learning_rate", "value_warmup_steps",
    "lora_alpha", "lora_dropout", "lora_target_modules", "prompt_column", "prompt_words",
    "chosen_column", "rejected_column", "report_to", "reward_funcs", "save_steps",
}  # fmt: skip
"""Settings for those who write their own experiments: the command line and Python have them, the page does not."""
NAMES_FIRST = ("model_name_or_path", "dataset_name", "as_conversations", "chat_template_kwargs")
"""What all else depends on."""
LISTED = {"model_name_or_path": limits.models, "dataset_name": limits.datasets}
"""Fields that make the program fetch what a person names: on a page for others there is a list to choose from."""
PRESETS = {"1": "1-minute run", "5": "5-minute run"}
"""Buttons that fill the form for a run of about so many minutes."""
SIZED = (
    "total_episodes", "reward_max_steps", "num_train_epochs", "reward_batch_size", "num_prompts", "samples", "seeds",
    "ceiling_samples", "ceiling_prompts", "model_name_or_path", "dataset_name",
)  # fmt: skip
"""What the time that a demo takes depends on."""
IN_TURN = {
    "concurrency_id": "start", "concurrency_limit": 1, "show_progress": "hidden", "api_visibility": "private",
}  # fmt: skip
"""Options of the events that start a run."""
FORGETS = "This Space forgets its runs when it sleeps or restarts: download what you want to keep."


class Form:
    """The knobs of one kind of run, made from the fields of its settings."""

    def __init__(self, kind: str) -> None:
        self.kind, self.config = kind, KINDS[kind].settings
        self.knobs: dict[str, Component] = {}
        self.labels: dict[str, str] = {}
        hidden = FILLED_IN | COMMAND_LINE | set(limits.NOT_OFFERED if limits.shared() else ())
        front = {**KINDS[kind].front, "seed": "Seed"}
        fields = {field.name: field for field in dataclasses.fields(self.config) if field.name not in hidden}
        if kind in LESSONS:
            gr.HTML(lesson(kind), apply_default_css=False)
        for name, label in front.items():
            self.knobs[name] = self._knob(fields[name], label)
            if name == "advantage_estimator":
                shown = gr.HTML(lesson(self.knobs[name].value), apply_default_css=False)
        if "advantage_estimator" in front:
            estimator, answers = self.knobs["advantage_estimator"], self.knobs["num_generations"]
            estimator.input(_learns, [estimator, answers], [shown, answers], **QUICK)
        with gr.Accordion("Advanced", open=False, elem_classes="advanced"):
            for name in sorted(fields, key=lambda name: (*NAMES_FIRST, name).index(name)):
                if name not in front:
                    self.knobs[name] = self._knob(fields[name], name.replace("_", " "))
                if name == "chat_template_kwargs" and KINDS[kind].reads_pairs:
                    self.preview = gr.Button("Preview data", size="sm")
                    self.previewed = gr.HTML(elem_classes="preview", apply_default_css=False)

    def wire(self, own: OwnData) -> None:
        """Connect the preview's button, which also shows what was uploaded."""
        if KINDS[self.kind].reads_pairs:
            named = ("dataset_name", "model_name_or_path", "chat_template_kwargs", "as_conversations")
            named = [*(self.knobs[name] for name in named), *own.columns.values(), own.files]
            self.preview.click(_preview, named, self.previewed, concurrency_limit=1, api_visibility="private")

    def _knob(self, field: dataclasses.Field, label: str) -> Component:
        self.labels[field.name] = label
        info = " ".join(filter(None, (field_docs(self.config)[field.name], IN_OTHER_WORDS.get(field.name))))
        about = {"label": label, "info": info, "interactive": True, "elem_id": f"{self.kind}-{field.name}"}
        hint = typing.get_type_hints(self.config)[field.name]
        if hint is bool:
            return gr.Checkbox(field.default, **about)
        if limits.shared() and field.name in LISTED:
            return gr.Dropdown(LISTED[field.name](), value=field.default, filterable=False, **about)
        if typing.get_origin(hint) is typing.Literal:
            # Estimators by the names of the methods that they make of PPO.
            names = METHODS | {"rloo": "PPO with leave-one-out (RLOO)", "gae": "PPO with a critic (GAE)"}
            choices = [(names.get(value, value), value) for value in typing.get_args(hint)]
            return gr.Dropdown(choices, value=field.default, **about)
        # Text, so that 3e-4 can be typed as people write it; `build` reads it, or says in one sentence why it cannot.
        return gr.Textbox(_as_typed(default_of(field)), max_lines=1, **about)

    def filled(self, settings: dict[str, object]) -> list[object]:
        """Values of the knobs for these settings, the defaults for all others."""
        values = {field.name: settings.get(field.name, default_of(field)) for field in dataclasses.fields(self.config)}
        return [
            _as_typed(values[name]) if isinstance(knob, gr.Textbox) else values[name]
            for name, knob in self.knobs.items()
        ]

    def entered(self, values: dict[Component, object]) -> dict[str, object]:
        """What stands in the knobs."""
        return {name: values[knob] for name, knob in self.knobs.items()}


def _as_typed(value: object) -> str:
    if isinstance(value, list):
        return " ".join(value)
    if isinstance(value, dict):
        return json.dumps(value)
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _learns(estimator: str, answers: str) -> tuple[str, str]:
    """How this estimator learns, as HTML, and answers per prompt: where they are compared, one is not enough."""
    return lesson(estimator), "4" if estimator in ("rloo", "grpo") and answers.strip() == "1" else answers


class TrainTab:
    """The tab's components and what they do; `show` fills it for a run."""

    def __init__(self) -> None:
        with gr.Row(elem_classes="train"):
            with gr.Column(scale=0, min_width=300, elem_classes="form"):
                self._form()
            with gr.Column(scale=1, min_width=320, elem_classes="view"):
                shown = gr.HTML(elem_id="rewards-shown", apply_default_css=False)
                self.noted = gr.HTML(apply_default_css=False)
                self.live = live_run(value=None, elem_id="live")
                self.own_run = OwnRun()
        self.rewards.preview(self.forms["ppo"].knobs, self.reward_run, shown)
        self.reward_run.input(
            lambda chosen: gr.skip() if chosen else gr.Accordion(open=True),  # without a reward model, rewards are due
            self.reward_run,
            self.rewards.group,
            **QUICK,
        )
        self.started = gr.State(None)
        # A secret of this browser, by which it may stop what it has started, also after the page was reloaded.
        self.visitor = gr.BrowserState("", storage_key="rlhf-lab", secret="visitor")
        self.outputs = [self.live, self.stop, self.resume, self.reward_run, self.note, self.noted]
        self.outputs += self.own_run.outputs

    def _form(self) -> None:
        modes = [(KINDS[kind].choice, kind) for kind in startable()]
        self.mode = gr.Radio(modes, value="demo", label="What to train", elem_id="mode")
        self.reward_run = gr.Dropdown([], label="Reward model", info="PPO learns to raise its score.", visible=False)
        self.rewards = RewardsForm()
        self.recipe = gr.Dropdown(
            names(),
            value=EVERYDAY,
            label="Recipe",
            info="Models, data and settings that go together; they fill the form below.",
            elem_id="recipe",
            visible=_recipes_offered(),
        )
        with gr.Row(elem_classes="buttons"):
            self.start = gr.Button("Start training", variant="primary", min_width=150, elem_id="start")
            self.stop = gr.Button("Stop", variant="secondary", min_width=80, interactive=False, elem_id="stop")
            self.resume = gr.Button("Resume", variant="secondary", min_width=80, visible=False, elem_id="resume")
            gr.HTML('<button type="button"></button>', elem_id="unfold", apply_default_css=False)
        self.note = gr.HTML(
            html_template='<p class="note" role="alert" hidden></p>',
            js_on_load=script("note"),
            head=HEAD,
            elem_id="train-note",
            apply_default_css=False,
        )
        if limits.on_space():
            gr.HTML(_space_note(), apply_default_css=False)
        with gr.Row(elem_classes="presets", visible=not limits.on_space()) as self.presets:
            presets = {minutes: gr.Button(label, size="sm", min_width=80) for minutes, label in PRESETS.items()}
        self.expected = gr.HTML(apply_default_css=False, elem_id="expected")
        self.own = OwnData(preview_table)
        self.forms, groups = {}, []
        for kind in startable():
            with gr.Column(visible=kind == "demo", elem_classes="knobs", elem_id=f"knobs-{kind}") as group:
                self.forms[kind] = Form(kind)
            groups.append(group)
        self.own.wire(self.mode, self.forms)
        for form in self.forms.values():
            form.wire(self.own)
        self.mode.change(
            _switch,
            self.mode,
            [*groups, self.reward_run, self.rewards.group, self.recipe, self.presets],
            **QUICK,
        )
        demo = self.forms["demo"]
        self.recipe.input(
            lambda name: demo.filled(read_recipe(name)),
            self.recipe,
            list(demo.knobs.values()),
            **QUICK,
        )

        knobs = list(demo.knobs.values())
        for minutes, button in presets.items():
            button.click(
                lambda *values, minutes=minutes: demo.filled(
                    _preset(minutes, dict(zip(demo.knobs, values, strict=True)))
                ),
                knobs,
                knobs,
                **QUICK,
            )
        gr.on(
            None,  # when the page is opened, and at each change of a knob
            self._expect,
            {self.mode, *(knob for form in self.forms.values() for knob in form.knobs.values())},
            self.expected,
            trigger_mode="always_last",
            **QUICK,
        )

    def wire(self, picker: gr.Dropdown) -> None:
        """Connect the buttons; `started` changes with each run that is to be shown anew."""
        self.stop.click(_stop, [picker, self.visitor], [self.stop, self.note], **QUICK)
        knobs = {knob for form in self.forms.values() for knob in form.knobs.values()}
        self.start.click(
            self._start,
            {
                self.mode,
                self.reward_run,
                self.recipe,
                self.visitor,
                self.own.files,
                *self.own.columns.values(),
                *knobs,
                *self.rewards.components(),
            },
            [self.note, self.started],
            **IN_TURN,
        )
        self.resume.click(_resume, [picker, self.visitor], [self.note, self.started], **IN_TURN)
        self.own_run.wire(picker, self.visitor, self.started)

    def _start(self, values: dict[Component, object]) -> tuple:
        kind, began = values[self.mode], time.time()
        try:
            settings = self.forms[kind].entered(values)
            if kind == "demo":  # the recipe may say more than the form shows
                settings = {**read_recipe(values[self.recipe]), **settings}
            if settings["dataset_name"] != EVERYDAY and hasattr(KINDS[kind].settings, "prompt_column"):
                settings |= self.own.chosen_columns(values)
            if kind == "ppo":
                settings["reward_funcs"] = self.rewards.entered(values) or None
            upload = self.own.file_of(settings["dataset_name"], values)
            run = start_run(kind, settings, values[self.reward_run], values[self.visitor], upload)
        except BadInput as error:
            form = self.forms[kind]
            where = f"{kind}-{error.field}" if error.field in form.knobs else error.field
            told_there = {knob.elem_id for knob in (*form.knobs.values(), *self.rewards.components())}
            told = {"text": error.with_labels(form.labels), "field": where if where in told_there else None}
            return _told(error) | told, gr.skip()
        return "", {"run": run.id, "at": time.time(), "said": already_started(run, began)}

    def _expect(self, values: dict[Component, object]) -> str:
        """How long the run takes that Start would start, as HTML."""
        kind = values[self.mode]
        return f'<p class="gloss">{expectation(self.forms[kind].entered(values), kind)}</p>'

    def show(self, run_id: str | None) -> dict:
        """The values of `outputs` for this run."""
        run, trained = shown_run(run_id), reward_runs()
        active, ended_early = is_active(run), run is not None and jobs.resumable(run)
        return {
            self.live: run_id,
            self.noted: noted(run),
            **self.own_run.show(run),
            self.note: "",  # what it said was about another run, or about what has been mended
            self.stop: gr.Button(interactive=active, visible=not ended_early),
            self.resume: gr.Button(visible=ended_early),
            self.reward_run: gr.Dropdown(choices=[*trained, NO_MODEL], value=trained[0][1] if trained else None),
        }


def _preview(
    dataset_name: str,
    model_name_or_path: str,
    template: str = "",
    as_conversations: bool = False,
    prompt_column: str = "prompt",
    chosen_column: str = "chosen",
    rejected_column: str = "rejected",
    files: dict[str, str] | None = None,
) -> str:
    """What a data set holds, as HTML, or a sentence on why it cannot be read; `files` are what was uploaded."""
    # Takes seconds to import, and only this button needs it.
    from rlhf.data.preview import preview

    name, path = dataset_name.strip(), (files or {}).get(dataset_name.strip())
    try:
        if path:
            classroom.check("uploads")
        limits.check({"dataset_name": EVERYDAY if path else name, "model_name_or_path": model_name_or_path.strip()})
        given = PreviewArguments(
            chat_template_kwargs=template,
            prompt_column=prompt_column,
            chosen_column=chosen_column,
            rejected_column=rejected_column,
        )
        how = (given.chat_template_kwargs, given.columns, as_conversations)
        with remarks() as told:
            data = preview(path or name, model_name_or_path.strip(), *how)
        return note(" ".join(told)) + preview_table(data)
    except BadInput as error:
        return note(str(error).replace(path or name, name))


def preview_table(data: "Preview") -> str:
    """A preview of data as HTML: how many rows, what is left out, lengths, and the first of them."""
    left_out = "".join(f"; left out, {escape(fault)}: {count:,}" for fault, count in data.dropped.items())
    if data.unused:
        left_out += f"; columns that are not used: {escape(', '.join(data.unused))}"
    kind = "conversations" if data.conversational else "texts"
    if data.moved:
        left_out += f"; in {data.moved:,} of {data.measured:,} a token would span the end of the prompt"
    if data.refused:
        left_out += f"; {data.refused:,} of {data.measured:,} will be left out. {escape(data.complaint)}"
    if data.made or data.read[:3] != ["prompt", "chosen", "rejected"][: len(data.read)]:
        made = f"made from {escape(data.made)}" if data.made else ""
        left_out += "; " + (made or f"columns that are used: {escape(', '.join(data.read))}")
    head = "".join(f"<th scope='col'>{name}</th>" for name in data.characters["prompt"])
    rows = {**data.characters, **({"tokens, in all": data.tokens} if data.tokens else {})}
    body = "".join(
        f"<tr><th scope='row'>{label}</th>{''.join(f'<td>{number:,}</td>' for number in row.values())}</tr>"
        for label, row in rows.items()
    )
    pairs = "".join(
        "".join(
            f"<dt>{side}</dt><dd tabindex='0' dir='auto'>{escape(text.strip())}</dd>" for side, text in pair.items()
        )
        for pair in data.first
    )
    in_tokens = ", and of the longer text of a pair in tokens" if data.tokens else ""
    return (
        f"<p>{data.rows:,} {'pairs' if data.made else 'rows'} of {kind}: {data.train:,} to train on, "
        f"{data.held_out:,} held out{left_out}.</p>"
        f"<table><caption>Lengths in characters{in_tokens}</caption>"
        f"<tr><td></td>{head}</tr>{body}</table><dl>{pairs}</dl>"
    )


def _preset(minutes: str, entered: dict[str, object]) -> dict[str, object]:
    """The form with the sizes of a preset; what cannot be read in it goes back to its default."""
    try:
        return preset(minutes, entered)
    except BadInput:
        return preset(minutes, {})


def _switch(kind: str) -> list:
    """Show the chosen kind's knobs, the choice of reward model where one is needed, and that of recipes for a demo."""
    reward_run = gr.Dropdown(visible=KINDS[kind].needs_reward_model)
    rewards = gr.Accordion(visible=kind == "ppo")
    recipe = gr.Dropdown(visible=kind == "demo" and _recipes_offered())
    presets = gr.Row(visible=kind == "demo" and not limits.on_space())
    return [gr.Column(visible=other == kind) for other in startable()] + [reward_run, rewards, recipe, presets]


def _recipes_offered() -> bool:
    """Recipes name models and data, which a page for others does not fetch."""
    return not limits.shared()


def reward_runs() -> list[tuple[str, str]]:
    """(label, id) of the runs that hold a reward model: the finished ones first, best on held-out pairs first."""
    runs = [run for run in (*list_runs(), shown_run(example_id())) if run is not None and run.model("reward")]
    runs.sort(key=_quality, reverse=True)
    return [("Example run's reward model" if is_example(run) else run_label(run), run.id) for run in runs]


def _quality(run: Run) -> tuple[bool, float]:
    """Whether the reward model's training was finished, and its accuracy."""
    stage = run.stages()["reward"]
    accuracy = 0.0
    with suppress(*FOREIGN):  # not measured, or damaged
        accuracy = float(stage.summary()["reward_model"]["accuracy"]["value"])
    return stage.status().get("state") == "finished", accuracy


def _stop(run_id: str | None, visitor: str) -> tuple:
    run = shown_run(run_id)
    try:
        if run is not None:
            jobs.stop(run, visitor)
    except BadInput as error:
        return gr.skip(), {"text": str(error)}
    left = run is not None and run.status().get("state") == "stopped"
    told = run.status()["message"] if left else "It stops after this step, then saves what it has learned."
    return gr.Button(interactive=False), {"text": told}


def _resume(run_id: str | None, visitor: str) -> tuple:
    run = shown_run(run_id)
    try:
        if run is None:
            raise BadInput("This run is not there any more; choose another.")
        jobs.resume(run, visitor)
    except BadInput as error:
        return _told(error), gr.skip()
    return "", {"run": run.id, "at": time.time()}


def _told(error: BadInput) -> dict:
    """Why nothing was started, as the note shows it: with the run that is in the way, if there is one."""
    told = {"text": str(error)}
    if isinstance(error, jobs.UnderWay):
        told["run"] = {"id": error.run.id, "title": error.run.title()}
    return told


def _space_note() -> str:
    """What a visitor of a Space must know before a run is started, as HTML."""
    copy = escape(f"https://huggingface.co/spaces/{os.environ['SPACE_ID']}?duplicate=true")
    link = f'<a href="{copy}" target="_blank" rel="noopener noreferrer">duplicate this Space</a>'
    forgets = "" if runs_root().is_relative_to(VOLUME) else f"{FORGETS} "
    longest = f"{limits.gpu_seconds():,} seconds of GPU" if limits.on_zero_gpu() else "an hour"
    return f'<p class="gloss">{forgets}One run at a time, {longest} at most; {link} for one of your own.</p>'

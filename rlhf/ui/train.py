"""The Train tab: is it learning? A short form on the left, the live view of the chosen run on the right."""

import dataclasses
import os
import typing

import gradio as gr
from gradio.components import Component

from rlhf import jobs
from rlhf.config import BadInput, DemoArguments, PPOArguments, RewardArguments, build, field_docs
from rlhf.runs import Run, list_runs
from rlhf.ui import KIND_NAMES, example_id, is_active, note, run_choices, run_label, shown_run
from rlhf.ui.live import live_run


CONFIGS = {"demo": DemoArguments, "reward": RewardArguments, "ppo": PPOArguments}
FRONT = {
    "demo": {"total_episodes": "Episodes", "kl_coef": "KL coefficient", "learning_rate": "Learning rate of PPO"},
    "reward": {"num_train_epochs": "Epochs", "learning_rate": "Learning rate"},
    "ppo": {"total_episodes": "Episodes", "kl_coef": "KL coefficient", "learning_rate": "Learning rate"},
}
"""The knobs a class turns, and what they are called; all other fields lie under Advanced. Seed is in every form."""
ELSEWHERE = {"output_dir", "resume_from_checkpoint", "reward_model_path"}
"""Fields that the page fills itself."""
COMMAND_LINE = {
    "gradient_accumulation_steps", "num_generations", "stop_token", "kl_horizon", "cliprange_high", "dual_clip",
    "entropy_coef", "normalize_advantages", "whiten_rewards", "early_stopping", "target_kl",
    "mask_truncated_completions", "reward_clip_range", "value_learning_rate", "value_warmup_steps",
}  # fmt: skip
"""Settings for those who write their own experiments: the command line and Python have them, the page does not."""
FREE_NAMES = {"model_name_or_path", "dataset_name"}
"""Fields that make the program fetch what a person names: not offered on a public page."""


class Form:
    """The knobs of one kind of run, made from the fields of its settings."""

    def __init__(self, kind: str) -> None:
        self.kind, self.config = kind, CONFIGS[kind]
        self.knobs: dict[str, Component] = {}
        hidden = ELSEWHERE | COMMAND_LINE | free_names()
        front = {**FRONT[kind], "seed": "Seed"}
        fields = {field.name: field for field in dataclasses.fields(self.config) if field.name not in hidden}
        for name, label in front.items():
            self.knobs[name] = self._knob(fields[name], label)
        with gr.Accordion("Advanced", open=False, elem_classes="advanced"):
            for name, field in fields.items():
                if name not in front:
                    self.knobs[name] = self._knob(field, name.replace("_", " "))

    def _knob(self, field: dataclasses.Field, label: str) -> Component:
        about = {"label": label, "info": field_docs(self.config)[field.name], "interactive": True}
        hint = typing.get_type_hints(self.config)[field.name]
        if hint is bool:
            return gr.Checkbox(field.default, **about)
        if typing.get_origin(hint) is typing.Literal:
            return gr.Dropdown(list(typing.get_args(hint)), value=field.default, **about)
        # Text, so that 3e-4 can be typed as people write it; `build` reads it, or says in one sentence why it cannot.
        text = "" if field.default is None else f"{field.default:g}" if hint is float else str(field.default)
        return gr.Textbox(text, max_lines=1, **about)

    def entered(self, values: dict[Component, object]) -> dict[str, object]:
        """What stands in the knobs."""
        return {name: values[knob] for name, knob in self.knobs.items()}


def start_run(kind: str, settings: dict[str, object], reward_run: str | None = None) -> Run:
    """Check settings and start a run with those that differ from the defaults: what the button and the API both do.

    Args:
        kind: "demo", "reward" or "ppo".
        settings: by name, as they were typed.
        reward_run: id of the run whose reward model PPO is to please.

    Raises:
        BadInput: a value that cannot work or is not offered here, or another run is under way.
    """
    if kind not in CONFIGS:
        raise BadInput(f"kind must be one of {', '.join(CONFIGS)}, not {kind!r}.")
    for name in ELSEWHERE | free_names():
        if name in settings:
            raise BadInput(f"{name} cannot be set from the page; the command line takes it.")
    given = {"reward_model_path": _reward_path(reward_run)} if kind == "ppo" else {}
    config = build(CONFIGS[kind], {**settings, **given})
    differing = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if getattr(config, field.name) != field.default
    }
    return jobs.launch(kind, differing)


def free_names() -> set[str]:
    """Settings that a public page does not take, because the program would fetch whatever they name."""
    return FREE_NAMES if os.environ.get("SPACE_ID") else set()


class TrainTab:
    """The tab's components and what they do; `show` fills it for a run."""

    def __init__(self) -> None:
        with gr.Row(elem_classes="train"):
            with gr.Column(scale=0, min_width=300, elem_classes="form"):
                self._form()
            with gr.Column(scale=1, min_width=320, elem_classes="view"):
                self.live = live_run(value=None, elem_id="live")
        self.started = gr.State(None)
        self.outputs = [self.live, self.start, self.stop, self.reward_run]

    def _form(self) -> None:
        modes = [(KIND_NAMES[kind], kind) for kind in CONFIGS]
        self.mode = gr.Radio(modes, value="demo", label="What to train", elem_id="mode")
        self.reward_run = gr.Dropdown([], label="Reward model", info="PPO learns to please this one.", visible=False)
        with gr.Row(elem_classes="buttons"):
            self.start = gr.Button("Start training", variant="primary", min_width=150, elem_id="start")
            self.stop = gr.Button("Stop", variant="secondary", min_width=80, interactive=False, elem_id="stop")
        self.note = gr.HTML(elem_id="train-note")
        self.forms, groups = {}, []
        for kind in CONFIGS:
            with gr.Column(visible=kind == "demo", elem_classes="knobs") as group:
                self.forms[kind] = Form(kind)
            groups.append(group)
        self.mode.change(
            _switch, self.mode, [*groups, self.reward_run], show_progress="hidden", api_visibility="private"
        )

    def wire(self, picker: gr.Dropdown) -> None:
        """Connect the buttons; `started` changes when a run has been started, which the page must then show."""
        self.stop.click(_stop, picker, [self.stop, self.note], show_progress="hidden", api_visibility="private")
        knobs = {knob for form in self.forms.values() for knob in form.knobs.values()}
        # One at a time, so that two people who press at once cannot both find the machine free.
        self.start.click(
            self._start,
            {self.mode, self.reward_run, *knobs},
            [picker, self.note, self.started],
            concurrency_id="start",
            concurrency_limit=1,
            show_progress="hidden",
            api_visibility="private",
        )

    def _start(self, values: dict[Component, object]) -> tuple:
        kind = values[self.mode]
        try:
            run = start_run(kind, self.forms[kind].entered(values), values[self.reward_run])
        except BadInput as error:
            return gr.skip(), note(str(error)), gr.skip()
        return gr.Dropdown(choices=run_choices(), value=run.id), "", run.id

    def show(self, run_id: str | None) -> tuple:
        """The values of `outputs` for this run."""
        active, judges = is_active(shown_run(run_id)), reward_runs()
        choice = gr.Dropdown(choices=judges, value=judges[0][1] if judges else None)
        return run_id, gr.Button(interactive=not active), gr.Button(interactive=active), choice


def _switch(kind: str) -> list:
    """Show the chosen kind's knobs, and the choice of reward model where one is needed."""
    return [gr.Column(visible=other == kind) for other in CONFIGS] + [gr.Dropdown(visible=kind == "ppo")]


def reward_runs() -> list[tuple[str, str]]:
    """(label, id) of the runs that hold a finished reward model."""
    made = [(run_label(run), run.id) for run in list_runs() if _reward_model(run.path)]
    example = example_id()
    if example and _reward_model(shown_run(example).path):
        made.append(("Example run's reward model", example))
    return made


def _reward_model(path: os.PathLike) -> bool:
    part = path if path.name.startswith("reward-") else path / "reward"
    return (part / "model" / "config.json").exists()


def _reward_path(run_id: str | None) -> str:
    run = shown_run(run_id)
    if run is None:
        raise BadInput("PPO needs a reward model: choose a finished one, or train “Reward model only” first.")
    return str(run.path)


def _stop(run_id: str | None) -> tuple:
    run = shown_run(run_id)
    if run is not None:
        jobs.stop(run)
    return gr.Button(interactive=False), note("It stops after this step and keeps what it has learned.")

"""Rewards of one's own in the Train tab: what PPO shall earn, and what ten answers of the base model would earn."""

import copy
import math
import re
from collections.abc import Iterator
from dataclasses import asdict
from html import escape
from importlib.util import find_spec

import gradio as gr
from gradio.components import Component

from rlhf.config import BadInput, PPOArguments, build
from rlhf.launch import limits
from rlhf.launch.start import check_functions
from rlhf.rewards import RewardName
from rlhf.runs.directory import find_run
from rlhf.ui import note, voices
from rlhf.words import number, weighted


ANSWERS = 10
"""In a preview."""
NO_MODEL = ("None, only rewards of your own", "")
"""The last of the reward models to choose from."""
FIELDS = {
    "length": ("About so many words", "20", "An answer of so many words earns 1, half or twice as many earn less."),
    "keyword": ("Contains a word", "please", "An answer with this word earns 1, any other 0."),
    "regex": ("Matches a pattern", r"\?$", r"A regular expression: with \?$ an answer that ends in ? earns 1."),
}
"""Built-in rewards that take a word: label, example, and explanation."""


class RewardsForm:
    """The form's components; `entered` reads them, `preview` connects the button."""

    def __init__(self) -> None:
        self.words: dict[str, Component] = {}
        self.weights: dict[str, Component] = {}
        with gr.Accordion("Rewards of your own", open=False, visible=False, elem_classes="rewards") as self.group:
            gr.HTML(
                '<p class="gloss">They are added to the reward model’s score. A weight of 0.5 makes one count half, '
                "−1 makes it a penalty.</p>",
                apply_default_css=False,
            )
            for name, (label, example, explanation) in FIELDS.items():
                with gr.Row(elem_classes="reward"):
                    self.words[name] = gr.Textbox(
                        label=label, placeholder=example, info=explanation, max_lines=1, elem_id=f"reward-{name}"
                    )
                    self._weight(name)
            if find_spec("vaderSentiment"):
                with gr.Row(elem_classes="reward"):
                    explanation = "Good words earn up to 1, bad ones −1."
                    self.words["sentiment"] = gr.Checkbox(
                        label="Sounds positive", info=explanation, elem_id="reward-sentiment"
                    )
                    self._weight("sentiment")
            if not limits.shared():
                self.words["file"] = gr.Textbox(
                    label="Functions of a file",
                    placeholder="my_rewards.py:polite@0.5",
                    info="Python, with TRL’s signature; several with spaces between them.",
                    max_lines=1,
                    elem_id="reward-file",
                )
            self.button = gr.Button("Preview rewards", size="sm", elem_id="preview-rewards")

    def _weight(self, name: str) -> None:
        self.weights[name] = gr.Textbox(
            "1", label="Weight", max_lines=1, min_width=60, scale=0, elem_id=f"reward-{name}-weight"
        )

    def components(self) -> set[Component]:
        """What `entered` reads."""
        return {*self.words.values(), *self.weights.values()}

    def entered(self, values: dict[Component, object]) -> list[str]:
        """The names of the reward functions, as `--reward_funcs` takes them.

        Raises:
            BadInput: a weight is no number, or there is no such reward; its field is the id of the one to mend.
        """
        names = []
        for name, knob in self.words.items():
            word = values[knob] if isinstance(values[knob], bool) else str(values[knob]).strip()
            if not word:
                continue
            if name == "file":
                entered = re.findall(r"\S.*?\.py:\S+|\S.*", word)  # the path may have spaces
            else:
                weight = self._weight_of(name, values)
                entered = [f"{name}@{weight}" if word is True else f"{name}:{word}@{weight}"]
            try:
                check_functions(entered)
            except BadInput as error:
                raise BadInput(error, field=knob.elem_id) from error
            names += entered
        return names

    def _weight_of(self, name: str, values: dict[Component, object]) -> str:
        knob = self.weights[name]
        weight = values[knob].strip() or "1"
        try:
            known = math.isfinite(float(weight))
        except ValueError:
            known = False
        if not known:
            label = self.words[name].label
            text = f"The weight of “{label}” must be a number such as 0.5 or -1, not {weight!r}."
            raise BadInput(text, field=knob.elem_id)
        return weight

    def preview(self, knobs: dict[str, Component], reward_run: Component, shown: gr.HTML) -> None:
        """Connect the button: the answers appear in `shown`, which stands where there is room for a table.

        Args:
            knobs: those of PPO's form, by setting.
            reward_run: the choice of a reward model.
        """

        def preview(values: dict[Component, object]) -> Iterator[str]:
            yield '<p class="gloss">The base model writes ten answers …</p>'
            try:
                settings = {name: values[knob] for name, knob in knobs.items()}
                yield table_of(self.entered(values), settings, values[reward_run])
            except BadInput as error:
                yield note(str(error))

        self.button.click(
            preview,
            {*self.components(), *knobs.values(), reward_run},
            shown,
            concurrency_id="model",
            concurrency_limit=1,
            show_progress="hidden",
            api_visibility="private",
        ).then(
            None,
            js="() => document.querySelector('#rewards-shown').scrollIntoView({block: 'start', behavior: 'smooth'})",
        )


def table_of(names: list[str], settings: dict[str, object], reward_run: str | None) -> str:
    """What each reward gives to answers of the base model that PPO would start from, as HTML.

    Args:
        names: of reward functions.
        settings: PPO's, as they stand in the form.
        reward_run: id of the run whose reward model also scores; none for the functions alone.

    Raises:
        BadInput: something cannot be read, loaded, or is not allowed here.
    """
    functions = check_functions(names)
    judge = find_run(reward_run) if reward_run else None
    if judge is None and not functions:
        raise BadInput("There is no reward to preview: fill in one of the fields, or choose a reward model.")
    args = build(PPOArguments, settings)
    limits.check(asdict(args))
    reward_model = voices.reward_model_of(judge) if judge else None
    named = [("Reward model", 1.0)] if reward_model else []
    named += [(reward.title, reward.weight) for reward in map(RewardName.read, names)]
    rows, scores = _answered(args, reward_model, functions)
    earned = [*(escape(weighted(*one)) for one in named), "Score"]

    def cells(values: list[float | None]) -> str:
        pairs = zip(earned, values, strict=True)  # on a phone the name of each stands beside it
        return "".join(f"<td data-reward='{name}'>{number(value, 2)}</td>" for name, value in pairs)

    breakable = (name.replace(":", ":<wbr>") for name in earned)
    heads = "".join(map("<th scope='col'>{}</th>".format, ("Question", "Answer", *breakable)))
    body = "".join(
        f"<tr><td dir='auto'>{escape(prompt)}</td><td dir='auto'>{escape(answer)}</td>{cells([*given, score])}</tr>"
        for (prompt, answer, given), score in zip(rows, scores, strict=True)
    )
    means = [*map(_mean, zip(*(given for *_, given in rows), strict=True)), _mean(scores)]
    return (
        "<details class='more' open><summary>What each reward gives ten answers of the base model</summary>"
        f"<div class='scrolled' tabindex='0'><table class='earned'><thead><tr>{heads}</tr></thead>"
        f"<tbody>{body}</tbody>"
        f"<tfoot><tr><th scope='row' colspan='2'>Average</th>{cells(means)}</tr></tfoot></table></div>"
        "<p class='gloss'>PPO makes answers likelier that score above others; where all earn the same, there is "
        "nothing to learn.</p></details>"
    )


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _answered(args: PPOArguments, reward_model: tuple | None, functions: list) -> tuple[list[tuple], list[float]]:
    """(prompt, answer, what each reward gives) of held-out prompts, and their scores."""
    # Takes seconds to import, and only this button needs it.
    import torch

    from rlhf.commands.ceiling import evenly_spaced
    from rlhf.commands.training import split_prompts
    from rlhf.compare.answers import AnswerSampler
    from rlhf.models import context_size
    from rlhf.models.prompts import PromptReader, end_ids, fitting, give_chat_template, readable

    model, tokenizer, _ = voices.base_of(args.model_name_or_path)
    prompts = evenly_spaced(split_prompts(args, "test"), 4 * ANSWERS)
    tokenizer = copy.deepcopy(tokenizer)  # Chat has the same one, and may know no template
    give_chat_template(tokenizer, prompts)
    room = context_size(model) - args.response_length
    reader = PromptReader(tokenizer, room, args.chat_template_kwargs, end_ids(model, tokenizer))
    prompts = evenly_spaced(fitting(prompts, reader), ANSWERS)
    scorer = voices.scorer(reader, reward_model, functions)
    sampler = AnswerSampler(scorer, args.response_length, args.temperature)
    answers = sampler.sample(model, prompts, torch.Generator().manual_seed(args.seed))
    given = zip(*answers.by_reward.values(), strict=True)
    texts = (readable(prompt.raw).strip() for prompt in prompts)
    return list(zip(texts, answers.texts, given, strict=True)), answers.scores

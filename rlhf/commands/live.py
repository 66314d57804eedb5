"""`live`: people choose, and after every few choices the reward model and the policy go on learning.

At first people choose between two answers of the base model; once something was learned, between one of the policy's
and one of the base's, so that each choice also says which of the two they prefer.
"""

import copy
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import datasets
from datasets import concatenate_datasets
from tqdm.auto import tqdm
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback

from rlhf import metrics, models
from rlhf.commands.lifecycle import Stopped, finished, open_run, recorded
from rlhf.commands.training import ppo_config, prompt_room, split_prompts
from rlhf.config import BadInput, Diverged, LiveArguments
from rlhf.feedback import Choice, Store
from rlhf.feedback.ask import Asker
from rlhf.feedback.desk import FRUITLESS
from rlhf.feedback.live import (
    LOOKS_SECONDS,
    STATE,
    State,
    begin,
    folder_of,
    go_back,
    in_words,
    present,
    session,
    states,
    writer,
)
from rlhf.feedback.pairs import joined, judged_by_probe, load_choices
from rlhf.feedback.store import FEWEST
from rlhf.models.packed import use_packed_attention
from rlhf.models.prompts import PromptReader, end_ids, fitting, readable
from rlhf.models.scoring import score_ids
from rlhf.ppo import PPOTrainer
from rlhf.ppo.algorithm import ScoreStats
from rlhf.runs import checkpoint
from rlhf.runs.callbacks import RunCallback
from rlhf.runs.directory import Run
from rlhf.runs.disk import ask_for
from rlhf.runs.divergence import Watch
from rlhf.runs.files import write_json
from rlhf.words import count
from rlhf.write.card import write_card


READY, AT_ONCE = 32, 16
"""Pairs that are kept ready, and prompts that are answered at a time."""
MOST_BYTES = 1_000_000_000
"""Of the states that are kept; two are kept in any case."""
MOST_ROWS = 160
"""Of the choices that the reward model reads for a state, several times while they are few; all are read once."""


def live(args: LiveArguments) -> None:
    """Learn while people choose, until it is stopped or there are `args.num_states` states."""
    if finished(args, "live"):
        return
    # 1. Load and check everything before the run's directory is made.
    base, tokenizer = models.load_policy(args.model_name_or_path)
    store = Store.open(args.store, args.model_name_or_path, models.revision(base))
    before = session(store)
    if before and before.path != Path(args.output_dir or "").resolve() and before.process():
        raise BadInput(f"{before.path} learns from these choices already; stop that first.", field="store")
    datasets.disable_progress_bars()
    learner = Learner(args, base, tokenizer, store)
    run = open_run(args, "live", feedback=args.store, feedback_only=True, model_revision=models.revision(base))
    with recorded(run):
        begin(store, run)
        run.start(args.num_states or 0)
        learner.open(run)
        # 2. Ask, and learn whenever there are enough new choices.
        while args.num_states is None or learner.state.number < args.num_states:
            if run.stop_requested():
                raise Stopped
            learner.look()


class Learner:
    """The models of a live session, and what is done with them.

    Args:
        args: the settings.
        base: the model that all started from; it never changes.
        tokenizer: its tokenizer.
        store: the choices.

    Raises:
        BadInput: the data cannot be read, or no prompt leaves room for an answer.
    """

    run: Run
    reward_run: Run
    ppo_run: Run
    state: State

    def __init__(
        self, args: LiveArguments, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, store: Store
    ) -> None:
        self.args, self.base, self.tokenizer, self.store = args, base, tokenizer, store
        self.asker = Asker(base, tokenizer, args)  # gives the tokenizer a chat template, if it needs one
        ppo = args.ppo_arguments(None)
        reader = PromptReader(tokenizer, prompt_room(ppo, base), args.chat_template_kwargs, end_ids(base, tokenizer))
        self.prompts = fitting(split_prompts(ppo, "ppo"), reader)
        self.fruitless = 0
        self.seen, self.since = 0, time.monotonic()
        """Choices so far, and when there was none fewer."""

    def open(self, run: Run) -> None:
        """Make the directories of both trainings, or go on in them from the newest state that is whole."""
        self.run, folder = run, run.path / "ppo" / "checkpoints"
        whole = checkpoint.newest(folder)
        for damaged in checkpoint.folders(folder):
            if whole is None or checkpoint.step_of(damaged) > checkpoint.step_of(whole):
                shutil.rmtree(damaged)
        sizes = states(run)[-1].sizes or {}
        open_ended = {"feedback_only": True, "total_episodes": None}
        self.reward_run, self.ppo_run = (
            Run.create(run.path / kind, kind, asdict(settings) | open_ended, sizes.get(kind, {}))
            for kind, settings in {
                "reward": self.args.reward_arguments(run.path / "reward"),
                "ppo": self.args.ppo_arguments(run.path / "ppo"),
            }.items()
        )
        self.load(present(run))

    def load(self, state: State) -> None:
        """Go on from a state: its models, with new optimizers."""
        self.state, folder = state, folder_of(self.run, state.number)
        set_seed(self.args.seed)  # the score head is new
        if state.number:
            self.policy, _ = models.load_policy(str(folder / "policy"))
            self.reward, tokenizer = models.load_reward_model(str(folder / "reward"), trained=True)
        else:
            self.policy = copy.deepcopy(self.base).requires_grad_(True)  # the reference is frozen
            self.reward, tokenizer = models.load_reward_model(self.args.model_name_or_path)
        use_packed_attention(self.reward)
        config = ppo_config(self.args.ppo_arguments(self.ppo_run.path), [1.0])
        config.lr_scheduler_type, config.max_steps = "constant", self.args.updates_per_state
        self.trainer = PPOTrainer(
            self.policy,
            config,
            self.tokenizer,
            self.reward,
            reward_processing_classes=tokenizer,
            train_dataset=self.prompts,
            ref_model=self.base,
        )
        self.trainer.remove_callback(PrinterCallback)
        self.trainer.add_callback(RunCallback(self.ppo_run, "PPO", "update"))
        self.trainer.add_callback(Bounded(self.args.seconds_per_state))
        self._publish()

    def _publish(self) -> None:
        """Let others use the models of the state, for example in Chat."""
        self.asker.models, folder = {"base": self.base}, folder_of(self.run, self.state.number)
        for run, role in ((self.reward_run, "reward"), (self.ppo_run, "policy")):
            if not self.state.number:
                shutil.rmtree(run.path / "model", ignore_errors=True)
                continue
            with checkpoint.all_or_nothing(run.path / "model") as model:
                shutil.copytree(folder / role, model)
            write_card(run.path / "model")
            self.asker.models[writer(self.run, self.state)] = self.policy
        said = in_words(self.store, self.run)
        self.run.set_status(step=self.state.number, message="", verdict=said)
        if self.state.number:
            tqdm.write(f"State {self.state.number}, after {count(self.state.choices)} choices. {said}")

    def look(self) -> None:
        """Do what is to be done: go back, learn, ask, or wait a moment."""
        if (now := present(self.run)) != self.state:
            self.load(now)
        kept = [c for c in self.store.choices(chat=False) if c.choice != "skip" and self.state.counts(c)]
        fresh, due = sum(choice.time > self.state.until for choice in kept), self.args.choices_per_state
        enough = fresh < due or self._can_learn_from(kept)
        if fresh >= due and enough:
            self.learn(kept)
        elif self.store.waiting(set(self.asker.models)) < READY and self.store.has_room():
            self.ask()
        else:
            rule = "" if enough else f": at least {FEWEST} must prefer an answer, as ties alone teach nothing"
            self._wait(f"{count(fresh)} of {due} new choices{rule}", len(kept))

    def _can_learn_from(self, kept: list[Choice]) -> bool:
        """Whether choices prefer enough answers, to more than one prompt."""
        prompts = [readable(row["prompt"]) for row in self.store.preferences(only=kept)]
        return len(prompts) >= FEWEST and len(set(prompts)) > 1

    def _wait(self, told: str, choices: int) -> None:
        if told != self.run.status()["message"]:
            self.run.set_status(message=told)
        if choices != self.seen:
            self.seen, self.since = choices, time.monotonic()
        elif time.monotonic() - self.since > 60 * self.args.idle_minutes:
            self.run.request_stop()  # others may be waiting for the machine
        time.sleep(LOOKS_SECONDS)

    def ask(self) -> None:
        """Put a few more pairs into the store.

        Raises:
            BadInput: there are none in which the answers differ.
        """
        made = self.asker.add(self.store, AT_ONCE)
        self.fruitless = 0 if made else self.fruitless + 1
        if self.fruitless == FRUITLESS:
            raise BadInput(f"{' and '.join(self.asker.models)} give no two different answers that end.")

    def learn(self, kept: list[Choice]) -> None:
        """Go on to the next state: the reward model takes in these choices, the policy follows for a few updates."""
        began, newest = time.time(), states(self.run)[-1]
        self.run.set_status(message=f"Learning from {count(len(kept))} choices")
        try:
            steps = self._learn_what_people_prefer(kept, newest)
            self.trainer.state.global_step, self.trainer.watch = newest.updates, Watch()
            self.trainer.args.max_steps = newest.updates + self.args.updates_per_state
            self.trainer.train()
        except Diverged as error:
            go_back(self.run, self.state.number)
            self.load(present(self.run))
            self.run.set_status(message=f"{error} It goes on from where it was, without the latest choices.")
            return
        state = State(
            number=newest.number + 1,
            origin=self.state.number,
            made=began,
            until=max(choice.time for choice in kept),
            aside=self.state.aside,
            choices=len(kept),
            reward_steps=steps,
            updates=self.trainer.state.global_step,
            sizes={run.id: run.log_sizes() for run in (self.reward_run, self.ppo_run)},
        )
        size = 2 * sum(weights.nbytes for weights in self.base.parameters())
        ask_for(size, self.run.path)
        folder = folder_of(self.run, state.number)
        with checkpoint.written_whole(folder) as aside:
            self.trainer.save_model(aside / "policy")
            self.reward.save_pretrained(aside / "reward")
            self.tokenizer.save_pretrained(aside / "reward")
            write_json(aside / STATE, asdict(state))
        checkpoint.rotate(folder.parent, min(self.args.states_kept, max(2, MOST_BYTES // size)))
        if (now := present(self.run)).number == state.number:  # nobody went back meanwhile
            self.state = now
            self._publish()

    def _learn_what_people_prefer(self, kept: list[Choice], newest: State) -> int:
        """Train the reward model; returns its steps so far."""
        # Takes seconds to import.
        from rlhf.reward import tokenized, train_reward_model

        args = self.args.reward_arguments(self.reward_run.path, newest.number)
        choices = load_choices(args.feedback, args.as_conversations, kept)
        choices.train = concatenate_datasets([choices.train, choices.held_out])
        judged, own = judged_by_probe(choices, self.base, self.tokenizer, args)
        passes = max(1, min(args.feedback_epochs, MOST_ROWS // len(own)))
        reader = PromptReader(self.tokenizer, None, args.chat_template_kwargs)
        longest = min(args.max_length, models.context_size(self.base))
        judged, chosen = (tokenized(pairs, reader, longest) for pairs in (judged, own))
        pairs = joined(judged, concatenate_datasets([chosen] * passes))
        self.reward.requires_grad_(True)
        callback = Continued(self.reward_run, "Reward model", "step", newest.reward_steps)
        folder = self.reward_run.path / "checkpoints"
        train_reward_model(self.reward, self.tokenizer, args, pairs, chosen.select([0]), folder, [callback])
        self.reward.requires_grad_(False)
        # As in `ppo`, scores are measured in standard deviations of the base model's.
        scores = score_ids(self.reward, [*judged["chosen_ids"], *judged["rejected_ids"]])
        self.trainer.score_stats = ScoreStats()
        self.trainer.score_stats.normalization("reference", scores)
        return newest.reward_steps + self.reward_run.status()["step"]


class Bounded(TrainerCallback):
    """Ends PPO's part of a state after so many seconds; a state is saved with the reward model, not by the trainer."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.began = seconds, 0.0

    def on_train_begin(self, *args: object, **kwargs: object) -> None:
        """Start the clock."""
        self.began = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Look at it."""
        control.should_save = False
        if time.monotonic() - self.began > self.seconds:
            control.should_training_stop = True


class Continued(RunCallback):
    """Counts the steps of a training after those of the trainings before it; a state is saved with the policy."""

    def __init__(self, run: Run, label: str, unit: str, before: int) -> None:
        super().__init__(run, label, unit)
        self.before = before

    def on_step_end(self, args: object, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """See RunCallback."""
        super().on_step_end(args, state, control, **kwargs)
        control.should_save = False

    def on_log(self, args: object, state: TrainerState, control: TrainerControl, logs: dict, **kwargs: object) -> None:
        """See RunCallback."""
        if metrics.EVAL_LOSS not in logs:  # every choice is learned from: the next ones are the test
            super().on_log(args, state, control, logs | {metrics.STEP: self.before + state.global_step}, **kwargs)

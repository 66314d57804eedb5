"""`reward`, `ppo` and `dpo`: load and check everything, make the run directory, train, save."""

from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.trainer_callback import PrinterCallback

from rlhf import metrics, models, ranks
from rlhf.commands.ceiling import evenly_spaced, write_ceiling
from rlhf.commands.judging import Judges, load_judges
from rlhf.commands.lifecycle import Stopped, finished, open_run, recorded
from rlhf.compare.answers import AnswerSampler
from rlhf.config import (
    EVERYDAY,
    BadInput,
    CompareArguments,
    DPOArguments,
    PPOArguments,
    PPOSettings,
    RewardArguments,
)
from rlhf.data.load import fingerprint, load_preferences, load_prompts, pinned_prompts
from rlhf.feedback.agreement import Agreement
from rlhf.feedback.pairs import joined, load_choices, pairs_to_learn
from rlhf.models.packed import use_packed_attention
from rlhf.models.prompts import PromptReader, end_ids, fitting, give_chat_template, readable
from rlhf.models.scoring import scores_at_last_token
from rlhf.ppo import PPOConfig, PPOTrainer
from rlhf.runs import checkpoint
from rlhf.runs.callbacks import EveryFewSteps, RunCallback, tracker
from rlhf.runs.directory import Run
from rlhf.runs.files import read_json, write_json
from rlhf.words import interval
from rlhf.write.card import write_card


EVAL_PROMPTS = 128
"""About as many held-out prompts, evenly spaced, are used by --eval_steps."""


def reward(args: RewardArguments) -> dict:
    """Train a reward model; returns what `reward_model` in `summary.json` says, on the first rank."""
    # Takes seconds to import, and only this command needs it.
    from rlhf.reward import gold_margins, label_ceiling, report, tokenized, train_reward_model

    if done := finished(args, "reward"):
        return done.summary()["reward_model"]
    # 1. Load and check everything before the run's directory is made.
    train, held_out, agreed = _pairs(args)
    set_seed(args.seed)  # the score head is new
    model, tokenizer = models.load_reward_model(args.model_name_or_path, _frozen(args))
    if not scores_at_last_token(model):
        raise BadInput(
            f"{args.model_name_or_path} is an encoder, and reward training starts from a causal language model; an "
            "encoder that scores answers already can be given to ppo as --reward_model_path."
        )
    use_packed_attention(model)
    adapters = models.lora(args, model, "SEQ_CLS")
    data_fingerprint = fingerprint(value for row in train for value in row.values())
    give_chat_template(tokenizer, train["prompt"])
    max_length = min(args.max_length, models.context_size(model))
    reader = PromptReader(tokenizer, None, args.chat_template_kwargs)
    train, held_out = (tokenized(pairs, reader, max_length) for pairs in (train, held_out))
    resumed = checkpoint.find(args, "reward", model)
    run = open_run(args, "reward", resumed, model_revision=models.revision(model), data_fingerprint=data_fingerprint)
    with recorded(run), tracker(run, args.report_to) as trackers:
        # 2. Train. In the embedded world the best possible accuracy is known, and drawn beside the curve.
        callback = RunCallback(run, "Reward model", "step")
        gold = gold_margins(held_out) if args.dataset_name == EVERYDAY and not args.feedback else None
        begun = bool(run.metrics())  # by the run that is resumed
        if gold is not None and not begun:
            run.log({metrics.STEP: 0, metrics.LABEL_CEILING: label_ceiling(gold)})
        if agreed is not None and not begun:
            run.log({metrics.STEP: 0, metrics.AGREEMENT: agreed.raw})
        args = replace(args, resume_from_checkpoint=resumed and str(resumed))
        train_reward_model(
            model, tokenizer, args, train, held_out, run.path / "checkpoints", [callback, *trackers], adapters
        )
        if not ranks.is_main_process():  # the rest is done by one process
            return {}
        # 3. Save, then measure on all held-out pairs.
        run.set_status(message="Saving, then measuring on the held-out pairs")
        with checkpoint.all_or_nothing(run.path / "model") as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        measured = report(model, held_out, gold) | {"agreement": agreed and asdict(agreed)}
        write_json(run.path / "summary.json", {"reward_model": measured})
        write_card(run.path / "model")
        run.log(
            {
                metrics.STEP: run.status()["step"],
                metrics.EVAL_LOSS: measured["loss"]["value"],
                metrics.EVAL_ACCURACY: measured["accuracy"]["value"],
                metrics.EVAL_MARGIN: measured["mean_margin"],
                metrics.EVAL_PAIRS: len(held_out),
            }
        )
        if run.stop_requested():
            raise Stopped
    return measured


def _pairs(args: RewardArguments) -> tuple[Dataset, Dataset, Agreement | None]:
    """Pairs to train on, pairs held out, and how far people agree where those held out are people's own choices."""
    named = {"columns": args.columns, "as_conversations": args.as_conversations}
    if args.feedback is None:
        return *load_preferences(args.dataset_name, **named), None
    choices = load_choices(args.feedback, args.as_conversations)
    train = pairs_to_learn(choices, args, _tell(args))
    if not args.feedback_only:
        train = joined(load_preferences(args.dataset_name, **named)[0], train)
    return train, choices.held_out, choices.agreement


def _tell(args: RewardArguments) -> Callable[[int, int], None]:
    """Shows how many prompts have been answered, also in the status of a demo: the stage has no directory yet."""
    bar = tqdm(desc="Answers to judge", unit=" prompts")
    run = Run(args.output_dir).parent() if args.output_dir else None

    def tell(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)
        if done == total:
            bar.close()
        if run is not None:
            run.set_status(preparing=[done, total])
            if run.stop_requested():
                raise Stopped

    return tell


def ppo(args: PPOArguments) -> dict:
    """Train a policy with PPO; returns the metrics of its last update, on the first rank."""
    if done := finished(args, "ppo"):
        return _last_with(metrics.SCORE, done.metrics())
    # 1. Load and check everything before the run's directory is made.
    _check_reward(args)
    judges = load_judges(args)
    args = replace(args, reward_label=judges.label)  # for the run to record
    policy, tokenizer = models.load_policy(args.model_name_or_path, dtype=_frozen(args))
    prompts = split_prompts(args, "ppo")
    for reads in (tokenizer, *judges.readers):
        give_chat_template(reads, prompts)
    ends = end_ids(policy, tokenizer)
    reader = PromptReader(tokenizer, prompt_room(args, policy), args.chat_template_kwargs, ends)
    prompts = fitting(prompts, reader)
    held_out = fitting(split_prompts(args, "test"), reader)
    resumed = checkpoint.find(args, "ppo", policy)
    trainer = PPOTrainer(
        policy,
        ppo_config(args, judges.weights),
        tokenizer,
        judges.sources,
        reward_processing_classes=judges.tokenizers,
        train_dataset=prompts,
        eval_dataset=held_out[:: max(1, len(held_out) // EVAL_PROMPTS)] if args.eval_steps else None,
        value_model=_critic(args, judges, tokenizer),
        peft_config=models.lora(args, policy, "CAUSAL_LM"),
    )
    trainer.remove_callback(PrinterCallback)
    data_fingerprint = fingerprint(prompt.raw for prompt in prompts)
    run = open_run(args, "ppo", resumed, model_revision=models.revision(policy), data_fingerprint=data_fingerprint)
    with recorded(run), tracker(run, args.report_to) as trackers:
        # 2. Before the policy changes, measure the best that it can come to. Several ranks would wait for one.
        measured = (run.path / "ceiling.json").exists()  # by the run that is resumed
        if args.ceiling_samples and len(held_out) > 1 and ranks.world_size() == 1 and not measured:
            write_ceiling(
                run,
                trainer.model,
                AnswerSampler(judges.scorer(reader), args.response_length, args.temperature),
                evenly_spaced(held_out, args.ceiling_prompts),
                samples=args.ceiling_samples,
                has_gold=args.dataset_name == EVERYDAY,
                seed=args.seed,
            )
        # 3. Train, with sample answers now and then.
        trainer.args.output_dir = str(run.path / "checkpoints")
        for callback in (RunCallback(run, "PPO", "update"), *trackers):
            trainer.add_callback(callback)
        if args.num_sample_generations:
            _add_samples(trainer, run, pinned_prompts(held_out), args.num_sample_generations)
        failure = _train(trainer, resumed)
        # 4. Save.
        trainer.model = models.merged(trainer.model)
        with checkpoint.all_or_nothing(run.path / "model") as folder:
            trainer.save_model(folder)
        if ranks.is_main_process():
            write_card(run.path / "model")
        if failure:
            raise BadInput(f"{failure} {run.saved()} Go on with --resume_from_checkpoint {run.path}.") from failure
        if run.stop_requested():
            raise Stopped
    if not ranks.is_main_process():
        return {}
    return _last_with(metrics.SCORE, trainer.state.log_history)


def _last_with(name: str, rows: list[dict]) -> dict:
    """The last line that has this metric; empty for none."""
    return next((row for row in reversed(rows) if name in row), {})


def _add_samples(trainer: PPOTrainer, run: Run, pinned: list, count: int) -> None:
    """Have these prompts answered about so many times during the training."""

    def sample(step: int) -> None:
        samples = trainer.generate_completions(pinned, greedy=True)
        run.log_samples(step, [{**sample, "prompt": readable(sample["prompt"])} for sample in samples])

    last = next((row["step"] for row in reversed(run.samples())), None)
    trainer.add_callback(EveryFewSteps(max(1, trainer.args.num_total_batches // count), sample, last))


def _train(trainer: PPOTrainer, resumed: Path | None) -> BadInput | None:
    """Train; returns why it ended too early, if a reward failed: a judge may go out of reach in the middle.

    There is then a checkpoint as of the last whole update, in which the failure has changed nothing.
    """
    try:
        trainer.train(resumed)
    except BadInput as failure:
        if not trainer.state.global_step or ranks.world_size() > 1:
            raise
        trainer.save_checkpoint()
        return failure
    return None


def dpo(args: DPOArguments) -> dict:
    """Train a policy with DPO on preference pairs; returns TRL's last evaluation on held-out pairs."""
    # Takes seconds to import, and only this command needs it.
    from rlhf.dpo import train_dpo
    from rlhf.reward import gold_margins, label_ceiling, tokenized

    if done := finished(args, "dpo"):
        return _last_with(metrics.EVAL_LOSS, done.metrics())
    # 1. Load and check everything before the run's directory is made.
    named = (args.dataset_name, False, args.columns, args.as_conversations)  # without margins: DPO's loss has none
    train, held_out = load_preferences(*named)
    policy, tokenizer = models.load_policy(args.model_name_or_path, dtype=_frozen(args))
    adapters = models.lora(args, policy, "CAUSAL_LM")
    data_fingerprint = fingerprint(value for row in train for value in row.values())
    give_chat_template(tokenizer, train["prompt"])
    max_length = min(args.max_length, models.context_size(policy))
    reader = PromptReader(tokenizer, None, args.chat_template_kwargs)
    train, held_out = (tokenized(pairs, reader, max_length) for pairs in (train, held_out))
    set_seed(args.seed)  # adapters are new
    resumed = checkpoint.find(args, "dpo", policy)
    run = open_run(args, "dpo", resumed, model_revision=models.revision(policy), data_fingerprint=data_fingerprint)
    with recorded(run), tracker(run, args.report_to) as trackers:
        # 2. Train. The noise in the labels limits the policy's accuracy as it does the reward model's.
        if args.dataset_name == EVERYDAY and not run.metrics():
            run.log({metrics.STEP: 0, metrics.LABEL_CEILING: label_ceiling(gold_margins(held_out))})
        callback = RunCallback(run, "DPO", "step")
        args = replace(args, resume_from_checkpoint=resumed and str(resumed))
        policy = train_dpo(
            policy, tokenizer, args, train, held_out, run.path / "checkpoints", [callback, *trackers], adapters
        )
        # 3. Save.
        with checkpoint.all_or_nothing(run.path / "model") as folder:
            policy.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        write_card(run.path / "model")
        if run.stop_requested():
            raise Stopped
    return _last_with(metrics.EVAL_LOSS, run.metrics())


def _critic(args: PPOArguments, judges: Judges, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel | None:
    """A value model with adapters; None lets the trainer make a value head, or a value model without adapters."""
    if not args.use_peft or args.value_head != "separate":
        return None
    # As the trainer does without adapters: the reward model again if it reads the policy's tokens, else the policy.
    begins_as_reward = any(
        scores_at_last_token(model) and reads.get_vocab() == tokenizer.get_vocab()
        for model, reads in zip(judges.models, judges.readers, strict=True)
    )
    start = args.reward_model_path if begins_as_reward else args.model_name_or_path
    value_model, _ = models.load_reward_model(start, _frozen(args))
    if not begins_as_reward:
        torch.nn.init.zeros_(value_model.score.weight)
    from peft import get_peft_model

    return get_peft_model(value_model, models.lora(args, value_model, "SEQ_CLS"))


def _frozen(args: RewardArguments | PPOArguments | DPOArguments) -> torch.dtype:
    """How weights are loaded. Trained ones stay in full precision, or small steps would be lost in rounding."""
    return torch.bfloat16 if args.use_peft and args.dtype == "bfloat16" else torch.float32


def split_prompts(args: PPOArguments | CompareArguments, split: str) -> list:
    """Prompts of a split: the texts or conversations of a column, whole or only their first words."""
    answers = (args.chosen_column, args.rejected_column)
    named = (args.dataset_name, split, args.prompt_column, args.prompt_words, answers, args.as_conversations)
    return load_prompts(*named)


def prompt_room(args: PPOArguments | CompareArguments, policy: PreTrainedModel) -> int:
    """The most tokens a prompt may have."""
    room = models.context_size(policy) - args.response_length
    return room if args.max_prompt_length is None else min(room, args.max_prompt_length)


def ppo_config(args: PPOArguments, reward_weights: list[float]) -> PPOConfig:
    """The trainer's settings in a run, which has its own directory, progress bar and samples."""
    shared = {field.name: getattr(args, field.name) for field in fields(PPOSettings)}
    return PPOConfig(
        ".",  # the run's directory is made when everything has been checked
        **shared,
        reward_weights=reward_weights,
        chat_template_kwargs=args.chat_template_kwargs,
        eval_strategy="steps" if args.eval_steps else "no",
        eval_steps=args.eval_steps or None,
        save_strategy="steps" if args.save_steps else "no",
        save_steps=args.save_steps or 500,
        save_total_limit=args.save_total_limit,
        save_value_model=False,
        bf16=args.dtype == "bfloat16",
        use_cpu=not torch.cuda.is_available() and args.dtype == "bfloat16",  # or Transformers refuses bfloat16
        disable_tqdm=True,
        report_to="none",
    )


def reward_report(path: str | None) -> dict | None:
    """What the run that trained a reward model measured; None for a model that no run trained, or none at all."""
    return read_json(Path(path) / "summary.json").get("reward_model") if path else None


def _check_reward(args: PPOArguments) -> None:
    """Refuse no reward, and a reward model that is not better than chance: PPO would only learn its noise."""
    if args.reward_model_path is None and not args.reward_funcs:
        raise BadInput(
            "PPO needs a reward model or a reward function: give --reward_model_path, for example the run directory "
            "of `reward`, or --reward_funcs, for example length:20."
        )
    measured = reward_report(args.reward_model_path)
    if measured and not measured["told_from_chance"] and not args.allow_chance_reward:
        raise BadInput(
            f"The reward model's loss on held-out pairs is {interval(measured['loss'])} nats, not better than chance "
            "(0.693); train it longer or on more pairs, or set allow_chance_reward to true to continue anyway."
        )

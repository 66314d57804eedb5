"""PPOTrainer: a Transformers Trainer in its life cycle, with the loop of `algorithm.py` inside.

Here stand construction and its checks, the loop over updates, evaluation, sample completions and saving; what a
checkpoint holds beside the policy is in `resuming.py`.
"""

import copy
import gc
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_utils import TrainOutput

from rlhf import models, ranks
from rlhf.compare.stats import paired
from rlhf.config import BadInput
from rlhf.metrics import EPISODE
from rlhf.models.generate import Generation, generate
from rlhf.models.packed import is_peft, plain_model, use_packed_attention
from rlhf.models.prompts import (
    Prompt,
    PromptReader,
    PromptSet,
    PromptStream,
    end_ids,
    held_out_prompts,
    prompts_of,
)
from rlhf.models.scoring import RewardFunc, RewardScores, combine, rewards_of, score_responses
from rlhf.ppo import resuming
from rlhf.ppo.algorithm import SHOW, Rollout, ScoreStats, ppo_update
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.critic import ValueHead, new_value_model
from rlhf.ppo.logprobs import ActorCritic
from rlhf.runs import checkpoint
from rlhf.runs.divergence import Watch


class PPOTrainer(Trainer):
    """Proximal policy optimisation of a causal language model against rewards.

    A Transformers Trainer in its life cycle (callbacks, trackers, saving, devices); one update is
    `rlhf.ppo.algorithm.ppo_update`. Every random number comes from a generator seeded by (seed, update), so a resumed
    run repeats an uninterrupted one to the bit on the CPU. Under a launcher the prompts of an update are dealt to the
    processes, which must all be given the same models, prompts and settings.

    Args:
        model: the policy, or its name or path; trained in place.
        args: settings, see `PPOConfig`.
        processing_class: the policy's tokenizer; loaded with a model that is given by name.
        reward_funcs: a function `f(prompts, completions, completion_ids, **columns)` that returns one number per
            completion (None for no opinion) or a list with one per token; or a sequence classifier with one output, or
            its name or path; or a list of these.
        reward_model: the same under TRL's old name.
        train_dataset: rows with a `prompt` (a text or a conversation) or with `input_ids`, or plain texts. May be an
            iterable without length. Other columns go to the reward functions.
        eval_dataset: as train_dataset, for `evaluate` and `generate_completions`; or several in a dict, by name.
        reward_processing_classes: the tokenizers of reward models, in the order of reward_funcs.
        value_model: a sequence classifier with one output, or its name; by default a value head on the policy.
        ref_model: the reference; by default a frozen copy of the policy, or with PEFT the policy without adapters.
        data_collator: accepted for compatibility with TRL; nothing is padded here.
        callbacks: Transformers callbacks; a request to stop takes effect after the update in progress.
        optimizers: an optimizer of the policy's parameters and a scheduler, instead of AdamW and the one in args.
        quantization_config: how to load a model given by name.
        peft_config: train adapters instead of all parameters.

    Raises:
        BadInput: models, tokenizers, rewards, prompts or settings that do not fit together, before time is spent.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        args: PPOConfig | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        reward_funcs: str | PreTrainedModel | RewardFunc | list | None = None,
        *old_order: object,
        reward_model: str | PreTrainedModel | RewardFunc | list | None = None,
        train_dataset: Sequence | None = None,
        eval_dataset: Sequence | dict | None = None,
        reward_processing_classes: PreTrainedTokenizerBase | list | None = None,
        value_model: str | PreTrainedModel | None = None,
        ref_model: str | PreTrainedModel | None = None,
        data_collator: Callable | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple = (None, None),
        quantization_config: object | None = None,
        peft_config: object | None = None,
    ) -> None:
        # Calls written for TRL 1.12 work, or are told at once what has changed.
        if isinstance(model, TrainingArguments) or old_order:
            raise TypeError("PPOTrainer takes the model first: PPOTrainer(model, args, ...), or all by keyword.")
        if train_dataset is None:
            raise BadInput("PPOTrainer needs a train_dataset with a column `prompt` or `input_ids`.")
        if reward_funcs is not None and reward_model is not None:
            raise BadInput("Give either reward_funcs or reward_model, which are the same; reward_funcs takes a list.")
        if ref_model is model and not isinstance(model, str):
            raise BadInput("ref_model must not be the policy itself, which changes; leave it out for a frozen copy.")

        # The policy, its prompts and its rewards
        if isinstance(model, str):
            model, its_tokenizer = models.load_policy(model, quantization_config=quantization_config)
            processing_class = processing_class or its_tokenizer
        args = args or PPOConfig(f"{str(model.name_or_path).rstrip('/').split('/')[-1]}-PPO")
        models.check_policy(model, processing_class)
        model = _ready_policy(model, peft_config, args.device)
        ends = end_ids(model, processing_class)
        self.reader = PromptReader(processing_class, _prompt_room(model, args), args.chat_template_kwargs, ends)
        self.rewards = rewards_of(
            reward_model if reward_funcs is None else reward_funcs,
            reward_processing_classes,
            self.reader,
            model.get_input_embeddings().weight.size(0),
        )
        self.reward_weights = args.reward_weights or [1.0] * len(self.rewards)
        if len(self.reward_weights) != len(self.rewards):
            raise BadInput(f"There are {len(self.rewards)} rewards and {len(self.reward_weights)} reward_weights.")
        self.prompts = prompts_of(train_dataset, self.reader)
        self.eval_prompts = held_out_prompts(eval_dataset, self.reader)
        if args.total_episodes is None and args.max_steps <= 0:
            args.total_episodes = self._episodes_of_epochs(args)
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )

        # The reference, the critic and the optimizer, on the policy's device
        self.stop_id = self._stop_id()
        for source in (reward.source for reward in self.rewards if reward.is_model):
            source.to(args.device)
        ranks.broadcast_weights(self.model)
        self.ref_model = self._prepare_reference(ref_model)
        self.value_model = self._prepare_critic(value_model)
        ranks.broadcast_weights(self.value_model)
        self.actor_critic = ActorCritic(self.model, self.value_model, self.ref_model, args, self.accelerator.autocast)
        if args.gradient_checkpointing:
            self._checkpoint_activations()
        self.create_optimizer_and_scheduler(args.num_total_batches)
        self.state.max_steps = args.num_total_batches
        self.kl_coef, self.score_stats, self.watch = args.kl_coef, ScoreStats(), Watch()
        self.base_eval_scores: dict[str, torch.Tensor] = {}

    # Construction --------------------------------------------------------------------------------------------------

    def _stop_id(self) -> int | list[int] | None:
        """The token that ends a response, or several; None if only the length limit does."""
        if not self.args.stop_token:
            return self.args.stop_token_id
        if not self.reader.end_ids:
            raise BadInput("The tokenizer has no end token; give stop_token_id, or stop_token='none'.")
        return self.reader.end_ids if len(self.reader.end_ids) > 1 else self.reader.end_ids[0]

    def _episodes_of_epochs(self, args: PPOConfig) -> int:
        """total_episodes for num_train_epochs passes over the prompts."""
        if isinstance(self.prompts, PromptStream):
            raise BadInput("An iterable data set has no length: give total_episodes or max_steps.")
        return max(args.batch_size, int(args.num_train_epochs * len(self.prompts)))

    def _prepare_reference(self, ref_model: str | PreTrainedModel | None) -> PreTrainedModel | None:
        """The frozen reference; None where the policy without its adapters is it, or nothing needs one."""
        args = self.args
        if isinstance(ref_model, str):
            ref_model, _ = models.load_policy(ref_model)
        # Without a KL penalty nothing is compared with the reference, and a copy would only take memory.
        needed = args.kl_coef > 0 or args.kl_controller == "adaptive"
        if ref_model is None and needed and not is_peft(self.model):
            ref_model = copy.deepcopy(self.model)
        if ref_model is None:
            return None
        # The log-ratio compares token by token: the reference must know the policy's tokens.
        models.check_policy(ref_model, self.processing_class, "ref_model")
        rows, own = (each.get_input_embeddings().weight.size(0) for each in (ref_model, self.model))
        if rows != own:
            raise BadInput(
                f"The embedding of ref_model has {rows} rows, that of the policy {own}: they must be equal."
            )
        return _without_dropout(ref_model, args.device).requires_grad_(False)

    def _prepare_critic(self, value_model: str | PreTrainedModel | None) -> ValueHead | PreTrainedModel | None:
        """A value head on the policy's trunk, or a value model that was given or is made; None if none is needed."""
        if self.args.advantage_estimator != "gae":
            if value_model is not None:
                raise BadInput("Only the advantage_estimator 'gae' has a critic; leave value_model out.")
            return None
        if value_model is None and self.args.value_head == "shared":
            hidden_size = plain_model(self.model).config.get_text_config().hidden_size
            return ValueHead(hidden_size).to(self.args.device)
        if isinstance(value_model, str):
            value_model, _ = models.load_reward_model(value_model, tokenizer=self.processing_class)
        # It must read the policy's tokens and give one number per token, and may share no weights with the rewards.
        value_model = value_model or new_value_model(self.model, self.rewards)
        models.check_value_model(value_model, self.processing_class)
        if any(reward.source is value_model for reward in self.rewards):
            raise BadInput("value_model must not be the reward model itself, which would change; load it twice.")
        value_model = _without_dropout(value_model, self.args.device)
        # With adapters, PEFT has decided what is trained; a copied reward model comes frozen.
        return value_model if is_peft(value_model) else value_model.requires_grad_(True)

    def _checkpoint_activations(self) -> None:
        """Recompute activations in the backward pass. Transformers does so in train mode only: dropout goes to 0."""
        has_trunk = self.value_model is not None and not self.actor_critic.shares_trunk
        for model in (self.model, *([self.value_model] if has_trunk else [])):
            for module in model.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
            # Transformers 5.24 has given it another name, and warns of this one.
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
            model.train()

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Transformers' optimizer for the policy, with the value head or model as one more group."""
        super().create_optimizer(model)
        # An optimizer of the caller's own may hold the critic already.
        own = {id(parameter) for group in self.optimizer.param_groups for parameter in group["params"]}
        # A value head starts at zero beside a trunk that is trained: it has further to go, so it goes faster.
        lr = self.args.value_learning_rate or self.args.learning_rate * (10 if self.actor_critic.shares_trunk else 1)
        # Weight decay where Transformers puts it: not on biases and norms.
        critic = self.value_model or nn.Module()  # none has no parameters
        decayed = self.get_decay_parameter_names(critic)
        for decay in (True, False):
            values = [p for name, p in critic.named_parameters() if (name in decayed) == decay]
            values = [p for p in values if id(p) not in own]
            if values:
                weight_decay = self.args.weight_decay if decay else 0.0
                self.optimizer.add_param_group({"params": values, "lr": lr, "weight_decay": weight_decay})
        self.trainable = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        return self.optimizer

    # The loop over updates -----------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, **kwargs: object) -> TrainOutput:
        """Run all updates, or those that are left after a checkpoint (True: the newest whole one in args.output_dir).

        Settings that differ from those of the checkpoint are used.

        Returns the number of updates, the loss of the last one, and its metrics; `state.log_history` has them all.

        Raises:
            Diverged: a number is no longer finite, see `ppo_update`, or the policy has collapsed, see `Watch`.
        """
        if resume_from_checkpoint is True:
            folder = self.args.output_dir
            resume_from_checkpoint = checkpoint.newest(Path(folder))
            if resume_from_checkpoint is None:
                raise BadInput(f"There is no checkpoint in {folder} to resume from; leave resume_from_checkpoint out.")
        if resume_from_checkpoint:
            resuming.restore(self, Path(resume_from_checkpoint))
        self.state.compute_steps(self.args, self.args.num_total_batches)
        self.state.max_steps = self.args.num_total_batches
        self.state.num_train_epochs = math.ceil(self._epochs(self.state.max_steps))
        self.control.should_training_stop = False
        self.control = self.callback_handler.on_train_begin(self.args, self.state, self.control)
        # What is in memory now stays: this keeps the garbage collector from scanning the imported libraries each time.
        gc.freeze()
        metrics: dict[str, float] = {}
        try:
            while self.state.global_step < self.state.max_steps and not self.control.should_training_stop:
                metrics = self._update()
        finally:
            gc.unfreeze()
        self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
        loss = metrics.get("loss/policy_avg", 0.0) + self.args.vf_coef * metrics.get("loss/value_avg", 0.0)
        return TrainOutput(self.state.global_step, loss, metrics)

    def _epochs(self, steps: int) -> float:
        """Passes over the prompts after `steps` updates; 0 for a stream."""
        prompts = len(self.prompts) if isinstance(self.prompts, PromptSet) else math.inf
        return steps * self.args.batch_size / self.args.num_generations / prompts

    def _update(self) -> dict[str, float]:
        """One PPO update, and what is due after it; returns its metrics."""
        self.control = self.callback_handler.on_step_begin(self.args, self.state, self.control)
        # The prompts of all ranks, each as often as it is answered.
        distinct = self.args.batch_size // self.args.num_generations
        batch = self.prompts.batch(self.state.global_step * distinct, distinct, self.args.seed)
        metrics = ppo_update(self, [prompt for prompt in batch for _ in range(self.args.num_generations)])
        self.state.global_step += 1
        self.state.epoch = self._epochs(self.state.global_step)
        self.lr_scheduler.step()
        self._after_update(metrics)
        return metrics

    def _after_update(self, metrics: dict[str, float]) -> None:
        """Log, sample, evaluate and save when it is due; callbacks and args decide, as in any Trainer."""
        self.control = self.callback_handler.on_step_end(self.args, self.state, self.control)
        # An epoch ends between two updates; 1e-9 makes up for rounding.
        if int(self.state.epoch + 1e-9) > int(self._epochs(self.state.global_step - 1) + 1e-9):
            self.control = self.callback_handler.on_epoch_end(self.args, self.state, self.control)
        if self.control.should_log:
            self.log(dict(metrics))
        self.watch.look(metrics, self.state.global_step)
        every = max(1, self.state.max_steps // max(1, self.args.num_sample_generations))
        wanted = self.args.log_completions and self.args.num_sample_generations and self.eval_prompts
        if wanted and ranks.is_main_process() and (self.state.global_step - 1) % every == 0:
            self.generate_completions()
        if self.control.should_evaluate:
            self.evaluate()
        if self.control.should_save and not self.watch.wrong:  # or it would be the newest, from which a run resumes
            self.save_checkpoint()
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    # What an update asks for ---------------------------------------------------------------------------------------

    def generator(self, purpose: int) -> torch.Generator:
        """A generator for one purpose in one update; (seed, update, purpose) always gives the same one."""
        # Nothing is carried from update to update, so there is no generator state to save in a checkpoint.
        seed = (self.args.seed * 1_000_003 + self.state.global_step) * 4 + purpose
        return torch.Generator().manual_seed(seed)

    def roll_out(
        self, prompts: list[Prompt], generator: torch.Generator, model: PreTrainedModel | None = None
    ) -> Rollout:
        """Sample answers to this rank's share of some prompts, from the policy or another model."""
        share = ranks.shard(len(prompts))
        queries = [prompt.ids for prompt in prompts]
        # The hidden states (B, T, d) serve the value head and the exact KL later: the policy is not read again.
        generation = self._generate(model or self.model, queries, generator, share, keep_hidden=True)
        prompts = [prompts[row] for row in share]
        rows = [prompt.ids + answer for prompt, answer in zip(prompts, generation.lists(), strict=True)]
        # The score of a response that was cut off says little about its tokens: they may be left out of the losses.
        loss_mask = generation.mask
        if self.args.mask_truncated_completions:
            loss_mask = loss_mask & generation.ended.unsqueeze(1)
        return Rollout(prompts, rows, generation, loss_mask)

    def _generate(
        self,
        model: PreTrainedModel,
        queries: list[list[int]],
        generator: torch.Generator,
        share: Sequence[int] | None = None,
        *,
        greedy: bool = False,
        keep_hidden: bool = False,
    ) -> Generation:
        """Answers to some prompts, or to a share of them; see `rlhf.models.generate.generate`."""
        share = range(len(queries)) if share is None else share
        # More prompts at once are faster and take more memory; their answers are the same.
        size = self.args.local_rollout_forward_batch_size or len(share)
        parts = []
        for start in range(0, len(share), size):
            rows = share[start : start + size]
            # Random numbers are drawn for the rows of all ranks, and each rank uses those of its own.
            drawn = {"share": (rows, len(queries))} if len(share) < len(queries) else {}
            with self.accelerator.autocast():
                part = generate(
                    model,
                    [queries[row] for row in rows],
                    max_new_tokens=self.args.response_length,
                    temperature=0.0 if greedy else self.args.temperature,
                    eos_id=self.stop_id,
                    generator=generator,
                    keep_hidden=keep_hidden,
                    **drawn,
                )
            parts.append(part)
        return parts[0] if len(parts) == 1 else Generation.join(parts)

    def score(self, rollout: Rollout) -> tuple[torch.Tensor, torch.Tensor]:
        """Ask the rewards: a score per response (B,), and what of it each token earned (B, T).

        Raises:
            BadInput: a reward function has no opinion on any response of all ranks.
        """
        rollout.reward_outputs = self._score_responses(rollout.prompts, rollout.generation)
        for name, scores in rollout.reward_outputs.by_reward.items():
            if not ranks.any_rank(any(score is not None for score in scores)):
                raise BadInput(f"The reward function {name} gave None for every completion of an update.")
        return combine(rollout.reward_outputs, self.reward_weights, rollout.mask)

    def _score_responses(self, prompts: list[Prompt], generation: Generation) -> RewardScores:
        """What the rewards say of B answers."""
        with self.accelerator.autocast():
            return score_responses(self.rewards, prompts, generation.lists(), generation.ended.tolist(), self.state)

    # Evaluation and samples ----------------------------------------------------------------------------------------

    def evaluate(
        self, eval_dataset: Sequence | dict | None = None, ignore_keys: object = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Policy and reference on the same held-out prompts, sampled as in training with the same random numbers.

        Returns `eval/score`, `eval/base_score`, the paired `eval/gain` with its 95 % interval over prompts, the win
        rate, the exact KL from the reference in nats per response, the mean length in tokens, and the share of
        responses that ended; for several data sets under their names.
        """
        sets = self.eval_prompts if eval_dataset is None else held_out_prompts(eval_dataset, self.reader)
        if not sets:
            raise BadInput("evaluate needs prompts: give PPOTrainer an eval_dataset.")
        metrics = {}
        for name, prompts in sets.items():
            prefix = metric_key_prefix if name == "" else f"{metric_key_prefix}_{name}"
            key = name if eval_dataset is None else None
            metrics |= {f"{prefix}/{entry}": value for entry, value in self._evaluate_on(prompts, key).items()}
        # With the episodes, so that the numbers find their place on the curves.
        self.log({EPISODE: self.state.global_step * self.args.batch_size, **metrics})
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @torch.no_grad()
    def _evaluate_on(self, prompts: list[Prompt], key: str | None) -> dict[str, float]:
        """The numbers of `evaluate` on one set; the reference's scores are kept under `key`."""
        samples, actor_critic = self.args.eval_num_samples_per_prompt, self.actor_critic
        repeated = [prompt for prompt in prompts for _ in range(samples)]
        columns = defaultdict(list)  # numbers of all ranks by name, a tensor per batch
        for rollout, size in self._scored_answers(repeated, self.model):
            numbers = {
                "score": rollout.raw_scores,
                "mean_length": rollout.mask.sum(dim=1).float(),
                "eos_rate": rollout.generation.ended.float(),
            }
            if actor_critic.has_reference:
                _, exact_kl = actor_critic.reference_logprobs(rollout)
                numbers["kl"] = exact_kl.sum(dim=1)
            for name, values in numbers.items():
                columns[name].append(ranks.gather(values)[:size])
        of_policy = {name: torch.cat(parts) for name, parts in columns.items()}
        means = {name: values.mean().item() for name, values in of_policy.items()}
        if not actor_critic.has_reference:
            return means
        base = self.base_eval_scores.get(key)
        if base is None:
            with actor_critic.reference() as reference:
                answered = self._scored_answers(repeated, reference)
                base = torch.cat([ranks.gather(rollout.raw_scores)[:size] for rollout, size in answered])
        if key is not None:
            self.base_eval_scores[key] = base
        by_prompt = (scores.cpu().double().view(-1, samples).numpy() for scores in (base, of_policy["score"]))
        comparison = paired(*by_prompt)
        return {
            **means,
            "base_score": base.mean().item(),
            "gain": comparison.gain.value,
            "gain_ci_low": comparison.gain.low,
            "gain_ci_high": comparison.gain.high,
            "win_rate": comparison.win_rate.value,
        }

    def _scored_answers(self, prompts: list[Prompt], model: PreTrainedModel) -> Iterator[tuple[Rollout, int]]:
        """Scored answers of a model to held-out prompts, a batch at a time, always from the same random numbers.

        Yields this rank's share of a batch and the size of the whole batch: shares may repeat its last row.
        """
        generator = torch.Generator().manual_seed(self.args.seed)
        for start in range(0, len(prompts), self.args.batch_size):
            batch = prompts[start : start + self.args.batch_size]
            rollout = self.roll_out(batch, generator, model)
            # The next batch begins where the longest answer of all ranks has left the generator.
            drawn = rollout.mask.size(1)
            for _ in range(max(ranks.all_gather_object(drawn)) - drawn):
                torch.rand(len(batch), generator=generator)
            reward_outputs = self._score_responses(rollout.prompts, rollout.generation)
            rollout.raw_scores, _ = combine(reward_outputs, self.reward_weights, rollout.mask)
            yield rollout, len(batch)

    def generate_completions(
        self, prompts: Sequence[str | dict] | None = None, *, greedy: bool = False
    ) -> list[dict[str, object]]:
        """Answers to some prompts, by default those of eval_dataset, sampled as in training or the most likely ones.

        Returns `{index, prompt, response, score}` each; with args.log_completions the first of them are printed.
        """
        if prompts is None:
            prompts = [prompt for held_out in self.eval_prompts.values() for prompt in held_out]
        else:
            prompts = [self.reader.read(row) for row in prompts]
        queries = [prompt.ids for prompt in prompts]
        generation = self._generate(self.model, queries, self.generator(SHOW), greedy=greedy)
        reward_outputs = self._score_responses(prompts, generation)
        scores, _ = combine(reward_outputs, self.reward_weights, generation.mask)
        texts = [self.reader.text(answer).strip() for answer in generation.lists()]
        completions = [
            {"index": index, "prompt": prompt.raw, "response": text, "score": score}
            for index, (prompt, text, score) in enumerate(zip(prompts, texts, scores.tolist(), strict=True))
        ]
        for column, values in reward_outputs.columns.items():
            for completion, value in zip(completions, values, strict=True):
                completion[column] = value
        if self.args.log_completions:
            for completion in completions[: self.args.num_completions_to_print]:
                tqdm.write(f"{completion['prompt']!r} -> {completion['response']!r} ({completion['score']:.2f})")
        return completions

    # Saving and resuming -------------------------------------------------------------------------------------------

    def save_model(self, output_dir: str | Path | None = None, _internal_call: bool = False) -> None:
        """Save policy and tokenizer as a plain Transformers folder, the value head or model in `value_model/`.

        The first rank writes, the others wait.
        """
        folder = Path(output_dir or self.args.output_dir)
        if ranks.is_main_process():
            self._save_policy(folder)
            if self.args.save_value_model and self.actor_critic.shares_trunk:
                checkpoint.save_value_head(self.value_model, folder / "value_model")
            elif self.args.save_value_model and self.value_model is not None:
                self.value_model.save_pretrained(folder / "value_model")
        ranks.barrier()
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save")

    def _save_policy(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        self.processing_class.save_pretrained(folder)

    def save_checkpoint(self) -> Path:
        """Save the model, and all that is needed to go on exactly as if nothing had happened; returns the folder.

        All ranks hold the same: the first one writes, the others wait.
        """
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        with checkpoint.written_whole(folder) as aside:
            if ranks.is_main_process():
                self._save_policy(aside)
                checkpoint.save(aside, *resuming.what_to_save(self))
        if ranks.is_main_process():
            checkpoint.rotate(folder.parent, self.args.save_total_limit)
        return folder


def _ready_policy(model: PreTrainedModel, peft_config: object | None, device: torch.device) -> PreTrainedModel:
    """The policy on its device, with new adapters if peft_config asks for them."""
    if peft_config is not None:
        from peft import get_peft_model

        model = get_peft_model(model, peft_config)
    return _without_dropout(model, device)


def _without_dropout(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """A model on its device that reads packed rows; without dropout, or the first ratio would not be 1."""
    use_packed_attention(model)
    return model.to(device).eval()


def _prompt_room(model: PreTrainedModel, args: PPOConfig) -> int:
    """Tokens a prompt may have."""
    limit = models.context_size(plain_model(model))
    if args.response_length >= limit:
        raise BadInput(
            f"response_length ({args.response_length}) leaves no room for a prompt within the {limit} tokens this "
            "model reads; shorten it."
        )
    return limit - args.response_length

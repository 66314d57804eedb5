"""PPO for language models, from top to bottom (Schulman et al. 1707.06347; Ziegler et al. 1909.08593; Huang et al.
2403.17031).

One update is six phases, numbered where they happen in `PPOTrainer._update`:

    1. roll out       the policy answers a batch of prompts; log-probabilities are kept as it samples
    2. score          the reward judges each whole answer; the reference model says how far each token strayed
    3. rewards        per token: minus the price of straying (KL), plus the score at the last token
    4. advantages     generalised advantage estimation against the values, then whitened
    5. learn          several epochs over the batch with clipped losses
    6. report         TRL's metric keys, masked and weighted by token

Shapes: B responses of at most T tokens; N response tokens in all, in row-major order of the mask (B, T); V tokens in
the vocabulary; d the width of the model. A token after the end token does not exist: masks come from lengths, never
from the value of a pad token, and the models read without pads (`rlhf/packed.py`). The end token is an action.

Several processes share a batch: each has the responses to its own prompts, statistics are taken over all, and so an
update is the same however many there are (`rlhf/ranks.py`).

The names are those of TRL, whose PPOTrainer ended with version 1.12; README.md says what is different.
"""

import copy
import gc
import math
import os
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import TrainOutput, get_last_checkpoint

from rlhf import models, ranks
from rlhf.compare.stats import paired
from rlhf.config import BadInput, PPOSettings, check_range
from rlhf.models.generate import Generation, generate
from rlhf.models.packed import (
    PackedRows,
    batches_by_length,
    hidden_states,
    is_peft,
    logits_at,
    pack_responses,
    plain_model,
    use_packed_attention,
)
from rlhf.models.prompts import Prompt, PromptReader, PromptSet, PromptStream, held_out_prompts, prompts_of
from rlhf.models.scoring import RewardFunc, RewardScores, combine, rewards_of, score_responses
from rlhf.runs import checkpoint


__all__ = ["Diverged", "PPOConfig", "PPOTrainer"]

MICRO_BATCH_TOKENS = {"cpu": 1280, "cuda": 16_384}
"""Tokens in one forward and backward pass: what the caches of a CPU hold well, and what keeps a GPU busy."""
LOGITS_AT_ONCE = 2**25
"""Entries of the (tokens, V) table of logits that are in memory at the same time."""


class Diverged(RuntimeError):
    """A number that training lives on is no longer finite; the message names it and the update."""


# -------------------------------------------------------------------------------------------------------------------
# Settings


@dataclass
class PPOConfig(PPOSettings, TrainingArguments):
    """Settings of `PPOTrainer`: `PPOSettings`, Transformers' TrainingArguments, and what else TRL's calls name."""

    beta: float | None = None
    """Another name of kl_coef."""
    epsilon: float | None = None
    """Another name of cliprange."""
    max_completion_length: int | None = None
    """Another name of response_length."""
    stop_token_id: int | None = None
    """Id of the token that ends a response, instead of stop_token."""
    kl_estimator: Literal["k1", "k3"] = "k1"
    """Estimator behind objective/kl; in the reward it is always k1, whose optimum is the KL-regularised one."""
    local_rollout_forward_batch_size: int | None = None
    """Prompts that are answered at once; all of an update if not given."""
    reward_weights: list[float] | None = None
    """Weight of each reward; 1 each if not given."""
    generation_kwargs: dict | None = None
    """Nothing that changes the sampling distribution can be given here: scoring would not match it."""
    top_k: int = 0
    """As generation_kwargs: only 0, which is off."""
    top_p: float = 1.0
    """As generation_kwargs: only 1, which is off."""
    chat_template_kwargs: dict | None = None
    """Handed to the chat template."""
    model_adapter_name: str | None = None
    """PEFT adapter that is trained, where there are several."""
    ref_adapter_name: str | None = None
    """PEFT adapter that is the reference; the model without adapters if not given."""
    save_value_model: bool = True
    """Save the value head or model beside the policy, in `value_model/`."""
    log_completions: bool = False
    """Print sample prompts with their completions and scores whenever they are made."""
    num_completions_to_print: int = 8
    """How many of them."""
    eval_num_samples_per_prompt: int = 1
    """Responses to each prompt in `evaluate`."""
    sft_model_path: str | None = None
    """A field of TRL's script; not used here."""
    reward_model_path: str | None = None
    """A field of TRL's script; not used here."""
    dataset_num_proc: int | None = None
    """Not used: every process reads the prompts itself."""
    ds3_gather_for_generation: bool = True
    """Not used: DeepSpeed is not supported."""
    # Defaults of TrainingArguments that differ here.
    seed: int = 42
    """Seed of the sampling and of the order of prompts."""
    per_device_train_batch_size: int = 8
    """Responses an update takes from a process, times gradient_accumulation_steps; in memory at once, so many."""
    bf16: bool | None = None
    """Compute in bfloat16; on a GPU that can, unless said otherwise."""
    logging_steps: float = 1
    """Updates between lines of metrics."""
    use_cache: bool = True
    """What the saved model's config says; training itself uses no cache of Transformers'."""

    def __post_init__(self) -> None:
        self.kl_coef = self.kl_coef if self.beta is None else self.beta
        self.cliprange = self.cliprange if self.epsilon is None else self.epsilon
        if self.max_completion_length is not None:
            self.response_length = self.max_completion_length
        if self.stop_token not in ("eos", "none", None):
            raise BadInput(f"stop_token must be 'eos' or 'none', not {self.stop_token!r}; for others, stop_token_id.")
        self.stop_token = None if self.stop_token == "none" or self.stop_token_id is not None else self.stop_token
        if self.bf16 is None:
            self.bf16 = not self.use_cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        self.check()
        for name in ("local_rollout_forward_batch_size", "eval_num_samples_per_prompt"):
            check_range(self, name, low=1)
        if self.kl_estimator not in ("k1", "k3"):
            raise BadInput(f"kl_estimator must be 'k1' or 'k3', not {self.kl_estimator!r}.")
        self._check_sampling()
        shards = any(os.environ.get(f"ACCELERATE_USE_{name}") == "true" for name in ("FSDP", "DEEPSPEED"))
        if shards or self.fsdp or self.deepspeed:
            raise BadInput("PPO shares out data among processes, not models; launch it without FSDP and DeepSpeed.")
        TrainingArguments.__post_init__(self)

    def _check_sampling(self) -> None:
        """The policy is scored by the whole distribution at one temperature, so it must be sampled from that."""
        neutral = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "do_sample": True}
        given = (*(self.generation_kwargs or {}).items(), ("top_k", self.top_k), ("top_p", self.top_p))
        for name, value in given:
            if name not in neutral:
                raise BadInput(
                    f"generation_kwargs cannot set {name}; response_length, temperature and stop_token can."
                )
            if value is not None and value != neutral[name]:
                raise BadInput(
                    f"{name}={value} samples from another distribution than the one PPO scores; leave it at "
                    f"{neutral[name]} and lower the temperature instead."
                )
        if self.kl_estimator == "k3":
            warnings.warn(
                "kl_estimator='k3' is for objective/kl only; the reward keeps k1, whose optimum is the right one.",
                stacklevel=4,
            )
        if self.whiten_rewards:
            warnings.warn("whiten_rewards=True moves the optimum where lengths vary; better left off.", stacklevel=4)
        never_ends = self.stop_token is None and self.stop_token_id is None
        if never_ends and (self.missing_eos_penalty is not None or self.mask_truncated_completions):
            raise BadInput(
                "missing_eos_penalty and mask_truncated_completions need responses that can end; leave stop_token at "
                "'eos'."
            )
        if self.fp16:
            raise BadInput("fp16 is not supported; use bf16=True or full precision.")
        if self.load_best_model_at_end:
            raise BadInput("load_best_model_at_end is not supported; evaluate the checkpoints and load the best.")

    @property
    def batch_size(self) -> int:
        """Responses an update learns from."""
        return self.local_batch_size * self.world_size

    @property
    def local_mini_batch_size(self) -> int:
        """Responses of an optimizer step, from one process."""
        return self.local_batch_size // self.num_mini_batches

    @property
    def num_total_batches(self) -> int:
        """PPO updates of the whole run; `total_episodes` must be known."""
        return self.max_steps if self.max_steps > 0 else math.ceil(self.total_episodes / self.batch_size)


# -------------------------------------------------------------------------------------------------------------------
# The formulas, as functions on tensors


def whiten(values: torch.Tensor, mask: torch.Tensor, *, shift_mean: bool = True) -> torch.Tensor:
    """Shift and scale the valid entries to mean 0 and variance 1; values (B, T), mask (B, T) -> (B, T), 0 outside.

    Mean and variance are those of the valid entries of all ranks.
    """
    valid = ranks.gather(values[mask])
    variance, mean = torch.var_mean(valid) if valid.numel() > 1 else (valid.new_ones(()), valid.mean())
    scaled = (values[mask] - mean) * torch.rsqrt(variance + 1e-8) + (0.0 if shift_mean else mean)
    return torch.zeros_like(values).masked_scatter(mask, scaled)


def compute_rewards(
    earned: torch.Tensor, logprobs: torch.Tensor, ref_logprobs: torch.Tensor, mask: torch.Tensor, kl_coef: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """earned, logprobs, ref_logprobs, mask (B, T) -> rewards (B, T), their KL part (B, T).

    r_t = -kl_coef * (log pi(y_t) - log pi_ref(y_t)), plus what the token earned: the score at the last valid token, be
    it the end token or the one that hit the length limit. The log-ratio itself (k1) is the estimator whose fixed point
    is the optimum of E[score] - kl_coef * KL.
    """
    non_score = torch.where(mask, -kl_coef * (logprobs - ref_logprobs), 0.0)
    return torch.where(mask, earned, 0.0) + non_score, non_score


def compute_gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """rewards, values, mask (B, T) -> advantages, returns (B, T), both 0 outside the mask.

    delta_t = r_t + gamma V_{t+1} - V_t and A_t = delta_t + gamma lam A_{t+1}, with V and A zero after the last valid
    token (Schulman et al. 1506.02438); the return is R_t = A_t + V_t.
    """
    rewards, values = torch.where(mask, rewards, 0.0), torch.where(mask, values, 0.0)
    advantages = torch.zeros_like(values)
    carried, next_value = torch.zeros_like(values[:, 0]), torch.zeros_like(values[:, 0])
    for t in reversed(range(values.size(1))):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        carried = torch.where(mask[:, t], delta + gamma * lam * carried, 0.0)
        next_value = values[:, t]
        advantages[:, t] = carried
    return advantages, advantages + values


def policy_losses(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    cliprange: float,
    cliprange_high: float | None = None,
    dual_clip: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Clipped surrogate per token; all (N,) -> loss (N,), probability ratio (N,), whether it was clipped (N,).

    max(-A rho, -A clip(rho, 1 - cliprange, 1 + cliprange_high)); where A < 0, at most -A dual_clip (Ye et al.
    1912.09729).
    """
    ratio = torch.exp((logprobs - old_logprobs).clamp(-20, 20))
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + (cliprange_high or cliprange))
    loss = torch.maximum(plain, clipped)
    if dual_clip is not None:
        loss = torch.where(advantages < 0, loss.minimum(-advantages * dual_clip), loss)
    return loss, ratio, clipped > plain


def value_losses(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, cliprange_value: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Clipped squared error per token; all (N,) -> loss (N,), whether it was clipped (N,)."""
    near = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
    plain, clipped = (values - returns) ** 2, (near - returns) ** 2
    return 0.5 * torch.maximum(plain, clipped), clipped > plain


def explained_variance(values: torch.Tensor, returns: torch.Tensor) -> torch.Tensor:
    """1 - Var(R - V) / Var(R), both (N,) -> (); 1 is a perfect critic, 0 one that knows the mean at best."""
    return 1 - (returns - values).var(correction=0) / returns.var(correction=0).clamp(min=1e-8)


def adapt_kl_coef(kl_coef: float, kl: float, target: float, episodes: int, horizon: int) -> float:
    """The adaptive controller of Ziegler et al. (2.2): beta (1 + clip(KL / target - 1, +-0.2) n / horizon)."""
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * episodes / horizon)


class _TokenLogprobs(torch.autograd.Function):
    """One softmax of logits (n, V) for the log-probabilities of targets (n,), the entropy, and the gradient."""

    @staticmethod
    def forward(ctx: object, logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        probabilities = torch.softmax(logits, dim=-1)
        log_total = logits.amax(dim=-1) - probabilities.amax(dim=-1).log()
        logprobs = logits.gather(1, targets.unsqueeze(1)).squeeze(1) - log_total
        entropy = log_total - torch.linalg.vecdot(probabilities, logits)
        ctx.save_for_backward(probabilities, targets)
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor, None]:
        probabilities, targets = ctx.saved_tensors
        # d log p_target / d logits = [target] - p; the buffer of p is not needed again.
        gradients = probabilities.mul_(-gradient.unsqueeze(1))
        return gradients.scatter_add_(1, targets.unsqueeze(1), gradient.unsqueeze(1)), None


def token_logprobs(
    logits: torch.Tensor, targets: torch.Tensor, *, entropy_gradient: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits over temperature (n, V), targets (n,) -> log-probabilities of the targets and entropies (n,)."""
    if not entropy_gradient:
        return _TokenLogprobs.apply(logits, targets)
    distribution = torch.log_softmax(logits, dim=-1)
    entropy = -(distribution.exp() * distribution).sum(dim=-1)
    return distribution.gather(1, targets.unsqueeze(1)).squeeze(1), entropy


class ValueHead(nn.Module):
    """A linear layer from hidden states (n, d) to values (n,), zero at the start, in full precision."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.score = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(n, d) -> (n,)"""
        with torch.autocast(hidden.device.type, enabled=False):
            return self.score(hidden.float()).squeeze(1)


# -------------------------------------------------------------------------------------------------------------------
# The trainer


@dataclass
class Rollout:
    """This rank's responses and what the phases find out about them; tensors are (B, T) unless said otherwise."""

    prompts: list[Prompt]
    rows: list[list[int]]
    """B lists of prompt and response ids, without pads."""
    generation: Generation
    learns: torch.Tensor
    """Tokens that the losses and the whitening see: those of the mask, or of responses that ended only."""
    raw_scores: torch.Tensor | None = None
    """(B,) as the rewards gave them, weighted and added up."""
    verdict: RewardScores | None = None
    """The same by reward function or model."""
    scores: torch.Tensor | None = None
    """(B,) what PPO maximises: normalised, clipped, minus the penalty for not ending."""
    clipped: torch.Tensor | None = None
    """(B,) whether the score was cut down to reward_clip_range."""
    earned: torch.Tensor | None = None
    ref_logprobs: torch.Tensor | None = None
    exact_kl: torch.Tensor | None = None
    values: torch.Tensor | None = None
    advantages: torch.Tensor | None = None
    returns: torch.Tensor | None = None
    tokens: torch.Tensor | None = None
    """Tokens to learn from in each response, of all ranks one after another."""

    @property
    def mask(self) -> torch.Tensor:
        """True on response tokens."""
        return self.generation.mask


class PPOTrainer(Trainer):
    """Proximal policy optimisation of a causal language model against rewards.

    A Transformers Trainer in its life cycle (callbacks, trackers, saving, devices) with a loop of its own. Every
    random number is drawn from generators seeded by (seed, update), so a resumed run repeats an uninterrupted one to
    the bit on the CPU. Under a launcher the prompts of an update are shared out among the processes, all of which must
    be given the same models, prompts and settings.

    Args:
        model: the policy, or its name or path; trained in place.
        args: settings, see `PPOConfig`.
        processing_class: the policy's tokenizer; found beside a model that is given by name.
        reward_funcs: what gives scores: a function `f(prompts, completions, completion_ids, **columns)` that returns
            one number a completion (None for no opinion) or one a token, a sequence classifier with one score, its
            name or path, or a list of these.
        reward_model: the same under TRL's old name.
        train_dataset: rows with a `prompt`, a text or a conversation, or with `input_ids`; texts will do. May be
            iterable only. Other columns go to the reward functions.
        eval_dataset: as train_dataset, for `evaluate` and `generate_completions`; or several, by name.
        reward_processing_classes: the tokenizers of reward models, in the order of reward_funcs.
        value_model: a sequence classifier with one score, or its name; a value head on the policy if not given.
        ref_model: the reference; a frozen copy of the policy if not given, or with PEFT the policy without adapters.
        callbacks: Transformers callbacks; a request to stop is honoured after the update that is under way.
        optimizers: an optimizer of the policy's parameters and a scheduler, instead of AdamW and the one args names.
        quantization_config: how to load a model given by name.
        peft_config: trains adapters instead of all parameters.
        data_collator: accepted for TRL's sake; nothing is padded here.

    Raises:
        BadInput: models, tokenizers, rewards, prompts and settings that do not fit together, before time is spent.
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
        if isinstance(model, TrainingArguments) or old_order:
            raise TypeError("PPOTrainer takes the model first: PPOTrainer(model, args, ...), or all by keyword.")
        if train_dataset is None:
            raise BadInput("PPOTrainer needs a train_dataset with a column `prompt` or `input_ids`.")
        if ref_model is model and ref_model is not None and not isinstance(model, str):
            raise BadInput("ref_model must not be the policy itself, which changes; leave it out for a frozen copy.")
        if isinstance(model, str):
            model, found = models.load_policy(model, quantization_config=quantization_config)
            processing_class = processing_class or found
        args = args or PPOConfig(f"{str(model.name_or_path).rstrip('/').split('/')[-1]}-PPO")
        models.check_policy(model, processing_class)
        if reward_funcs is not None and reward_model is not None:
            raise BadInput("Give either reward_funcs or reward_model, which are the same; reward_funcs takes a list.")
        if peft_config is not None:
            from peft import get_peft_model

            model = get_peft_model(model, peft_config)
        _ready(model, args.device)  # no dropout: the ratio of the first pass must be 1
        self.reader = PromptReader(processing_class, _room(model, args), args.chat_template_kwargs)
        self.rewards = rewards_of(
            reward_funcs if reward_funcs is not None else reward_model,
            reward_processing_classes,
            self.reader,
            model.get_input_embeddings().weight.size(0),
        )
        self.reward_weights = args.reward_weights or [1.0] * len(self.rewards)
        if len(self.reward_weights) != len(self.rewards):
            raise BadInput(f"There are {len(self.rewards)} rewards and {len(self.reward_weights)} reward_weights.")
        self.prompts = prompts_of(train_dataset, self.reader)
        self.eval_prompts = held_out_prompts(eval_dataset, self.reader)
        self._settle_length(args)
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self._prepare_models(ref_model, value_model)
        self.state.max_steps = args.num_total_batches
        self.kl_coef = args.kl_coef
        self.score_stats = {"count": 0, "mean": 0.0, "squares": 0.0}
        self.base_eval_scores: dict[str, torch.Tensor] = {}

    def _settle_length(self, args: PPOConfig) -> None:
        """total_episodes from num_train_epochs where it is not given."""
        if args.total_episodes is None and args.max_steps <= 0:
            if isinstance(self.prompts, PromptStream):
                raise BadInput("An iterable data set has no length: give total_episodes or max_steps.")
            args.total_episodes = max(args.batch_size, int(args.num_train_epochs * len(self.prompts)))

    def _prepare_models(
        self, ref_model: str | PreTrainedModel | None, value_model: str | PreTrainedModel | None
    ) -> None:
        """Reference, value head or value model, and optimizer, on the policy's device."""
        args, device = self.args, self.args.device
        self.stop_id = self.processing_class.eos_token_id if args.stop_token else args.stop_token_id
        if args.stop_token and self.stop_id is None:
            raise BadInput("The tokenizer has no end token; give stop_token_id, or stop_token='none'.")
        adapters = is_peft(self.model)
        ranks.broadcast_weights(self.model)
        if isinstance(ref_model, str):
            ref_model, _ = models.load_policy(ref_model)
        if ref_model is None and not adapters and (args.kl_coef > 0 or args.kl_controller == "adaptive"):
            ref_model = copy.deepcopy(self.model)
        if ref_model is not None:
            models.check_policy(ref_model, self.processing_class, "ref_model")
        self.ref_model = None if ref_model is None else _ready(ref_model, device).requires_grad_(False)
        self.has_reference = adapters or ref_model is not None
        for reward in self.rewards:
            if reward.is_model:
                reward.source.to(device)
        self.is_shared = value_model is None and args.value_head == "shared"
        self.value_model = self._new_value_head() if self.is_shared else self._separate_value_model(value_model)
        ranks.broadcast_weights(self.value_model)
        if args.gradient_checkpointing:
            self._checkpoint_activations()
        self.create_optimizer_and_scheduler(args.num_total_batches)

    def _new_value_head(self) -> ValueHead:
        return ValueHead(plain_model(self.model).config.get_text_config().hidden_size).to(self.args.device)

    def _separate_value_model(self, value_model: str | PreTrainedModel | None) -> PreTrainedModel:
        """The value model that was given, or a new one."""
        if isinstance(value_model, str):
            value_model, _ = models.load_reward_model(value_model)
        value_model = value_model or self._new_value_model()
        models.check_value_model(value_model, self.processing_class)
        if any(reward.source is value_model for reward in self.rewards):
            raise BadInput("value_model must not be the reward model itself, which would change; load it twice.")
        value_model = _ready(value_model, self.args.device)
        return value_model if is_peft(value_model) else value_model.requires_grad_(True)

    def _new_value_model(self) -> PreTrainedModel:
        """A copy of the first reward model that reads the policy's tokens, else the policy's trunk and a new head."""
        for reward in self.rewards:
            if reward.is_model and reward.same_tokenizer:
                return copy.deepcopy(reward.source)
        inner = plain_model(self.model)
        config = copy.deepcopy(inner.config)
        config.num_labels = 1
        value_model = AutoModelForSequenceClassification.from_config(config)
        # Of a policy with adapters, the weights below them.
        state = inner.base_model.state_dict()
        below = {name.replace(".base_layer.", "."): value for name, value in state.items() if ".lora_" not in name}
        value_model.base_model.load_state_dict(below)
        nn.init.zeros_(value_model.score.weight)
        return value_model

    def _checkpoint_activations(self) -> None:
        """Recompute activations in the backward pass. Transformers does so in train mode only: dropout goes to 0."""
        for model in (self.model, *([] if self.is_shared else [self.value_model])):
            for module in model.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.train()

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Transformers' optimizer for the policy, with the value head or model as one more group."""
        super().create_optimizer(model)
        own = {id(parameter) for group in self.optimizer.param_groups for parameter in group["params"]}
        lr = self.args.value_learning_rate or self.args.learning_rate * (10 if self.is_shared else 1)
        decayed = self.get_decay_parameter_names(self.value_model)
        for decay in (True, False):
            values = [p for name, p in self.value_model.named_parameters() if (name in decayed) == decay]
            values = [p for p in values if id(p) not in own]
            if values:
                weight_decay = self.args.weight_decay if decay else 0.0
                self.optimizer.add_param_group({"params": values, "lr": lr, "weight_decay": weight_decay})
        self.trainable = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        return self.optimizer

    # --------------------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, **kwargs: object) -> TrainOutput:
        """Run all updates, or those that are left after a checkpoint (True: the last one in args.output_dir).

        Returns the number of updates, the loss of the last one, and its metrics; `state.log_history` has them all.

        Raises:
            Diverged: a loss or a gradient is no longer finite; the model is left as it was before that step.
        """
        if resume_from_checkpoint is True:
            folder = Path(self.args.output_dir)
            resume_from_checkpoint = get_last_checkpoint(folder) if folder.is_dir() else None
            if resume_from_checkpoint is None:
                raise BadInput(f"There is no checkpoint in {folder} to resume from; leave resume_from_checkpoint out.")
        if resume_from_checkpoint:
            self._load_checkpoint(Path(resume_from_checkpoint))
        self.state.compute_steps(self.args, self.args.num_total_batches)
        self.state.max_steps = self.args.num_total_batches
        self.state.num_train_epochs = math.ceil(self._epochs(self.state.max_steps))
        self.control.should_training_stop = False
        self.control = self.callback_handler.on_train_begin(self.args, self.state, self.control)
        # What is in memory now stays; without it each collection of garbage would look through the whole library.
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
        """Passes over the prompts after so many updates; of a stream, 0."""
        prompts = len(self.prompts) if isinstance(self.prompts, PromptSet) else math.inf
        return steps * self.args.batch_size / self.args.num_generations / prompts

    def _update(self) -> dict[str, float]:
        """One PPO update; returns its metrics."""
        self.control = self.callback_handler.on_step_begin(self.args, self.state, self.control)
        clock = [time.perf_counter()]

        def tick() -> None:
            if self.args.device.type == "cuda":
                torch.cuda.synchronize()
            clock.append(time.perf_counter())

        rollout = self._roll_out(self._next_prompts(), self._generator(purpose=0))  # 1.
        tick()
        self._score(rollout)  # 2.
        rewards, non_score = self._rewards_per_token(rollout)  # 3.
        self._advantages(rollout, rewards)  # 4.
        tick()
        learned = self._learn(rollout)  # 5.
        tick()
        self.state.global_step += 1
        self.state.epoch = self._epochs(self.state.global_step)
        slowest = ranks.gather(torch.tensor([clock], dtype=torch.double).diff()).amax(dim=0).tolist()
        seconds = dict(zip(("rollout", "score", "update"), slowest, strict=True))
        metrics = self._report(rollout, non_score, learned, seconds)  # 6.
        if self.args.kl_controller == "adaptive":
            args, kl = self.args, metrics["objective/kl"]
            self.kl_coef = adapt_kl_coef(self.kl_coef, kl, args.kl_target, args.batch_size, args.kl_horizon)
        self.lr_scheduler.step()
        self._after_update(metrics)
        return metrics

    def _after_update(self, metrics: dict[str, float]) -> None:
        """Logs, samples, evaluates and saves when it is time."""
        self.control = self.callback_handler.on_step_end(self.args, self.state, self.control)
        if int(self.state.epoch + 1e-9) > int(self._epochs(self.state.global_step - 1) + 1e-9):
            self.control = self.callback_handler.on_epoch_end(self.args, self.state, self.control)
        if self.control.should_log:
            self.log(dict(metrics))
        every = max(1, self.state.max_steps // max(1, self.args.num_sample_generations))
        wanted = self.args.log_completions and self.args.num_sample_generations and self.eval_prompts
        if wanted and ranks.is_main_process() and (self.state.global_step - 1) % every == 0:
            self.generate_completions()
        if self.control.should_evaluate:
            self.evaluate()
        if self.control.should_save:
            self.save_checkpoint()
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def _generator(self, purpose: int) -> torch.Generator:
        """A generator for one purpose in one update; (seed, update, purpose) always gives the same one."""
        seed = (self.args.seed * 1_000_003 + self.state.global_step) * 4 + purpose
        return torch.Generator().manual_seed(seed)

    # 1. Roll out ---------------------------------------------------------------------------------------------------

    def _next_prompts(self) -> list[Prompt]:
        """This update's prompts, of all ranks, each as often as it is to be answered."""
        distinct = self.args.batch_size // self.args.num_generations
        batch = self.prompts.batch(self.state.global_step * distinct, distinct, self.args.seed)
        return [prompt for prompt in batch for _ in range(self.args.num_generations)]

    def _roll_out(
        self, prompts: list[Prompt], generator: torch.Generator, model: PreTrainedModel | None = None
    ) -> Rollout:
        """Answers to this rank's share of some prompts, from the policy or another model."""
        share = ranks.shard(len(prompts))
        queries = [prompt.ids for prompt in prompts]
        generation = self._generate(model or self.model, queries, generator, share, keep_hidden=True)
        prompts = [prompts[row] for row in share]
        rows = [prompt.ids + answer for prompt, answer in zip(prompts, generation.lists(), strict=True)]
        learns = generation.mask
        if self.args.mask_truncated_completions:
            learns = learns & generation.ended.unsqueeze(1)
        return Rollout(prompts, rows, generation, learns)

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
        size = self.args.local_rollout_forward_batch_size or len(share)
        parts = []
        for start in range(0, len(share), size):
            rows = share[start : start + size]
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

    # 2. Score ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _score(self, rollout: Rollout) -> None:
        """Scores from the rewards, log-probabilities from the reference, values from the value head or model."""
        generation, mask = rollout.generation, rollout.mask
        rollout.verdict = self._ask_rewards(rollout.prompts, generation)
        for name, scores in rollout.verdict.by_reward.items():
            if not ranks.any_rank(any(score is not None for score in scores)):
                raise BadInput(f"The reward function {name} gave None for every completion of an update.")
        rollout.raw_scores, rollout.earned = combine(rollout.verdict, self.reward_weights, mask)
        self._read_reference(rollout)
        rollout.values = torch.zeros_like(generation.logprobs)
        if self.is_shared:
            rollout.values[mask] = self.value_model(generation.hidden[mask])
            return
        for part in self._micro_batches(range(len(rollout.rows)), rollout):
            values = self._read_values(*self._line_up(rollout, part)[:3])
            rollout.values[part] = rollout.values[part].masked_scatter(mask[part], values)

    @torch.no_grad()
    def _read_reference(self, rollout: Rollout) -> None:
        """Log-probabilities of the responses under the reference, and the exact KL of each token's distribution."""
        generation, mask = rollout.generation, rollout.mask
        if not self.has_reference:
            rollout.ref_logprobs = generation.logprobs
            return
        rollout.ref_logprobs, rollout.exact_kl = (torch.zeros_like(generation.logprobs) for _ in range(2))
        for part in self._micro_batches(range(len(rollout.rows)), rollout):
            inside = mask[part]
            logprobs, kl = self._compare(*self._line_up(rollout, part), generation.hidden[part][inside])
            rollout.ref_logprobs[part] = rollout.ref_logprobs[part].masked_scatter(inside, logprobs)
            rollout.exact_kl[part] = rollout.exact_kl[part].masked_scatter(inside, kl)

    @staticmethod
    def _line_up(rollout: Rollout, part: list[int]) -> tuple[torch.Tensor, PackedRows, torch.Tensor, torch.Tensor]:
        """Some rows as a line; see `rlhf.models.packed.pack_responses`."""
        prompt_lengths = [len(rollout.prompts[i].ids) for i in part]
        return pack_responses([rollout.rows[i] for i in part], prompt_lengths, rollout.mask.device)

    def _ask_rewards(self, prompts: list[Prompt], generation: Generation) -> RewardScores:
        """What the rewards say of B answers."""
        with self.accelerator.autocast():
            return score_responses(self.rewards, prompts, generation.lists(), generation.ended.tolist(), self.state)

    @contextmanager
    def _reference(self) -> Iterator[PreTrainedModel]:
        """The reference model: a model of its own, or the policy with its adapter off or another one on."""
        if self.ref_model is not None:
            yield self.ref_model
        elif self.args.ref_adapter_name:
            self.model.set_adapter(self.args.ref_adapter_name)
            try:
                yield self.model
            finally:
                self.model.set_adapter(self.args.model_adapter_name or "default")
        else:
            with self.model.disable_adapter():
                yield self.model

    def _compare(
        self, ids: torch.Tensor, rows: PackedRows, positions: torch.Tensor, targets: torch.Tensor, hidden: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of the targets (n,) under the reference, and the exact KL of each token's distribution.

        hidden (n, d) are the policy's states, from when it sampled.
        """
        logprobs, kls = [], []
        with self.accelerator.autocast():
            with self._reference() as reference:
                states = hidden_states(reference, ids, rows, positions)
            for part in self._chunks(len(targets)):
                with self._reference() as reference:
                    log_q = logits_at(reference, states[part], self.args.temperature).log_softmax(dim=-1)
                log_p = logits_at(self.model, hidden[part], self.args.temperature).log_softmax(dim=-1)
                logprobs.append(log_q.gather(1, targets[part].unsqueeze(1)).squeeze(1))
                off = log_p - log_q
                kls.append(log_p.exp_().mul_(off).sum(dim=-1))  # a product of matrices would go to bfloat16
        return torch.cat(logprobs), torch.cat(kls)

    def _chunks(self, tokens: int) -> list[slice]:
        """So many tokens in parts whose logits fit in memory."""
        size = max(1, LOGITS_AT_ONCE // self.model.get_output_embeddings().weight.size(0))
        return [slice(start, start + size) for start in range(0, tokens, size)]

    def _read_values(self, ids: torch.Tensor, rows: PackedRows, positions: torch.Tensor) -> torch.Tensor:
        """Values (n,) of a separate value model."""
        with self.accelerator.autocast():
            states = hidden_states(self.value_model, ids, rows, positions)
            return plain_model(self.value_model).score(states).squeeze(1).float()

    def _micro_batches(self, chosen: Sequence[int], rollout: Rollout) -> Iterator[list[int]]:
        """Rows of like length together, as many as memory should hold; none where a rank has none to read."""
        if not chosen:
            return
        limit = MICRO_BATCH_TOKENS.get(self.args.device.type, MICRO_BATCH_TOKENS["cuda"])
        rows = [rollout.rows[i] for i in chosen]
        for part in batches_by_length(rows, limit, self.args.per_device_train_batch_size):
            yield [chosen[i] for i in part]

    # 3. Rewards ----------------------------------------------------------------------------------------------------

    def _rewards_per_token(self, rollout: Rollout) -> tuple[torch.Tensor, torch.Tensor]:
        """Rewards (B, T) and their KL part (B, T); sets what PPO maximises, `rollout.scores` and `rollout.earned`."""
        args, generation, raw = self.args, rollout.generation, rollout.raw_scores
        everyones = ranks.gather(raw)
        if not torch.isfinite(everyones).all():
            raise Diverged(f"A score was not finite at update {self.state.global_step + 1}.")
        shift, scale = self._score_unit(everyones)
        scores = (raw - shift) / scale
        earned = rollout.earned / scale
        if args.reward_clip_range is not None:
            rollout.clipped = scores.abs() > args.reward_clip_range
            scores = scores.clamp(-args.reward_clip_range, args.reward_clip_range)
        if args.missing_eos_penalty is not None:
            scores = scores - args.missing_eos_penalty * (~generation.ended)
        # What shifting, clipping and the penalty took off the whole is taken off at the last token.
        last = generation.mask.sum(dim=1) - 1
        earned[torch.arange(len(scores), device=scores.device), last] += scores - earned.sum(dim=1)
        rollout.scores, rollout.earned = scores, earned
        rewards, non_score = compute_rewards(
            earned, generation.logprobs, rollout.ref_logprobs, generation.mask, self.kl_coef
        )
        if args.whiten_rewards:
            rewards = whiten(rewards, generation.mask, shift_mean=False)
        return rewards, non_score

    def _score_unit(self, raw: torch.Tensor) -> tuple[float, float]:
        """What is taken off a score and what it is divided by, from the scores of all ranks (B,).

        "reference" looks at the first batch, which the policy wrote while it still was the reference (Ziegler et al.
        2.2), and stays with it, so that kl_coef keeps its meaning.
        """
        kind, stats = self.args.reward_normalization, self.score_stats
        if kind == "running" or (kind == "reference" and self.state.global_step == 0):
            # Batches of scores are added as by Chan et al. (1983).
            count, mean = len(raw), raw.mean().item()
            total, off = stats["count"] + count, mean - stats["mean"]
            stats["squares"] += ((raw - mean) ** 2).sum().item() + off**2 * stats["count"] * count / total
            stats["mean"] += off * count / total
            stats["count"] = total
        if kind == "none":
            return 0.0, 1.0
        return stats["mean"], max(math.sqrt(stats["squares"] / max(1, stats["count"] - 1)), 1e-6)

    # 4. Advantages -------------------------------------------------------------------------------------------------

    def _advantages(self, rollout: Rollout, rewards: torch.Tensor) -> None:
        advantages, rollout.returns = compute_gae(
            rewards, rollout.values, rollout.mask, self.args.gamma, self.args.lam
        )
        rollout.advantages = whiten(advantages, rollout.learns) if self.args.normalize_advantages else advantages

    # 5. Learn ------------------------------------------------------------------------------------------------------

    def _learn(self, rollout: Rollout) -> dict[str, float]:
        """All epochs over one batch; returns the means over tokens of what was seen on the way."""
        args, steps = self.args, []
        generator = self._generator(purpose=1)
        rollout.tokens = ranks.gather(rollout.learns.sum(dim=1))
        epochs_run = 0
        for _ in range(args.num_ppo_epochs):
            order = torch.randperm(len(rollout.tokens), generator=generator).tolist()
            size = len(order) // args.num_mini_batches
            epoch = [self._step(rollout, order[start : start + size]) for start in range(0, len(order), size)]
            steps += epoch
            epochs_run += 1
            if args.early_stopping and _mean(epoch, "moved") > 1.5 * args.target_kl:
                break
        means = {name: _mean(steps, name) for name in steps[0] if name not in ("tokens", "grad_norm")}
        ratios = torch.tensor([float(step["ratio"] / step["tokens"]) for step in steps])
        return {
            **means,
            "ratio_var": ratios.var(correction=0).item(),
            "grad_norm": sum(float(step["grad_norm"]) for step in steps) / len(steps),
            "epochs_run": epochs_run,
        }

    def _step(self, rollout: Rollout, chosen: list[int]) -> dict[str, torch.Tensor]:
        """One optimizer step on some rows, numbered over all ranks, each of which reads those it has.

        The loss is normalised by all tokens of the step, however it is cut. Returns sums over them, and their number.
        """
        tokens = rollout.tokens[chosen].sum().clamp(min=1)
        first = ranks.rank() * len(rollout.rows)
        own = [row - first for row in chosen if 0 <= row - first < len(rollout.rows)]
        seen: dict[str, torch.Tensor] = {}
        for part in self._micro_batches(own, rollout):
            for name, value in self._accumulate(rollout, part, tokens).items():
                seen[name] = seen.get(name, 0.0) + value
        ranks.all_reduce_gradients(self.trainable)
        norm = nn.utils.clip_grad_norm_(self.trainable, self.args.max_grad_norm)
        if not torch.isfinite(norm):
            self.optimizer.zero_grad()
            raise Diverged(f"The gradient was not finite at update {self.state.global_step + 1}; lower learning_rate.")
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {**ranks.sum_over_ranks(seen), "tokens": tokens, "grad_norm": norm}

    def _accumulate(self, rollout: Rollout, part: list[int], tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        """Forward and backward of one micro-batch: adds its gradient, returns its sums over tokens.

        The trunk runs once. The gradient is first taken with respect to its last states, a chunk of the vocabulary
        projection at a time, so that the table of logits never exists as a whole, and then sent through the trunk.
        """
        args, mask = self.args, rollout.mask[part]
        weight = rollout.learns[part][mask].float()
        old_logprobs, old_values, advantages, returns = (
            tensor[part][mask]
            for tensor in (rollout.generation.logprobs, rollout.values, rollout.advantages, rollout.returns)
        )
        ids, rows, positions, targets = self._line_up(rollout, part)
        warming_up = self.state.global_step < args.value_warmup_steps
        sums: dict[str, torch.Tensor] = {}

        def see(**per_token: torch.Tensor) -> None:
            for name, values in per_token.items():
                sums[name] = sums.get(name, 0.0) + (values.detach().float() * weight[chunk]).sum()

        with self.accelerator.autocast():
            states = hidden_states(self.model, ids, rows, positions)
        leaf = states.detach().requires_grad_()
        for chunk in self._chunks(len(targets)):
            with self.accelerator.autocast():
                logits = logits_at(self.model, leaf[chunk], args.temperature)
            logprobs, entropy = token_logprobs(logits, targets[chunk], entropy_gradient=args.entropy_coef > 0)
            loss, ratio, clipped = policy_losses(
                logprobs, old_logprobs[chunk], advantages[chunk], args.cliprange, args.cliprange_high, args.dual_clip
            )
            if not warming_up:
                bonus = args.entropy_coef * entropy if args.entropy_coef > 0 else 0.0
                (((loss - bonus) * weight[chunk]).sum() / tokens).backward()
            off = logprobs - old_logprobs[chunk]
            see(policy_loss=loss, policy_clipped=clipped, ratio=ratio, entropy=entropy)
            see(approxkl=0.5 * off**2, moved=ratio - 1 - off)
        chunk = slice(None)

        def learn_values(values: torch.Tensor) -> None:
            loss, clipped = value_losses(values, old_values, returns, args.cliprange_value)
            (args.vf_coef * (loss * weight).sum() / tokens).backward()
            see(value_loss=loss, value_clipped=clipped)

        if self.is_shared:
            learn_values(self.value_model(leaf))
        if not warming_up:
            states.backward(leaf.grad)
        del states  # with its graph: the activations of policy and value model need not be in memory together
        if not self.is_shared:
            learn_values(self._read_values(ids, rows, positions))
        return sums

    # 6. Report -----------------------------------------------------------------------------------------------------

    def _report(
        self, rollout: Rollout, non_score: torch.Tensor, learned: dict[str, float], seconds: dict[str, float]
    ) -> dict[str, float]:
        """TRL's keys, with sums per response and means per response token, of all ranks; see README.md."""
        generation, mask, gather = rollout.generation, rollout.mask, ranks.gather
        lengths, ended = gather(mask.sum(dim=1)), gather(generation.ended)
        raw_scores, scores = gather(rollout.raw_scores), gather(rollout.scores)
        non_score, surprise = gather(non_score.sum(dim=1)), gather(-(generation.logprobs * mask).sum(dim=1))
        returns, values = gather(rollout.returns[mask]), gather(rollout.values[mask])
        clipped = 0.0 if rollout.clipped is None else gather(rollout.clipped).float().mean().item()
        read_tokens = sum(ranks.all_gather_object(sum(map(len, rollout.rows))))
        metrics = {
            "episode": self.state.global_step * self.args.batch_size,
            "eps": len(scores) / sum(seconds.values()),
            "objective/entropy": surprise.mean().item(),
            "objective/non_score_reward": non_score.mean().item(),
            "objective/rlhf_reward": (scores + non_score).mean().item(),
            "objective/scores": scores.mean().item(),
            "objective/scores_raw": raw_scores.mean().item(),
            "objective/scores_std": raw_scores.std(correction=0).item(),
            "objective/scores_clipped": clipped,
            "objective/eos_penalty": (self.args.missing_eos_penalty or 0.0) * (~ended).float().mean().item(),
            "objective/kl_coef": self.kl_coef,
            **(self._report_kl(rollout) if self.has_reference else {}),
            "policy/approxkl_avg": learned["approxkl"],
            "policy/clipfrac_avg": learned["policy_clipped"],
            "policy/entropy_avg": learned["entropy"],
            "policy/epochs_run": learned["epochs_run"],
            "loss/policy_avg": learned["policy_loss"],
            "loss/value_avg": learned["value_loss"],
            "val/clipfrac_avg": learned["value_clipped"],
            "val/ratio": learned["ratio"],
            "val/ratio_var": learned["ratio_var"],
            "val/num_eos_tokens": int(ended.sum()),
            "val/mean": values.mean().item(),
            "val/explained_variance": explained_variance(values, returns).item(),
            "returns/mean": returns.mean().item(),
            "returns/var": returns.var(correction=0).item(),
            **_report_lengths(lengths.float(), ended),
            "grad_norm": learned["grad_norm"],
            "lr": self.lr_scheduler.get_last_lr()[0],
            **{f"time/{phase}": value for phase, value in seconds.items()},
            "tokens_per_second/rollout": int(lengths.sum()) / seconds["rollout"],
            "tokens_per_second/score": read_tokens / seconds["score"],
            "tokens_per_second/update": learned["epochs_run"] * read_tokens / seconds["update"],
        }
        return metrics | _report_rewards(rollout.verdict)

    def _report_kl(self, rollout: Rollout) -> dict[str, float]:
        """KL from the reference in nats a response, from the tokens sampled and over the whole vocabulary."""
        off = torch.where(rollout.mask, rollout.generation.logprobs - rollout.ref_logprobs, 0.0)
        estimate = off if self.args.kl_estimator == "k1" else (-off).exp() - 1 + off
        return {
            "objective/kl": ranks.gather(estimate.sum(dim=1)).mean().item(),
            "objective/kl_exact": ranks.gather(rollout.exact_kl.sum(dim=1)).mean().item(),
        }

    # --------------------------------------------------------------------------------------------------------------

    def evaluate(
        self, eval_dataset: Sequence | dict | None = None, ignore_keys: object = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Policy and reference on the same held-out prompts, sampled as in training with the same random numbers.

        Returns `eval/score`, `eval/base_score`, the paired `eval/gain` with its 95 % interval over prompts, the win
        rate, the exact KL from the reference in nats a response, the mean length in tokens and the share of responses
        that ended; of several data sets under their names.
        """
        sets = self.eval_prompts if eval_dataset is None else held_out_prompts(eval_dataset, self.reader)
        if not sets:
            raise BadInput("evaluate needs prompts: give PPOTrainer an eval_dataset.")
        metrics = {}
        for name, prompts in sets.items():
            prefix = metric_key_prefix if name == "" else f"{metric_key_prefix}_{name}"
            key = name if eval_dataset is None else None
            metrics |= {f"{prefix}/{entry}": value for entry, value in self._evaluate_on(prompts, key).items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @torch.no_grad()
    def _evaluate_on(self, prompts: list[Prompt], key: str | None) -> dict[str, float]:
        """The numbers of `evaluate` on one set; the reference's scores are kept under `key`."""
        samples = self.args.eval_num_samples_per_prompt
        repeated = [prompt for prompt in prompts for _ in range(samples)]
        seen = defaultdict(list)
        for rollout, size in self._answer(repeated, self.model):
            numbers = {
                "score": rollout.raw_scores,
                "mean_length": rollout.mask.sum(dim=1).float(),
                "eos_rate": rollout.generation.ended.float(),
            }
            if self.has_reference:
                self._read_reference(rollout)
                numbers["kl"] = rollout.exact_kl.sum(dim=1)
            for name, values in numbers.items():
                seen[name].append(ranks.gather(values)[:size])
        found = {name: torch.cat(parts) for name, parts in seen.items()}
        means = {name: values.mean().item() for name, values in found.items()}
        if not self.has_reference:
            return means
        base = self.base_eval_scores.get(key)
        if base is None:
            with self._reference() as reference:
                answered = self._answer(repeated, reference)
                base = torch.cat([ranks.gather(rollout.raw_scores)[:size] for rollout, size in answered])
        if key is not None:
            self.base_eval_scores[key] = base
        against = paired(*(scores.double().cpu().view(-1, samples).numpy() for scores in (base, found["score"])))
        return {
            **means,
            "base_score": base.mean().item(),
            "gain": against.gain.value,
            "gain_ci_low": against.gain.low,
            "gain_ci_high": against.gain.high,
            "win_rate": against.win_rate.value,
        }

    def _answer(self, prompts: list[Prompt], model: PreTrainedModel) -> Iterator[tuple[Rollout, int]]:
        """Scored answers of a model to held-out prompts, a batch at a time, always from the same random numbers.

        Each rank has its share of a batch; with it comes the size of the batch, as shares may hold its last row again.
        """
        generator = torch.Generator().manual_seed(self.args.seed)
        for start in range(0, len(prompts), self.args.batch_size):
            batch = prompts[start : start + self.args.batch_size]
            rollout = self._roll_out(batch, generator, model)
            # The next batch begins where the longest answer of all ranks has left the generator.
            drawn = rollout.mask.size(1)
            for _ in range(max(ranks.all_gather_object(drawn)) - drawn):
                torch.rand(len(batch), generator=generator)
            verdict = self._ask_rewards(rollout.prompts, rollout.generation)
            rollout.raw_scores, _ = combine(verdict, self.reward_weights, rollout.mask)
            yield rollout, len(batch)

    def generate_completions(
        self, prompts: Sequence[str | dict] | None = None, *, greedy: bool = False
    ) -> list[dict[str, object]]:
        """Answers to some prompts, by default those of eval_dataset, sampled as in training or the most likely ones.

        Returns `{index, prompt, response, score}` each; with args.log_completions the first of them are printed.
        """
        if prompts is None:
            asked = [prompt for held_out in self.eval_prompts.values() for prompt in held_out]
        else:
            asked = [self.reader.read(row) for row in prompts]
        queries = [prompt.ids for prompt in asked]
        generation = self._generate(self.model, queries, self._generator(purpose=2), greedy=greedy)
        verdict = self._ask_rewards(asked, generation)
        scores, _ = combine(verdict, self.reward_weights, generation.mask)
        texts = self.processing_class.batch_decode(generation.lists(), skip_special_tokens=True)
        made = [
            {"index": index, "prompt": prompt.raw, "response": text.strip(), "score": score}
            for index, (prompt, text, score) in enumerate(zip(asked, texts, scores.tolist(), strict=True))
        ]
        for column, values in verdict.columns.items():
            for sample, value in zip(made, values, strict=True):
                sample[column] = value
        if self.args.log_completions:
            for sample in made[: self.args.num_completions_to_print]:
                tqdm.write(f"{sample['prompt']!r} -> {sample['response']!r} ({sample['score']:.2f})")
        return made

    def save_model(self, output_dir: str | Path | None = None, _internal_call: bool = False) -> None:
        """Save policy and tokenizer as a plain Transformers folder, the value head or model in `value_model/`.

        The first rank writes, the others wait.
        """
        folder = Path(output_dir or self.args.output_dir)
        if ranks.is_main_process():
            self._save_policy(folder)
            if self.args.save_value_model and self.is_shared:
                checkpoint.save_value_head(self.value_model, folder / "value_model")
            elif self.args.save_value_model:
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
        if ranks.is_main_process():
            self._write_checkpoint(folder)
        ranks.barrier()
        return folder

    def _write_checkpoint(self, folder: Path) -> None:
        tensors, rest = checkpoint.split_optimizer(self.optimizer)
        state = {
            "trainer": {key: value for key, value in asdict(self.state).items() if key != "stateful_callbacks"},
            "optimizer": rest,
            "batch_size": self.args.batch_size,
            "kl_coef": self.kl_coef,
            "score_stats": self.score_stats,
        }
        checkpoint.save(
            folder,
            {"value": dict(self.value_model.named_parameters()), "optimizer": tensors},
            state,
            self._save_policy,
        )
        if self.args.save_total_limit:
            checkpoint.rotate(folder.parent, self.args.save_total_limit)

    def _load_checkpoint(self, folder: Path) -> None:
        tensors, state = checkpoint.load(folder)
        weights = {
            name: value for group in set(tensors) - {"value", "optimizer"} for name, value in tensors[group].items()
        }
        try:
            if is_peft(self.model):
                from peft import set_peft_model_state_dict

                set_peft_model_state_dict(self.model, weights)
            else:
                self.model.load_state_dict(weights, strict=False)  # tied weights are saved once
            self.value_model.load_state_dict(tensors["value"], strict=False)
            self.optimizer.load_state_dict(checkpoint.join_optimizer(tensors["optimizer"], state["optimizer"]))
        except (RuntimeError, ValueError) as error:
            raise BadInput(f"The checkpoint {folder} is of another model, or trains other parts of it.") from error
        own = {"is_local_process_zero", "is_world_process_zero", "stateful_callbacks"}
        own = {name: getattr(self.state, name) for name in own}
        self.state = TrainerState(**(state["trainer"] | own))
        if self.args.max_steps <= 0:  # with another batch, as many episodes are other updates
            self.state.global_step = self.state.global_step * state["batch_size"] // self.args.batch_size
        self.lr_scheduler.last_epoch = self.state.global_step
        self.lr_scheduler._last_lr = [group["lr"] for group in self.optimizer.param_groups]
        self.kl_coef, self.score_stats = state["kl_coef"], state["score_stats"]


# -------------------------------------------------------------------------------------------------------------------
# What the trainer is given, checked


def _ready(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """A model that `hidden_states` can read, without dropout."""
    use_packed_attention(model)
    return model.to(device).eval()


def _room(model: PreTrainedModel, args: PPOConfig) -> int:
    """Tokens a prompt may have."""
    limit = models.context_size(plain_model(model))
    if args.response_length >= limit:
        raise BadInput(
            f"response_length ({args.response_length}) leaves no room for a prompt within the {limit} tokens this "
            "model reads; shorten it."
        )
    return limit - args.response_length


def _mean(steps: list[dict[str, torch.Tensor]], name: str) -> float:
    """Mean over all tokens of some optimizer steps."""
    return float(sum(step[name] for step in steps) / sum(step["tokens"] for step in steps))


def _report_rewards(verdict: RewardScores) -> dict[str, float]:
    """Mean and spread of each reward's scores, and what the functions logged: the mean over ranks that did."""
    metrics = {}
    for name, own in verdict.by_reward.items():
        scores = ranks.gather_list(own)
        sums = [sum(score) if isinstance(score, list) else score for score in scores if score is not None]
        given = torch.tensor(sums)
        metrics[f"rewards/{name}/mean"] = given.mean().item()
        metrics[f"rewards/{name}/std"] = given.std(correction=0).item()
    logged = defaultdict(list)
    for name, value in (entry for part in ranks.all_gather_object(verdict.logged) for entry in part.items()):
        logged[name].append(value)
    return metrics | {name: sum(values) / len(values) for name, values in logged.items()}


def _report_lengths(lengths: torch.Tensor, ended: torch.Tensor) -> dict[str, float]:
    """Lengths (B,) in tokens, and whether each response ended (B,)."""
    return {
        "completions/mean_length": lengths.mean().item(),
        "completions/min_length": lengths.min().item(),
        "completions/max_length": lengths.max().item(),
        "completions/clipped_ratio": (~ended).float().mean().item(),
        "completions/mean_terminated_length": lengths[ended].mean().item() if ended.any() else 0.0,
    }

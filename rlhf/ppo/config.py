"""Settings of `PPOTrainer`: `PPOSettings` (`rlhf/config/ppo.py`), Transformers' TrainingArguments, names of TRL."""

import math
import os
import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import TrainingArguments

from rlhf.config import BadInput, PPOSettings
from rlhf.config.checking import PositiveInt


@dataclass
class PPOConfig(PPOSettings, TrainingArguments):
    """All settings of `PPOTrainer`, with the defaults of TRL 1.12 unless a line says otherwise.

    Raises:
        BadInput: a value out of range, or settings that contradict each other.
    """

    # Other names, under which TRL's methods call the same settings
    beta: float | None = None
    """kl_coef."""
    epsilon: float | None = None
    """cliprange."""
    max_completion_length: int | None = None
    """response_length."""
    stop_token_id: int | None = None
    """Id of the token that ends a response, instead of stop_token."""

    # Sampling and scoring
    kl_estimator: Literal["k1", "k3"] = "k1"
    """Estimator behind objective/kl; the KL penalty is always k1, whose optimum is the KL-regularised one."""
    local_rollout_forward_batch_size: PositiveInt | None = None
    """Prompts answered at the same time; by default all of an update."""
    reward_weights: list[float] | None = None
    """Weight of each reward; by default 1 each."""
    chat_template_kwargs: dict | None = None
    """Passed to the chat template."""

    # Here only for calls that name them: a policy that is not sampled as it is scored would be optimised wrongly.
    generation_kwargs: dict | None = None
    """Nothing that changes the sampling distribution."""
    top_k: int = 0
    """Only 0, which is off."""
    top_p: float = 1.0
    """Only 1, which is off."""

    # Adapters
    model_adapter_name: str | None = None
    """PEFT adapter that is trained, if there are several."""
    ref_adapter_name: str | None = None
    """PEFT adapter that is the reference; by default the model without adapters."""

    # Evaluation, samples, saving
    save_value_model: bool = True
    """Save the critic beside the policy, in `value_model/`."""
    log_completions: bool = False
    """Print sample prompts with their completions and scores whenever they are made."""
    num_completions_to_print: int = 8
    """How many of them."""
    eval_num_samples_per_prompt: PositiveInt = 1
    """Responses per prompt in `evaluate`."""

    # Accepted for compatibility with TRL's scripts, and without effect
    sft_model_path: str | None = None
    """Not used."""
    reward_model_path: str | None = None
    """Not used."""
    dataset_num_proc: int | None = None
    """Not used: every process reads the prompts itself."""
    ds3_gather_for_generation: bool = True
    """Not used: DeepSpeed is not supported."""

    # Defaults of TrainingArguments that differ here
    seed: int = 42
    """Seed of the sampling and of the order of prompts."""
    per_device_train_batch_size: PositiveInt = 8
    """Responses per process and forward pass; an update uses gradient_accumulation_steps times as many."""
    bf16: bool | None = None
    """Compute in bfloat16; by default on a GPU that can."""
    logging_steps: float = 1
    """Updates between lines of metrics."""
    use_cache: bool = True
    """What the saved model's config says; training does not use Transformers' cache."""

    def __post_init__(self) -> None:
        # The other names first: they are given only by those who mean them.
        self.kl_coef = self.kl_coef if self.beta is None else self.beta
        self.cliprange = self.cliprange if self.epsilon is None else self.epsilon
        if self.max_completion_length is not None:
            self.response_length = self.max_completion_length
        # TRL's configs say "none" or nothing for responses of full length.
        if self.stop_token not in ("eos", "none", None):
            raise BadInput(f"stop_token must be 'eos' or 'none', not {self.stop_token!r}; for others, stop_token_id.")
        self.stop_token = None if self.stop_token == "none" or self.stop_token_id is not None else self.stop_token
        # TRL computes in bfloat16 wherever it can; on a CPU without AVX512-BF16 or AMX that is slower.
        if self.bf16 is None:
            self.bf16 = not self.use_cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        self.check()
        self._check_sampling()
        self._check_support()
        TrainingArguments.__post_init__(self)

    def _check_sampling(self) -> None:
        """The policy is scored by its whole distribution at one temperature, so it must be sampled from that."""
        # What leaves the distribution softmax(logits / temperature) as it is; anything else would make the ratio of
        # the first pass differ from 1, and PPO would optimise another policy than the one that answers.
        neutral = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "do_sample": True}
        wanted = (*(self.generation_kwargs or {}).items(), ("top_k", self.top_k), ("top_p", self.top_p))
        for name, value in wanted:
            if name not in neutral:
                raise BadInput(
                    f"generation_kwargs cannot set {name}; response_length, temperature and stop_token can."
                )
            if value is not None and value != neutral[name]:
                raise BadInput(
                    f"{name}={value} samples from another distribution than the one PPO scores; leave it at "
                    f"{neutral[name]} and lower the temperature instead."
                )
        # Both ask whether a response has ended, and without an end token none ever does.
        never_ends = self.stop_token is None and self.stop_token_id is None
        if never_ends and (self.missing_eos_penalty is not None or self.mask_truncated_completions):
            raise BadInput(
                "missing_eos_penalty and mask_truncated_completions need responses that can end; leave stop_token at "
                "'eos'."
            )

    def _check_support(self) -> None:
        """Refuse what is not supported, and warn of what is seldom wanted."""
        if self.fp16:
            raise BadInput("fp16 is not supported; use bf16=True or full precision.")
        if self.load_best_model_at_end:
            raise BadInput("load_best_model_at_end is not supported; evaluate the checkpoints and load the best.")
        # accelerate says by environment variable what its launcher was asked for.
        shards = any(os.environ.get(f"ACCELERATE_USE_{name}") == "true" for name in ("FSDP", "DEEPSPEED"))
        if shards or self.fsdp or self.deepspeed:
            raise BadInput("PPO splits data among processes, not models; launch it without FSDP and DeepSpeed.")
        if self.kl_estimator == "k3":
            warnings.warn(
                "kl_estimator='k3' changes objective/kl only; the KL penalty keeps k1, which has the right optimum.",
                stacklevel=4,
            )
        if self.whiten_rewards:
            warnings.warn("whiten_rewards=True shifts the optimum when lengths vary; best left off.", stacklevel=4)

    @property
    def batch_size(self) -> int:
        """Responses per update, of all processes."""
        return self.local_batch_size * self.world_size

    @property
    def local_mini_batch_size(self) -> int:
        """Responses per optimizer step, from one process."""
        return self.local_batch_size // self.num_mini_batches

    @property
    def num_total_batches(self) -> int:
        """PPO updates of the whole run; `total_episodes` must be known."""
        return self.max_steps if self.max_steps > 0 else math.ceil(self.total_episodes / self.batch_size)

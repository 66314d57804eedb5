"""Settings of `PPOTrainer`: `PPOSettings` (`rlhf/config`), Transformers' TrainingArguments, and TRL's other names."""

import math
import os
import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import TrainingArguments

from rlhf.config import BadInput, PPOSettings, check_range


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

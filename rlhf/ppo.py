"""PPO for language models, from top to bottom (Schulman et al. 1707.06347; Ziegler et al. 1909.08593; Huang et al.
2403.17031).

One update is six phases, numbered where they happen in `PPOTrainer.train`:

    1. roll out       the policy answers a batch of prompts; log-probabilities are kept as it samples
    2. score          the reward model judges each whole answer; the reference model says how far each token strayed
    3. rewards        per token: minus the price of straying (KL), plus the score at the last token
    4. advantages     generalised advantage estimation against the value head, then whitened
    5. learn          several epochs over the batch with clipped losses
    6. report         TRL's metric keys, masked and weighted by token

Shapes: B responses of at most T tokens; N valid tokens in all, in row-major order of the mask (B, T). A token after
the end token does not exist: masks come from lengths, never from the value of a pad token. The end token is an action.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState

from rlhf import checkpoint
from rlhf.config import BadInput, PPOConfig
from rlhf.generate import Generation, batches_by_length, generate, pad_left, pad_right
from rlhf.models import context_size
from rlhf.scoring import score_ids


__all__ = ["Diverged", "PPOConfig", "PPOTrainer"]

RewardFunc = Callable[..., list[float]]
MICRO_BATCH_TOKENS = 1536
"""Padded tokens in one forward and backward pass: rows of like length share one, so that little of it is padding."""


class Diverged(RuntimeError):
    """A number that training lives on is no longer finite; the message names it and the update."""


# -------------------------------------------------------------------------------------------------------------------
# The formulas, as functions on tensors


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """values (B, T), mask (B, T) -> scalar; what lies outside the mask may be anything, NaN too."""
    return values[mask].mean()


def whiten(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Shift and scale the valid entries to mean 0 and variance 1; values (B, T), mask (B, T) -> (B, T), 0 outside."""
    valid = values[mask]
    variance, mean = torch.var_mean(valid) if valid.numel() > 1 else (valid.new_ones(()), valid.mean())
    return torch.zeros_like(values).masked_scatter(mask, (valid - mean) * torch.rsqrt(variance + 1e-8))


def compute_rewards(
    scores: torch.Tensor, logprobs: torch.Tensor, ref_logprobs: torch.Tensor, mask: torch.Tensor, kl_coef: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """scores (B,), logprobs, ref_logprobs, mask (B, T) -> rewards (B, T), their KL part (B, T).

    r_t = -kl_coef * (log pi(y_t) - log pi_ref(y_t)), plus the score at the last valid token, be it the end token or
    the one that hit the length limit. The log-ratio itself (k1) is the estimator with the KL-regularised optimum.
    """
    non_score = torch.where(mask, -kl_coef * (logprobs - ref_logprobs), 0.0)
    rewards = non_score.clone()
    last = mask.sum(dim=1) - 1
    rewards[torch.arange(len(rewards), device=rewards.device), last] += scores
    return rewards, non_score


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
    logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor, cliprange: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Clipped surrogate per token; all (N,) -> loss (N,), probability ratio (N,), whether it was clipped (N,)."""
    ratio = torch.exp((logprobs - old_logprobs).clamp(-20, 20))
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    return torch.maximum(plain, clipped), ratio, clipped > plain


def value_losses(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, cliprange_value: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Clipped squared error per token; all (N,) -> loss (N,), whether it was clipped (N,)."""
    near = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
    plain, clipped = (values - returns) ** 2, (near - returns) ** 2
    return 0.5 * torch.maximum(plain, clipped), clipped > plain


def response_outputs(
    model: PreTrainedModel,
    value_head: nn.Module | None,
    rows: list[list[int]],
    prompt_lengths: list[int],
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """One pass over b rows (prompt + response) -> log-probability, entropy and value of their n response tokens (n,).

    The vocabulary projection runs on the response's tokens only. Values are None without a value head.
    """
    ids = pad_right(rows).to(model.device)
    # Right padding under causal attention: no token sees a pad, so no mask is needed and the fast kernel applies.
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    place = torch.arange(ids.size(1) - 1, device=ids.device)
    starts = torch.tensor(prompt_lengths, device=ids.device).unsqueeze(1) - 1
    ends = torch.tensor([len(row) for row in rows], device=ids.device).unsqueeze(1) - 1
    predicts = (place >= starts) & (place < ends)  # (b, S-1): the state at t predicts the token at t+1
    states, targets = hidden[:, :-1][predicts], ids[:, 1:][predicts]
    distribution = torch.log_softmax(model.get_output_embeddings()(states).float() / temperature, dim=-1)
    logprobs = distribution.gather(1, targets.unsqueeze(1)).squeeze(1)
    entropy = -(distribution.exp() * distribution).sum(dim=-1).detach()
    values = value_head(states.float()).squeeze(1) if value_head is not None else None
    return logprobs, entropy, values


# -------------------------------------------------------------------------------------------------------------------
# The trainer


@dataclass
class Rollout:
    """A batch of responses and everything that phases 2 to 4 find out about them."""

    rows: list[list[int]]
    """B lists of prompt and response ids, without pads."""
    prompt_lengths: list[int]
    generation: Generation
    scores: torch.Tensor | None = None
    """(B,) as the reward gave them."""
    ref_logprobs: torch.Tensor | None = None
    values: torch.Tensor | None = None
    advantages: torch.Tensor | None = None
    returns: torch.Tensor | None = None
    """(B, T) each."""


class PPOTrainer:
    """Proximal policy optimisation of a causal language model against a reward.

    The value head is a linear layer on the policy's own trunk, zero at the start. Every random number is drawn from
    generators seeded by (seed, update), so a resumed run repeats an uninterrupted one to the bit on the CPU.

    Args:
        model: the policy; trained in place.
        args: settings, see `PPOConfig`.
        processing_class: the policy's tokenizer.
        reward_model: a sequence classifier with one score that shares the policy's tokenizer.
        reward_funcs: instead of a reward model, `f(prompts, completions, completion_ids) -> list[float]`.
        train_dataset: prompts as texts, or rows with a "prompt" text.
        ref_model: the reference; a frozen copy of the policy if not given.
        callbacks: Transformers callbacks; `on_step_end`, `on_log`, `on_train_begin` and `on_train_end` are called and
            a request to stop is honoured after the update that is under way.

    Raises:
        BadInput: no prompts, no reward or two, tokenizers that differ, or a prompt that leaves no room to answer.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: PPOConfig,
        processing_class: PreTrainedTokenizerBase,
        *,
        reward_model: PreTrainedModel | None = None,
        reward_funcs: RewardFunc | None = None,
        train_dataset: Sequence,
        ref_model: PreTrainedModel | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        if (reward_model is None) == (reward_funcs is None):
            raise BadInput("Give PPOTrainer either a reward_model or reward_funcs.")
        self.args, self.model, self.processing_class = args, model, processing_class
        self.reward_model = reward_model.eval() if reward_model is not None else None
        self.reward_funcs = reward_funcs
        self.callbacks = list(callbacks)
        self.state = TrainerState(max_steps=args.num_total_batches)
        self.control = TrainerControl()
        self.prompts = [row if isinstance(row, str) else row["prompt"] for row in train_dataset]
        self.queries = self._tokenize_prompts()
        # Dropout off: the ratio of the first pass must be exactly 1.
        self.model.eval()
        self.ref_model = self._frozen_copy() if ref_model is None else ref_model.eval().requires_grad_(False)
        self.value_head = nn.Linear(model.config.hidden_size, 1, device=model.device)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        self.parameters = [p for p in (*model.parameters(), *self.value_head.parameters()) if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.parameters, lr=args.learning_rate, eps=args.adam_epsilon, fused=True)
        self.score_shift, self.score_scale = 0.0, 1.0

    def _tokenize_prompts(self) -> list[list[int]]:
        """Token ids of every prompt, checked for room."""
        if not self.prompts:
            raise BadInput("There are no prompts to train on.")
        queries = self.processing_class(self.prompts)["input_ids"]
        limit = min(self.args.max_length, context_size(self.model))
        room = limit - self.args.response_length
        longest = max(range(len(queries)), key=lambda row: len(queries[row]))
        if len(queries[longest]) > room:
            raise BadInput(
                f"A prompt of {len(queries[longest])} tokens leaves no room for a response of "
                f"{self.args.response_length} within {limit} tokens: {self.prompts[longest][:60]!r}; shorten "
                "response_length or the prompts."
            )
        return queries

    def _frozen_copy(self) -> PreTrainedModel:
        copy = type(self.model)(self.model.config)
        copy.load_state_dict(self.model.state_dict())
        return copy.to(self.model.device).eval().requires_grad_(False)

    # --------------------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | Path | None = None) -> TrainerState:
        """Run all updates, or those that are left after a checkpoint; returns the trainer's state with its log.

        Raises:
            Diverged: a loss or a gradient is no longer finite; the model is left as it was before that update.
        """
        if resume_from_checkpoint is not None:
            self._load_checkpoint(Path(resume_from_checkpoint))
        self._notify("on_train_begin")
        while self.state.global_step < self.args.num_total_batches and not self.control.should_training_stop:
            started = time.perf_counter()
            rollout = self._roll_out(self._next_batch())  # 1.
            rolled_out = time.perf_counter()
            self._score(rollout)  # 2.
            rewards, non_score = self._rewards(rollout)  # 3.
            mask = rollout.generation.mask
            advantages, rollout.returns = compute_gae(
                rewards, rollout.values, mask, self.args.gamma, self.args.lam
            )  # 4.
            rollout.advantages = whiten(advantages, mask)
            scored = time.perf_counter()
            learned = self._learn(rollout)  # 5.
            self.state.global_step += 1
            seconds = {
                "rollout": rolled_out - started,
                "score": scored - rolled_out,
                "update": time.perf_counter() - scored,
            }
            self._log(self._report(rollout, non_score, learned, seconds))  # 6.
            self._notify("on_step_end")
        self._notify("on_train_end")
        return self.state

    def _notify(self, event: str, **kwargs: object) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(self.args, self.state, self.control, model=self.model, **kwargs)

    def _log(self, metrics: dict[str, float]) -> None:
        self.state.log_history.append({**metrics, "step": self.state.global_step})
        self._notify("on_log", logs=metrics)

    def _generator(self, purpose: int) -> torch.Generator:
        """A generator for one purpose in one update; (seed, update, purpose) always gives the same one."""
        seed = (self.args.seed * 1_000_003 + self.state.global_step) * 4 + purpose
        return torch.Generator().manual_seed(seed)

    # 1. Roll out ---------------------------------------------------------------------------------------------------

    def _next_batch(self) -> list[int]:
        """Indices of this update's prompts: permutations of all prompts, one after another."""
        size, count = self.args.per_device_train_batch_size, len(self.queries)
        first = self.state.global_step * size
        order: dict[int, list[int]] = {}
        for turn in range(first // count, (first + size - 1) // count + 1):
            generator = torch.Generator().manual_seed(self.args.seed * 1_000_003 + turn)
            order[turn] = torch.randperm(count, generator=generator).tolist()
        return [order[place // count][place % count] for place in range(first, first + size)]

    def _roll_out(self, batch: list[int]) -> Rollout:
        queries = [self.queries[index] for index in batch]
        generation = self._generate(queries, self.args.temperature)
        rows = [
            query + response[keep].tolist()
            for query, response, keep in zip(queries, generation.responses, generation.mask, strict=True)
        ]
        return Rollout(rows, [len(query) for query in queries], generation)

    def _generate(self, queries: list[list[int]], temperature: float) -> Generation:
        ids, mask = pad_left(queries, self.processing_class.pad_token_id)
        return generate(
            self.model,
            ids.to(self.model.device),
            mask.to(self.model.device),
            max_new_tokens=self.args.response_length,
            temperature=temperature,
            eos_id=self.processing_class.eos_token_id,
            pad_id=self.processing_class.pad_token_id,
            generator=self._generator(purpose=0),
        )

    # 2. Score ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _score(self, rollout: Rollout) -> None:
        rollout.scores = self._reward(rollout.rows, rollout.prompt_lengths).to(self.model.device)
        mask = rollout.generation.mask
        rollout.ref_logprobs, rollout.values = (torch.zeros(mask.shape, device=mask.device) for _ in range(2))
        for part in batches_by_length(rollout.rows, MICRO_BATCH_TOKENS):
            rows, lengths = [rollout.rows[i] for i in part], [rollout.prompt_lengths[i] for i in part]
            ref_logprobs, _, _ = response_outputs(self.ref_model, None, rows, lengths, self.args.temperature)
            _, _, values = response_outputs(self.model, self.value_head, rows, lengths, self.args.temperature)
            rollout.ref_logprobs[part] = self._unflatten(ref_logprobs, mask[part])
            rollout.values[part] = self._unflatten(values, mask[part])

    @staticmethod
    def _unflatten(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """tokens (n,) in row-major order of the mask (b, T) -> (b, T), 0 outside."""
        return torch.zeros(mask.shape, device=mask.device).masked_scatter(mask, tokens)

    def _reward(self, rows: list[list[int]], prompt_lengths: list[int]) -> torch.Tensor:
        """Scores (B,) of whole rows, from the reward model or the reward function."""
        if self.reward_model is not None:
            return score_ids(self.reward_model, rows)
        decode = self.processing_class.batch_decode
        queries = [row[:length] for row, length in zip(rows, prompt_lengths, strict=True)]
        responses = [row[length:] for row, length in zip(rows, prompt_lengths, strict=True)]
        scores = self.reward_funcs(
            prompts=decode(queries, skip_special_tokens=True),
            completions=decode(responses, skip_special_tokens=True),
            completion_ids=responses,
        )
        if len(scores) != len(rows):
            raise BadInput(f"The reward function gave {len(scores)} scores for {len(rows)} completions.")
        return torch.tensor(scores, dtype=torch.float32)

    # 3. Rewards ----------------------------------------------------------------------------------------------------

    def _rewards(self, rollout: Rollout) -> tuple[torch.Tensor, torch.Tensor]:
        if not torch.isfinite(rollout.scores).all():
            raise Diverged(f"A score was not finite at update {self.state.global_step + 1}.")
        if self.args.reward_normalization == "reference" and self.state.global_step == 0:
            # Before the first update the policy is the reference: its scores give the unit (Ziegler et al. 2.2). Fixed
            # from here on, so that kl_coef keeps its meaning.
            self.score_shift = rollout.scores.mean().item()
            self.score_scale = max(rollout.scores.std().item(), 1e-6)
        scores = (rollout.scores - self.score_shift) / self.score_scale
        if self.args.missing_eos_penalty is not None:
            scores = scores - self.args.missing_eos_penalty * (~rollout.generation.ended)
        generation = rollout.generation
        return compute_rewards(scores, generation.logprobs, rollout.ref_logprobs, generation.mask, self.args.kl_coef)

    # 5. Learn ------------------------------------------------------------------------------------------------------

    def _learn(self, rollout: Rollout) -> dict[str, float]:
        """All epochs over one batch; returns sums over tokens of what was seen on the way, and their count."""
        args, sums, ratios = self.args, defaultdict(float), []
        lr = args.learning_rate * (1 - self.state.global_step / args.num_total_batches)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        generator = self._generator(purpose=1)
        size = len(rollout.rows) // args.num_mini_batches
        for _ in range(args.num_ppo_epochs):
            order = torch.randperm(len(rollout.rows), generator=generator).tolist()
            for start in range(0, len(order), size):
                seen = self._step(rollout, order[start : start + size])
                ratios.append(seen["ratio"] / seen["tokens"])
                for name, value in seen.items():
                    sums[name] += value
        means = {name: value / sums["tokens"] for name, value in sums.items() if name not in ("tokens", "grad_norm")}
        return {
            **means,
            "ratio_var": torch.tensor(ratios).var().item() if len(ratios) > 1 else 0.0,
            "grad_norm": sums["grad_norm"] / len(ratios),
            "lr": lr,
        }

    def _step(self, rollout: Rollout, chosen: list[int]) -> dict[str, float]:
        """One optimizer step on some rows; the loss is normalised by all tokens of the step, however it is cut."""
        mask = rollout.generation.mask
        tokens = int(mask[chosen].sum())
        seen = defaultdict(float, tokens=float(tokens))
        lengths = [rollout.rows[i] for i in chosen]
        for part in batches_by_length(lengths, MICRO_BATCH_TOKENS):
            rows = [chosen[i] for i in part]
            self._accumulate(rollout, rows, tokens, seen)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.args.max_grad_norm)
        if not torch.isfinite(norm):
            self.optimizer.zero_grad()
            raise Diverged(f"The gradient was not finite at update {self.state.global_step + 1}; lower learning_rate.")
        self.optimizer.step()
        self.optimizer.zero_grad()
        seen["grad_norm"] = norm.item()
        return seen

    def _accumulate(self, rollout: Rollout, rows: list[int], tokens: int, seen: dict[str, float]) -> None:
        """Forward and backward of one micro-batch; adds its gradient, and to `seen` its sums over tokens."""
        mask = rollout.generation.mask[rows]
        old_logprobs, old_values = rollout.generation.logprobs[rows][mask], rollout.values[rows][mask]
        logprobs, entropy, values = response_outputs(
            self.model,
            self.value_head,
            [rollout.rows[i] for i in rows],
            [rollout.prompt_lengths[i] for i in rows],
            self.args.temperature,
        )
        policy, ratio, policy_clipped = policy_losses(
            logprobs, old_logprobs, rollout.advantages[rows][mask], self.args.cliprange
        )
        value, value_clipped = value_losses(values, old_values, rollout.returns[rows][mask], self.args.cliprange_value)
        ((policy.sum() + self.args.vf_coef * value.sum()) / tokens).backward()
        sums = {
            "policy_loss": policy,
            "value_loss": value,
            "ratio": ratio,
            "approxkl": 0.5 * (logprobs - old_logprobs) ** 2,
            "policy_clipped": policy_clipped,
            "value_clipped": value_clipped,
            "entropy": entropy,
        }
        for name, per_token in sums.items():
            seen[name] += per_token.detach().float().sum().item()

    # 6. Report -----------------------------------------------------------------------------------------------------

    def _report(
        self, rollout: Rollout, non_score: torch.Tensor, learned: dict[str, float], seconds: dict[str, float]
    ) -> dict[str, float]:
        """TRL's keys, with the sums per response and the means per valid token."""
        generation, scores = rollout.generation, rollout.scores
        mask, lengths = generation.mask, generation.mask.sum(dim=1).float()
        kl = torch.where(mask, generation.logprobs - rollout.ref_logprobs, 0.0).sum(dim=1)
        returns, values = rollout.returns[mask], rollout.values[mask]
        step, total = self.state.global_step, sum(seconds.values())
        episode = step * len(rollout.rows)
        return {
            "episode": episode,
            "eps": len(rollout.rows) / total,
            "objective/kl": kl.mean().item(),
            "objective/entropy": -(generation.logprobs * mask).sum(dim=1).mean().item(),
            "objective/non_score_reward": non_score.sum(dim=1).mean().item(),
            "objective/rlhf_reward": (scores + non_score.sum(dim=1)).mean().item(),
            "objective/scores": scores.mean().item(),
            "objective/scores_std": scores.std().item() if len(scores) > 1 else 0.0,
            "objective/kl_coef": self.args.kl_coef,
            "policy/approxkl_avg": learned["approxkl"],
            "policy/clipfrac_avg": learned["policy_clipped"],
            "policy/entropy_avg": learned["entropy"],
            "loss/policy_avg": learned["policy_loss"],
            "loss/value_avg": learned["value_loss"],
            "val/clipfrac_avg": learned["value_clipped"],
            "val/ratio": learned["ratio"],
            "val/ratio_var": learned["ratio_var"],
            "val/num_eos_tokens": generation.ended.sum().item(),
            "val/explained_variance": 1 - ((returns - values).var() / returns.var().clamp(min=1e-8)).item(),
            "completions/mean_length": lengths.mean().item(),
            "completions/clipped_ratio": (~generation.ended).float().mean().item(),
            "grad_norm": learned["grad_norm"],
            "lr": learned["lr"],
            **{f"time/{phase}": value for phase, value in seconds.items()},
            "episodes_per_second": len(rollout.rows) / total,
            "tokens_per_second": lengths.sum().item() / total,
        }

    # --------------------------------------------------------------------------------------------------------------

    def generate_completions(self, prompts: Sequence[str]) -> list[dict]:
        """The policy's most likely answer to each prompt, with its score: `{index, prompt, response, score}` each."""
        queries = self.processing_class(list(prompts))["input_ids"]
        generation = self._generate(queries, temperature=0.0)
        answers = [row[keep].tolist() for row, keep in zip(generation.responses, generation.mask, strict=True)]
        rows = [query + answer for query, answer in zip(queries, answers, strict=True)]
        scores = self._reward(rows, [len(query) for query in queries]).tolist()
        texts = self.processing_class.batch_decode(answers, skip_special_tokens=True)
        return [
            {"index": index, "prompt": prompt.strip(), "response": text.strip(), "score": score}
            for index, (prompt, text, score) in enumerate(zip(prompts, texts, scores, strict=True))
        ]

    def save_model(self, output_dir: str | Path) -> None:
        """Save the policy and its tokenizer as a plain Transformers folder."""
        self.model.save_pretrained(output_dir)
        self.processing_class.save_pretrained(output_dir)

    def save_checkpoint(self, folder: str | Path) -> Path:
        """Save all that is needed to go on exactly as if nothing had happened."""
        moments = {}
        for index, parameter in enumerate(self.parameters):
            for name, value in self.optimizer.state[parameter].items():
                moments[f"{index}.{name}"] = value
        state = {
            "step": self.state.global_step,
            "score_shift": self.score_shift,
            "score_scale": self.score_scale,
            "args": asdict(self.args),
        }
        tensors = {"policy": self.model.state_dict(), "value_head": self.value_head.state_dict(), "optimizer": moments}
        return checkpoint.save(Path(folder), tensors, state)

    def _load_checkpoint(self, folder: Path) -> None:
        tensors, state = checkpoint.load(folder)
        self.model.load_state_dict(tensors["policy"])
        self.value_head.load_state_dict(tensors["value_head"])
        for index, parameter in enumerate(self.parameters):
            names = [key for key in tensors["optimizer"] if key.split(".")[0] == str(index)]
            self.optimizer.state[parameter] = {key.split(".")[1]: tensors["optimizer"][key] for key in names}
        self.state.global_step = state["step"]
        self.score_shift, self.score_scale = state["score_shift"], state["score_scale"]

"""Forward and backward passes of PPO's models, in pieces that fit in memory.

Three things keep memory small. Rows are read without pads, a micro-batch of similar lengths at a time
(`rlhf/models/packed.py`). The table of logits (N, V) never exists as a whole: the vocabulary projection runs on one
chunk of tokens at a time. And the trunk runs only once per micro-batch: the loss is first differentiated with respect
to its last hidden states, chunk by chunk, and their gradient then sent through the trunk.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from rlhf.models.packed import (
    PackedRows,
    batches_by_length,
    hidden_states,
    is_peft,
    logits_at,
    pack_responses,
    plain_model,
)
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.critic import ValueHead


if TYPE_CHECKING:
    from rlhf.ppo.algorithm import Rollout

MICRO_BATCH_TOKENS = {"cpu": 1280, "cuda": 16_384}
"""Tokens in one forward and backward pass: what the caches of a CPU hold well, and what keeps a GPU busy."""
LOGITS_AT_ONCE = 2**25
"""Entries of the table of logits (tokens, V) in memory at the same time."""


class _TokenLogprobs(torch.autograd.Function):
    """One softmax of logits (n, V) serves the log-probabilities of targets (n,), the entropy, and the gradient."""

    @staticmethod
    def forward(ctx: object, logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        probabilities = torch.softmax(logits, dim=-1)  # (n, V)
        # log sum exp(logits), read off the largest entry of both.
        log_total = logits.amax(dim=-1) - probabilities.amax(dim=-1).log()
        logprobs = logits.gather(1, targets.unsqueeze(1)).squeeze(1) - log_total
        # H = -sum p log p = log_total - sum p logit, without another table for log p.
        entropy = log_total - torch.linalg.vecdot(probabilities, logits)  # (n,)
        ctx.save_for_backward(probabilities, targets)
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor, None]:
        probabilities, targets = ctx.saved_tensors
        # d log p_target / d logits = [target] - p; the memory of p is not needed again.
        gradients = probabilities.mul_(-gradient.unsqueeze(1))
        return gradients.scatter_add_(1, targets.unsqueeze(1), gradient.unsqueeze(1)), None


def token_logprobs(
    logits: torch.Tensor, targets: torch.Tensor, *, entropy_gradient: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits over temperature (n, V), targets (n,) -> log-probabilities of the targets and entropies (n,).

    The entropy has a gradient only where `entropy_gradient` asks for it, which takes twice the memory.
    """
    if not entropy_gradient:
        return _TokenLogprobs.apply(logits, targets)
    # Plain autograd, which keeps both tables (n, V) for the backward pass.
    distribution = torch.log_softmax(logits, dim=-1)
    entropy = -(distribution.exp() * distribution).sum(dim=-1)
    return distribution.gather(1, targets.unsqueeze(1)).squeeze(1), entropy


@dataclass
class MicroBatch:
    """Some rows of a rollout, packed for one forward pass; N response tokens in all."""

    rows: list[int]  # which rows of the rollout they are
    ids: torch.Tensor  # all their tokens one after another, but each row's last one, which predicts nothing
    packed: PackedRows  # where each row begins and ends in `ids`
    positions: torch.Tensor  # (N,) where in `ids` the states lie that predict the response tokens
    targets: torch.Tensor  # (N,) those tokens


class ActorCritic:
    """The policy, its critic and its reference.

    Args:
        policy: a causal language model, with or without PEFT adapters.
        critic: a `ValueHead` on the policy's hidden states, a sequence classifier of its own, or None for advantages
            that need no critic.
        ref_model: the reference; None for a policy with adapters, which without them is its own reference, or where
            there is no KL penalty.
        args: temperature, adapters' names, sizes.
        autocast: gives the context in which the models compute.
    """

    def __init__(
        self,
        policy: PreTrainedModel,
        critic: ValueHead | PreTrainedModel | None,
        ref_model: PreTrainedModel | None,
        args: PPOConfig,
        autocast: Callable[[], AbstractContextManager],
    ) -> None:
        self.policy, self.critic, self.ref_model, self.args, self.autocast = policy, critic, ref_model, args, autocast
        self.shares_trunk = isinstance(critic, ValueHead)
        self.has_reference = ref_model is not None or is_peft(policy)

    @contextmanager
    def reference(self) -> Iterator[PreTrainedModel]:
        """The reference: a model of its own, or the policy with its adapters off or others on."""
        args, policy = self.args, self.policy
        # A second model where there is one; with PEFT the policy's own weights below its adapters, which saves a copy.
        if self.ref_model is not None:
            yield self.ref_model
        elif args.ref_adapter_name:
            policy.set_adapter(args.ref_adapter_name)
            try:
                yield policy
            finally:
                policy.set_adapter(args.model_adapter_name or "default")
        else:
            with policy.disable_adapter():
                yield policy

    def micro_batches(self, rollout: "Rollout", rows: Sequence[int]) -> Iterator[MicroBatch]:
        """Some rows of a rollout, those of similar length together, as many at once as memory should hold."""
        if not rows:  # a rank may have none of a mini-batch
            return
        # Rows of similar length share a batch, as attention pads them to the longest, and answers to one prompt, which
        # is then read once.
        device = rollout.mask.device
        limit = MICRO_BATCH_TOKENS.get(device.type, MICRO_BATCH_TOKENS["cuda"])
        ids, prompt_lengths = [rollout.rows[row] for row in rows], [len(rollout.prompts[row].ids) for row in rows]
        for part in batches_by_length(ids, limit, self.args.per_device_train_batch_size, prompt_lengths):
            packed = pack_responses([ids[i] for i in part], [prompt_lengths[i] for i in part], device)
            yield MicroBatch([rows[i] for i in part], *packed)

    def _chunks(self, tokens: int) -> list[slice]:
        """Cut that many tokens into chunks whose logits fit in memory."""
        size = max(1, LOGITS_AT_ONCE // self.policy.get_output_embeddings().weight.size(0))
        return [slice(start, start + size) for start in range(0, tokens, size)]

    @torch.no_grad()
    def reference_logprobs(self, rollout: "Rollout") -> tuple[torch.Tensor, torch.Tensor | None]:
        """Log-probabilities of the responses under the reference, KL(policy || reference) at each token; (B, T) each.

        The KL is exact over the vocabulary, from the policy's hidden states as they were when it sampled. Without a
        reference the log-probabilities are the policy's own, and there is no KL.
        """
        generation, mask, temperature = rollout.generation, rollout.mask, self.args.temperature
        if not self.has_reference:
            return generation.logprobs, None
        ref_logprobs, exact_kl = (torch.zeros_like(generation.logprobs) for _ in range(2))
        for batch in self.micro_batches(rollout, range(len(rollout.rows))):
            inside = mask[batch.rows]
            hidden = generation.hidden[batch.rows][inside]  # (N, d)
            logprobs, kls = [], []
            with self.autocast():
                # The reference's trunk runs once; only the projection to V logits is cut into chunks.
                with self.reference() as reference:
                    states = hidden_states(reference, batch.ids, batch.packed, batch.positions)
                for at in self._chunks(len(batch.targets)):
                    with self.reference() as reference:
                        log_q = logits_at(reference, states[at], temperature).log_softmax(dim=-1)
                    log_p = logits_at(self.policy, hidden[at], temperature).log_softmax(dim=-1)
                    logprobs.append(log_q.gather(1, batch.targets[at].unsqueeze(1)).squeeze(1))
                    log_ratio = log_p - log_q  # (n, V)
                    # A sum of products, not a matrix product, which autocast would take to bfloat16.
                    kls.append(log_p.exp_().mul_(log_ratio).sum(dim=-1))
            # Back from tokens (N,) to the rows' places in (B, T).
            ref_logprobs[batch.rows] = ref_logprobs[batch.rows].masked_scatter(inside, torch.cat(logprobs))
            exact_kl[batch.rows] = exact_kl[batch.rows].masked_scatter(inside, torch.cat(kls))
        return ref_logprobs, exact_kl

    @torch.no_grad()
    def values(self, rollout: "Rollout") -> torch.Tensor:
        """The critic's values (B, T), 0 outside the mask."""
        mask, values = rollout.mask, torch.zeros_like(rollout.logprobs)
        if self.shares_trunk:  # the states from sampling serve: nothing has to be read again
            values[mask] = self.critic(rollout.generation.hidden[mask])
            return values
        # A trunk of its own has to read everything once more.
        for batch in self.micro_batches(rollout, range(len(rollout.rows))):
            inside = mask[batch.rows]  # (rows of the batch, T)
            values[batch.rows] = values[batch.rows].masked_scatter(inside, self._separate_values(batch))
        return values

    def _separate_values(self, batch: MicroBatch) -> torch.Tensor:
        """Values (N,) of a critic with a trunk of its own."""
        with self.autocast():
            states = hidden_states(self.critic, batch.ids, batch.packed, batch.positions)
            # The score head, which a reward model reads at the last token only, is read at every token here.
            return plain_model(self.critic).score(states).squeeze(1).float()  # (N,)

    def backward(
        self,
        batch: MicroBatch,
        policy_loss: Callable[[torch.Tensor, torch.Tensor, slice], torch.Tensor],
        value_loss: Callable[[torch.Tensor], torch.Tensor],
        *,
        policy_learns: bool = True,
    ) -> None:
        """Forward and backward pass of one micro-batch; gradients add up in the parameters.

        Args:
            policy_loss: (log-probabilities (n,), entropies (n,), which of the N tokens they are) -> loss ().
            value_loss: values (N,) -> loss ().
            policy_learns: if not, policy_loss is called and its gradient left out.
        """
        with self.autocast():
            states = hidden_states(self.policy, batch.ids, batch.packed, batch.positions)  # (N, d)
        # The graph is cut here: every chunk adds its gradient with respect to the states into leaf.grad, (N, d), and
        # frees its logits; one backward pass then takes the sum through the trunk.
        leaf = states.detach().requires_grad_()
        for at in self._chunks(len(batch.targets)):
            with self.autocast():
                logits = logits_at(self.policy, leaf[at], self.args.temperature)  # (n, V)
            logprobs, entropy = token_logprobs(logits, batch.targets[at], entropy_gradient=self.args.entropy_coef > 0)
            loss = policy_loss(logprobs, entropy, at)
            if policy_learns:
                loss.backward()
        if self.shares_trunk:
            value_loss(self.critic(leaf)).backward()
        # While the critic warms up, its head learns and the trunk does not.
        if policy_learns:
            states.backward(leaf.grad)
        del states  # with its graph: the activations of policy and critic need not be in memory together
        if self.critic is not None and not self.shares_trunk:
            value_loss(self._separate_values(batch)).backward()

"""Any training ends at the first number that is not finite, so that no such model is saved as good."""

from collections.abc import Iterable

import torch
from torch import nn

from rlhf import ranks
from rlhf.config import Diverged


def check_finite(tensors: Iterable[tuple[str, torch.Tensor]], when: str) -> None:
    """Check named tensors of this rank, in the order in which one follows from another.

    Raises:
        Diverged: one of any rank is NaN or infinite somewhere; the message names the first.
    """
    own = next((name for name, tensor in tensors if not tensor.isfinite().all()), None)
    first = next(filter(None, ranks.all_gather_object(own)), None)
    if first:
        raise Diverged(f"{first} was not finite at {when}; lower learning_rate.")


def check_weights(optimizer: torch.optim.Optimizer, when: str, *models: nn.Module | None) -> None:
    """Check what an optimizer step has left: finite gradients may still make a step that is not.

    Raises:
        Diverged: a trained weight, or what the optimizer remembers of its gradients, is not finite.
    """
    named = [pair for model in filter(None, models) for pair in model.named_parameters() if pair[1].requires_grad]
    memory = [
        (f"The optimizer's {key} of {name}", value)
        for name, weight in named
        for key, value in optimizer.state.get(weight, {}).items()
        if isinstance(value, torch.Tensor)
    ]
    check_finite([(f"The weight {name}", weight) for name, weight in named] + memory, when)

"""Several processes that train one model: what they tell each other, and which of them speaks.

They are the ranks of PyTorch's process group, started by `accelerate launch` or `torchrun`. Without a launcher there
is one rank, and everything here hands back what it was given.
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from accelerate import PartialState
from torch import distributed, nn

from rlhf.config import BadInput, FailedElsewhere


def world_size() -> int:
    """Number of ranks."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """This process among them, from 0 on."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def is_main_process() -> bool:
    """Whether this is the rank that writes and speaks."""
    return rank() == 0


# -------------------------------------------------------------------------------------------------------------------
# What they share


def shard(rows: int) -> list[int]:
    """Numbers of this rank's rows among so many: equal parts in order, the last row repeated where that needs more."""
    size = -(-rows // world_size())
    return [min(row, rows - 1) for row in range(rank() * size, (rank() + 1) * size)]


def all_gather_object(part: object) -> list[object]:
    """What every rank gives, in the order of ranks."""
    if world_size() == 1:
        return [part]
    parts = [None] * world_size()
    distributed.all_gather_object(parts, part)
    return parts


def gather(part: torch.Tensor) -> torch.Tensor:
    """Rows (n, ...) of all ranks, one after another; their numbers may differ."""
    return part if world_size() == 1 else torch.cat(all_gather_object(part.cpu())).to(part.device)


def gather_list(part: list) -> list:
    """Entries of all ranks, one after another."""
    return [entry for entries in all_gather_object(part) for entry in entries]


def sum_over_ranks(sums: dict[str, torch.Tensor]) -> dict[str, torch.Tensor | float]:
    """Sums by name, added over ranks; a rank that has seen nothing may give none."""
    if world_size() == 1:
        return sums
    added: dict[str, float] = defaultdict(float)
    for part in all_gather_object({name: float(value) for name, value in sums.items()}):
        for name, value in part.items():
            added[name] += value
    return dict(added)


def any_rank(wish: bool) -> bool:
    """Whether any rank wishes it: then all of them know at the same step."""
    return any(all_gather_object(wish))


def broadcast_object(value: object) -> object:
    """What the first rank holds."""
    if world_size() == 1:
        return value
    held = [value]
    distributed.broadcast_object_list(held)
    return held[0]


def broadcast_weights(model: nn.Module) -> None:
    """Give every rank the first one's weights: new ones may have been drawn at random."""
    if world_size() > 1:
        for tensor in (*model.parameters(), *model.buffers()):
            distributed.broadcast(tensor.data, src=0)


def all_reduce_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add gradients over ranks, in place. One that no rank has stays None, so that its parameter does not move."""
    if world_size() == 1:
        return
    parameters = list(parameters)
    owned = all_gather_object([parameter.grad is not None for parameter in parameters])
    under_way = []
    for parameter, some in zip(parameters, map(any, zip(*owned, strict=True)), strict=True):
        if some:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            under_way.append(distributed.all_reduce(parameter.grad, async_op=True))
    for work in under_way:
        work.wait()


def barrier() -> None:
    """Go on when every rank has come to this line."""
    if world_size() > 1:
        distributed.barrier()


# -------------------------------------------------------------------------------------------------------------------
# How they begin and end


@contextmanager
def init_process_group() -> Iterator[None]:
    """Meet the other ranks of this launch, work as `together`, and part."""
    if not torch.accelerator.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"  # Transformers and accelerate form no group without
    PartialState(cpu=os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("true", "1"))
    with fail_together():
        yield
    PartialState().destroy_process_group()


@contextmanager
def fail_together(*alike: type[Exception]) -> Iterator[None]:
    """An error of one rank ends all, with the sentence of the first that fails.

    That one leaves its sentence with the launcher before it exits; then the next exchange of every other breaks off,
    and it finds the sentence. Exceptions `alike` are not of one rank: all raise them at the same step.

    Raises:
        FailedElsewhere: another rank failed first.
    """
    try:
        yield
    except Exception as error:
        if world_size() == 1 or isinstance(error, alike):
            raise
        sentence = str(error) if isinstance(error, BadInput) else f"{type(error).__name__}: {error}"
        where, _, said = _first_failure(sentence).partition(" ")
        if int(where) == rank():
            raise
        raise FailedElsewhere(said) from error


def _first_failure(sentence: str) -> str:
    """The rank that failed first and what it said, by the key-value store of the launch."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = distributed.TCPStore(address, port, timeout=timedelta(seconds=10))
    key = f"rlhf/failure/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    return store.compare_set(key, "", f"{rank()} {sentence}").decode()

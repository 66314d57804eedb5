"""Several processes that train one model: what they exchange, and which of them writes.

They are the ranks of PyTorch's process group, started by `accelerate launch` or `torchrun`. Without a launcher there
is one rank, and every exchange returns its argument.
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from accelerate import PartialState
from torch import distributed, nn

from rlhf.config import BadInput, Diverged, FailedElsewhere


def world_size() -> int:
    """Number of ranks."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def is_main_process() -> bool:
    """Whether this is rank 0, which writes files and prints."""
    return rank() == 0


# -------------------------------------------------------------------------------------------------------------------
# Exchange


def shard(rows: int) -> list[int]:
    """Indices of this rank's share of a batch: equal parts in order, with the last row repeated to fill up."""
    size = -(-rows // world_size())
    return [min(row, rows - 1) for row in range(rank() * size, (rank() + 1) * size)]


def all_gather_object(part: object) -> list[object]:
    """Each rank's object, in the order of ranks."""
    if world_size() == 1:
        return [part]
    parts = [None] * world_size()
    distributed.all_gather_object(parts, part)
    return parts


def gather(part: torch.Tensor) -> torch.Tensor:
    """Concatenate tensors (n, ...) of all ranks, where n may differ.

    As objects, which takes any n and any device: these are a few numbers per response. Gradients go by all-reduce.
    """
    return part if world_size() == 1 else torch.cat(all_gather_object(part.cpu())).to(part.device)


def gather_list(part: list) -> list:
    """Concatenate the lists of all ranks."""
    return [entry for entries in all_gather_object(part) for entry in entries]


def sum_over_ranks(sums: dict[str, torch.Tensor]) -> dict[str, torch.Tensor | float]:
    """Sums by name, added over ranks. A rank may lack names, or have none at all."""
    if world_size() == 1:
        return sums
    added: dict[str, float] = defaultdict(float)
    for part in all_gather_object({name: float(value) for name, value in sums.items()}):
        for name, value in part.items():
            added[name] += value
    return dict(added)


def any_rank(condition: bool) -> bool:
    """Whether the condition holds on any rank, so that all act on it at the same step."""
    return any(all_gather_object(condition))


def broadcast_object(value: object) -> object:
    """The main process's object."""
    if world_size() == 1:
        return value
    objects = [value]
    distributed.broadcast_object_list(objects)
    return objects[0]


def broadcast_weights(model: nn.Module | None) -> None:
    """Give every rank the main process's weights of a model, if there is one: new layers begin at random."""
    if world_size() > 1 and model is not None:
        for tensor in (*model.parameters(), *model.buffers()):
            distributed.broadcast(tensor.data, src=0)


def all_reduce_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum gradients over ranks, in place. One that is None on all ranks stays so, and its parameter is not updated."""
    if world_size() == 1:
        return
    parameters = list(parameters)
    has_grad = all_gather_object([parameter.grad is not None for parameter in parameters])  # (ranks, parameters)
    reductions = []
    for parameter, on_some_rank in zip(parameters, map(any, zip(*has_grad, strict=True)), strict=True):
        if on_some_rank:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            reductions.append(distributed.all_reduce(parameter.grad, async_op=True))
    for reduction in reductions:
        reduction.wait()


def barrier() -> None:
    """Wait for all ranks."""
    if world_size() > 1:
        distributed.barrier()


# -------------------------------------------------------------------------------------------------------------------
# Start and end


@contextmanager
def init_process_group() -> Iterator[None]:
    """Join the process group of this launch, if there is one, and leave it after the work inside."""
    if not torch.accelerator.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"  # otherwise accelerate makes no process group on the CPU
    PartialState(cpu=os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("true", "1"))
    with fail_together():
        yield
    PartialState().destroy_process_group()


@contextmanager
def fail_together(*alike: type[Exception]) -> Iterator[None]:
    """Let an error of one rank end all ranks with its message.

    The first rank that fails leaves its message in the launcher's key-value store and exits. The others fail at their
    next exchange with it, and find the message.

    Args:
        alike: exceptions that all ranks raise at the same step.

    Raises:
        FailedElsewhere: another rank failed first.
    """
    try:
        yield
    except Exception as error:
        if world_size() == 1 or isinstance(error, alike):
            raise
        message = str(error) if isinstance(error, BadInput | Diverged) else f"{type(error).__name__}: {error}"
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = distributed.TCPStore(address, port, timeout=timedelta(seconds=10))
        key = f"rlhf/failure/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        # Sets the key only if no other rank has, and returns what it then holds.
        first = store.compare_set(key, "", f"{rank()} {message}").decode()
        failed_rank, _, its_message = first.partition(" ")
        if int(failed_rank) == rank():
            raise
        raise FailedElsewhere(its_message) from error

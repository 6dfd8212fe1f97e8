"""Memory: which tensor does not fit, and what would.

Linux lends more memory than there is and then kills a process without a word. So state, whose size is known, is
asked for with `room_for`, which looks first; what a step needs is named by `during`, and told when it is refused.

T tokens of a sequence, D hidden size, F expert size, K experts per token, V vocabulary; sizes in bytes.
"""

from __future__ import annotations

import contextlib
import math
import re
import resource
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from protocol.jobspec import TrainPart
from protocol.models import ModelConfig

FLOAT = 4
LOOKED_AT = 1 << 24
"""Smaller tensors are not worth a look at what is free."""
USABLE = 0.7
"""Of free memory, for what is only estimated."""
COPIES = 4
"""Of an expert's state: live, its gradient apart, and three while snapshots of it and of a buddy's are exchanged."""
_UNITS = {"": 1, "bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_CGROUP = Path("/sys/fs/cgroup")


class OutOfMemory(MemoryError):
    """The message names the tensor, what it needs and what is free."""


@contextlib.contextmanager
def room_for(what: str, shape: Sequence[int], device: str = "cpu") -> Iterator[None]:
    """Around the making of a float32 tensor. Raises `OutOfMemory`, before the kernel would kill this process."""
    wanted = math.prod(shape) * FLOAT
    named = f"{what}, {tuple(shape)} float32,"
    if wanted > LOOKED_AT and wanted > (free := free_bytes(device)):
        raise OutOfMemory(f"{named} needs {_told(wanted)}, and {_told(free)} are free")
    with during(named):
        yield


@contextlib.contextmanager
def during(what: str) -> Iterator[None]:
    """A lack of memory within is told as one for `what`, unless somebody within has named it more closely."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, OutOfMemory) or not is_lack(error):
            raise
        wanted = asked_bytes(str(error))
        more = f"needs {_told(wanted)} more" if wanted else "needs more memory"
        raise OutOfMemory(f"{what} {more} than there is") from error


def is_lack(error: BaseException) -> bool:
    """Whether memory was refused."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)


def asked_bytes(message: str) -> int:
    """What torch says that it tried to get; 0 if it does not."""
    found = re.search(r"[Tt]ried to allocate ([\d.]+) ?(bytes|[KMG]iB)?", message)
    return int(float(found[1].rstrip(".")) * _UNITS[found[2] or ""]) if found else 0


def release(error: BaseException) -> None:
    """Let go of what the calls held that raised it, and what it came from."""
    of: BaseException | None = error
    while of is not None:
        traceback.clear_frames(of.__traceback__)
        of = of.__context__


def free_bytes(device: str = "cpu") -> int:
    """What this process can still have: of the GPU, or of the machine, its control group and its own limit."""
    if device.startswith("cuda"):
        free, _ = torch.cuda.mem_get_info()
        return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    meminfo = dict(re.findall(r"(\w+):\s+(\d+) kB", Path("/proc/meminfo").read_text()))
    limits = [int(meminfo["MemAvailable"]) * 1024]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limits.append(soft - pages * resource.getpagesize())
    with contextlib.suppress(OSError, ValueError):  # no control group, or one without a limit ("max")
        limit, used = (int((_CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        limits.append(limit - used)
    return max(min(limits), 0)


# --- what would fit ---------------------------------------------------------------------------------------------


def sequence_bytes(model: ModelConfig, tokens: int) -> int:
    """About what one sequence of T tokens needs in a step: what layers keep for the backward pass, and logits."""
    attention = 12 * model.hidden_size
    experts = model.experts_per_token * 4 * (model.hidden_size + model.expert_size)
    dense = 4 * (model.dense_size * bool(model.dense_layers) + model.shared_size)
    return FLOAT * tokens * (model.layers * (attention + experts + dense) + 4 * model.vocab_size)


def advise_step(part: TrainPart, width: int, free: int) -> str:
    """The smallest `accumulate` whose parts fit into what is free before a step."""
    assert part.model is not None
    each = sequence_bytes(part.model, part.sequence_length)
    at_once = max(int(USABLE * free / each), 0) * width
    tells = f"a sequence of {part.sequence_length} tokens needs about {_told(each)}, and a step has {_told(free)}"
    if at_once < width:
        fitting = int(part.sequence_length * USABLE * free / each)
        return f"{tells}: sequence_length {fitting} would fit, or nodes with more memory"
    turns = min(math.ceil(part.global_batch / at_once), part.global_batch)
    if turns <= part.accumulate:
        return f"{tells}: a smaller model would fit, or nodes with more memory"
    return f"{tells}: accumulate {turns} would fit"


def advise_state(model: ModelConfig, free: int) -> str:
    """The smallest width at which a worker's share of the state fits."""
    dense = 3 * COPIES * FLOAT * model.dense_parameters
    expert = 3 * COPIES * FLOAT * model.expert_parameters
    experts = model.expert_layers * model.experts
    tells = f"state and its copies need {_told(dense)} on each worker and {_told(expert)} for each of its experts"
    room = int(max(free - dense, 0) / expert)
    if room == 0:
        return f"{tells}, and it has {_told(free)}: a smaller model would fit, or nodes with more memory"
    return f"{tells}, and it has {_told(free)}: width.min {math.ceil(experts / room)} would fit"


def _told(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1000:.0f} kB"

"""`fallow.ElasticSession`: what a training function of one's own is called with.

    def train(session: fallow.ElasticSession) -> None:
        model = session.model(MyModel())
        for inputs, labels in session.batches(MyDataset()):
            session.step(cross_entropy(model(inputs), labels))

Every worker of the job calls the function. The loop runs until the job's `steps` are taken, on however many workers
there are at a time; workers may come, leave and die in between. The result is the same as if nothing had happened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

M = TypeVar("M")


class ElasticSession(Protocol):
    """One worker's view of its job. Steps, global batch, optimiser (AdamW) and seed are those of the job's spec."""

    @property
    def device(self) -> str:
        """Where to compute: "cpu" or "cuda"."""

    @property
    def steps_taken(self) -> int:
        """Steps taken since the job's beginning, on whatever workers."""

    def model(self, module: M) -> M:
        """Have this torch module's parameters trained, those that want gradients. Call it once.

        They are float32, kept equal on all workers, and part of snapshots and checkpoints. What does not want
        gradients, and buffers, must come out the same wherever the function runs; the random seed is set before.
        """

    def batches(self, dataset: Any, collate: Callable[[list[Any]], Any] = ...) -> Iterator[Any]:
        """Batches of a dataset with a length and samples by index, until all steps are taken.

        A batch is a part of a step's global batch, the same at any width; every epoch has an order of its own. Workers
        join, leave and go back to a snapshot here, so keep nothing in the loop that depends on the steps before,
        other than the model. Random generators are set anew for each batch. `collate` makes a batch of a list of
        samples; torch's default does it if left out.
        """

    def step(self, loss: Any) -> None:
        """Add the gradient of this batch's loss, a mean over its samples. Call it once for each batch.

        The optimiser's step follows by itself once the whole global batch is done. One whose gradient is not finite
        is left out on all workers, and counted.
        """

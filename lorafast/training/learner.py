"""What a run trains, and one step of it: loss and gradients of batches, then an update."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..data.batches import Batch
from ..network.lora import Adapter, Gradients, Moments
from ..network.network import Network
from ..network.pass_sums import PassSums
from ..network.trainer import Trainer
from ..options.finetune import FinetuneConfig
from .dropout import Dropout
from .optim import Adam, parameter_groups


class Learner:
    """The adapter with its gradients and moments.

    trainer  sees the adapter, or with dropout the one that this thins
    """

    def __init__(self, config: FinetuneConfig, network: Network, adapter: Adapter, moments: Moments, trainer: Trainer,
                 dropout: Dropout | None) -> None:
        self.network, self.adapter, self.moments = network, adapter, moments
        self.trainer, self.dropout, self.sums = trainer, dropout, PassSums(adapter)
        self.adam = Adam(config.adam_alpha, config.adam_beta1, config.adam_beta2, config.adam_decay, config.adam_gclip)
        self.groups = parameter_groups(adapter, config.adam_decay_min_ndim, config.lora_plus)
        self.n_threads = config.n_threads

    @property
    def gradients(self) -> Gradients:
        """Of the newest step: the sum over its passes."""
        return self.sums.stores[0]

    def loss_and_gradients(self, batches: Sequence[Batch], iteration: int) -> float:
        """Mean loss in nats of the targets that count, of all batches together; its gradients are in `gradients`. Where
        none counts both are 0."""
        if self.dropout:
            self.dropout.draw(iteration)
        self.network.refresh(self.trainer.adapter)
        token_weight = 1 / max(1, sum(np.count_nonzero(batch.targets >= 0) for batch in batches))
        self.sums.begin(len(batches))
        loss = token_weight * sum(self._pass(batch, token_weight) for batch in batches)
        if self.dropout:
            self.dropout.backward(self.gradients)
        return loss

    def _pass(self, batch: Batch, token_weight: float) -> float:
        """Sum of the losses of one pass; its gradients join the sum."""
        loss = self.trainer.loss_and_gradients(batch, token_weight, self.sums.next())
        self.sums.add()
        return loss

    def update(self, iteration: int, schedule: float) -> float:
        """One step of Adam after `iteration` updates. Returns the gradient's L2 norm; if it is not finite nothing
        changed."""
        return self.adam.step(self.adapter.params, self.moments.m, self.moments.v, self.gradients.flat,
                              groups=self.groups, iteration=iteration + 1, schedule=schedule, n_threads=self.n_threads)

    def show_all(self) -> None:
        """For evaluation: the adapter's present values, without dropout."""
        if self.dropout:
            self.dropout.restore()
        self.network.refresh(self.trainer.adapter)

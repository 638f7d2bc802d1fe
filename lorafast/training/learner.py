"""What a run trains, and one step of it: loss and gradients of batches, then an update."""
from __future__ import annotations

from collections.abc import Sequence

from ..data.batches import Batch
from ..distributed.reduction import EXACT, sum_over_ranks
from ..distributed.wire import Wire
from ..distributed.world import World, alone
from ..network.lora import Adapter, Gradients, Moments
from ..network.network import Network
from ..network.objective import Objective
from ..network.pass_sums import PassSums
from ..network.trainer import Trainer
from ..options.finetune import FinetuneConfig
from ..reporting.events import Rewards
from .dropout import Dropout
from .methods import method_of, rewards_of
from .optim import Adam, parameter_groups


class Learner:
    """The adapter with its gradients and moments.

    trainer  sees the adapter, or with dropout the one that this thins
    world    the ranks that share the passes of a step; None: this one alone
    wire     how gradients go between them
    """

    def __init__(self, config: FinetuneConfig, network: Network, adapter: Adapter, moments: Moments, trainer: Trainer,
                 dropout: Dropout | None, world: World | None = None, wire: Wire = EXACT) -> None:
        self.world, self.wire = world or alone(), wire
        self.network, self.adapter, self.moments = network, adapter, moments
        self.trainer, self.dropout, self.sums = trainer, dropout, PassSums(adapter)
        self.adam = Adam(config.adam_alpha, config.adam_beta1, config.adam_beta2, config.adam_decay, config.adam_gclip)
        self.groups = parameter_groups(adapter, config.adam_decay_min_ndim, config.lora_plus)
        self.n_threads = config.n_threads
        self.method = method_of(config)
        self.rewards: Rewards | None = None
        """The rewards of the newest step."""

    @property
    def gradients(self) -> Gradients:
        """The gradients of the newest step: the sum over its passes."""
        return self.sums.stores[0]

    def loss_and_gradients(self, batches: Sequence[Batch], iteration: int) -> float:
        """The loss of all batches together: by the method sft the mean in nats of the targets that count. Its gradients
        are in `gradients`. Where no target counts both are 0."""
        if self.dropout:
            self.dropout.draw(iteration)
        self.network.refresh(self.trainer.adapter)
        objective, batches = self.method.begin(batches, self.trainer)
        own = self.world.share(len(batches))
        self.sums.begin(len(batches), own)
        values = [self._pass(batches[i], objective) for i in own]
        of_ranks = self.world.gather((values, objective.seen))
        sum_over_ranks(self.world, self.sums, len(batches), self.wire)
        loss = 1 / max(1, objective.n) * sum(value for values, _ in of_ranks for value in values)
        objective.seen = [seen for _, of_rank in of_ranks for seen in of_rank]
        self.rewards = rewards_of([objective])
        if self.dropout:
            self.dropout.backward(self.gradients)
        return loss

    def _pass(self, batch: Batch, objective: Objective) -> float:
        """The objective's value in one pass; its gradients join the sum."""
        value = self.trainer.minimise(batch, objective, self.sums.next())
        self.sums.add()
        return value

    def update(self, iteration: int, schedule: float) -> float:
        """One step of Adam after `iteration` updates. Returns the gradient's L2 norm; if it is not finite nothing
        changed."""
        return self.adam.step(self.adapter.params, self.moments.m, self.moments.v, self.gradients.flat,
                              groups=self.groups, iteration=iteration + 1, schedule=schedule, n_threads=self.n_threads)

    def show_all(self) -> None:
        """Has the trainer see the adapter's present values, without dropout, for evaluation."""
        if self.dropout:
            self.dropout.restore()
        self.network.refresh(self.trainer.adapter)

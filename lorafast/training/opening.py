"""What a run starts from, opened in one way for a run and for its plan."""
from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace

from ..adapters import BaseModel
from ..adapters.checkpoint import Checkpoint
from ..data.lengths import SharedRows
from ..data.memory import DataMemory, memory_of
from ..data.open import Data
from ..gguf.fingerprint import fingerprint
from ..gguf.reader import GGUFFile
from ..network.buffers import sized
from ..network.hparams import HParams
from ..network.lora import Adapter
from ..network.model_files import ModelFiles
from ..network.network import Network
from ..network.trainer import Activations, Strategy, weight_order
from ..network.weights import MAPPED, RowsFromFile, Weights
from ..options.finetune import FinetuneConfig
from ..planning.plan import Plan
from ..planning.planner import plan_run
from ..planning.sharing import ALONE, Sharing
from ..reporting.log import Log
from ..tokenizer import Tokenizer, load_tokenizer
from . import eva
from .prepare import find_checkpoint, longest_continuation, new_adapter, open_base, refuse_other_model, run_precision


@dataclass(frozen=True)
class Opened:
    """The base model, and the adapter to train, still without values unless they are those of --init-lora.

    checkpoint  that the run goes on from; None for a new one
    fingerprint  of the base model, see gguf/fingerprint.py
    data_memory  of records that have been read; None before that, and for text
    """

    config: FinetuneConfig
    gguf: GGUFFile
    hparams: HParams
    tokenizer: Tokenizer
    files: ModelFiles
    base: BaseModel
    network: Network
    adapter: Adapter
    checkpoint: Checkpoint | None
    fingerprint: str
    data_memory: DataMemory | None = None

    def knowing(self, data: Data) -> Opened:
        """The same, with what this data takes, which plans need not estimate then."""
        return replace(self, data_memory=memory_of(data, self.config.method))

    @property
    def redistributes_ranks(self) -> bool:
        """Whether the data is to tell the ranks of a new adapter."""
        return self.config.eva_rho > 1 and self.checkpoint is None

    @property
    def weights(self) -> Weights:
        """Where their bytes come from when they don't stream: embeddings that are no output matrix are read by rows."""
        return MAPPED if self.hparams.tied and not self.hparams.n_embd_per_layer else RowsFromFile(self.files)

    def plan(self, longest_row: int, sharing: Sharing = ALONE, shared: SharedRows | None = None) -> Plan:
        """Memory and time of the run, in which no row has more than so many tokens; of redistributed ranks, the most
        that they can lead to.

        sharing  the ranks that compute it
        shared   what is computed of rows that share their prompts
        """
        adapter = self.adapter
        if self.redistributes_ranks:
            adapter = Adapter(eva.largest(adapter.specs, self.config.eva_rho), adapter.alpha, adapter.r)
        plan = plan_run(replace(self.config, ctx=longest_row), self.gguf, self.files, self.tokenizer, self.network,
                        adapter, sharing, shared, self.data_memory)
        return plan.with_most_parameters(adapter.n_params) if self.redistributes_ranks else plan


def open_run(config: FinetuneConfig, log: Log, stack: ExitStack) -> Opened:
    """Opens what the options name. stack: closes it."""
    gguf, hparams = open_base(config)
    tokenizer = load_tokenizer(gguf)
    files = ModelFiles(gguf)
    stack.callback(files.close)
    log.loader(gguf, tokenizer, hparams)
    if 0 < hparams.n_ctx_train < config.ctx:
        log.warning(f"--ctx {config.ctx} is more than the {hparams.n_ctx_train} tokens that the model was trained on")
    base = BaseModel.from_gguf(gguf)
    checkpoint = find_checkpoint(config, log)
    model_fingerprint = fingerprint(gguf)
    refuse_other_model(config, checkpoint, hparams, model_fingerprint, log)
    adapter = new_adapter(config, hparams, base, checkpoint, log)
    types = {int(tensor.type) for tensor in gguf.tensors.values() if tensor.type.is_trainable}
    precision = run_precision(config, checkpoint, types)
    network = Network(gguf, hparams, max(config.ctx, longest_continuation(config, tokenizer, gguf.metadata)),
                      precision)
    log.note(f"precision {precision}: {network.arithmetic()}")
    return Opened(config, gguf, hparams, tokenizer, files, base, network, adapter, checkpoint,
                  model_fingerprint)


def open_weights(opened: Opened, adapter: Adapter, plan: Plan, row: int, stack: ExitStack) -> Weights:
    """Where the bytes of the model come from: its mapped files, or memory that the plan lets them stream through."""
    activations = activation_sizes(opened, adapter, plan.strategy, row)
    order = weight_order(opened.network, activations, plan.strategy.head_pieces)
    residency = plan.stream(opened.files, order)
    if residency is None:
        return opened.weights
    stack.callback(residency.close)
    return residency


def activation_sizes(opened: Opened, adapter: Adapter, strategy: Strategy, row: int) -> Activations:
    """The activations of passes of --batch rows, the longest of `row` tokens, without their memory."""
    return Activations(opened.network, adapter, strategy.max_tokens(opened.config.batch, row), strategy, sized)

"""The output by pieces of the vocabulary: the bits of the whole, mapped or streamed, without all of it in memory."""
from __future__ import annotations

import numpy as np
import pytest

from lorafast.kernels.build_info import available_isas
from lorafast.kernels.linear import PRECISIONS
from lorafast.network.decoder import Decoder
from lorafast.network.head import PIECE_ROWS
from lorafast.network.model_files import ModelFiles
from lorafast.network.network import Network
from lorafast.network.residency import Residency, least_capacity, nbytes
from lorafast.network.trainer import Strategy, Trainer, weight_order
from lorafast.network.weights import MAPPED, Weights
from tests.network.test_network import Case, batch_of

N_VOCAB = PIECE_ROWS + 809
"""Of two pieces, the last one small and odd."""

BLOCKS = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down",
          "output_norm")
"""Targets; not the output."""


class Large(Case):
    def __init__(self, path, precision: str = "int16", n_vocab: int = N_VOCAB, **model) -> None:
        super().__init__(path, n_vocab=n_vocab, targets=BLOCKS, rows=2, n_layer=1, **model)
        self.network = Network(self.gguf, self.hp, 13, precision)
        self.network.refresh(self.adapter)

    def results(self, by_pieces: bool, weights: Weights = MAPPED, floor: float = 0.0) -> list:
        """Losses and gradients, 8 tokens at a time."""
        batch, strategy = batch_of(self.tokens, self.targets), Strategy(1, head_tokens=8, head_pieces=by_pieces)
        trainer = Trainer(self.network, self.adapter, self.tokens.size, strategy, 2, floor=floor, weights=weights)
        self.gradients.clear()
        loss = trainer.loss_and_gradients(batch, 0.1, self.gradients)
        return [loss, self.gradients.flat.copy(), trainer.loss(batch)]


def assert_same(got: list, wanted: list) -> None:
    for one, other in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("type, precision", [*(("Q8_0", precision) for precision in PRECISIONS), ("F16", "float32"),
                                             ("Q4_K", "int16"), ("IQ3_S", "int8")])
def test_pieces_give_the_bits_of_the_whole(tmp_path, monkeypatch, type, precision):
    size = dict(n_embd=256, n_ff=256) if type in ("Q4_K", "IQ3_S") else {}
    case = Large(tmp_path / "model.gguf", precision, type=type, **size)
    for isa in available_isas():
        monkeypatch.setenv("LORAFAST_ISA", isa)
        assert_same(case.results(by_pieces=True), case.results(by_pieces=False))
    assert case.gradients.flat.any()


def test_a_pair_on_the_output_takes_it_whole(tmp_path):
    case = Large(tmp_path / "model.gguf")
    assert case.network.head.has_pieces(case.adapter)
    assert not case.network.head.has_pieces(Case(tmp_path / "other.gguf").adapter)


@pytest.mark.parametrize("tied", [False, True])
def test_streamed_output_is_never_whole_in_memory(tmp_path, tied):
    case = Large(tmp_path / "model.gguf", n_vocab=2 * PIECE_ROWS + 809, tied=tied)
    wanted = case.results(by_pieces=False, floor=1e-9)
    decoder = Decoder(case.network, case.adapter, 13, 2)
    logits = decoder.logits(next(decoder.outputs(case.tokens[0])))
    trainer = Trainer(case.network, case.adapter, 1, Strategy(1), 1)
    order, files = weight_order(case.network, trainer.buffers, head_pieces=True), ModelFiles(case.gguf)
    residency = Residency(files, order, least_capacity(order))
    assert residency.window.capacity < 2.1 * nbytes(case.network.head.pieces[0]) < nbytes(case.network.head.group)
    assert_same(case.results(by_pieces=True, weights=residency, floor=1e-9), wanted)
    decoder = Decoder(case.network, case.adapter, 13, 2, weights=residency)
    np.testing.assert_array_equal(decoder.logits(next(decoder.outputs(case.tokens[0]))), logits)
    assert residency.window.most_held <= residency.window.capacity
    residency.close()
    order = weight_order(case.network, trainer.buffers)
    residency = Residency(files, order, least_capacity(order))
    decoder = Decoder(case.network, case.adapter, 13, 2, weights=residency)
    np.testing.assert_array_equal(decoder.logits(next(decoder.outputs(case.tokens[0]))), logits)
    residency.close()
    files.close()


@pytest.mark.parametrize("targets", [np.full(26, -1), np.arange(26) * 190], ids=["none counts", "all count"])
def test_targets_anywhere(tmp_path, targets):
    case = Large(tmp_path / "model.gguf")
    case.targets[:] = targets.reshape(case.targets.shape)
    assert_same(case.results(by_pieces=True), case.results(by_pieces=False))

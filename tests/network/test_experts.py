"""What routers choose, and experts as targets and in adapters. Their products are tested with the kernels, the branch
with the whole network."""
import numpy as np
import pytest
from make_models import make_tiny
from numerics import gradient_error

from lorafast.adapters.gguf import read_gguf_adapter
from lorafast.adapters.peft import read_peft
from lorafast.errors import FormatError, UsageError
from lorafast.gguf.reader import open_model
from lorafast.gguf.types import GGMLType, GGUFValueType
from lorafast.gguf.writer import TensorToWrite, write_gguf
from lorafast.network.block_params import Gating
from lorafast.network.buffers import empty
from lorafast.network.decoder import Decoder
from lorafast.network.hparams import read_hparams
from lorafast.network.linear import Group, Linear
from lorafast.network.lora import Adapter, default_ranks, specs_for
from lorafast.network.network import Network
from lorafast.network.router import Router, Routes
from tests.network.test_network import pass_of

E, K = 6, 2
FLOAT32_LIMIT = 1e-5        # of gradient_error; measured 4e-7


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def router_of(tmp_path, rng):
    """A router of six experts, two of which see a token, on an x of 8 values."""
    path = tmp_path / "router.gguf"
    weight = rng.standard_normal((E, 8), dtype=np.float32)
    write_gguf(path, [], [TensorToWrite("blk.0.ffn_gate_inp.weight", GGMLType.F32, weight.shape, weight)])
    tensor = open_model(path).tensors["blk.0.ffn_gate_inp.weight"]

    def make(function: str, normed: bool, bias: np.ndarray | None = None) -> Router:
        return Router(Group(Linear(tensor, precision="float32")), Gating(function, normed), K, bias)

    return make


@pytest.mark.parametrize("function, normed", [("softmax", True), ("softmax", False), ("sigmoid", True),
                                              ("sigmoid", False), ("softmax of chosen", False)])
def test_gradient_of_weights(rng, router_of, function, normed):
    router, pass_ = router_of(function, normed), pass_of(Adapter([], 1, 1))
    x, dw = rng.standard_normal((5, 8), dtype=np.float32), rng.standard_normal((5, K), dtype=np.float32)
    s = router.saved(5, empty)
    W, chosen = router.group.linears[0].tensor.to_float32().astype(np.float64), None

    def weights(x):
        z = x @ W.T
        p = 1 / (1 + np.exp(-z)) if function == "sigmoid" else np.exp(z - z.max(axis=1, keepdims=True))
        p = p / p.sum(axis=1, keepdims=True) if function == "softmax" else p
        w = np.take_along_axis(p, chosen, axis=1)
        return w / w.sum(axis=1, keepdims=True) if normed or function == "softmax of chosen" else w

    router.forward(s, x, pass_)
    chosen = s.chosen
    np.testing.assert_allclose(s.weights, weights(x.astype(np.float64)), rtol=1e-5)
    dx = np.zeros_like(x)
    router.backward(dx, dw, s, pass_)
    exact = x.astype(np.float64)
    assert gradient_error(dx, lambda: np.sum(dw * weights(exact)), exact) < FLOAT32_LIMIT


def test_a_bias_chooses_but_does_not_weigh(rng, router_of):
    bias = np.float32([0, 9, 0, 0, 9, 0])
    router = router_of("sigmoid", False, bias)
    s = router.saved(3, empty)
    x = rng.standard_normal((3, 8), dtype=np.float32)
    routes = router.forward(s, x, pass_of(Adapter([], 1, 1)))
    assert s.chosen.tolist() == [[1, 4]] * 3
    assert (s.weights < 1).all() and routes.experts.tolist() == [1, 4]


def test_routes():
    routes = Routes.of(np.array([[1, 3], [0, 3], [1, 2]]), 5)
    assert routes.begin.tolist() == [0, 1, 3, 4, 6, 6]
    assert routes.tokens.tolist() == [1, 0, 2, 2, 0, 1]
    assert routes.order.tolist() == [2, 0, 4, 5, 1, 3]


def test_experts_of_one_tensor(tmp_path):
    """Gate and up one above the other, as the converter's --fuse-gate-up-exps writes them: the same bits."""
    case = open_model(make_tiny(tmp_path / "two.gguf", experts=4, n_layer=1))
    gate, up = (case.tensors[f"blk.0.ffn_{name}_exps.weight"] for name in ("gate", "up"))
    fused = np.concatenate([tensor.data.reshape(4, tensor.shape[1], -1) for tensor in (gate, up)], axis=1)
    tensors = [TensorToWrite(t.name, t.type, t.shape, t.data) for t in case.tensors.values() if t not in (gate, up)]
    tensors.append(TensorToWrite("blk.0.ffn_gate_up_exps.weight", gate.type, (4, 2 * gate.shape[1], gate.shape[2]),
                                 fused.reshape(-1, fused.shape[2])))
    metadata = [(key, types if types[1] is not None else types[0], case.metadata[key])
                for key, types in case.value_types.items()]
    write_gguf(tmp_path / "one.gguf", metadata, tensors)
    logits = []
    for gguf in (case, open_model(tmp_path / "one.gguf")):
        network = Network(gguf, read_hparams(gguf), 8)
        assert network.blocks[0].branches[1].inner.n_parts == 4
        logits.append(Decoder(network, Adapter([], 1, 1), 8, 1).append(np.arange(5, dtype=np.int32)))
    np.testing.assert_array_equal(*logits)


def test_experts_as_targets_are_refused_with_the_reason(tmp_path):
    shapes = read_hparams(open_model(make_tiny(tmp_path / "model.gguf", experts=4))).tensor_shapes()
    assert not any("exps" in spec.name or "inp" in spec.name for spec in specs_for(shapes, default_ranks(2)))
    with pytest.raises(UsageError, match=r"'ffn_up_exps': experts are frozen.*multiplies an adapter"):
        specs_for(shapes, default_ranks(2), ["attn_q", "ffn_up_exps"])


def test_the_modern_targets_mean_attention_where_all_else_is_experts(tmp_path):
    shapes = read_hparams(open_model(make_tiny(tmp_path / "model.gguf", experts=4))).tensor_shapes()
    attention, both = (specs_for(shapes, default_ranks(2), targets) for targets in (["attn"], ["attn", "ffn"]))
    assert both == attention and len(both) == 8
    with pytest.raises(UsageError, match=r"target 'ffn': experts are frozen"):
        specs_for(shapes, default_ranks(2), ["ffn"])


def test_adapters_of_experts_are_refused_with_the_reason(tmp_path):
    text = GGUFValueType.STRING
    keys = [("general.type", text, "adapter"), ("adapter.type", text, "lora"), ("general.architecture", text, "llama")]
    pair = np.zeros((4, 2, 8), np.float32)
    write_gguf(tmp_path / "a.gguf", keys, [TensorToWrite("blk.0.ffn_up_exps.weight.lora_a", GGMLType.F32, pair.shape,
                                                         pair.reshape(8, 8))])
    with pytest.raises(FormatError, match=r"ffn_up_exps.*experts are frozen"):
        read_gguf_adapter(tmp_path / "a.gguf")
    (tmp_path / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_parameters": ["mlp.experts.down_proj"]}')
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(FormatError, match=r"target_parameters.*experts are frozen"):
        read_peft(tmp_path)


def test_what_a_run_says_of_experts(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAFAST_ISA", "scalar")        # AMX has no int16
    gguf = open_model(make_tiny(tmp_path / "model.gguf", experts=4))
    hparams = read_hparams(gguf)
    assert (hparams.experts.E, hparams.experts.n_used) == (4, 2)
    assert Network(gguf, hparams, 8).arithmetic() == "33 matrices in int16, 2 matrices in float32", "the router's"

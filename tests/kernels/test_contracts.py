"""What every kernel promises, tested on all of them at once. A new op is a new entry of OPS (a test asks for it)."""
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from make_models import random_blocks
from numerics import nmse

import lorafast.kernels
from lorafast.gguf.quants import dequantize
from lorafast.gguf.types import GGMLType
from lorafast.kernels.build_info import available_isas
from lorafast.kernels.linear import ExpertWeights, Weight
from lorafast.reference import attention as attention_twin, layer_norm as layer_norm_twin, rms_norm as rms_norm_twin

ROWS = (1, 3, 5)
WIDTHS = (1, 7, 33, 64, 515)
FLOAT32 = 1e-12        # NMSE against the twin in float64: rounding, and sums of a few hundred values in float32
INT16 = 2e-8           # measured 2e-9: linear with quantised weights rounds activations to int16

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Op:
    module: str
    name: str
    make: Callable[[np.random.Generator, int, int], Arguments]     # (rng, rows, width) -> arguments but n_threads
    out: tuple[str, ...] = ()                  # overwritten
    accumulated: tuple[str, ...] = ()          # added to
    changed: tuple[str, ...] = ()              # read and written
    widths: tuple[int, ...] = WIDTHS
    limit: float = FLOAT32
    free_width: tuple[str, ...] = ()           # inputs whose width nothing else fixes
    free_rows: tuple[str, ...] = ()            # arrays that may have more rows

    @property
    def kernel(self) -> Callable:
        return getattr(importlib.import_module(f"lorafast.kernels.{self.module}"), self.name)

    @property
    def twin(self) -> Callable:
        return getattr(importlib.import_module(f"lorafast.reference.{self.module}"), self.name)

    @property
    def written(self) -> tuple[str, ...]:
        return self.out + self.accumulated + self.changed


def normal(rng, *shape):
    return rng.standard_normal(shape, dtype=np.float32)


def new(*shape):
    return np.full(shape, np.nan, np.float32)


def rms_norm_forward(rng, T, C):
    return dict(y=new(T, C), rstd=new(T), x=normal(rng, T, C), gain=normal(rng, C), eps=1e-5)


def rms_norm_backward(rng, T, C):
    x, gain, rstd = normal(rng, T, C), normal(rng, C), new(T)
    rms_norm_twin.rms_norm_forward(new(T, C), rstd, x, gain, 1e-5, 1)
    return dict(dx=normal(rng, T, C), dgain=normal(rng, C), dy=normal(rng, T, C), x=x, gain=gain, rstd=rstd)


def rope_inputs(rng, T, n_rot):
    angle = normal(rng, 9, n_rot // 2)
    positions = rng.integers(0, 9, T, dtype=np.int32)
    return dict(cos=np.cos(angle), sin=np.sin(angle), positions=positions, n_head=3, interleaved=True)


def rope_forward(rng, T, n_rot):
    x = normal(rng, T, 3 * (n_rot + 2))
    return dict(y=new(*x.shape), x=x, **rope_inputs(rng, T, n_rot))


def layer_norm_forward(rng, T, C):
    return dict(y=new(T, C), mean=new(T), rstd=new(T), x=normal(rng, T, C), gain=normal(rng, C), bias=normal(rng, C),
                eps=1e-5)


def layer_norm_backward(rng, T, C):
    x, gain, mean, rstd = normal(rng, T, C), normal(rng, C), new(T), new(T)
    layer_norm_twin.layer_norm_forward(new(T, C), mean, rstd, x, gain, None, 1e-5, 1)
    return dict(dx=normal(rng, T, C), dgain=normal(rng, C), dy=normal(rng, T, C), x=x, gain=gain, mean=mean, rstd=rstd)


def gated_forward(rng, T, F):
    return dict(h=new(T, F), gate=normal(rng, T, F), up=normal(rng, T, F))


def gated_backward(rng, T, F):
    return dict(dgate=new(T, F), dup=new(T, F), dh=normal(rng, T, F), gate=normal(rng, T, F), up=normal(rng, T, F))


def activation_forward(rng, T, F):
    return dict(y=new(T, F), x=normal(rng, T, F))


def activation_backward(rng, T, F):
    return dict(dx=new(T, F), dy=normal(rng, T, F), x=normal(rng, T, F))


def targets(rng, T, V):
    return rng.integers(-1, V, T, dtype=np.int32)


def cross_entropy_forward(rng, T, V):
    return dict(loss=new(T), logits=normal(rng, T, V), targets=targets(rng, T, V), floor=1e-9, soft_cap=2.0)


def cross_entropy_forward_backward(rng, T, V):
    return dict(loss=new(T), logits=normal(rng, T, V), targets=targets(rng, T, V), dloss=normal(rng, T), floor=0.0,
                soft_cap=2.0)


def softmax_state(rng, T):
    """As columns before these have left it."""
    return dict(max=normal(rng, T), sum=rng.uniform(1, 9, T))


def elsewhere_too(rng, T, V):
    """Targets, some of which are in other pieces."""
    return rng.integers(-V, 2 * V, T, dtype=np.int32)


def cross_entropy_piece_forward(rng, T, V):
    return dict(**softmax_state(rng, T), chosen=normal(rng, T), logits=normal(rng, T, V),
                targets=elsewhere_too(rng, T, V), soft_cap=2.0)


def cross_entropy_piece_loss(rng, T, V):
    return dict(loss=new(T), **softmax_state(rng, T), chosen=normal(rng, T), floor=1e-9)


def cross_entropy_piece_backward(rng, T, V):
    return dict(logits=normal(rng, T, V), **softmax_state(rng, T), targets=elsewhere_too(rng, T, V),
                dloss=normal(rng, T), floor=1e-9, soft_cap=2.0)


def adam_step(rng, T, n):
    param, m, v, grad = normal(rng, 4, T * n)
    return dict(param=param, m=m, v=v**2, grad=grad, grad_scale=0.5, beta1=0.875, beta2=0.96875, a_t=0.125, c_t=2.0,
                eps=1e-8, decay=0.0078125)


def sum_of_squares(rng, T, n):
    return dict(x=normal(rng, T * n))


def embedding_forward(rng, T, C):
    return dict(y=new(T, C), tokens=rng.integers(0, 11, T, dtype=np.int32),
                weight=random_blocks(rng, GGMLType.Q8_0, 11, C), type=int(GGMLType.Q8_0))


def dequantize_rows(rng, T, K):
    return dict(out=new(T, K), data=random_blocks(rng, GGMLType.Q4_1, T, K), type=int(GGMLType.Q4_1))


def attention_inputs(rng, T, D):
    """Two sequences with three keys from before their queries; 4 heads on 2 key and value heads, a window of 20."""
    n_keys, first = T + 6 if T else 0, T // 3
    return dict(q=normal(rng, T, 4 * D), k=normal(rng, n_keys, 2 * D), v=normal(rng, n_keys, 2 * D),
                q_begin=np.array([0, first, T], np.int32),
                k_begin=np.array([0, first + 3 if T else 0, n_keys], np.int32), scale=D**-0.5, window=20, soft_cap=2.0,
                n_head=4, n_head_kv=2)


def attention_forward(rng, T, D):
    return dict(o=new(T, 4 * D), lse=new(T, 4), sinks=normal(rng, 4), **attention_inputs(rng, T, D))


def attention_backward(rng, T, D):
    inputs = attention_inputs(rng, T, D)
    o, lse = new(T, 4 * D), new(T, 4)
    attention_twin.attention_forward(o, lse, sinks=None, **inputs)
    q, k, v = inputs.pop("q"), inputs.pop("k"), inputs.pop("v")
    return dict(dq=new(*q.shape), dk=new(*k.shape), dv=new(*v.shape), do=normal(rng, *o.shape), q=q, k=k, v=v, o=o,
                lse=lse, **inputs)


def conv_inputs(rng, T, C):
    """Sequences of a third of the rows and of the rest; as many taps as there may be."""
    return dict(taps=normal(rng, 16, C), begin=np.array([0, T // 3, T], np.int32))


def gated_conv_forward(rng, T, C):
    return dict(y=new(T, C), b=normal(rng, T, C), c=normal(rng, T, C), x=normal(rng, T, C), **conv_inputs(rng, T, C))


def gated_conv_backward(rng, T, C):
    inputs = gated_conv_forward(rng, T, C)
    return dict(db=new(T, C), dc=new(T, C), dx=new(T, C), dy=normal(rng, *inputs.pop("y").shape), **inputs)


def silu_conv_forward(rng, T, C):
    return dict(y=new(T, C), x=normal(rng, T, C), **conv_inputs(rng, T, C))


def silu_conv_backward(rng, T, C):
    inputs = silu_conv_forward(rng, T, C)
    return dict(dx=new(T, C), dy=normal(rng, *inputs.pop("y").shape), **inputs)


def delta_net_inputs(rng, T, D):
    """Two heads of keys of length 1, four of values."""
    k = normal(rng, T, 2, D)
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    return dict(q=normal(rng, T, 2 * D), k=k.reshape(T, 2 * D), v=normal(rng, T, 4 * D), g=-normal(rng, T, 4)**2,
                beta=rng.random((T, 4), np.float32))


def delta_net_forward(rng, T, D):
    return dict(o=new(T, 4 * D), state=normal(rng, 4, D, D), **delta_net_inputs(rng, T, D),
                begin=np.array([0, T], np.int32), n_head_k=2)


def delta_net_backward(rng, T, D):
    return dict(dq=new(T, 2 * D), dk=new(T, 2 * D), dv=new(T, 4 * D), dg=new(T, 4), dbeta=new(T, 4),
                do=normal(rng, T, 4 * D), **delta_net_inputs(rng, T, D), begin=np.array([0, T // 3, T], np.int32),
                n_head_k=2)


def lora_forward(rng, T, K):
    return dict(h=new(T, 3), x=normal(rng, T, K), A=normal(rng, 3, K), scale=0.5)


def lora_backward(rng, T, K):
    return dict(c=new(T, 3), dA=normal(rng, 3, K), dB=normal(rng, 3, 21), dy=normal(rng, T, 21), x=normal(rng, T, K),
                B=normal(rng, 3, 21), h=normal(rng, T, 3), scale=0.5)


def dora_forward(rng, T, N):
    return dict(y=new(T, N), out=new(T, N), z=normal(rng, T, N), gain=normal(rng, N), residual=normal(rng, T, N))


def dora_backward(rng, T, N):
    m = normal(rng, N)
    m[::4] = 0
    return dict(dz=new(T, N), dm=normal(rng, N), dy=normal(rng, T, N), y=normal(rng, T, N), m=m, gain=normal(rng, N))


class KnownWeight(Weight):
    dense: np.ndarray      # what the twin takes
    blocks: np.ndarray     # as they lie in a file


def weights(rng, K):
    known = []
    for type, N in ((GGMLType.Q8_0, 40), (GGMLType.F32, 19)):
        blocks = random_blocks(rng, type, N, K)
        known.append(KnownWeight(blocks, int(type), K))
        known[-1].dense, known[-1].blocks = dequantize(blocks, type).astype(np.float64), blocks
    return known


def linear_forward(rng, T, K):
    return dict(ys=[new(T, 40), new(T, 19)], x=normal(rng, T, K), weights=weights(rng, K),
                low_rank=[(normal(rng, T, 2), normal(rng, 2, 40)), None], residual=None)


def linear_backward(rng, T, K):
    return dict(dx=new(T, K), dys=[normal(rng, T, 40), normal(rng, T, 19)], weights=weights(rng, K),
                low_rank=[None, (normal(rng, T, 2), normal(rng, 2, K))])


def linear_backward_add(rng, T, K):
    return {**linear_backward(rng, T, K), "dx": normal(rng, T, K)}


class KnownExperts(ExpertWeights):
    dense: np.ndarray
    blocks: np.ndarray


def expert_weights(rng, type, E, N, K):
    blocks = random_blocks(rng, type, E * N, K)
    known = KnownExperts(blocks.reshape(E, N, -1), int(type), K)
    known.dense, known.blocks = dequantize(blocks, type).astype(np.float64).reshape(E, N, K), blocks
    return known


def routing(rng, T, E=4, n_used=2):
    """The rows of T tokens that go to two of four experts each; the last of these has none."""
    chosen = np.sort(np.argsort(rng.random((T, E - 1)), axis=1)[:, :n_used], axis=1).reshape(-1)
    order = np.argsort(chosen, kind="stable")
    begin = np.append(0, np.cumsum(np.bincount(chosen, minlength=E)))
    return dict(begin=begin.astype(np.int32), tokens=(order // n_used).astype(np.int32))


def experts_forward(rng, T, K):
    return dict(ys=[new(2 * T, 24), new(2 * T, 7)], x=normal(rng, T, K),
                weights=[expert_weights(rng, GGMLType.Q8_0, 4, 24, K), expert_weights(rng, GGMLType.F32, 4, 7, K)],
                biases=[None, normal(rng, 4, 7)], **routing(rng, T))


def experts_backward(rng, T, K):
    arguments = experts_forward(rng, T, K)
    return dict(dx=new(T, K), dys=[normal(rng, *y.shape) for y in arguments["ys"]],
                **{name: arguments[name] for name in ("weights", "begin", "tokens")})


def experts_sum_forward(rng, T, K):
    return dict(y=new(T, 24), x=normal(rng, 2 * T, K), weight=expert_weights(rng, GGMLType.Q8_0, 4, 24, K),
                bias=normal(rng, 4, 24), scale=normal(rng, 2 * T), **routing(rng, T))


def experts_sum_backward(rng, T, K):
    return dict(dx=new(2 * T, K), dy=normal(rng, T, 24), weight=expert_weights(rng, GGMLType.Q8_0, 4, 24, K),
                **routing(rng, T))


EVEN = (2, 6, 34, 64, 514)
BLOCKS = (32, 96, 512)
HEADS = (1, 7, 33, 64)

OPS = [
    Op("rms_norm", "rms_norm_forward", rms_norm_forward, out=("y", "rstd")),
    Op("rms_norm", "rms_norm_backward", rms_norm_backward, accumulated=("dx", "dgain")),
    Op("layer_norm", "layer_norm_forward", layer_norm_forward, out=("y", "mean", "rstd"), widths=WIDTHS[1:]),
    Op("layer_norm", "layer_norm_backward", layer_norm_backward, accumulated=("dx", "dgain"), widths=WIDTHS[1:]),
    Op("rope", "rope_forward", rope_forward, out=("y",), widths=EVEN),
    Op("swiglu", "swiglu_forward", gated_forward, out=("h",)),
    Op("swiglu", "swiglu_backward", gated_backward, out=("dgate", "dup")),
    Op("swiglu", "geglu_forward", gated_forward, out=("h",)),
    Op("swiglu", "geglu_backward", gated_backward, out=("dgate", "dup")),
    Op("swiglu", "reglu2_forward", gated_forward, out=("h",)),
    Op("swiglu", "reglu2_backward", gated_backward, out=("dgate", "dup")),
    Op("swiglu", "clamped_swiglu_forward", gated_forward, out=("h",)),
    Op("swiglu", "clamped_swiglu_backward", gated_backward, out=("dgate", "dup")),
    Op("swiglu", "glu_forward", gated_forward, out=("h",)),
    Op("swiglu", "glu_backward", gated_backward, out=("dgate", "dup")),
    Op("activation", "gelu_forward", activation_forward, out=("y",)),
    Op("activation", "gelu_backward", activation_backward, out=("dx",)),
    Op("activation", "relu_squared_forward", activation_forward, out=("y",)),
    Op("activation", "relu_squared_backward", activation_backward, out=("dx",)),
    Op("cross_entropy", "cross_entropy_forward", cross_entropy_forward, out=("loss",), free_width=("logits",)),
    Op("cross_entropy", "cross_entropy_forward_backward", cross_entropy_forward_backward, out=("loss",),
       changed=("logits",), free_width=("logits",)),
    Op("cross_entropy", "cross_entropy_piece_forward", cross_entropy_piece_forward, changed=("max", "sum", "chosen"),
       free_width=("logits",)),
    Op("cross_entropy", "cross_entropy_piece_loss", cross_entropy_piece_loss, out=("loss",), free_width=("loss",)),
    Op("cross_entropy", "cross_entropy_piece_backward", cross_entropy_piece_backward, changed=("logits",),
       free_width=("logits",)),
    Op("adam", "adam_step", adam_step, changed=("param", "m", "v")),
    Op("adam", "sum_of_squares", sum_of_squares),
    Op("embedding", "embedding_forward", embedding_forward, out=("y",), widths=BLOCKS),
    Op("embedding", "dequantize_rows", dequantize_rows, out=("out",), widths=BLOCKS),
    Op("attention", "attention_forward", attention_forward, out=("o", "lse"), widths=HEADS),
    Op("attention", "attention_backward", attention_backward, out=("dq", "dk", "dv"), widths=HEADS),
    Op("short_conv", "gated_conv_forward", gated_conv_forward, out=("y",)),
    Op("short_conv", "gated_conv_backward", gated_conv_backward, out=("db", "dc", "dx")),
    Op("short_conv", "silu_conv_forward", silu_conv_forward, out=("y",)),
    Op("short_conv", "silu_conv_backward", silu_conv_backward, out=("dx",)),
    Op("delta_net", "delta_net_forward", delta_net_forward, out=("o",), changed=("state",), widths=HEADS),
    Op("delta_net", "delta_net_backward", delta_net_backward, out=("dq", "dk", "dv", "dg", "dbeta"), widths=HEADS),
    Op("lora", "lora_forward", lora_forward, out=("h",)),
    Op("lora", "lora_backward", lora_backward, out=("c",), accumulated=("dA", "dB")),
    Op("dora", "dora_forward", dora_forward, out=("y", "out")),
    Op("dora", "dora_backward", dora_backward, out=("dz",), accumulated=("dm",)),
    Op("linear", "linear_forward", linear_forward, out=("ys",), widths=BLOCKS, limit=INT16),
    Op("linear", "linear_backward", linear_backward, out=("dx",), widths=BLOCKS, limit=INT16),
    Op("linear", "linear_backward_add", linear_backward_add, accumulated=("dx",), widths=BLOCKS, limit=INT16),
    Op("linear", "experts_forward", experts_forward, out=("ys",), widths=BLOCKS, limit=INT16,
       free_rows=("x",)),
    Op("linear", "experts_backward", experts_backward, out=("dx",), widths=BLOCKS, limit=INT16,
       free_rows=("dx",)),
    Op("linear", "experts_sum_forward", experts_sum_forward, out=("y",), widths=BLOCKS, limit=INT16,
       free_rows=("y",)),
    Op("linear", "experts_sum_backward", experts_sum_backward, out=("dx",), widths=BLOCKS, limit=INT16,
       free_rows=("dy",)),
]
every_op = pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)


def arrays(value: Any) -> list[np.ndarray]:
    """The arrays of an argument, which may be a list of them."""
    if isinstance(value, (list, tuple)):
        return [array for item in value for array in arrays(item)]
    return [value] if isinstance(value, np.ndarray) else []


def as_float64(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(as_float64(item) for item in value)
    if isinstance(value, (KnownWeight, KnownExperts)):
        return value.dense
    return value.astype(np.float64) if isinstance(value, np.ndarray) and value.dtype == np.float32 else value


def results(op: Op, arguments: Arguments, returned: Any) -> list[np.ndarray]:
    """Everything the op gave back: its return value, if it has one, and the arrays that it wrote."""
    written = [array for name in op.written for array in arrays(arguments[name])]
    return written if returned is None else [np.array(returned), *written]


def run(op: Op, rows: int, width: int, n_threads: int = 1) -> list[np.ndarray]:
    """Runs the kernel on inputs that are read-only, as the mapping of a model file is."""
    arguments = op.make(np.random.default_rng(0), rows, width)
    for name, value in arguments.items():
        for array in arrays(value):
            array.flags.writeable = name in op.written
    return results(op, arguments, op.kernel(**arguments, n_threads=n_threads))


def test_no_op_is_forgotten():
    for module in pkgutil.iter_modules(lorafast.kernels.__path__):
        if module.name not in ("build_info", "pages"):
            kernels = vars(importlib.import_module(f"lorafast.kernels.{module.name}"))
            public = {name for name, value in kernels.items()
                      if type(value).__name__ == "cython_function_or_method" and not name.startswith("_")
                      and not name.endswith("_scratch_bytes")}
            assert public == {op.name for op in OPS if op.module == module.name}, module.name


@every_op
def test_signature_equals_twin(op):
    assert list(inspect.signature(op.kernel).parameters) == list(inspect.signature(op.twin).parameters)


@every_op
def test_equals_twin_at_odd_sizes(op, isa):
    """Outputs are overwritten, for they begin as NaN here; gradients are added to what was there."""
    for rows in ROWS:
        for width in op.widths:
            exact = {name: as_float64(value) for name, value in op.make(np.random.default_rng(0), rows, width).items()}
            expected = results(op, exact, op.twin(**exact, n_threads=1))
            for got, wanted in zip(run(op, rows, width), expected, strict=True):
                assert nmse(got, wanted) < op.limit, (rows, width)


@every_op
def test_no_rows(op, isa):
    run(op, 0, op.widths[-1])


@every_op
@pytest.mark.parametrize("n_threads", [2, 3])
def test_threads_give_equal_bits(op, isa, n_threads):
    rows, width = 130, op.widths[-1]          # enough work for threads_for to grant threads
    for one, several in zip(run(op, rows, width), run(op, rows, width, n_threads), strict=True):
        np.testing.assert_array_equal(one, several)


@every_op
def test_every_isa_equals_scalar(op, monkeypatch):
    rows, width = 40, op.widths[-1]
    monkeypatch.setenv("LORAFAST_ISA", "scalar")
    scalar = run(op, rows, width)
    for isa in available_isas()[1:]:
        monkeypatch.setenv("LORAFAST_ISA", isa)
        for got, wanted in zip(run(op, rows, width), scalar, strict=True):
            assert nmse(got, wanted) < op.limit, isa


@pytest.mark.parametrize("op", [op for op in OPS if op.accumulated], ids=lambda op: op.name)
def test_backward_twice_is_double(op, isa):
    arguments = op.make(np.random.default_rng(0), 5, op.widths[-1])
    gradients = [array for name in op.accumulated for array in arrays(arguments[name])]
    for array in gradients:
        array[:] = 0
    op.kernel(**arguments, n_threads=1)
    once = [array.copy() for array in gradients]
    op.kernel(**arguments, n_threads=1)
    for array, first in zip(gradients, once):
        assert first.any()
        np.testing.assert_allclose(array, 2 * first, rtol=1e-5, atol=1e-6 * np.abs(first).max())


@pytest.mark.parametrize("op", [op for op in OPS if op.written], ids=lambda op: op.name)
def test_wrong_shapes_are_refused_by_name(op):
    for name, value in op.make(np.random.default_rng(0), 3, op.widths[-1]).items():
        if not isinstance(value, np.ndarray) or value.dtype != np.float32:
            continue
        for axis in range(name in op.free_rows, 1 if name in op.free_width else value.ndim):
            arguments = op.make(np.random.default_rng(0), 3, op.widths[-1])
            shape = list(value.shape)
            shape[axis] += 1
            arguments[name] = np.zeros(shape, np.float32)
            with pytest.raises(ValueError, match=f"^{op.name}: .*(shape|rows of|wanted)"):
                op.kernel(**arguments, n_threads=1)

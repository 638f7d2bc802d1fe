"""Every architecture against PyTorch in float64 and llama.cpp, on random small models."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from llama_cpp_logits import llama_cpp_logits
from numerics import nmse

import lorafast

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from architectures import dense, experts_and_hybrids  # noqa: E402
from architectures.small_models import SmallModel, logits_of  # noqa: E402

from lorafast.cli import main  # noqa: E402
from lorafast.network.architectures import ARCHITECTURES  # noqa: E402

ROWS = {**dense.ROWS, **experts_and_hybrids.ROWS}

REFUSED = ()
"""Forms of an architecture that lorafast takes in other forms."""

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::FutureWarning")]

LOGITS = {"qwen2": 1e-10, "qwen3": 1e-10}
"""Most NMSE of logits by architecture, 1e-9 for the others."""

GRADIENTS = {"qwen2": 1e-4, "qwen3": 1e-4}
"""Most |got - wanted| / |wanted| of the gradient of an A or B, 1e-3 for the others."""


@pytest.fixture(scope="module", params=ROWS)
def small(request, tmp_path_factory) -> SmallModel:
    torch.set_num_threads(1)
    return SmallModel(ROWS[request.param], tmp_path_factory.mktemp(request.param))


@pytest.fixture
def taken(small) -> SmallModel:
    """A model of an architecture that lorafast takes."""
    if small.row.arch not in ARCHITECTURES or small.row in REFUSED:
        pytest.skip("lorafast does not take it")
    return small


def forward(small: SmallModel, *lora: Path) -> np.ndarray:
    """lorafast's logits, in a context that the tokens just fill: it chooses among RoPE's long and short factors."""
    return lorafast.Model.open(small.path, lora, n_ctx=small.row.n_tokens).forward(small.tokens)


def test_llama_cpp_reads_the_file_as_transformers_the_model(small):
    """The test's own side: what the row says of names, keys and rows is true."""
    pytest.importorskip("llama_cpp")
    if small.row.llama_cpp is None:
        pytest.skip("llama.cpp computes something else")
    theirs, = llama_cpp_logits(small.folder, small.path, small.tokens, n_threads=1)
    assert nmse(theirs, small.logits) < small.row.llama_cpp


def test_logits(taken):
    assert nmse(forward(taken), taken.logits) < LOGITS.get(taken.row.arch, 1e-9)


def test_gradients(taken):
    if not hasattr(lorafast.Model, "gradients"):
        pytest.skip("no gradients from Python")
    wanted_loss, wanted = taken.gradients
    model = lorafast.Model.open(taken.path_without_adapter, [taken.adapter], n_ctx=taken.row.n_tokens)
    loss, got = model.gradients(taken.tokens)
    assert loss == pytest.approx(wanted_loss, rel=1e-5)
    assert got.keys() == wanted.keys()
    for name in wanted:
        for kind, ours, theirs in zip(("dA", "dB"), got[name], wanted[name], strict=True):
            error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
            assert error < GRADIENTS.get(taken.row.arch, 1e-3), (name, kind)


def test_adapter_in_llama_cpp(taken):
    pytest.importorskip("llama_cpp")
    if taken.row.llama_cpp is None:
        pytest.skip("llama.cpp computes something else")
    theirs, = llama_cpp_logits(taken.folder, taken.path_without_adapter, taken.tokens, taken.adapter,
                               n_threads=1)
    assert nmse(theirs, taken.logits) < 10 * taken.row.llama_cpp


def test_adapter_to_peft_and_back(taken):
    """With the model of transformers the converted adapter does what the GGUF adapter does with the file."""
    peft = pytest.importorskip("peft")
    if not taken.row.peft:
        pytest.skip("transformers' class has other modules than PEFT adapters of this architecture")
    folder, back = taken.folder / "peft", taken.folder / "back.gguf"
    assert main(["convert", str(taken.adapter), str(folder), "--to", "peft", "--model-base", str(taken.path)]) == 0
    assert main(["convert", str(folder), str(back), "--to", "gguf", "--model-base", str(taken.path)]) == 0
    adapted = forward(taken, taken.adapter)
    assert nmse(adapted, taken.logits) > 1e-3
    np.testing.assert_array_equal(forward(taken, back), adapted)
    with_adapter = peft.PeftModel.from_pretrained(taken.model, folder)
    try:
        with torch.no_grad():
            assert nmse(adapted, logits_of(with_adapter, taken.tokens)) < 1e-9
    finally:
        with_adapter.unload()

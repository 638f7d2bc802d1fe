"""Every row of the table of types has all that a type needs, so that a test names what a new one lacks."""
import re
from pathlib import Path

import pytest

from lorafast.gguf.quantize_k import FORMATS
from lorafast.gguf.quants import DEQUANTIZERS, LAYOUTS, QUANTIZERS
from lorafast.gguf.types import FILE_TYPE_NAMES, TRAINABLE, GGMLType

ROOT = Path(__file__).parents[2]

each_type = pytest.mark.parametrize("type", TRAINABLE, ids=lambda type: type.name)


@each_type
def test_a_type_has_a_layout_and_a_dequantiser(type):
    assert type in LAYOUTS and type in DEQUANTIZERS
    assert LAYOUTS[type].itemsize == type.type_size


def test_nothing_is_left_over():
    assert set(LAYOUTS) == set(DEQUANTIZERS) == set(TRAINABLE)
    assert {*QUANTIZERS, *FORMATS} == {type for type in TRAINABLE if type.is_mergeable}
    assert not set(QUANTIZERS) & set(FORMATS)


@each_type
def test_a_type_that_merging_does_not_write_names_one_that_it_writes(type):
    assert type.is_mergeable or GGMLType[type.weights.merge_as].is_mergeable


@each_type
def test_fallbacks_have_smaller_blocks_and_end(type):
    if type.block_size > 1:
        fallback = GGMLType[type.weights.fallback]
        assert fallback.is_mergeable and fallback.block_size < type.block_size


@each_type
def test_the_file_type_is_that_of_llama_cpp(type):
    file_types = pytest.importorskip("gguf.constants").LlamaFileType
    names = [name.split("_", 1)[1] for name, value in file_types.__members__.items() if value == type.weights.file_type]
    assert names[0] in (type.name, f"{type.name}_M", f"{type.name}_MOE")
    assert FILE_TYPE_NAMES[type.weights.file_type].startswith(("all " if type is GGMLType.F32 else "") + type.name)


@each_type
def test_scales_and_minima_divide_a_block(type):
    if type.weights.q_max:
        assert type.weights.scale_every % 32 == 0 and max(type.block_size, 32) % type.weights.scale_every == 0
        assert type.block_size % (type.weights.min_every or 1) == 0


@each_type
@pytest.mark.parametrize("page", ["README.md", "docs/questions.md"])
def test_the_docs_name_it(type, page):
    assert re.search(rf"\b{type.name}\b", (ROOT / page).read_text(encoding="utf-8"))

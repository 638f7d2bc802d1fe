"""Writes ggml_types.h and codebooks.h, the kernels' form of the tables in lorafast/gguf/.

    python kernels/make_tables.py

tests/kernels/test_tables.py compares the files with what this would write.
"""
from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from lorafast.gguf import codebooks  # noqa: E402
from lorafast.gguf.codebooks import Codebook  # noqa: E402
from lorafast.gguf.types import TRAINABLE, GGMLType  # noqa: E402

TYPES = """\
/* The ggml types that lorafast computes with. Made from lorafast/gguf/types.py by make_tables.py; change it there. */
#ifndef LORAFAST_GGML_TYPES_H
#define LORAFAST_GGML_TYPES_H

/* Their numbers in GGUF. */
enum {{
{numbers}
    GGML_N_TYPES = {n_types}
}};

/* What the columns mean is said in lorafast/gguf/types.py; block_size is 0 for a type that is not computed with. */
typedef struct {{ int block_size, type_size, q_max, scale_every, min_every, fits_int8, is_4_bit; }} ggml_format;

static const ggml_format ggml_formats[GGML_N_TYPES] = {{
    /*               block bytes q_max scale   min  int8 4 bit */
{formats}
}};

/* X(name, name of its struct and unpacker, bytes of a block) for each type that is stored in blocks. */
#define GGML_BLOCK_TYPES(X) \\
{blocks}

/* The same for each type that is unpacked to integers and scales. */
#define GGML_INTEGER_TYPES(X) \\
{integers}

#endif
"""


def types_header() -> str:
    """ggml_types.h."""
    def row(type: GGMLType) -> str:
        weights = type.weights
        values = (type.block_size, type.type_size, weights.q_max, weights.scale_every, weights.min_every,
                  int(weights.is_int8 or 0 < weights.q_max < 128), int(weights.is_4_bit))
        return f"    {f'[GGML_{type.name}]':14} = {{ {', '.join(f'{value:4}' for value in values)} }},"

    def listed(types: Iterable[GGMLType]) -> str:
        return " \\\n".join(f"    X({type.name}, {type.label}, {type.type_size})" for type in types)

    blocks = listed(type for type in TRAINABLE if type.block_size > 1)
    integers = listed(type for type in TRAINABLE if type.weights.q_max)
    numbers = "\n".join(f"    GGML_{type.name} = {int(type)}," for type in TRAINABLE)
    return TYPES.format(numbers=numbers, n_types=max(TRAINABLE) + 1, formats="\n".join(map(row, TRAINABLE)),
                        blocks=blocks, integers=integers)


CODEBOOKS = """\
/* The codebooks of IQ1_S to IQ3_S. Made from lorafast/gguf/codebooks.py by make_tables.py; change them there.
 *
 * An entry is written as the digits of its values, the first value's lowest: 2 bits each of 8 values, or an octal digit
 * each of 4. The compiler makes a byte of each: the digit itself (IQ1), or the magnitude that it stands for. */
#ifndef LORAFAST_CODEBOOKS_H
#define LORAFAST_CODEBOOKS_H

#include <stdint.h>

#define DIGIT_2(code, i) ((uint64_t)((code) >> 2 * (i) & 3) << 8 * (i))
#define D2(code) (DIGIT_2(code, 0) | DIGIT_2(code, 1) | DIGIT_2(code, 2) | DIGIT_2(code, 3) | \\
                  DIGIT_2(code, 4) | DIGIT_2(code, 5) | DIGIT_2(code, 6) | DIGIT_2(code, 7))
#define DIGIT_3(code, i) ((uint32_t)((code) >> 3 * (i) & 7) << 8 * (i))
#define D3(code) (DIGIT_3(code, 0) | DIGIT_3(code, 1) | DIGIT_3(code, 2) | DIGIT_3(code, 3))
{tables}
#endif
"""

CODEBOOK = """
static const {c_type} {name}_codebook[{n}] = {{
#define E(code) {value}
{entries}
#undef E
}};
"""

IQ2_VALUE = "17 * D2(code) + (D2(code) >> 1 & 0x0101010101010101) + 0x0808080808080808"
"""8, 25 and 43: 8 + 17 times the digit, and one more for the digit 2."""

IQ3_XXS_VALUE = "8 * D3(code) + 2 * (D3(code) & D3(code) >> 1 & D3(code) >> 2 & 0x01010101) + 0x04040404"
"""4, 12, ... 52 and 62: 4 + 8 times the digit, and two more for the digit 7."""

VALUES = {"iq1": (codebooks.IQ1, "D2(code)"), "iq2_xxs": (codebooks.IQ2_XXS, IQ2_VALUE),
          "iq2_xs": (codebooks.IQ2_XS, IQ2_VALUE), "iq2_s": (codebooks.IQ2_S, IQ2_VALUE),
          "iq3_xxs": (codebooks.IQ3_XXS, IQ3_XXS_VALUE),
          "iq3_s": (codebooks.IQ3_S, "2 * D3(code) + 0x01010101")}
"""Each codebook and the bytes of an entry, from its digits."""


def codebooks_header() -> str:
    """codebooks.h."""
    def table(name: str, book: Codebook, value: str) -> str:
        if book.size == 8:
            c_type, codes = "uint64_t", (f"0x{code:04x}" for code in book.digits @ 4 ** np.arange(8))
        else:
            c_type, codes = "uint32_t", (f"0{code:04o}" for code in book.digits @ 8 ** np.arange(4))
        entries = textwrap.fill(" ".join(f"E({code})," for code in codes), 118, initial_indent="    ",
                                subsequent_indent="    ")
        return CODEBOOK.format(c_type=c_type, name=name, n=len(book.codes), value=value, entries=entries)

    return CODEBOOKS.format(tables="".join(table(name, *row) for name, row in VALUES.items()))


TABLES = {"ggml_types.h": types_header, "codebooks.h": codebooks_header}
"""What each file holds."""

if __name__ == "__main__":
    for name, text in TABLES.items():
        (HERE / name).write_text(text())

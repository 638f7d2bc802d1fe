"""Writes ggml_types.h, the kernels' form of the table in lorafast/gguf/types.py.

    python kernels/make_tables.py

tests/kernels/test_tables.py compares the files with what this would write.
"""
from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
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
typedef struct {{ int block_size, type_size, q_max, scale_every, min_every; }} ggml_format;

static const ggml_format ggml_formats[GGML_N_TYPES] = {{
    /*               block bytes q_max scale   min */
{formats}
}};

/* X(name, name of its struct and unpacker, bytes of a block) for each type that is stored in blocks. */
#define GGML_BLOCK_TYPES(X) \\
{blocks}

#endif
"""


def types_header() -> str:
    """ggml_types.h."""
    def row(type: GGMLType) -> str:
        weights = type.weights
        values = (type.block_size, type.type_size, weights.q_max, weights.scale_every, weights.min_every)
        return f"    {f'[GGML_{type.name}]':14} = {{ {', '.join(f'{value:4}' for value in values)} }},"

    blocks = " \\\n".join(f"    X({type.name}, {type.label}, {type.type_size})" for type in TRAINABLE if type.block_size > 1)
    return TYPES.format(numbers="\n".join(f"    GGML_{type.name} = {int(type)}," for type in TRAINABLE),
                        n_types=max(TRAINABLE) + 1, formats="\n".join(map(row, TRAINABLE)), blocks=blocks)


TABLES = {"ggml_types.h": types_header}
"""What each file holds."""

if __name__ == "__main__":
    for name, text in TABLES.items():
        (HERE / name).write_text(text())

"""The C tables are what the Python ones make."""
import runpy
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[2] / "kernels"
TABLES = runpy.run_path(str(KERNELS / "make_tables.py"))["TABLES"]


@pytest.mark.parametrize("name", TABLES)
def test_the_header_is_up_to_date(name):
    assert (KERNELS / name).read_text() == TABLES[name](), "run python kernels/make_tables.py"

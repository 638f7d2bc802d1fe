"""What type checkers read of the kernels is what was compiled."""
import ast
import importlib
import inspect
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "kernels").glob("*.pyx"))
MAKER = runpy.run_path(str(ROOT / "kernels" / "stubs.py"))


def compiled_functions(name: str) -> dict[str, inspect.Signature]:
    module = importlib.import_module(f"lorafast.kernels.{name}")
    return {name: inspect.signature(function) for name, function in vars(module).items()
            if type(function).__name__ == "cython_function_or_method" and not name.startswith("_")}


def stubbed_functions(text: str) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_stubs_are_what_was_compiled(source):
    text = (ROOT / "lorafast" / "kernels" / f"{source.stem}.pyi").read_text()
    assert text == MAKER["stub"](source), "run `make stubs`"
    compiled, stubbed = compiled_functions(source.stem), stubbed_functions(text)
    assert stubbed.keys() == compiled.keys()
    for name, node in stubbed.items():
        parameters = compiled[name].parameters.values()
        assert [argument.arg for argument in node.args.args] == [p.name for p in parameters], name
        assert ([ast.literal_eval(default) for default in node.args.defaults]
                == [p.default for p in parameters if p.default is not p.empty]), name


def test_classes_have_their_attributes():
    linear = importlib.import_module("lorafast.kernels.linear")
    classes = [node for node in ast.parse((ROOT / "lorafast/kernels/linear.pyi").read_text()).body
               if isinstance(node, ast.ClassDef)]
    assert "Weight" in {node.name for node in classes}
    for class_ in classes:
        for node in class_.body:
            name = node.target.id if isinstance(node, ast.AnnAssign) else node.name
            assert hasattr(getattr(linear, class_.name), name), name


def test_a_type_it_does_not_know_is_named(tmp_path):
    (tmp_path / "new.pyx").write_text("def new_forward(half[::1] y not None):\n    pass\n")
    with pytest.raises(ValueError, match="new_forward: the argument 'half"):
        MAKER["stub"](tmp_path / "new.pyx")

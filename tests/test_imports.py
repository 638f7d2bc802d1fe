"""The packages import one way, and no modules import each other in a circle; imports for type checkers included."""
import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "lorafast"
LAYERS = [
    {"errors", "words", "rng", "version"}, {"system"}, {"gguf"}, {"options"}, {"tokenizer"}, {"data"},
    {"kernels", "reference"}, {"network"}, {"adapters"}, {"reporting"}, {"planning"}, {"distributed"}, {"training"},
    {"api"}, {"commands"}, {"cli"}, {"__init__", "__main__"},
]
"""What may import what: each only those before it, and its own."""

LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


@cache
def imports() -> dict[str, set[str]]:
    """The modules of the package that each of them names in an import statement, by dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        found[name] = {target for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                       if isinstance(node, ast.ImportFrom) and node.level for target in targets(node, parts)}
    return {name: {best_name(target, found) for target in targets} - {name} for name, targets in found.items()}


def targets(node: ast.ImportFrom, parts: tuple[str, ...]) -> list[str]:
    """The dotted names that `from ..a.b import c` may mean: a.b.c for each c."""
    base = [*parts[:len(parts) - node.level], *(node.module.split(".") if node.module else [])]
    return [".".join([*base, alias.name]) for alias in node.names]


def best_name(target: str, modules: dict) -> str:
    """The module that an imported name belongs to."""
    while target and target not in modules:
        target = target.rpartition(".")[0]
    return target or "__init__"


def test_packages_import_one_way():
    wrong = [f"{name} imports {target}" for name, targets in imports().items() for target in targets
             if LEVEL[target.split(".")[0]] > LEVEL[name.split(".")[0]] and target != "__init__"]
    assert not wrong, wrong


def test_every_package_has_its_place():
    assert {name.split(".")[0] for name in imports()} <= LEVEL.keys()


def test_there_are_no_circles():
    # A package's own __init__ offers what its modules define, and they may use each other through it.
    graph = {name: {target for target in targets if "." in target or "." not in name}
             for name, targets in imports().items()}
    TopologicalSorter(graph).prepare()

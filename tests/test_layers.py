"""Arrows go down: a module imports only from modules that stand above it in this list."""

import ast
from pathlib import Path

import pytest

import itgan

ROOT = Path(itgan.__file__).parent
# A line is a layer: its members know nothing of one another.
LAYERS = """
errors
randomness progress endings terminal
artefacts devices configs splits
pictures generator_configs file_configs run_configs
recipes journal
readers scales
data
generators augment
networks
compilation
training
embedding latents directions
reconstruction matching distances
encoder discrepancies
inversion two_pass gains
drawing
condensation
sources
baselines export foreign ledger soft_labels
official dc
evaluation
metrics scores
cards charts pretraining
autoencoding tables
report kept comparisons
runs
setting
banks
pipeline
publishing scoring inspection
studies
study_tables
reproduction planning
claims flags
run_commands results
file_commands
cli
"""
ORDER = {
    name: level for level, line in enumerate(LAYERS.strip().splitlines()) for name in line.split()
}
FILES = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


def layer_of(file):
    return file.relative_to(ROOT).with_suffix("").parts[0]


def imports(file):
    """Modules of the package that a file imports, wherever in the file, as ``a`` or ``a.b``."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "itgan":
                    yield alias.name.removeprefix("itgan").removeprefix(".")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            if node.module == "itgan":
                yield from (alias.name for alias in node.names)
            elif (node.module or "").startswith("itgan."):
                yield node.module.removeprefix("itgan.")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_arrows_go_down(file):
    layer = layer_of(file)
    assert layer in ORDER, f"{layer}: give it a place in the layers"
    for name in imports(file):
        target = name.split(".")[0]
        if target in ("", "__version__"):  # the package itself, for its version
            continue
        assert target in ORDER, f"{file.name} imports {name}, which has no place in the layers"
        if target != layer:
            assert ORDER[target] < ORDER[layer], f"{layer} imports {name}"


def test_the_package_itself_is_imported_for_its_version_only():
    for file in FILES:
        tree = ast.parse(file.read_text())
        plain = any(
            alias.name == "itgan"
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        )
        used = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "itgan"
        }
        assert used <= ({"__version__"} if plain else set()), file


def test_the_folders_have_no_cycles():
    for folder in ("generators", "networks"):
        files = {p.stem: p for p in (ROOT / folder).glob("*.py")}
        arrows = {
            name: {
                target.split(".")[1]
                for target in imports(path)
                if target.startswith(f"{folder}.") and target.count(".") == 1
            }
            for name, path in files.items()
        }
        assert all("__init__" not in targets for targets in arrows.values())
        left = dict(arrows)
        while left:
            free = [name for name, targets in left.items() if not targets & left.keys()]
            assert free, f"a cycle among {sorted(left)}"
            for name in free:
                del left[name]


def test_the_list_names_only_what_exists():
    there = {layer_of(file) for file in FILES}
    assert set(ORDER) <= there


def test_every_public_name_is_where_the_package_says():
    for name in itgan.__all__:
        assert getattr(itgan, name) is not None
    with pytest.raises(AttributeError, match="module 'itgan' has no attribute 'nonsense'"):
        itgan.nonsense  # noqa: B018


def test_the_list_of_public_names_is_the_one_for_type_checkers():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    (block,) = (n for n in tree.body if isinstance(n, ast.If))
    typed = {alias.name for node in block.body for alias in node.names}
    assert typed == set(itgan.__all__) == set(itgan._HOME)

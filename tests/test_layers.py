"""The house's rule: a layer imports only from the layers below it, and what must start fast imports no torch.

Imports are read from the source, those inside functions too. See docs/architecture.md for the layers.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "codemill"

# Every folder and top-level file of the package. Folders of one layer know nothing of each other.
LAYERS = {
    **dict.fromkeys(
        (
            "errors",
            "config",
            "config_checks",
            "config_io",
            "engine_config",
            "presets",
            "footprint",
            "hub",
            "spec",
            "host_git",
        ),
        0,
    ),
    **dict.fromkeys(("chat", "sandbox", "kernels"), 1),
    "gguf": 0,
    "models": 2,
    "engine": 3,
    **dict.fromkeys(("server", "agent", "data"), 4),
    **dict.fromkeys(("train", "eval", "bench"), 5),
    "rl": 6,
    **dict.fromkeys(("cli", "commands", "__main__"), 7),
}
FOUNDATION = 0  # the files of this layer may import one another
ENTRANCE = 7
# Lower layers that a part has no business with all the same.
IGNORANT = {("data", "engine"), ("train", "server"), ("rl", "server")}
# Importing these must not import torch.
LIGHT = ("__init__", "cli", "commands", "chat", "sandbox", *(part for part, layer in LAYERS.items() if layer == 0))


@dataclass(frozen=True)
class Import:
    """One imported name: `target` is dotted, `at_start` says whether importing the module `module` executes it."""

    module: str
    target: str
    line: int
    at_start: bool


def modules(root: Path) -> dict[str, Path]:
    """Dotted names without the leading `codemill.`, and `__init__` for the package itself -> files."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name or "__init__"] = path
    return found


def read_imports(module: str, path: Path) -> list[Import]:
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    package = module.split(".") if path.stem == "__init__" else module.split(".")[:-1]
    return list(walk(tree, module, [part for part in package if part != "__init__"], at_start=True))


def walk(node: ast.AST, module: str, package: list[str], at_start: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        for target in targets(child, package):
            yield Import(module, target, getattr(child, "lineno", 0), at_start)
        is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from walk(child, module, package, at_start and not is_function and not is_type_checking(child))


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def targets(node: ast.AST, package: list[str]) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            base = ".".join(["codemill", *package[: len(package) - node.level + 1], *filter(None, [node.module])])
        return [f"{base}.{alias.name}" for alias in node.names]
    return []


def own_module(target: str, known: dict[str, Path]) -> str | None:
    """The module of ours that `target` lies in: `codemill.chat.Tokenizer` -> `chat`; None for other packages."""
    first, *parts = target.split(".")
    if first != "codemill":
        return None
    while parts and ".".join(parts) not in known:
        parts.pop()
    return ".".join(parts) or "__init__"


def part_of(module: str) -> str:
    return module.split(".")[0]


def layer_faults(root: Path) -> list[str]:
    """What breaks the order of layers in the package at `root`, one line each."""
    known = modules(root)
    faults = [f"{name}: {part_of(name)} has no layer; add it to LAYERS" for name in known if not has_layer(name)]
    for module, path in known.items():
        for found in read_imports(module, path):
            other = own_module(found.target, known)
            if other is not None and has_layer(module) and not may_import(module, other, found.target):
                faults.append(f"{module}, line {found.line}: must not import {found.target}")
    return faults


def has_layer(module: str) -> bool:
    return module == "__init__" or part_of(module) in LAYERS


def may_import(module: str, other: str, target: str) -> bool:
    part, other_part = part_of(module), part_of(other)
    if part == "__init__" or part == other_part:
        return True
    if other_part == "__init__":  # the package offers what layers above it make, and its version
        return target == "codemill.__version__" or LAYERS[part] == ENTRANCE
    if (part, other_part) in IGNORANT or other_part not in LAYERS:
        return False
    return LAYERS[other_part] < LAYERS[part] or LAYERS[part] == LAYERS[other_part] in (FOUNDATION, ENTRANCE)


def torch_faults(root: Path) -> list[str]:
    """The chains of imports by which importing a light module executes `import torch`, one line each."""
    known = modules(root)
    at_start = {
        module: [found.target for found in read_imports(module, path) if found.at_start]
        for module, path in known.items()
    }
    chains = [chain_to_torch(module, at_start, known) for module in known if part_of(module) in LIGHT]
    return [" -> ".join(chain) for chain in chains if chain]


def chain_to_torch(start: str, at_start: dict[str, list[str]], known: dict[str, Path]) -> list[str]:
    chains, seen = [[start]], {start}
    while chains:
        chain = chains.pop()
        for target in at_start[chain[-1]]:
            if target.split(".")[0] in ("torch", "transformers") or target.startswith("safetensors.torch"):
                return [*chain, target]
            other = own_module(target, known)
            new = {*packages_of(other)} - seen if other is not None else set()
            seen |= new
            chains += [[*chain, name] for name in new]
    return []


def packages_of(module: str) -> list[str]:
    """Importing a module first imports the packages around it."""
    parts = module.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def test_layers_import_only_downwards() -> None:
    assert layer_faults(SOURCE) == []


def test_what_starts_fast_imports_no_torch() -> None:
    assert torch_faults(SOURCE) == []


def write(root: Path, files: dict[str, str]) -> Path:
    for name, source in {"__init__.py": "", "errors.py": "", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return root


MODELS = {"models/__init__.py": "", "models/decoder.py": "import torch\n"}
GOOD = {
    **MODELS,
    "cli.py": "from codemill import __version__\ndef f():\n    import torch\n    from codemill.models import decoder\n",
    "commands/__init__.py": "",
    "commands/models.py": "from codemill.commands import models\nfrom codemill.cli import main\n",
    "chat/__init__.py": "from ..errors import E\nif typing.TYPE_CHECKING:\n    import torch\n",
    "engine/llm.py": "from codemill.models.decoder import CausalLM\nfrom codemill.chat import Tokenizer\n",
    "config.py": "def load():\n    from codemill.errors import E\n",
}


def test_a_sound_house_passes(tmp_path: Path) -> None:
    root = write(tmp_path, GOOD)
    assert layer_faults(root) == []
    assert torch_faults(root) == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("models/weights.py", "from codemill.engine.llm import LLM\n"),
        ("models/weights.py", "import codemill.engine.llm\n"),
        ("models/weights.py", "from codemill import LLM\n"),
        ("models/weights.py", "from codemill import engine\n"),
        ("models/weights.py", "from ..engine import llm\n"),
        ("models/weights.py", "def f():\n    from codemill.engine.llm import LLM\n"),
        ("models/weights.py", "class A:\n    def f(self):\n        import codemill.cli\n"),
        ("models/weights.py", "try:\n    from codemill.engine import llm\nexcept ImportError:\n    llm = None\n"),
        ("chat/template.py", "from codemill.models import decoder\n"),
        ("kernels/attention.py", "from codemill.chat import Tokenizer\n"),
        ("config.py", "from codemill.models import decoder\n"),
        ("engine/llm.py", "from codemill.cli import main\n"),
        ("data/packing.py", "from codemill.engine import llm\n"),
        ("utils/misc.py", "import os\n"),
        ("engine/llm.py", "from codemill.utils import misc\n"),
    ],
)
def test_a_violation_is_found(tmp_path: Path, name: str, source: str) -> None:
    root = write(tmp_path, {**GOOD, "engine/llm.py": "", name: source})
    assert len(layer_faults(root)) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("config.py", "import torch\n"),
        ("chat/tokenizer.py", "from torch import Tensor\n"),
        ("chat/tokenizer.py", "class A:\n    import torch.nn\n"),
        ("chat/tokenizer.py", "try:\n    import torch\nexcept ImportError:\n    torch = None\n"),
        ("cli.py", "from codemill.models import decoder\n"),
        ("cli.py", "from codemill.models.decoder import CausalLM\n"),
        ("__init__.py", "from safetensors.torch import load_file\n"),
        ("commands/generate.py", "from codemill.helper import work\n"),
    ],
)
def test_torch_at_start_is_found_through_any_chain(tmp_path: Path, name: str, source: str) -> None:
    helper = {"helper.py": "from codemill.models.decoder import CausalLM\n"}
    root = write(tmp_path, {**GOOD, **helper, name: source})
    assert any("torch" in fault for fault in torch_faults(root))

"""The order of imports and the one door per dependency, read from the source."""

from __future__ import annotations

import ast
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "ovseg"

# what each part of the package may import of the others
BELOW = {
    "structures": set(),
    "limits": {"structures"},
    "ops": {"structures"},
    "rle": {"structures", "limits"},
    "images": {"structures", "limits"},
    "cache": set(),
    "stopping": set(),
}
BELOW["losses"] = BELOW["metrics"] = BELOW["optim"] = BELOW["checkpoint"] = {
    "structures",
    "limits",
    "ops",
    "rle",
    "images",
}
BELOW["models"] = BELOW["losses"] | {"cache", "losses", "metrics", "optim", "checkpoint"}
BELOW["tasks"] = BELOW["models"] | {"models"}
BELOW["data"] = {"structures", "limits", "ops", "rle", "images", "cache", "stopping"}
BELOW["callbacks"] = BELOW["tasks"] | {"tasks", "data", "stopping"}
BELOW["trainer"] = BELOW["callbacks"] | {"callbacks"}

# the only files that may import a dependency
DOORS = {
    "spacy": {"data/nouns.py"},
    "open_clip": {
        f"models/{name}.py" for name in ("clip_adapter", "clip_config", "clip_files", "clip_tokenizer", "towers")
    },
    "timm": {"models/clip_config.py", "models/deeplab_resnet.py", "models/towers.py"},
    "transformers": {"models/clip_tokenizer.py", "models/deeplab_resnet.py", "models/proposals_hub.py", "losses.py"},
    "pycocotools": {"rle.py", "data/coco_captions.py", "data/toy/folder.py"},
}


def imports(file: Path) -> set[str]:
    """The full names of all modules that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: write the whole name of the module"
            module = node.module or ""
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def modules() -> dict[str, set[str]]:
    """Path of every source file → what it imports."""
    return {str(file.relative_to(SOURCE)): imports(file) for file in sorted(SOURCE.rglob("*.py"))}


def part(path: str) -> str:
    return path.split("/")[0].removesuffix(".py")


def test_imports_follow_the_order_of_the_layers() -> None:
    wrong = []
    for path, names in modules().items():
        allowed = BELOW.get(part(path))
        if allowed is None:
            continue  # above everything: cli, commands
        used = {name.split(".")[1] for name in names if name.startswith("ovseg.") and name.count(".") >= 1}
        wrong += [f"{path} imports ovseg.{name}" for name in sorted(used - allowed - {part(path), "__version__"})]
    assert wrong == []


def test_each_dependency_has_one_door() -> None:
    wrong = [
        f"{path} imports {dependency}"
        for path, names in modules().items()
        for dependency, doors in DOORS.items()
        if path not in doors and any(name.split(".")[0] == dependency for name in names)
    ]
    assert wrong == []


def test_modules_do_not_import_each_other_in_circles() -> None:
    every = modules()
    name_of = {
        "ovseg." + path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path
        for path in every
        if path != "__init__.py"
    }
    needs = {
        path: {name_of[name] for full in names for name in (full, full.rpartition(".")[0]) if name in name_of} - {path}
        for path, names in every.items()
    }
    while free := [path for path, needed in needs.items() if not needed]:
        for path in free:
            del needs[path]
        for needed in needs.values():
            needed.difference_update(free)
    assert sorted(needs) == [], "these, or what they import, form a circle"

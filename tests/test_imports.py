"""The order of imports and the one door per dependency, read from the source."""

from __future__ import annotations

import ast
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "ovseg"

# What each part of the package may import, and through these, what they may. A part is a file or a folder; a file in a
# folder belongs to the longest name that fits.
ARROWS = {
    "structures": "",
    "cache": "",
    "stopping": "",
    "limits": "structures",
    "whole_file": "structures",
    "bands": "",
    "cropping": "",
    "ops": "structures bands cropping",
    "rle": "limits",
    "images": "limits",
    "losses": "ops",
    "metrics": "ops",
    "optim": "structures",
    "checkpoint": "images rle",
    "models/network_values": "checkpoint",
    "models/clip": "models/network_values cache ops",
    "models/proposals": "models/network_values ops",
    "models/regions": "models/clip",
    "models/ensemble": "models/regions models/proposals",
    "models/phrases": "models/ensemble",
    "models/views": "models/ensemble",
    "models/segmenter_folder": "models/regions models/proposals",
    "models/released": "models/regions models/proposals",
    "models/segmenter": "models/released models/views models/phrases models/segmenter_folder",
    "models/released/importing": "models/segmenter",
    "models": "models/released/importing",
    "tasks": "models losses metrics optim",
    "data": "images rle ops cache stopping whole_file",
    "data/toy": "data",
    "data/captions": "data",
    "data/pairs": "data/benchmarks",
    "data/benchmarks": "data",
    "callbacks": "tasks data/captions data/pairs data/benchmarks",
    "cli": "callbacks data/toy",
}

# the only files that may import a dependency
DOORS = {
    "spacy": {"data/captions/nouns.py"},
    "open_clip": {
        f"models/clip/{name}.py"
        for name in ("adapter", "config", "files", "open_clip_tower", "timm_tower", "tokenizer", "towers")
    },
    "timm": {
        "models/clip/config.py",
        "models/clip/timm_tower.py",
        "models/clip/towers.py",
        "models/proposals/deeplab_resnet.py",
    },
    "transformers": {
        "losses.py",
        "models/clip/tokenizer.py",
        "models/proposals/deeplab_resnet.py",
        "models/proposals/hub.py",
    },
    "pycocotools": {"rle.py", "data/captions/coco.py", "data/toy/folder.py"},
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


def part_of(module: str) -> str | None:
    """The part of a module, such as `ovseg.models.clip.text` or `models/clip/text`; None for the package itself."""
    path = module.removeprefix("ovseg.").removesuffix(".py").removesuffix("/__init__").replace(".", "/")
    fitting = [part for part in ARROWS if path == part or path.startswith(f"{part}/")]
    return max(fitting, key=len, default=None)


def allowed(part: str) -> set[str]:
    """All parts that an arrow leads to, directly or through others."""
    below = set(ARROWS[part].split())
    return {part}.union(below, *(allowed(each) for each in below))


def test_imports_follow_the_arrows() -> None:
    wrong = []
    for path, names in modules().items():
        if (part := part_of(path)) is None:
            assert path in ("__init__.py", "__main__.py"), f"{path} is no part of ARROWS; say what it may import"
            continue
        used = {name: part_of(name) for name in names if name.startswith("ovseg.")}
        wrong += [
            f"{path} imports {name}, but no arrow leads from {part} to {target}"
            for name, target in sorted(used.items())
            if target is not None and target not in allowed(part)
        ]
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


def test_only_one_folder_knows_the_keys_of_released_checkpoints() -> None:
    keys = ("sem_seg_head", "clip_adapter.", "non_object_embedding")
    texts = {str(file.relative_to(SOURCE)): file.read_text() for file in SOURCE.rglob("*.py")}
    knowing = {path for path, text in texts.items() if any(key in text for key in keys)}
    assert knowing and {path for path in knowing if not path.startswith("models/released/")} == set()

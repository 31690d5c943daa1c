"""Which label file belongs to which image; a missing partner is an error, never a silent drop."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ovseg.images import IMAGE_SUFFIXES
from ovseg.limits import check_names
from ovseg.structures import InputError

_SHOWN = 5  # missing files that are named


def by_stem(images: Path, labels: Path, suffix: str = ".png", source: str = "") -> dict[Path, Path]:
    """Image → label file of the same name but for the suffix.

    Args:
        images: folder of images.
        labels: folder of label files.
        suffix: how a label file's name goes on after the image's stem.
        source: a sentence's end that says where the data comes from.

    Raises:
        InputError: a folder or partner is missing.
    """
    if absent := [str(folder) for folder in (images, labels) if not folder.is_dir()]:
        raise InputError(f"there is no folder {' and no '.join(absent)}; {source or 'correct the path'}")
    label_of = {path.name.removesuffix(suffix): path for path in labels.iterdir() if path.name.endswith(suffix)}
    image_of: dict[str, Path] = {}
    for path in sorted(images.iterdir()):
        if path.suffix.lower() not in IMAGE_SUFFIXES or (images == labels and path.name.endswith(suffix)):
            continue
        if (first := image_of.setdefault(path.stem, path)) != path:
            raise InputError(f"{first} and {path} would have the same label file; keep one of them")
    for kind, have, other in (("label", image_of, label_of), ("image", label_of, image_of)):
        if alone := sorted(have.keys() - other.keys()):
            raise _alone(kind, labels if kind == "label" else images, [have[stem] for stem in alone], len(have), source)
    if not image_of:
        raise InputError(f"{images} has no image; {source or 'correct the path'}")
    return {path: label_of[stem] for stem, path in image_of.items()}


def by_list(split: Path, images: Path, labels: Path, suffix: str, source: str) -> dict[Path, Path]:
    """Image (.jpg) → label file of the stems in a text file, one a line.

    Raises:
        InputError: the list names no image, one elsewhere, or one that is missing or has no label file.
    """
    try:
        stems = split.read_text(encoding="utf-8").split()
    except UnicodeDecodeError as error:
        raise InputError(f"{split} is not a text file in UTF-8; {source}") from error
    check_names(stems, split)
    files = {images / f"{stem}.jpg": labels / f"{stem}{suffix}" for stem in stems}
    if not files:
        raise InputError(f"{split} names no image; {source}")
    if alone := [label for image, label in files.items() if not image.is_file()]:
        raise _alone("image", images, alone, len(files), source)
    require_labels(files, labels, source)
    return files


def require_labels(files: Mapping[Path, Path], labels: Path, source: str) -> None:
    """Raise an `InputError` if a label file does not exist; `labels` says where they should be."""
    if alone := [image for image, label in files.items() if not label.is_file()]:
        raise _alone("label", labels, alone, len(files), source)


def _alone(kind: str, folder: Path, alone: list[Path], total: int, source: str) -> InputError:
    more = f" and {len(alone) - _SHOWN} more" if len(alone) > _SHOWN else ""
    return InputError(
        f"{len(alone)} of {total} files have no {kind} in {folder}: {', '.join(map(str, alone[:_SHOWN]))}{more}; "
        f"{source or 'add the missing files'}"
    )

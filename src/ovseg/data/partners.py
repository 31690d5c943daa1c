"""Pairs of image and label file. A missing partner is an error; no file is skipped silently."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ovseg.images import IMAGE_SUFFIXES
from ovseg.limits import check_names
from ovseg.structures import InputError

_SHOWN = 5  # missing files that a message lists


def by_stem(images: Path, labels: Path, suffix: str = ".png", source: str = "") -> dict[Path, Path]:
    """Match the images of a folder with the label files of the same stem: image → label file.

    Args:
        images: folder of images.
        labels: folder of label files; may be the same.
        suffix: what follows the image's stem in the name of its label file.
        source: how to get the files, as the end of an error message.

    Raises:
        InputError: a folder or partner is missing, there are no images, or two images share a label file.
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
    for kind, files, partners in (("label", image_of, label_of), ("image", label_of, image_of)):
        if stems := sorted(files.keys() - partners.keys()):
            folder = labels if kind == "label" else images
            raise _missing_partner(kind, folder, [files[stem] for stem in stems], len(files), source)
    if not image_of:
        raise InputError(f"{images} has no images; {source or 'correct the path'}")
    return {path: label_of[stem] for stem, path in image_of.items()}


def by_list(split: Path, images: Path, labels: Path, suffix: str, source: str) -> dict[Path, Path]:
    """Match images (.jpg) with label files by a text file of stems, one per line: image → label file.

    Args:
        split: the text file.
        images: folder of images.
        labels: folder of label files.
        suffix: what follows the stem in the name of a label file.
        source: how to get the files, as the end of an error message.

    Raises:
        InputError: the list is empty, names a file outside the folder, or names an image that is missing or unlabelled.
    """
    try:
        stems = split.read_text(encoding="utf-8").split()
    except UnicodeDecodeError as error:
        raise InputError(f"{split} is not a text file in UTF-8; {source}") from error
    check_names(stems, split)
    files = {images / f"{stem}.jpg": labels / f"{stem}{suffix}" for stem in stems}
    if not files:
        raise InputError(f"{split} lists no images; {source}")
    if unpaired := [label for image, label in files.items() if not image.is_file()]:
        raise _missing_partner("image", images, unpaired, len(files), source)
    require_labels(files, labels, source)
    return files


def require_labels(files: Mapping[Path, Path], labels: Path, source: str) -> None:
    """Check that all label files exist.

    Args:
        files: image → label file.
        labels: the folder to name in the error message.
        source: how to get the files, as the end of an error message.

    Raises:
        InputError: a label file does not exist.
    """
    if unpaired := [image for image, label in files.items() if not label.is_file()]:
        raise _missing_partner("label", labels, unpaired, len(files), source)


def _missing_partner(kind: str, folder: Path, unpaired: list[Path], total: int, source: str) -> InputError:
    more = f" and {len(unpaired) - _SHOWN} more" if len(unpaired) > _SHOWN else ""
    return InputError(
        f"{len(unpaired)} of {total} files have no {kind} in {folder}: {', '.join(map(str, unpaired[:_SHOWN]))}{more}; "
        f"{source or 'add the missing files'}"
    )

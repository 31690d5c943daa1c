"""Verbs that need no Trainer, as plain typed functions; heavy imports wait until a verb runs."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from itertools import takewhile
from pathlib import Path
from typing import Literal

import jsonargparse

from ovseg.structures import InputError


def toy(out: Path, scenes: int = 100, seed: int = 0, val_scenes: int | None = None) -> None:
    """Write scenes of the embedded toy world, in the layout of COCO.

    Args:
        out: folder to write; a finished one is left as it is.
        scenes: number of training scenes.
        seed: the same seed gives the same bytes.
        val_scenes: number of benchmark scenes; a fifth of `scenes` where not given.
    """
    from ovseg.data.toy import write_toy

    write_toy(out, scenes, seed, val_scenes=val_scenes)


def bundle(
    proposals: str,
    clip: str,
    out: Path,
    ensemble_weight: float = 0.7,
    mask_threshold: float = 0.5,
    short_side: int = 640,
) -> None:
    """Join trained proposals and an adapted CLIP into a segmenter.

    Args:
        proposals: `.ckpt` of proposal training, or a folder or name that a proposer loads from.
        clip: `.ckpt` of adapter training, or a folder or name that a CLIP loads from.
        out: folder to write.
        ensemble_weight: exponent of CLIP in [0, 1].
        mask_threshold: probability above which a pixel belongs to a proposal's region.
        short_side: images are resized to it; their long side to four times this at most.
    """
    from ovseg.models import CLIPAdapter, MaskProposer, OpenVocabSegmenter

    proposer, adapter = MaskProposer(proposals), CLIPAdapter(clip)
    if proposer.text_dim not in (None, adapter.dim):
        raise InputError(
            f"{proposals} embeds into texts of width {proposer.text_dim}, {clip} has {adapter.dim}; "
            "join a CLIP and the proposals that were trained with it"
        )
    segmenter = OpenVocabSegmenter(
        proposer,
        adapter,
        ensemble_weight=ensemble_weight,
        mask_threshold=mask_threshold,
        resize=(short_side, 4 * short_side),
    )
    segmenter.save_pretrained(out)
    print(
        f"segmenter in {out}; try `ovseg segment --model {out} --images photo.jpg --vocabulary 'cat, sofa' --out out`"
    )


def data(action: Literal["check"], benchmark: str, root: Path | None = None, num_workers: int = 2) -> None:
    """Read every image and label of a benchmark: `ovseg data check NAME --root DIR`.

    Args:
        action: `check`.
        benchmark: its name, for example `ade20k_847`, or a file such as conf/data/own.yaml.
        root: the folder that holds it; that of the file, or `datasets`, where not given.
        num_workers: processes that read.
    """
    from ovseg.data.check import check, load_benchmark

    print("\n".join(check(load_benchmark(benchmark, root), num_workers)))


COMMANDS: dict[str, Callable[..., None]] = {"toy": toy, "bundle": bundle, "data": data}


def run(words: list[str]) -> None:
    """Run the verb that the words of a command line begin with.

    Raises:
        jsonargparse.ArgumentError, InputError: the rest cannot be used.
    """
    verb, *rest = words
    function = COMMANDS[verb]
    plain = list(takewhile(lambda word: not word.startswith("-"), rest))  # `ovseg data check`: first ones need no flag
    pairs = list(zip(signature(function).parameters, plain, strict=False))
    rest = [*(part for name, word in pairs for part in (f"--{name}", word)), *rest[len(pairs) :]]
    first_line = (function.__doc__ or "").splitlines()[0]
    parser = jsonargparse.ArgumentParser(
        prog=f"ovseg {verb}", description=first_line, exit_on_error=False, allow_abbrev=False
    )
    parser.add_function_arguments(function)
    function(**parser.parse_args(rest).as_dict())

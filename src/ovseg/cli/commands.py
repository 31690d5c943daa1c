"""Verbs that need no Trainer, as plain typed functions; heavy imports wait until a verb runs."""

from __future__ import annotations

import re
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
    pretrained: str | None = None,
) -> None:
    """Join trained proposals and an adapted CLIP into a segmenter.

    Args:
        proposals: `.ckpt` of proposal training, or a folder or name that a proposer loads from.
        clip: `.ckpt` of adapter training, or a folder or name that a CLIP loads from.
        out: folder to write.
        ensemble_weight: exponent of CLIP in [0, 1].
        mask_threshold: probability above which a pixel belongs to a proposal's region.
        short_side: images are resized to it; their long side to four times this at most.
        pretrained: weights of a `clip` that is a name of open_clip's, for example `openai`.
    """
    from ovseg.models import CLIPAdapter, MaskProposer, OpenVocabSegmenter
    from ovseg.models.segmenter_folder import check_segmenter_target

    check_segmenter_target(out)
    proposer, adapter = MaskProposer(proposals), CLIPAdapter(clip, pretrained)
    if not adapter.trained:
        lack = "its weights are not in that folder" if Path(clip).is_dir() else "add --pretrained, for example openai"
        raise InputError(f"CLIP {clip} would have random weights; {lack}")
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


def import_(
    path: str,
    out: Path,
    clip_only: Path | None = None,
    decoder_heads: int = 8,
    ensemble_weight: float = 0.7,
    mask_threshold: float | None = None,
    fill: Literal["mean", "zero"] = "mean",
    short_side: int | None = None,
    long_side: int | None = None,
    multi_grid: tuple[int, int, int] = (1, 2, 4),
) -> None:
    """Make a segmenter from a checkpoint of the released OVSeg, or put a CLIP fine-tuned elsewhere into a segmenter.

    Args:
        path: a released `.pth`, as it is; with `clip_only` also a folder of a segmenter, or `toy`.
        out: folder to write.
        clip_only: training checkpoint of open_clip; its CLIP, with its mask prompts if any, replaces that of `path`.
        decoder_heads: what the weights do not tell, like all that follows; the defaults are the release's.
        ensemble_weight: exponent of CLIP in [0, 1]: 0.7 for ADE20K, 0.6 for PASCAL Context, 0.45 for VOC.
        mask_threshold: 0.4 with Swin and 0.5 with ResNet where not given.
        fill: colour outside the mask of a region: CLIP's mean, or black.
        short_side: images are resized to it; 640 with Swin and 512 with ResNet where not given.
        long_side: but no longer than this; four short sides where not given.
        multi_grid: dilations in the last stage of a ResNet.
    """
    from ovseg.models.released.importing import import_weights
    from ovseg.models.released.reading import ReleaseSettings

    if long_side and not short_side:
        raise InputError("long_side needs short_side; give both")
    resize = None if short_side is None else (short_side, long_side or 4 * short_side)
    settings = ReleaseSettings(decoder_heads, multi_grid, ensemble_weight, mask_threshold, fill, resize)
    print("\n".join(import_weights(path, out, clip_only, settings)))


def data(action: Literal["check"], benchmark: str, root: Path | None = None, num_workers: int = 2) -> None:
    """Read every image and label of a benchmark: `ovseg data check NAME --root DIR`.

    Args:
        action: `check`.
        benchmark: its name, for example `ade20k_847`, a file such as conf/data/own.yaml, or the dotted path of a class.
        root: the folder that holds it; that of the file, or `datasets`, where not given.
        num_workers: processes that read.
    """
    from ovseg.data.benchmarks.check import check, load_benchmark

    print("\n".join(check(load_benchmark(benchmark, root), num_workers)))


def pairs(
    action: Literal["stats", "show"],
    store: Path,
    noun: str | None = None,
    images: Path | None = None,
    out: Path = Path("pairs.html"),
    count: int = 60,
) -> None:
    """Look at a store of pairs: `ovseg pairs stats DIR`, `ovseg pairs show DIR --noun dog --out page.html`.

    Args:
        action: `stats` prints figures, `show` draws pairs.
        store: the folder that `ovseg mine` wrote, or the table of the published pairs.
        noun: show only its pairs.
        images: the folder of the images, for `show`; where they were mined if not given.
        out: the HTML page that `show` writes.
        count: pairs to show, spread evenly from the most to the least similar; or frequent nouns to print.
    """
    from ovseg.data.pairs import describe, write_page

    if count < 1:
        raise InputError(f"count is {count}; give at least 1")
    if action == "stats":
        print("\n".join(describe(store, count)))
    else:
        print(f"{write_page(store, images, out, noun, count)} pairs in {out}")


COMMANDS: dict[str, Callable[..., None]] = {
    "toy": toy,
    "bundle": bundle,
    "import": import_,
    "data": data,
    "pairs": pairs,
}


def run(words: list[str]) -> None:
    """Run the verb that the words of a command line begin with.

    Raises:
        jsonargparse.ArgumentError, InputError: the rest cannot be used.
    """
    verb, *rest = words
    function = COMMANDS[verb]
    plain = list(takewhile(lambda word: not word.startswith("-"), rest))  # `ovseg import FILE`: first ones need no flag
    pairs = list(zip(signature(function).parameters, plain, strict=False))
    rest = [*(part for name, word in pairs for part in (f"--{name}", word)), *rest[len(pairs) :]]
    rest = [re.sub("^--[^=]+", lambda flag: f"--{flag[0][2:].replace('-', '_')}", word) for word in rest]
    first_line = (function.__doc__ or "").splitlines()[0]
    parser = jsonargparse.ArgumentParser(
        prog=f"ovseg {verb}", description=first_line, exit_on_error=False, allow_abbrev=False
    )
    parser.add_function_arguments(function)
    function(**parser.parse_args(rest).as_dict())

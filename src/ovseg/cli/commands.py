"""Verbs that need no Trainer, as plain typed functions. Heavy imports are deferred until a verb runs."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from inspect import signature
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import jsonargparse

from ovseg.cli.config_files import check_configs
from ovseg.cli.packaged import find_packaged, notice
from ovseg.cli.refusals import OwnedArguments
from ovseg.limits import check_at_least
from ovseg.structures import InputError

if TYPE_CHECKING:
    from ovseg.models import Proposer


def toy(out: Path, scenes: int = 100, seed: int = 0, val_scenes: int | None = None) -> None:
    """Write scenes of the embedded toy world in COCO's layout.

    Args:
        out: folder to write; a finished one is not rewritten.
        scenes: number of training scenes.
        seed: equal seeds produce identical files.
        val_scenes: number of benchmark scenes; by default a fifth of `scenes`.
    """
    from ovseg.data.toy import write_toy

    write_toy(out, scenes, seed, val_scenes=val_scenes)


def bundle(
    proposer: Proposer | str,
    clip: str,
    out: Path,
    ensemble_weight: float = 0.7,
    mask_threshold: float = 0.5,
    short_side: int = 640,
    pretrained: str | None = None,
    fast: str | None = None,
) -> None:
    """Join trained proposals and an adapted CLIP into a segmenter.

    Args:
        proposer: `.ckpt` of proposal training, or a folder or name that a `MaskProposer` loads from.
        clip: `.ckpt` of adapter training, with its region encoder, or a folder or name that a CLIP loads from.
        out: folder to write.
        ensemble_weight: exponent of CLIP's scores, in [0, 1].
        mask_threshold: probability above which a pixel belongs to a proposal's region.
        short_side: length in pixels to which short sides are resized; long sides are limited to four times that.
        pretrained: weights to load if `clip` is one of open_clip's names, for example `openai`.
        fast: `.ckpt` of a second region encoder for the same CLIP, trained with `--model.train prompt`; `ovseg segment
            --fast` uses it.
    """
    from ovseg.models import CLIPAdapter, MaskProposer, OpenVocabSegmenter
    from ovseg.models.regions.saved import saved_encoder
    from ovseg.models.segmenter_folder import check_same_clip, check_segmenter_target, write_fast

    check_segmenter_target(out)
    name, proposer = f"{proposer}", MaskProposer(proposer) if isinstance(proposer, str) else proposer
    adapter = CLIPAdapter(clip, pretrained)
    if not adapter.trained:
        remedy = "use a folder with weights" if Path(clip).is_dir() else "add --pretrained, for example openai"
        raise InputError(f"CLIP {clip} would have random weights; {remedy}")
    if proposer.text_dim not in (None, adapter.dim):
        raise InputError(
            f"{name} was trained with text features of width {proposer.text_dim}, but those of {clip} have width "
            f"{adapter.dim}; join a CLIP and the proposals that were trained with it"
        )
    segmenter = OpenVocabSegmenter(
        proposer,
        saved_encoder(adapter),
        ensemble_weight=ensemble_weight,
        mask_threshold=mask_threshold,
        resize=(short_side, 4 * short_side),
    )
    fast_encoder = saved_encoder(CLIPAdapter(fast)) if fast else None
    if fast and fast_encoder:
        if not fast_encoder.whole_images:
            raise InputError(
                f"--fast {fast} would encode crops ({type(fast_encoder).__name__}), which is not faster; give a .ckpt "
                "of conf/regions/single_pass_prompt.yaml, or leave out --fast"
            )
        check_same_clip(adapter, fast_encoder.clip, fast)
    segmenter.save_pretrained(out)
    if fast and fast_encoder:
        write_fast(out, fast_encoder, fast)
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
    """Turn a released OVSeg checkpoint into a segmenter, or replace the CLIP of a segmenter.

    Args:
        path: a released `.pth`; with `clip_only` also the folder of a segmenter, or `toy`.
        out: folder to write.
        clip_only: training checkpoint of open_clip. Its CLIP, including any mask prompts, replaces that of `path`.
        decoder_heads: attention heads of the decoder. This and all options below cannot be read from the weights;
            their defaults are those of the release.
        ensemble_weight: exponent of CLIP's scores, in [0, 1]: 0.7 for ADE20K, 0.6 for PASCAL Context, 0.45 for VOC.
        mask_threshold: by default 0.4 with Swin and 0.5 with ResNet.
        fill: colour outside the mask of a region: CLIP's mean, or black.
        short_side: length in pixels to which short sides are resized; by default 640 with Swin and 512 with ResNet.
        long_side: upper limit of long sides; by default four times the short side.
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
    """Check every image and label of a benchmark: `ovseg data check NAME --root DIR`.

    Args:
        action: `check`.
        benchmark: name, for example `ade20k_847`, a file such as conf/data/own.yaml, or the dotted path of a class.
        root: folder that contains the benchmark; by default the one that the file sets, or `datasets`.
        num_workers: number of reading processes.
    """
    from ovseg.data.benchmarks.check import check, load_benchmark

    check_configs(["--data", benchmark])
    check_at_least(0, num_workers=num_workers)
    print("\n".join(check(load_benchmark(benchmark, root), num_workers)))


def pairs(
    action: Literal["stats", "show"],
    store: Path,
    noun: str | None = None,
    images: Path | None = None,
    out: Path = Path("pairs.html"),
    count: int = 60,
) -> None:
    """Inspect a store of pairs: `ovseg pairs stats DIR`, `ovseg pairs show DIR --noun dog --out page.html`.

    Args:
        action: `stats` prints statistics, `show` draws pairs.
        store: a folder that `ovseg mine` wrote, or the published table of pairs.
        noun: show only pairs of this noun.
        images: folder of the images for `show`; by default the one they were mined from.
        out: HTML page that `show` writes.
        count: number of pairs to show, spread evenly from the most to the least similar, or of frequent nouns to print.
    """
    from ovseg.data.pairs import describe, write_page

    check_at_least(1, count=count)
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


class CommandParser(OwnedArguments, jsonargparse.ArgumentParser):
    """The argument parser of plain commands."""


def run(words: list[str]) -> None:
    """Run a verb.

    Args:
        words: the verb and its arguments, as on the command line.

    Raises:
        jsonargparse.ArgumentError, InputError: the arguments cannot be used.
    """
    (verb, *rest), packaged = find_packaged(words)
    if packaged:
        print(notice(packaged), file=sys.stderr)
    function = COMMANDS[verb]
    # leading words are the required arguments, in order: `ovseg import FILE`
    leading = list(takewhile(lambda word: not word.startswith("-"), rest))
    flags = {word.partition("=")[0] for word in rest}
    required = [name for name, argument in signature(function).parameters.items() if argument.default is argument.empty]
    required = [name for name in required if f"--{name}" not in flags]
    if surplus := leading[len(required) :]:
        takes = f"takes only {' and '.join(required)}" if required else "takes no more arguments"
        raise InputError(
            f"{verb}: unexpected {shlex.join(surplus)}: `ovseg {verb}` {takes} without a flag; remove it, or put its "
            f"flag before it (ovseg {verb} --help)"
        )
    positional = list(zip(required, leading, strict=False))
    rest = [*(part for name, word in positional for part in (f"--{name}", word)), *rest[len(positional) :]]
    rest = [re.sub("^--[^=]+", lambda flag: f"--{flag[0][2:].replace('-', '_')}", word) for word in rest]
    first_line = (function.__doc__ or "").splitlines()[0]
    parser = CommandParser(prog=f"ovseg {verb}", description=first_line, exit_on_error=False, allow_abbrev=False)
    parser.add_function_arguments(function)
    function(**parser.instantiate(parser.parse_args(rest)).as_dict())

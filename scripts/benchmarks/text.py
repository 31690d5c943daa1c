"""Time text features of a vocabulary: full context, cut context, and the cache on disk."""

from __future__ import annotations

import os
import tempfile

import torch

from benchmarks.report import report, seconds
from ovseg.data.vocabulary import read_vocabulary
from ovseg.models import CLIPAdapter, TextEncoder


@torch.no_grad()
def text(
    model: str = "ViT-B-16",
    classes: int = 20,
    templates: str = "vild",
    batch_size: int = 128,
    threads: int = 1,
    device: str = "cpu",
) -> None:
    """Time text features of ADE20K's class names: full context, cut to a batch's longest prompt, and from the cache.

    Args:
        model: an open_clip model name; weights are random.
        classes: how many of the 150 names, spread over the list.
        templates: see `ovseg.models.PROMPT_TEMPLATES`.
        batch_size: sentences that go through the tower at once.
        threads: CPU threads.
        device: cpu or cuda.
    """
    torch.set_num_threads(threads)
    clip = CLIPAdapter(model).to(device).eval()
    encoder = TextEncoder(clip, templates)
    all_names = read_vocabulary("ade20k_150").names
    names = [all_names[index * len(all_names) // classes] for index in range(classes)]
    sentences = [template.replace("{}", name) for name in names for template in encoder.templates]

    def full() -> None:
        for batch in clip.tokenizer(sentences).split(batch_size):
            clip.clip.encode_text(batch.to(device), normalize=True)  # type: ignore[operator]

    with tempfile.TemporaryDirectory() as cache:
        os.environ["OVSEG_CACHE"] = cache
        encoder(names[:1])  # warms up
        clip.clip.encode_text(clip.tokenizer(sentences[:1]).to(device))  # type: ignore[operator]
        measured = {
            "full context": seconds(full),
            "cut context": seconds(lambda: encoder.encode(names, batch_size)),
            "first call, which fills the cache": seconds(lambda: encoder(names)),
            "from the cache": seconds(lambda: encoder(names), repeats=3),
        }
    report(f"{classes} names x {len(encoder.templates)} templates, {model} with random weights", measured)

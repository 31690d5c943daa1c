"""Nouns of captions as people write them."""

from __future__ import annotations

import json

import pytest

from ovseg.data.nouns import SpacyNounExtractor
from ovseg.structures import InputError


@pytest.fixture(scope="module")
def extractor() -> SpacyNounExtractor:
    return SpacyNounExtractor()


@pytest.mark.parametrize(
    ("caption", "nouns"),
    [
        ("Two dogs are sitting on a wooden bench.", ["dog", "bench"]),
        ("A DOG ON A SOFA", ["dog", "sofa"]),
        ("A dog looks at another dog.", ["dog"]),
        ("  a   cat \t on\nthe   grass ", ["cat", "grass"]),
        ("a photo of a group of giraffes, a side view", ["giraffe"]),
        ("a dog 🐶 on the sand 🏖️", ["dog", "sand"]),
        ("A boy holds a teddy bear.", ["boy", "teddy", "bear"]),
        ("", []),
        (" \n ", []),
        ("🐶", []),
        ("42 !?", []),
    ],
)
def test_nouns(extractor: SpacyNounExtractor, caption: str, nouns: list[str]) -> None:
    assert extractor.extract([caption]) == [nouns]


def test_long_captions_and_many_at_once(extractor: SpacyNounExtractor) -> None:
    long = "a dog on the grass and a cat on the bench " * 48
    assert len(long) > 2000
    captions = ["", long, "Two birds"] * 5
    assert extractor.extract(captions) == [[], ["dog", "grass", "cat", "bench"], ["bird"]] * 5
    assert extractor.extract([]) == []


def test_processes_do_not_change_nouns(extractor: SpacyNounExtractor) -> None:
    captions = ["Two dogs on a bench", "", "a red kite over the beach"]
    assert SpacyNounExtractor(processes=2, batch_size=1).extract(captions) == extractor.extract(captions)


def test_chunks_keep_compounds() -> None:
    chunks = SpacyNounExtractor(chunks=True)
    assert chunks.extract(
        [
            "Two fire hydrants and the traffic light near a man's bench",
            "A red fire hydrant stands on the street.",
            "They are sitting on their hot-dogs.",
            "",
        ]
    ) == [["fire hydrant", "traffic light", "bench"], ["red fire hydrant", "street"], ["hot dog"], []]


def test_stop_nouns_are_a_choice() -> None:
    assert SpacyNounExtractor(stop_nouns=["dog"]).extract(["a photo of a dog"]) == [["photo"]]


def test_identity_tells_what_the_nouns_depend_on(extractor: SpacyNounExtractor) -> None:
    identity = json.loads(extractor.identity)
    assert "3.8" in identity["model"]
    assert identity["chunks"] is False
    assert SpacyNounExtractor(batch_size=7).identity == extractor.identity
    others = [SpacyNounExtractor(chunks=True).identity, SpacyNounExtractor(stop_nouns=()).identity]
    assert len({extractor.identity, *others}) == 3


def test_missing_model_names_the_command() -> None:
    with pytest.raises(InputError, match="python -m spacy download en_core_web_xxl"):
        SpacyNounExtractor("en_core_web_xxl").extract(["a dog"])

"""Generate captions: plain English about some of a scene's regions, now and then about something absent."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ovseg.data.toy.nouns import COLOURS, NOUNS
from ovseg.data.toy.scenes import Region

PREFIXES = (  # templates of bare nouns, among them the prompts that segmenters use
    "a photo of a {}.",
    "a photo of {}",
    "a picture of a {}.",
    "This is a photo of a {}",
    "There is a {} in the scene",
    "There is the {} in the scene",
    "a {}",
    "{}",
)
SIZED_PROMPTS = (
    "a photo of a small {} in the scene.",
    "This is a photo of a medium {}.",
    "There is a large {} in the scene.",
)
THINGS_ON_STUFF = (
    "{things} {place} {stuff}",
    "{things} {place} {stuff}",
    "{things} {place} {stuff}",
    "there {are} {things} {place} {stuff}",
    "{things} with {stuff} in the background",
    "{things} and {stuff}",
    "{stuff} with {things} on it",
    "{stuff} behind {things}",
    "a photo of {things} {place} {stuff}",
    "a picture showing {things} near {stuff}",
    "someone put {things} {place} {stuff}",
    "{things} can be seen {place} {stuff}",
)
THINGS_ONLY = (
    "{things}",
    "there {are} {things}",
    "a photo of {things}",
    "a picture with {things}",
    "a close up of {things}",
    "we can see {things} here",
    "this picture shows {things}",
)
STUFF_ONLY = (
    "{stuff}",
    "a photo of {stuff}",
    "a view of {stuff}",
    "nothing but {stuff}",
    "this is {stuff}",
    "a picture of {stuff}",
)
PLACES = {"sky": ("in", "against", "under"), "water": ("on", "in", "floating on", "near"), "brick": ("on", "against")}
ANYWHERE = ("on", "lying on", "in front of", "above", "near")
JOINTS = ("and", "next to", "beside", "near", "with")
COUNTS = {2: ("two", "a pair of", "some"), 3: ("three", "some", "several"), 4: ("four", "some", "several")}
SIZES = {"small": ("small", "little", "tiny"), "medium": (), "large": ("large", "big")}
PATTERN_WORDS = {
    "plain": (),
    "striped": ("striped",),
    "dotted": ("dotted", "spotted"),
    "checkered": ("checkered",),
    "gradient": ("shaded",),
}
OUTSIDERS = ("a bird", "a person", "a dog", "a boat", "a house", "a tree")


@dataclass(frozen=True)
class Style:
    """How captions are written.

    Args:
        attributes: probability of each adjective (colour, size, pattern).
        absent: probability of mentioning something absent.
    """

    attributes: float = 0.35
    absent: float = 0.1


def sentence(rng: np.random.Generator, regions: Sequence[Region], style: Style) -> str:
    """Write a sentence about some of the regions; there must be at least one region."""
    groups: dict[int, list[Region]] = {}
    for region in regions:
        groups.setdefault(region.noun, []).append(region)
    things = [group for noun, group in groups.items() if not NOUNS[noun].stuff]
    stuff = [group[0] for noun, group in groups.items() if NOUNS[noun].stuff]
    things = [things[i] for i in rng.permutation(len(things))[: rng.choice([1, 2, 3], p=[0.45, 0.35, 0.2])]]
    stuff = [stuff[i] for i in rng.permutation(len(stuff))]
    if things and stuff and rng.random() < 0.25:
        things, stuff = (things, []) if rng.random() < 0.7 else ([], stuff)

    phrases = [_things_phrase(rng, group, style) for group in things]
    are = "are" if things and len(things[0]) > 1 else "is"
    if rng.random() < style.absent:
        noun = NOUNS[rng.integers(len(NOUNS))]
        absent = noun.words[0] if noun.stuff else _article(noun.words[0])
        phrases.append(absent if rng.random() < 0.5 else _pick(rng, OUTSIDERS))
    joined = _join(rng, phrases)
    if not stuff:
        text = _pick(rng, THINGS_ONLY).format(things=joined, are=are)
    elif not phrases:
        text = _pick(rng, STUFF_ONLY).format(stuff=_join(rng, [_stuff_phrase(rng, part, style) for part in stuff[:2]]))
    else:
        place = _pick(rng, PLACES.get(NOUNS[stuff[0].noun].name, ANYWHERE))
        template = _pick(rng, THINGS_ON_STUFF)
        text = template.format(things=joined, are=are, place=place, stuff=_stuff_phrase(rng, stuff[0], style))
        if len(stuff) > 1 and "background" not in text and rng.random() < 0.35:
            text += f" with {_stuff_phrase(rng, stuff[1], style)} behind"
    return _punctuate(rng, text)


def label(rng: np.random.Generator, regions: Sequence[Region]) -> str:
    """Write one or two nouns of the regions into a prompt template; there must be at least one region."""
    indices = list(dict.fromkeys(region.noun for region in regions))
    nouns = [NOUNS[indices[i]] for i in rng.permutation(len(indices))[: rng.choice([1, 2], p=[0.65, 0.35])]]
    words = []
    for noun in nouns:
        usual = rng.random() < 0.7
        words.append(noun.name if usual else _pick(rng, noun.synonyms))
    return _pick(rng, PREFIXES).format(" and ".join(words))


def toy_words() -> list[str]:
    """Return every word that toy captions and the usual prompts can contain, in lower case, sorted."""
    return sorted({word for text in _texts() for word in re.findall(r"[a-z]+", re.sub(r"{\w*}", " ", text.lower()))})


def _texts() -> Iterator[str]:
    yield from (*PREFIXES, *SIZED_PROMPTS, *THINGS_ON_STUFF, *THINGS_ONLY, *STUFF_ONLY)
    yield from (*ANYWHERE, *JOINTS, *OUTSIDERS, *COLOURS)
    for options in (*PLACES.values(), *COUNTS.values(), *SIZES.values(), *PATTERN_WORDS.values()):
        yield from options
    for noun in NOUNS:
        yield from noun.words
        yield from noun.plurals
        yield from noun.synonyms
        yield from (adjective for adjective, _ in noun.looks)
    yield "an are is the other thing ground background"


def _things_phrase(rng: np.random.Generator, group: list[Region], style: Style) -> str:
    """Describe the things of one noun, such as "a small red star" or "two stars"."""
    noun = NOUNS[group[0].noun]
    synonym = 0 if rng.random() < 0.7 else int(rng.integers(len(noun.words)))
    adjectives = []
    if (words := SIZES[_size(group[0])]) and rng.random() < style.attributes:
        adjectives.append(_pick(rng, words))
    if (words := PATTERN_WORDS[group[0].pattern]) and rng.random() < style.attributes * 0.6:
        adjectives.append(_pick(rng, words))
    if len({region.colour for region in group}) == 1 and rng.random() < style.attributes:
        adjectives.append(group[0].colour)
    if len(group) == 1:
        return _article(" ".join([*adjectives, noun.words[synonym]]))
    count = _pick(rng, COUNTS[min(len(group), 4)])
    return " ".join([count, *adjectives, noun.plurals[synonym]])


def _stuff_phrase(rng: np.random.Generator, region: Region, style: Style) -> str:
    """Describe stuff, such as "green grass", "a lawn" or "the blue sea"."""
    noun = NOUNS[region.noun]
    word = noun.words[0] if rng.random() < 0.65 else _pick(rng, noun.words)
    if rng.random() >= style.attributes * 0.7:
        return word
    article, _, bare = word.rpartition(" ")
    if article == "a":
        return _article(f"{region.colour} {bare}")
    return f"{article} {region.colour} {bare}".strip()


def _size(region: Region) -> str:
    if region.diameter < 0.26:
        return "small"
    return "large" if region.diameter > 0.4 else "medium"


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _join(rng: np.random.Generator, phrases: list[str]) -> str:
    if len(phrases) < 3:
        return f" {_pick(rng, JOINTS)} ".join(phrases)
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def _punctuate(rng: np.random.Generator, text: str) -> str:
    """Add what people add inconsistently: usually a capital and a full stop, sometimes a trailing space."""
    if rng.random() < 0.75:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.8:
        text += "."
    return text + " " if rng.random() < 0.04 else text


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]

"""The 24 nouns of the toy world, with the usual look of each and the words for it.

A noun is recognised by its shape (things) or texture (stuff) *and* by its usual colour and pattern: a tiny CLIP learns
nothing from shape alone.
"""

from __future__ import annotations

from dataclasses import dataclass

RGB = tuple[int, int, int]

COLOURS: dict[str, RGB] = {
    "red": (214, 48, 44),
    "orange": (240, 138, 36),
    "yellow": (247, 209, 52),
    "green": (58, 158, 72),
    "turquoise": (44, 186, 178),
    "blue": (46, 92, 206),
    "purple": (130, 66, 182),
    "pink": (242, 124, 172),
    "brown": (134, 84, 48),
    "white": (244, 244, 240),
    "grey": (134, 140, 148),
    "black": (44, 44, 52),
}
PATTERNS = ("plain", "striped", "dotted", "checkered", "gradient")
CATCH_ALLS = ("other thing", "other ground")


@dataclass(frozen=True)
class Noun:
    """One class of the toy world.

    Args:
        name: the class name.
        seen: whether it is a class of the training labels.
        looks: typical colours as (adjective, RGB), the usual one first; those of things are in `COLOURS`.
        words: words for it in captions, the usual one first; those of stuff include their article.
        plurals: the plurals of `words`; empty for stuff.
        pattern: typical pattern of a thing; None for stuff, which has a texture.
        accent: second colour of the texture of stuff.
    """

    name: str
    seen: bool
    looks: tuple[tuple[str, RGB], ...]
    words: tuple[str, ...]
    plurals: tuple[str, ...] = ()
    pattern: str | None = None
    accent: RGB = (255, 255, 255)

    @property
    def stuff(self) -> bool:
        """Whether the noun is stuff rather than a thing."""
        return self.pattern is None

    @property
    def synonyms(self) -> tuple[str, ...]:
        """The name and all distinct words for it, without articles."""
        bare = [word.removeprefix("a ").removeprefix("the ") for word in self.words]
        return tuple(dict.fromkeys((self.name, *bare, *self.plurals)))


def _thing(name: str, seen: bool, colours: str, pattern: str, words: str = "", plurals: str = "") -> Noun:
    return Noun(
        name=name,
        seen=seen,
        looks=tuple((colour, COLOURS[colour]) for colour in colours.split()),
        words=(name, *words.split()),
        plurals=tuple(plurals.split()) or (name + "s",),
        pattern=pattern,
    )


NOUNS: tuple[Noun, ...] = (
    _thing("circle", True, "red orange", "dotted", "disc", "circles discs"),
    _thing("square", True, "blue black", "checkered", "box", "squares boxes"),
    _thing("triangle", True, "orange green", "striped"),
    _thing("star", True, "yellow", "plain"),
    _thing("cross", True, "white red", "plain", "", "crosses"),
    _thing("diamond", True, "turquoise", "gradient", "rhombus", "diamonds rhombuses"),
    _thing("flower", True, "pink white", "plain", "blossom", "flowers blossoms"),
    _thing("drop", True, "blue", "gradient", "droplet", "drops droplets"),
    _thing("leaf", True, "green", "striped", "", "leaves"),
    _thing("hexagon", True, "purple brown", "checkered"),
    _thing("heart", False, "red pink", "gradient"),
    _thing("ring", False, "turquoise purple", "striped", "hoop", "rings hoops"),
    _thing("moon", False, "yellow grey", "dotted", "crescent", "moons crescents"),
    _thing("arrow", False, "black green", "plain"),
    _thing("gear", False, "grey brown", "plain", "cog cogwheel", "gears cogs cogwheels"),
    _thing("bolt", False, "purple yellow", "gradient", "thunderbolt", "bolts thunderbolts"),
    Noun(
        name="grass",
        seen=True,
        looks=(("green", (92, 146, 58)), ("dry", (172, 160, 84))),
        words=("grass", "a lawn", "a meadow"),
        accent=(48, 96, 40),
    ),
    Noun(
        name="sand",
        seen=True,
        looks=(("yellow", (226, 198, 140)), ("golden", (214, 172, 104))),
        words=("sand", "a beach", "a dune"),
        accent=(192, 158, 104),
    ),
    Noun(
        name="water",
        seen=True,
        looks=(("blue", (44, 104, 172)), ("green", (36, 128, 128))),
        words=("water", "the sea", "a lake"),
        accent=(176, 214, 236),
    ),
    Noun(
        name="wood",
        seen=True,
        looks=(("brown", (164, 110, 62)), ("dark", (112, 72, 44))),
        words=("wood", "timber", "planks"),
        accent=(84, 52, 30),
    ),
    Noun(
        name="snow",
        seen=True,
        looks=(("white", (240, 244, 250)), ("fresh", (226, 234, 248))),
        words=("snow", "a snowfield"),
        accent=(190, 206, 232),
    ),
    Noun(
        name="sky",
        seen=True,
        looks=(("blue", (112, 172, 234)), ("grey", (150, 166, 186))),
        words=("the sky", "a sky"),
        accent=(250, 250, 252),
    ),
    Noun(
        name="brick",
        seen=False,
        looks=(("red", (166, 76, 58)), ("brown", (150, 100, 74))),
        words=("brick", "bricks", "a wall"),
        accent=(206, 196, 184),
    ),
    Noun(
        name="gravel",
        seen=False,
        looks=(("grey", (146, 144, 142)), ("brown", (150, 134, 116))),
        words=("gravel", "pebbles", "stones"),
        accent=(66, 62, 60),
    ),
)
THINGS = tuple(index for index, noun in enumerate(NOUNS) if not noun.stuff)
STUFF = tuple(index for index, noun in enumerate(NOUNS) if noun.stuff)
TRAINING_CLASSES = (*(noun.name for noun in NOUNS if noun.seen), *CATCH_ALLS)


def training_label(noun: int) -> int:
    """Return the index in `TRAINING_CLASSES` of a noun, or of the catch-all of its kind if the noun is unseen."""
    name = NOUNS[noun].name if NOUNS[noun].seen else CATCH_ALLS[NOUNS[noun].stuff]
    return TRAINING_CLASSES.index(name)

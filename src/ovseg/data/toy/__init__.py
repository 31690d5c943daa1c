"""The embedded toy world: pictures, captions and labels of 24 nouns, as many as wanted, from a seed.

`ovseg.data.toy.windows` makes training data for a tiny CLIP of it and is imported by itself: it needs Lightning.
"""

from ovseg.data.toy.captions import toy_words
from ovseg.data.toy.folder import write_toy
from ovseg.data.toy.nouns import NOUNS, TRAINING_CLASSES, Noun
from ovseg.data.toy.scenes import Region, Scene, make_scene

__all__ = ["NOUNS", "TRAINING_CLASSES", "Noun", "Region", "Scene", "make_scene", "toy_words", "write_toy"]

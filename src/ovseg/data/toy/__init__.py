"""The embedded toy world: images, captions and labels of 24 nouns, generated from a seed in any number.

`ovseg.data.toy.windows` and `ovseg.data.toy.labelled` generate training data. They need Lightning, so they are not
imported here.
"""

from ovseg.data.toy.captions import toy_words
from ovseg.data.toy.folder import write_toy
from ovseg.data.toy.nouns import NOUNS, TRAINING_CLASSES, Noun
from ovseg.data.toy.scenes import Region, Scene, make_scene

__all__ = ["NOUNS", "TRAINING_CLASSES", "Noun", "Region", "Scene", "make_scene", "toy_words", "write_toy"]

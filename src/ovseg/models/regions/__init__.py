"""Region encoders: images and masks in, features of regions out."""

from ovseg.models.regions.base import RegionEncoder
from ovseg.models.regions.crops import CropEncoder

__all__ = ["CropEncoder", "RegionEncoder"]

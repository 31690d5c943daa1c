"""Region encoders: images and masks in, features of regions out."""

from ovseg.models.regions.base import RegionEncoder
from ovseg.models.regions.cascade import CascadeEncoder
from ovseg.models.regions.crops import CropEncoder
from ovseg.models.regions.mean_pool import MeanPoolEncoder
from ovseg.models.regions.single_pass import SinglePassEncoder

__all__ = ["CascadeEncoder", "CropEncoder", "MeanPoolEncoder", "RegionEncoder", "SinglePassEncoder"]

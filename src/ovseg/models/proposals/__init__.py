"""Proposers: images in, masks out."""

from ovseg.models.proposals.base import Proposer
from ovseg.models.proposals.given import GivenMasks
from ovseg.models.proposals.queries import MaskProposer

__all__ = ["GivenMasks", "MaskProposer", "Proposer"]

"""Open-vocabulary semantic segmentation with mask-adapted CLIP.

Importing the package imports nothing else; take what you need from `ovseg.models`, `ovseg.tasks`, `ovseg.data`.
"""

__version__ = "0.1.0"

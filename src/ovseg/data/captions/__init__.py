"""Captioned images and the nouns of their captions, the input of mining."""

"""Files on disk: images, labels, captions, pairs and vocabularies, as datamodules."""

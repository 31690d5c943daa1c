"""Images and masks in, features of regions out."""

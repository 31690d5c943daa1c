"""CLIP: files, towers, mask prompts and text features."""

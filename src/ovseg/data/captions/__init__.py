"""Images with captions, and the nouns to mine from them."""

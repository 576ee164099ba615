"""Generators that translate an image into another image, with the discriminators and losses of their training."""

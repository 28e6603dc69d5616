"""airlock: build reproducible VM images from recipes and run untrusted commands in them."""

__version__ = "0.1.0"

"""Packing: tools, disk, initrd, image."""

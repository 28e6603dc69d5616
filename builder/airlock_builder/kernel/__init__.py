"""Kernels and their modules."""

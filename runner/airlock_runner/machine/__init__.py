"""One QEMU process: which QEMU and accelerator, its argv, its life and its console."""

"""Fresh randomness from the host for the kernel's generator; a restored VM would otherwise repeat another's."""

from __future__ import annotations

import fcntl
import os
import struct

_RNDADDENTROPY, _RNDRESEEDCRNG = 0x40085203, 0x5207


def reseed(seed: bytes) -> None:
    """Credit `seed` (bytes of host entropy, at least 32) and have the kernel use it from now on (random(4))."""
    if len(seed) < 32:
        raise ValueError("too little entropy")
    fd = os.open("/dev/urandom", os.O_WRONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _RNDADDENTROPY, struct.pack("ii", len(seed) * 8, len(seed)) + seed)
        fcntl.ioctl(fd, _RNDRESEEDCRNG)
    finally:
        os.close(fd)

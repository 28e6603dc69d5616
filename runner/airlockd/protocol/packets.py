"""Packets of airlock0 as they cross the port airlock.packets, both ways: each with its length before it.

A record is a big-endian u32, so many bytes, of which the first HEADER are a struct virtio_net_hdr (linux/virtio_net.h)
and the rest is an IP packet. Nothing is asked and nothing answered: it is a wire, on which a packet may be lost.
"""

from __future__ import annotations

import struct

LENGTH = struct.Struct(">I")
HEADER = 10
"""Bytes of struct virtio_net_hdr: flags, kind of segments, and four offsets and sizes in the guest's byte order."""
MAX_RECORD = HEADER + 65535
"""What follows a length."""
MTU = 65520
"""Of airlock0: large, so that what is sent without segmentation offload crosses in few packets too."""

"""Packets between the device airlock0 and the port airlock.packets: a process of its own, which judges none of them.

TCP, DNS and refusals are the host's end (airlock_runner/net/airlock0.py). All that is here runs for every packet, in
emulation too, where what an interpreter does is dear: so it is one loop of few calls, with no objects in between.
"""

from __future__ import annotations

import os
import select
import signal

from airlockd import linux
from airlockd.protocol.packets import HEADER, LENGTH, MAX_RECORD

BATCH = 16
"""Packets that are taken from the device before the port has its turn."""
_PAGE = 4096
_QUEUE = 128 * _PAGE
"""All that the queue of a virtio port holds (QEMU, hw/char/virtio-serial-bus.c)."""
_IN, _OUT = select.EPOLLIN, select.EPOLLOUT


class Pump:
    """Both descriptors are non-blocking."""

    def __init__(self, device: int, port: int) -> None:
        self._device, self._port = device, port
        self._in, self._out = (memoryview(bytearray(size + LENGTH.size + MAX_RECORD)) for size in (_QUEUE, 0))
        self._filled = 0
        self._left = self._out[:0]
        self._poller = select.epoll()
        self._poller.register(port, _IN)
        self._poller.register(device, _IN)

    def run(self) -> None:
        """Until the host closes the port, or somebody takes the device away; then there is no network."""
        poll, port, left = self._poller.poll, self._port, False
        while True:
            for fd, told in poll():
                if fd != port:
                    continue
                if told & _OUT:
                    self._write(self._left)
                if told & ~_OUT and not self._to_device():
                    return
            if not self._left and not self._to_port():
                return
            if left != bool(self._left):
                # A host that does not read: packets wait in the device, whose queue is bounded.
                left = not left
                self._poller.modify(port, _IN | _OUT if left else _IN)
                self._poller.modify(self._device, 0 if left else _IN)

    def _to_port(self) -> bool:
        device, out = self._device, self._out
        where, start = [out[LENGTH.size :]], LENGTH.size
        read, pack = os.readv, LENGTH.pack_into
        try:
            for _ in range(BATCH):
                size = read(device, where)
                if _is_noise(out, start + HEADER):
                    continue
                pack(out, 0, size)
                self._write(out[: start + size])
                if self._left:
                    break
        except BlockingIOError:
            pass
        except OSError:
            # Root in the sandbox has removed the device.
            return False
        return True

    def _write(self, what: memoryview) -> None:
        try:
            while what:
                what = what[os.write(self._port, what) :]
        except BlockingIOError:
            pass
        self._left = what

    def _to_device(self) -> bool:
        """What the port has: at a time no more than its queue holds."""
        data, filled = self._in, self._filled
        try:
            # A port gives a page for each in one call. Less than a page is all that there was, and most are.
            more = os.readv(self._port, [data[filled : filled + _PAGE]])
            if not more:
                return False
            filled += more
            while more and not more % _PAGE and len(data) - filled >= _PAGE:
                more = os.readv(self._port, self._rest(filled))
                filled += more
        except BlockingIOError:
            pass
        at, size = 0, LENGTH.size
        unpack, write, device = LENGTH.unpack_from, os.write, self._device
        while filled - at >= size:
            end = at + size + unpack(data, at)[0]
            if end > filled:
                break
            try:
                write(device, data[at + size : end])
            except OSError:
                # Not to the kernel's liking, or the device is down: it is lost.
                pass
            at = end
        if at:
            data[: filled - at] = data[at:filled]
        self._filled = filled - at
        return True

    def _rest(self, filled: int) -> list[memoryview]:
        """The memory from there on, cut into pages of the port's."""
        return [self._in[at : at + _PAGE] for at in range(filled, len(self._in) - _PAGE + 1, _PAGE)]


def _is_noise(record: memoryview, at: int) -> bool:
    """What a kernel with IPv6 says to all its neighbours, though it has none."""
    return record[at] >> 4 == 6 and record[at + 24] == 0xFF


def run(device: int, port: int) -> None:
    """Serve until there is nothing to serve any more; for a process of its own."""
    linux.set_name("airlock-pump")
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    os.set_blocking(port, False)
    try:
        Pump(device, port).run()
    except OSError:
        # The port broke: the host is gone.
        pass

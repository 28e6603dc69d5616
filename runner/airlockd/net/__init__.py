"""The guest's end of the network: the device airlock0, virtual DNS, and every connection as a stream to the host.

A process of its own, forked by the supervisor before READY: bulk traffic must not hold up a keystroke.
"""

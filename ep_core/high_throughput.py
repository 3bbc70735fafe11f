"""High throughput: the half of `ep_core.buffer.Buffer` with exact-size receive."""


class HighThroughputFace:
    """Mixed into `Buffer`."""

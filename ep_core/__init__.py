"""ep_core: expert-parallel dispatch and combine with the interface of DeepEP's legacy Buffer.

Start at `ep_core.buffer`, then `ep_core.engine` (the seam between the face and the engines) and docs/ep_core.md.
"""

from ep_core.buffer import Buffer
from ep_core.config import Config
from ep_core.engine import LowLatencyHandle
from ep_core.errors import EPTimeoutError
from ep_core.event import EventHandle, EventOverlap

__all__ = ["Buffer", "Config", "EPTimeoutError", "EventHandle", "EventOverlap", "LowLatencyHandle"]

"""The extension that is built where MSCCL++ is found: see ep_core/csrc/mscclpp/module.cpp. Addresses are integers."""

from collections.abc import Callable

VERSION: str

def abandon() -> None: ...
def ib_devices() -> int: ...

class DescriptorServer:
    def __init__(self, timeout_s: int) -> None: ...
    def stop(self) -> None: ...

class Transport:
    def __init__(
        self,
        rank: int,
        ranks: int,
        base: int,
        size: int,
        device: int,
        server: DescriptorServer,
        send: Callable[[bytes, int, int], None],
        receive: Callable[[int, int], bytes],
        node_of: list[int],  # empty: all ranks are on one node
        transport: str,
        proxies: int,
        timeout_s: float,
    ) -> None: ...
    def addresses(self) -> list[int]: ...
    def port_handles(self) -> list[bytes]: ...
    def failure(self) -> str: ...
    def close(self) -> None: ...

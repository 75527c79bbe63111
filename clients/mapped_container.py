"""A container in shared memory, verified by whoever mapped it."""

from ..codec.container import Container, ContainerHeader, parse_header

__all__ = ["MappedContainer"]


class MappedContainer(Container):
    """A container in shared memory whose bytes are verified; its header is parsed when somebody first looks at it.

    Parsing takes as long as reading two megabytes, and who passes the bytes on never looks.
    """

    __slots__ = ()

    def __init__(self, data: memoryview) -> None:
        object.__setattr__(self, "data", data)

    def __getattr__(self, name: str) -> ContainerHeader:
        if name != "header":
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        header = parse_header(self.data, declared_bytes=len(self.data))
        object.__setattr__(self, "header", header)
        return header

"""What a JSON body would become, counted before it is parsed: a few bytes of JSON can be a large object."""

from .. import limits
from ..errors import TooManyItems

__all__ = ["check_json_counts"]


def check_json_counts(data: bytes) -> None:
    """Raise :class:`TooManyItems` for more values, or more lists and objects, than any request has.

    Commas and brackets in strings count as well; no request has strings with so many.
    """
    items, nodes = data.count(b","), data.count(b"[") + data.count(b"{")
    if items > limits.JSON_ITEMS_MAX:
        raise TooManyItems(f"body has {items} commas, the limit is {limits.JSON_ITEMS_MAX}")
    if nodes > limits.JSON_NODES_MAX:
        raise TooManyItems(f"body has {nodes} opening brackets, the limit is {limits.JSON_NODES_MAX}")

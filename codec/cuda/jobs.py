"""The kernels' job structs, field for field as the ``.cuh`` files have them; addresses are of the device."""

import numpy as np

__all__ = ["DECODE", "ENCODE", "ENCODED", "PAGES", "QUANTISE", "ROW", "STATUS", "SYNTHESIS"]

STATUS = {
    1: "ends too early",
    2: "has words left over",
    3: "does not end in its starting state",
    6: "asks for other escapes than there are",
}
"""What is wrong with a stream that a kernel refuses (``KvlStatus`` in ``streams.cuh``)."""

_ADDRESS = np.uint64


def _struct(addresses: str, integers: str, **others: type[np.generic]) -> np.dtype[np.void]:
    """A struct of addresses, then numbers: uint32 unless ``others`` says so."""
    fields: list[tuple[str, type[np.generic]]] = [(name, _ADDRESS) for name in addresses.split()]
    fields += [(name, others.get(name, np.uint32)) for name in integers.split()]
    return np.dtype(fields, align=True)


ROW = np.dtype([("place", np.uint32), ("table", np.uint32)])
DECODE = _struct(
    "data tables rows gains escapes symbols status", "data_bytes row_count tokens lanes escape_count refining"
)
QUANTISE = _struct(
    "coefficients factors gains symbols peaks status",
    "row_stride width tokens rounding limit",
    row_stride=np.uint64,
    rounding=np.float32,
    limit=np.float32,
)
ENCODE = _struct(
    "symbols tables rows gains data escapes encoded",
    "data_room escape_room row_count tokens lanes refining left",
)
ENCODED = np.dtype([("status", np.int32), ("data_bytes", np.uint32), ("escapes", np.uint32)])
SYNTHESIS = _struct(
    "symbols basis mean first_mean offsets scale factors gains channels sums",
    "channel_stride active tokens width halved offset_scale unused",
    channel_stride=np.uint64,
    offset_scale=np.float32,
)
PAGES = _struct(
    "channels pages block_table cos sin status",
    "channel_stride block_stride slot_stride head_stride element block_size first_slot tokens heads head_dim pairs "
    "first_dim interleaved unused",
    channel_stride=np.uint64,
    block_stride=np.int64,
    slot_stride=np.int64,
    head_stride=np.int64,
)

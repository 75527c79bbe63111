"""The ``exact`` level decoded as ``docs/FORMAT.md`` says, without any code of the codec."""

import struct

import numpy as np
from format_decoder import decode_stream, parse_container, slots

WORDS = {"float32": "<u4", "bfloat16": "<u2", "float16": "<u2", "float8_e4m3fn": "u1", "float8_e5m2": "u1"}
REST_BITS = {"float32": 22, "bfloat16": 6, "float16": 8, "float8_e4m3fn": 0, "float8_e5m2": 0}
"""Bits below the magnitude."""
WINDOWED = ("float32", "bfloat16")


def decode_exact(blob: bytes, dtype: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Keys and values of each layer, as the words that hold the numbers."""
    box = parse_container(blob)
    found = []
    for number, layer in enumerate(box["layout"]["layers"]):
        shapes = [(layer["heads"], box["tokens"], dim) for dim in layer["dims"]]
        found.append(
            tuple(segment(box["segments"][255, kind, number], shape, dtype) for kind, shape in enumerate(shapes))
        )
    return found


def segment(data: bytes, shape: tuple[int, int, int], dtype: str) -> np.ndarray:
    heads, tokens, dim = shape
    values, channels, bits = heads * tokens * dim, heads * dim, REST_BITS[dtype]
    if data[0] == 0:
        assert data[:4] == bytes(4)
        return np.frombuffer(data, WORDS[dtype], offset=4).reshape(shape)
    mode, lanes, count, span, base, zero, escape_count = struct.unpack_from("<BBBBHHI", data)
    assert (mode, zero) == (1, 0)
    described = [struct.unpack_from("<BB", data, 12 + 2 * table) for table in range(count)]
    at = 12 + 2 * count
    numbers, at = fields(data, at, (count - 1).bit_length(), channels)
    codes, at = fields(data, at, 6, sum(less_one + 1 for _, less_one in described))
    tables = []
    for first, less_one in described:
        own, codes = codes[: less_one + 1], codes[less_one + 1 :]
        tables.append(table_of({first + place: code for place, code in enumerate(own) if code}, span))
    rests, at = rests_of(data, at, values, dtype)
    escapes = iter(struct.unpack_from(f"<{escape_count}H", data, at))
    order = sorted(range(channels), key=lambda channel: numbers[channel])
    wanted = [tables[numbers[channel]] for channel in order for _ in range(tokens)]
    symbols = iter(decode_stream(data[at + 2 * escape_count :], wanted, 2**lanes))
    words = rests.reshape(shape).astype("<u4")
    for channel in order:
        head, place = divmod(channel, dim)
        for token in range(tokens):
            index, sign = divmod(next(symbols), 2)
            magnitude = index
            if dtype in WINDOWED and index < 2:
                magnitude = 0 if index else next(escapes)
            elif dtype in WINDOWED:
                magnitude = base + index
            words[head, token, place] |= magnitude << bits | sign << 8 * np.dtype(WORDS[dtype]).itemsize - 1
    assert next(escapes, None) is None
    return words.astype(WORDS[dtype])


def fields(data: bytes, at: int, bits: int, count: int) -> tuple[list[int], int]:
    """Numbers of a few bits each, lowest bit first, and where what follows them starts."""
    length = -(-bits * count // 8)
    whole = int.from_bytes(data[at : at + length], "little")
    return [whole >> bits * place & (1 << bits) - 1 for place in range(count)], at + length


def table_of(codes: dict[int, int], span: int) -> list[tuple[int, int, int]]:
    """Symbol, frequency and cumulative of each slot, of the groups that have a code."""
    weights = {}
    for group, code in codes.items():
        for index in range(group // 2 << span, (group // 2 + 1) << span):
            weights[2 * index + group % 2] = (4 + (code - 1) % 4) << (code - 1) // 4
    if len(weights) == 1:
        (symbol,) = weights
        return slots({symbol: 4095, symbol ^ 1: 1})
    total, room = sum(weights.values()), 4096 - len(weights)
    shares = {symbol: 1 + weight * room // total for symbol, weight in sorted(weights.items())}
    shares[max(shares, key=lambda symbol: shares[symbol])] += 4096 - sum(shares.values())
    return slots(shares)


def rests_of(data: bytes, at: int, values: int, dtype: str) -> tuple[np.ndarray, int]:
    """What of each value is not coded, and where what follows starts."""
    if dtype == "float16":
        return np.frombuffer(data, np.uint8, values, at).astype("<u4"), at + values
    if dtype not in WINDOWED:
        return np.zeros(values, "<u4"), at
    six = []
    for block in range(-(-values // 64)):
        part = data[at + 48 * block : at + 48 * (block + 1)]
        four = [byte & 15 for byte in part[:32]] + [byte >> 4 for byte in part[:32]]
        six += [four[i] | (part[32 + i % 16] >> 2 * (i // 16) & 3) << 4 for i in range(64)]
    rests, at = np.array(six[:values], "<u4"), at + 48 * -(-values // 64)
    if dtype == "float32":
        return rests << 16 | np.frombuffer(data, "<u2", values, at), at + 2 * values
    return rests, at

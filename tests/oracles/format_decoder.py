"""A decoder written from ``docs/FORMAT.md``, which shares no code with the codec.

It knows containers, layouts, profiles, lossy segments of all levels, entropy streams and tables.
"""

import json
import math
import struct
from decimal import Context, Decimal, localcontext
from functools import cache

import numpy as np
import zstandard
from blake3 import blake3

ROUNDING = Decimal("0.375")


# Entropy streams and tables.


def frequencies(weights: dict[int, Decimal]) -> dict[int, int]:
    whole = {symbol: max(1, int(weight * 10**30)) for symbol, weight in sorted(weights.items())}
    total, room = sum(whole.values()), 4096 - len(whole)
    shares = {symbol: 1 + weight * room // total for symbol, weight in whole.items()}
    by_remainder = sorted(whole, key=lambda symbol: (-(whole[symbol] * room % total), symbol))
    for symbol in by_remainder[: 4096 - sum(shares.values())]:
        shares[symbol] += 1
    return shares


@cache
def base_table(index: int, left: int) -> list[tuple[int, int, int]]:
    """Symbol, frequency and cumulative of each of the 4,096 slots."""
    with localcontext(Context(prec=50)):
        decay = decay_of(min(index, 63))
        tail = power(decay, 1 - ROUNDING / 2**left)
        weights = {128: 1 - tail}
        magnitude = 1
        while magnitude <= 127 and tail > Decimal(1) / 8192:
            weights[128 + magnitude] = weights[128 - magnitude] = tail * (1 - decay) / 2
            tail *= decay
            magnitude += 1
        weights[0] = tail
        return slots(frequencies(weights))


@cache
def refinement_table(index: int, left: int) -> list[tuple[int, int, int]]:
    with localcontext(Context(prec=50)):
        decay = decay_of(min(index // 2, 63))
        shift = ROUNDING / 2**left
        inside, edge = power(decay, 1 - shift), power(decay, 2 - shift)
        side = (inside - edge) / 2
        return slots(frequencies({0: Decimal(1), 1: decay} if index % 2 else {0: 1 - inside, 1: side, 2: side}))


def decay_of(index: int) -> Decimal:
    return (-1 / (Decimal("0.08") * (Decimal(2).ln() * index / 6).exp())).exp()


def power(decay: Decimal, steps: Decimal) -> Decimal:
    return (decay.ln() * steps).exp()


def slots(shares: dict[int, int]) -> list[tuple[int, int, int]]:
    made: list[tuple[int, int, int]] = []
    for symbol, frequency in sorted(shares.items()):
        start = len(made)
        made += [(symbol, frequency, start)] * frequency
    return made


def decode_stream(data: bytes, tables: list, lanes: int) -> list[int]:
    """One symbol per entry of ``tables``."""
    state = list(struct.unpack_from(f"<{lanes}I", data))
    words = iter(struct.unpack(f"<{(len(data) - 4 * lanes) // 2}H", data[4 * lanes :]))
    symbols = []
    for number, table in enumerate(tables):
        lane = number % lanes
        symbol, frequency, cumulative = table[state[lane] % 4096]
        state[lane] = frequency * (state[lane] // 4096) + state[lane] % 4096 - cumulative
        if state[lane] < 2**16:
            state[lane] = state[lane] * 2**16 + next(words)
        symbols.append(symbol)
    assert state == [2**16] * lanes
    assert next(words, None) is None
    return symbols


# The container, its layout, and profiles.


def parse_container(blob: bytes) -> dict:
    magic, form, flags, header_bytes, tokens, first, layers, levels, block_layers, layout_bytes, count, _, profile = (
        struct.unpack_from("<4sHHIIIHBBII32s32s", blob)
    )
    assert (magic, form, flags) == (b"KVLC", 2, 0)
    assert blake3(blob[: header_bytes - 8]).digest(length=8) == blob[header_bytes - 8 : header_bytes]
    plain = zstandard.ZstdDecompressor().decompress(blob[96 : 96 + layout_bytes])
    segments, offset = {}, header_bytes
    for level, kind, layer, length, check in struct.iter_unpack("<BBHI8s", blob[96 + layout_bytes : header_bytes - 8]):
        payload = blob[offset : offset + length]
        assert blake3(payload).digest(length=8) == check
        segments[level, kind, layer] = payload
        offset += length
    assert len(segments) == count
    layout = parse_layout(plain)
    assert len(layout["layers"]) == layers
    return {
        "tokens": tokens, "first": first, "levels": levels, "block": block_layers, "profile": profile,
        "plain": plain, "layout": layout, "segments": segments,
    }  # fmt: skip


def parse_layout(plain: bytes) -> dict:
    document = json.loads(plain)
    layers = []
    for run in document["layers"]:
        layer = {
            "heads": run["kv_heads"],
            "dims": (run["head_dim"], run.get("value_head_dim", run["head_dim"])),
            "ropes": tuple(
                None if run.get(name) is None else document["ropes"][run[name]] for name in ("rope", "value_rope")
            ),
        }
        layers += [layer] * run["count"]
    return {"dtype": document["dtype"], "layers": layers}


def parse_profile(data: bytes) -> dict:
    magic, form, zero, layout_bytes = struct.unpack_from("<4sHHI", data)
    assert (magic, form, zero) == (b"KVLP", 2, 0)
    content = zstandard.ZstdDecompressor().decompress(data[12:])
    layout, at = parse_layout(content[:layout_bytes]), layout_bytes
    block_layers, refinements, _ = struct.unpack_from("<HBB", content, at)
    at += 4
    blocks = []
    for start in range(0, len(layout["layers"]), block_layers):
        held = layout["layers"][start : start + block_layers]
        width = sum(layer["heads"] * dim for layer in held for dim in layer["dims"])
        count, has_gains, _ = struct.unpack_from("<HHf", content, at)
        at += 8 + 4 * width * has_gains
        parts = []
        for _ in range(count):
            first, own, has_basis, adaptive, _ = struct.unpack_from("<IIBBH", content, at)
            numbers = np.frombuffer(content, "<f4", 3 * own, at + 12).reshape(3, own)
            at += 12 + 12 * own
            classes = list(content[at : at + own])
            at += own
            basis = np.frombuffer(content, np.int8, own * own, at).reshape(own, own) if has_basis else None
            at += own * own * has_basis
            parts.append(part_of(first, numbers[0], numbers[1], numbers[2], classes, basis, bool(adaptive)))
        blocks.append(parts)
    assert at == len(content)
    return {"name": blake3(data).digest(), "block": block_layers, "refinements": refinements, "blocks": blocks}


def part_of(first, mean, origin, scale, classes, basis, adaptive) -> dict:
    return {
        "first": first, "mean": mean, "origin": origin, "scale": scale, "classes": classes, "basis": basis,
        "adaptive": adaptive, "width": len(scale),
    }  # fmt: skip


def generic_profile(layout: dict, plain: bytes) -> dict:
    layers = layout["layers"]
    step = max(1, min(1152 // max(layer["heads"] * sum(layer["dims"]) for layer in layers), len(layers)))
    blocks = []
    for start in range(0, len(layers), step):
        parts, at = [], 0
        for layer in layers[start : start + step]:
            for dim, share in zip(layer["dims"], (0.175, 0.225), strict=True):
                left = layer["heads"] * dim
                while left:
                    own = min(left, 65_535)
                    zeros = np.zeros(own, np.float32)
                    parts.append(part_of(at, zeros, zeros, np.full(own, share, np.float32), [33] * own, None, True))
                    at, left = at + own, left - own
        blocks.append(parts)
    return {
        "name": blake3(b"kvloom generic profile 4" + plain).digest(),
        "block": step,
        "refinements": 3,
        "blocks": blocks,
    }


# Lossy segments.


def split_segment(payload: bytes, parts: list, *, base: bool) -> dict:
    lanes, *tables, escapes, side_bytes = struct.unpack_from("<BBBBII", payload)
    at = 12 + 2 * len(parts)
    adaptive = sum(part["adaptive"] for part in parts) if base else 0
    escapes_at = 12 + side_bytes
    main_at = escapes_at + 4 * escapes
    return {
        "lanes": 1 << lanes,
        "tables": tables,
        "active": struct.unpack_from(f"<{len(parts)}H", payload, 12),
        "scales": struct.unpack_from(f"<{adaptive}f", payload, at),
        "side": payload[at + 4 * adaptive : escapes_at],
        "escapes": list(struct.unpack_from(f"<{escapes}i", payload, escapes_at)),
        "main": payload[main_at:],
    }


def decode_block(parts: list, payloads: list[bytes], tokens: int, refinements: int) -> dict:
    known = [0] * len(parts)
    classes = [[] for _ in parts]
    symbols = [np.zeros((part["width"], tokens), np.int64) for part in parts]
    gains, means, scales = [0] * tokens, [], ()
    for level, payload in enumerate(payloads):
        left = refinements - level
        segment = split_segment(payload, parts, base=level == 0)
        fresh = sum(segment["active"]) - sum(known)
        mean_count = sum(part["width"] for part in parts if part["adaptive"]) if level == 0 else 0
        gain_count = tokens if segment["tables"][1] != 255 else 0
        counts = zip(
            (segment["tables"][0], segment["tables"][2], segment["tables"][1]),
            (fresh, mean_count, gain_count),
            strict=True,
        )
        tables = [base_table(table, 0) for table, count in counts for _ in range(count)]
        side = iter(decode_stream(segment["side"], tables, 1) if tables else [])
        for index, part in enumerate(parts):
            for row in range(known[index], segment["active"][index]):
                classes[index].append(part["classes"][row] + next(side) - 128)
        escapes = iter(segment["escapes"])
        if level == 0:
            means = [
                next(escapes) if symbol == 0 else symbol - 128 for symbol in (next(side) for _ in range(mean_count))
            ]
            gains = [next(side) - 128 for _ in range(gain_count)] or gains
            scales = segment["scales"]
        places = [
            (index, row, token)
            for index, active in enumerate(segment["active"])
            for row in range(active)
            for token in range(tokens)
        ]
        tables = []
        for index, row, token in places:
            at = min(max(classes[index][row] - 6 * left, 0), 63) + 3 * gains[token]
            parent = symbols[index][row, token]
            tables.append(base_table(at, left) if level == 0 else refinement_table(2 * at + int(parent != 0), left))
        decoded = decode_stream(segment["main"], tables, segment["lanes"]) if tables else []
        for (index, row, token), symbol in zip(places, decoded, strict=True):
            before = symbols[index][row, token]
            if level == 0:
                after = next(escapes) if symbol == 0 else symbol - 128
            elif before == 0:
                after = (0, 1, -1)[symbol]
            else:
                after = np.sign(before) * (2 * abs(before) + symbol)
            symbols[index][row, token] = after
        assert next(escapes, None) is None
        known = segment["active"]
    return {"symbols": symbols, "gains": gains, "means": iter(means), "scales": iter(scales)}


def restore_block(parts: list, block: dict, left: int, first: int) -> np.ndarray:
    unit = 2**left / 4 if left else 1.0
    columns = []
    factors = np.array([unit / 2 ** (gain / 2) for gain in block["gains"]], np.float32)
    for part, q in zip(parts, block["symbols"], strict=True):
        whole = 4 * q + np.sign(q) if left else q
        sums = whole.T if part["basis"] is None else whole.T @ part["basis"].astype(np.int64)
        scale, mean, origin = part["scale"], part["mean"], part["origin"]
        if part["adaptive"]:
            scale = scale * np.float32(next(block["scales"]))
            mean = origin = np.array([next(block["means"]) for _ in scale], np.float32) * scale
        channels = sums.astype(np.float32) * factors[:, None] * scale + mean
        if first == 0:
            channels[0] += origin - mean
        columns.append(channels)
    return np.concatenate(columns, axis=1)


def rotated(heads: np.ndarray, rope: dict | None, position: int) -> np.ndarray:
    """``[heads, tokens, dim]`` rotated to where they were computed."""
    out = heads.astype(np.float64)
    if rope is None:
        return out
    count, at = len(rope["f"]), rope.get("first_dim", 0)
    for token in range(heads.shape[1]):
        for i, f in enumerate(rope["f"]):
            a, b = (at + 2 * i, at + 2 * i + 1) if rope["interleaved"] else (at + i, at + count + i)
            cos, sin = math.cos((position + token) * f), math.sin((position + token) * f)
            x, y = out[:, token, a].copy(), out[:, token, b].copy()
            out[:, token, a], out[:, token, b] = x * cos - y * sin, y * cos + x * sin
    return out


def decode(blob: bytes, level: int, profile_file: bytes | None = None) -> list[tuple[np.ndarray, np.ndarray]]:
    """Keys and values of each layer."""
    box = parse_container(blob)
    layers = box["layout"]["layers"]
    profile = parse_profile(profile_file) if profile_file else generic_profile(box["layout"], box["plain"])
    assert profile["name"] == box["profile"]
    assert profile["block"] == box["block"]
    found = []
    for number, start in enumerate(range(0, len(layers), box["block"])):
        payloads = [box["segments"][step, 2, start] for step in range(level + 1)]
        parts = profile["blocks"][number]
        block = decode_block(parts, payloads, box["tokens"], profile["refinements"])
        channels, at = restore_block(parts, block, profile["refinements"] - level, box["first"]), 0
        for layer in layers[start : start + box["block"]]:
            kinds = []
            for dim, rope in zip(layer["dims"], layer["ropes"], strict=True):
                width = layer["heads"] * dim
                heads = channels[:, at : at + width].reshape(box["tokens"], layer["heads"], dim).transpose(1, 0, 2)
                kinds.append(rotated(heads, rope, box["first"]))
                at += width
            found.append(tuple(kinds))
    return found

"""Image files that no encoder writes, made byte by byte: odd samplings, and work for hours.

Layouts are those of ITU T.81 (JPEG), the PNG specification
and RFC 9649 (WebP).
"""

import struct
from collections.abc import Sequence
from itertools import product

import numpy as np

from coreset.bench.robustness.faults import encoded, photo

Factors = tuple[tuple[int, int], ...]
"""Horizontal and vertical sampling factor of each component."""
_START, _END = b"\xff\xd8", b"\xff\xd9"
_DHT, _DQT, _SOS, COMMENT = 0xC4, 0xDB, 0xDA, 0xFE
BASELINE, PROGRESSIVE, LOSSLESS, ARITHMETIC, ARITHMETIC_PROGRESSIVE = 0xC0, 0xC2, 0xC3, 0xC9, 0xCA
_LONGEST_RUN = 14
"""Logarithm of the longest run of empty blocks that one code stands for."""


def odd_samplings() -> list[Factors]:
    """List factors of three components that libjpeg decodes and the TurboJPEG API rejects."""
    known = {(1, 1), (2, 1), (1, 2), (2, 2), (4, 1)}
    firsts: list[Factors] = [
        ((h, v), (1, 1), (1, 1))
        for h, v in product((1, 2, 3, 4), repeat=2)
        if (h, v) not in known and h * v <= 8
    ]
    others: list[Factors] = [
        ((2, 2), (2, 1), (1, 2)), ((4, 1), (2, 1), (1, 1)), ((4, 1), (2, 1), (2, 1)),
        ((1, 1), (2, 2), (1, 1)), ((2, 2), (2, 2), (1, 1)), ((3, 1), (3, 1), (1, 1)),
        ((1, 1), (2, 1), (2, 1)), ((1, 1), (1, 1), (2, 2)),
    ]  # fmt: skip
    return firsts + others


def segment(marker: int, content: bytes = b"") -> bytes:
    """Return one segment of a JPEG."""
    return bytes((0xFF, marker)) + struct.pack(">H", len(content) + 2) + content


def sampled_jpeg(width: int, height: int, factors: Factors, seed: int = 0) -> bytes:
    """Encode random blocks of three coefficients in one scan of all components."""
    rng = np.random.default_rng(seed)
    unit = [8 * max(column) for column in zip(*factors, strict=True)]
    n_units = -(-width // unit[0]) * -(-height // unit[1])
    levels, codes = [0] * len(factors), list[str]()
    for _ in range(n_units):
        for at, (across, down) in enumerate(factors):
            for level in rng.integers(-40, 41, across * down).tolist():
                codes.append(_coded(level - levels[at], 4))
                levels[at] = level
                codes += [_coded(int(one), 3) for one in rng.choice((-7, -3, -1, 1, 4, 6), 2)]
                codes.append("000")
    tables = _huffman(0, range(12), {4: 12}) + _huffman(1, range(7), {3: 7})
    scan = _scan(range(1, len(factors) + 1), 0, 63) + _bits("".join(codes))
    return _jpeg(BASELINE, (width, height), factors, tables + scan)


def many_scans(n: int, side: int, kind: int = PROGRESSIVE) -> bytes:
    """Encode ``n`` scans over ``side`` x ``side`` pixels, which say that each block is empty.

    Huffman codes take two bytes for 16,384 blocks, arithmetic ones none.
    """
    if kind == ARITHMETIC_PROGRESSIVE:
        scans = _scan([1], 0, 0) + (n - 1) * _scan([1], 1, 63)
        return _jpeg(kind, (side, side), ((1, 1),), scans)
    if kind in {ARITHMETIC, BASELINE}:  # a component apart, again and again
        return _jpeg(kind, (side, side), ((1, 1),) * 3, n * _scan([1], 0, 63))
    n_blocks = (-(-side // 8)) ** 2
    runs, rest = divmod(n_blocks, 1 << _LONGEST_RUN)
    lengths = [_LONGEST_RUN] * runs + [bit for bit in range(_LONGEST_RUN) if rest >> bit & 1]
    codes = [f"{length:04b}" + "0" * length for length in lengths]
    tables = _huffman(0, [0], {1: 1}) + _huffman(1, [bit << 4 for bit in range(15)], {4: 15})
    first = _scan([1], 0, 0) + _bits("0" * n_blocks)
    scans = first + (n - 1) * (_scan([1], 1, 63) + _bits("".join(codes)))
    return _jpeg(kind, (side, side), ((1, 1),), tables + scans)


def lossless_jpeg(width: int, height: int, n_components: int = 3) -> bytes:
    """Encode pixels of one colour, each predicted from its neighbour (annex H)."""
    components = range(1, n_components + 1)
    scan = _scan(components, 1, 0) + _bits("0" * (width * height * n_components))
    frame = ((1, 1),) * n_components
    return _jpeg(LOSSLESS, (width, height), frame, _huffman(0, [0], {1: 1}) + scan)


def jpeg_with(segments: bytes) -> bytes:
    """Return a plain JPEG that begins with ``segments``."""
    whole = encoded(photo(1000))
    return whole[:2] + segments + whole[2:]


def png_with(chunks: bytes) -> bytes:
    """Return a plain PNG with ``chunks`` behind its header."""
    whole = encoded(photo(1000), "PNG")
    return whole[:33] + chunks + whole[33:]


def webp_with(chunks: bytes) -> bytes:
    """Return a plain WebP with ``chunks`` behind its pixels, in the extended layout."""
    image = photo(1000)
    pixels = encoded(image, "WEBP")[12:]
    size = b"".join((side - 1).to_bytes(3, "little") for side in image.size)
    content = b"WEBP" + riff(b"VP8X", bytes(4) + size) + pixels + chunks
    return b"RIFF" + struct.pack("<I", len(content)) + content


def riff(kind: bytes, content: bytes = b"") -> bytes:
    """Return one chunk of a WebP."""
    return kind + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def _jpeg(kind: int, size: tuple[int, int], factors: Factors, rest: bytes) -> bytes:
    width, height = size
    frame = struct.pack(">BHHB", 8, height, width, len(factors))
    frame += b"".join(bytes((at, h << 4 | v, 0)) for at, (h, v) in enumerate(factors, 1))
    return _START + segment(_DQT, bytes([0, *[8] * 64])) + segment(kind, frame) + rest + _END


def _scan(components: Sequence[int], first: int, last: int) -> bytes:
    each = b"".join(bytes((one, 0)) for one in components)
    return segment(_SOS, bytes((len(components),)) + each + bytes((first, last, 0)))


def _huffman(kind: int, symbols: Sequence[int], lengths: dict[int, int]) -> bytes:
    """Return a table of codes: symbols in their order, and how many have each length."""
    counts = bytes(lengths.get(length, 0) for length in range(1, 17))
    return segment(_DHT, bytes((kind << 4,)) + counts + bytes(symbols))


def _coded(value: int, length: int) -> str:
    """Return the size of a coefficient by a code of ``length`` bits, then its bits (F.1.2.1)."""
    size = abs(value).bit_length()
    bits = f"{value if value > 0 else value + (1 << size) - 1:0{size}b}" if size else ""
    return f"{size:0{length}b}{bits}"


def _bits(text: str) -> bytes:
    text += "1" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")

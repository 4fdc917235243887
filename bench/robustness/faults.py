"""Odd and broken inputs, made when they are needed: images, shards, and trees that hold them.

Shared by the scoreboard (``python -m bench.robustness``) and the tests. Everything follows from
seeds; nothing is read and nothing binary lies in the repository.
"""

import io
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
_ORIENTATION = 0x0112
_START_OF_SCAN = b"\xff\xda"
_START_OF_FRAME = b"\xff\xc0"
# A regular file of 4,096 bytes whose every read fails, also for root: the loopback has no speed.
FAILING_FILE = Path("/sys/class/net/lo/speed")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_ZEROS_PER_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class OddImage:
    """File that is not a plain JPEG."""

    row: int
    """Number in the fault matrix (docs/benchmarks.md)."""
    fault: str
    made: str
    """Way in which the file was made."""
    make: Callable[[], bytes]
    name: str = "odd.JPEG"
    """File name that it has in a source."""
    truth: Callable[[bytes], Pixels] | None = None
    """RGB pixels that a reader should get; None where nothing can be got."""


def photo(seed: int, width: int = 96, height: int = 72) -> Image.Image:
    """Draw a colour gradient with a patch and noise; every seed differs in all of them."""
    rng = np.random.default_rng(seed)
    across = np.linspace(0, 1, width)[None, :, None]
    down = np.linspace(0, 1, height)[:, None, None]
    first, second = rng.integers(30, 220, (2, 3))
    pixels = first + (second - first) * (across + down) / 2 + rng.normal(0, 6, (height, width, 3))
    left, top = (int(rng.integers(1, side // 2)) for side in (width, height))
    pixels[top : top + height // 3, left : left + width // 3] = rng.integers(0, 256, 3)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:  # noqa: ANN401 - Pillow's
    """Encode an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rgb(data: bytes) -> Pixels:
    """Decode pixels as Pillow converts them, EXIF orientation ignored."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def scaled_16_bit(data: bytes) -> Pixels:
    """Decode the upper bytes of 16-bit grey, which ``convert("RGB")`` would saturate."""
    with Image.open(io.BytesIO(data)) as image:
        grey = (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def jpeg(seed: int = 1000) -> bytes:
    """Return a plain baseline JPEG."""
    return encoded(photo(seed), quality=92)


def cut_jpeg() -> bytes:
    """Return the first two thirds of a JPEG."""
    whole = jpeg()
    return whole[: len(whole) * 2 // 3]


def garbage_jpeg() -> bytes:
    """Return a JPEG with 40 random bytes, none a marker, in the middle of its scan."""
    whole = jpeg()
    middle = (whole.index(_START_OF_SCAN) + len(whole)) // 2
    noise = np.random.default_rng(1).integers(0, 255, 40, dtype=np.uint8).tobytes()
    return whole[:middle] + noise + whole[middle + 40 :]


def quietly_wrong_jpeg(whole: bytes | None = None) -> bytes:
    """Flip one bit that libjpeg-turbo decodes without a warning, to other pixels."""
    whole = whole or jpeg()
    pixels = rgb(whole).astype(int)
    for at in range(whole.index(_START_OF_SCAN) + 40, len(whole) - 2):
        flipped = bytearray(whole)
        flipped[at] ^= 4
        try:
            wrong = simplejpeg.decode_jpeg(bytes(flipped), "RGB", strict=True)
        except ValueError:
            continue
        if np.abs(wrong.astype(int) - pixels).mean() > 12:
            return bytes(flipped)
    raise ValueError("no bit of the scan can be flipped quietly; use another photo")


def rotated_jpeg() -> bytes:
    """Return a JPEG whose EXIF block says that it is to be turned by 90 degrees."""
    exif = Image.Exif()
    exif[_ORIENTATION] = 6
    return encoded(photo(1000), exif=exif, quality=92)


def deep_png() -> bytes:
    """Return a 16-bit grey PNG: a ramp over the whole range."""
    ramp = np.linspace(0, 65535, 72 * 96).astype(np.uint16).reshape(72, 96)
    return encoded(Image.fromarray(ramp), "PNG")


def png_bomb(side: int = 20_000) -> bytes:
    """Build a grey PNG of ``side`` x ``side`` black pixels in 1 MB (20,000: 0.4 MB for 400 MB).

    A deflate stream repeats after a full flush, so one block of zeros is compressed and copied.
    """
    n_blocks, rest = divmod(side * (side + 1), _ZEROS_PER_BLOCK)
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = squeeze.compress(bytes(_ZEROS_PER_BLOCK)) + squeeze.flush(zlib.Z_FULL_FLUSH)
    end = squeeze.compress(bytes(rest)) + squeeze.flush()
    adler = (side * (side + 1) % 65521) << 16 | 1  # RFC 1950, 8.2, of zeros alone
    stream = b"\x78\xda" + block * n_blocks + end + struct.pack(">I", adler)
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", stream), (b"IEND", b""))
    return _PNG_SIGNATURE + b"".join(chunk(kind, content) for kind, content in chunks)


def chunk(kind: bytes, content: bytes) -> bytes:
    """Return one chunk of a PNG."""
    checksum = zlib.crc32(kind + content).to_bytes(4, "big")
    return struct.pack(">I", len(content)) + kind + content + checksum


def lying_jpeg(side: int = 16_000) -> bytes:
    """Return a small JPEG whose frame header says ``side`` x ``side``."""
    whole = jpeg()
    frame = whole.index(_START_OF_FRAME)
    return whole[: frame + 5] + struct.pack(">HH", side, side) + whole[frame + 9 :]


def jpeg_bomb(side: int = 16_000) -> bytes:
    """Return a real JPEG of ``side`` x ``side`` black pixels."""
    return simplejpeg.encode_jpeg(np.zeros((side, side, 1), np.uint8), 90, "GRAY", "Gray")


def _as(mode: str, kind: str, **options: Any) -> Callable[[], bytes]:  # noqa: ANN401 - Pillow's
    return lambda: encoded(photo(1000).convert(mode), kind, **options)


def _random_bytes() -> bytes:
    return np.random.default_rng(2).bytes(900)


ODD_IMAGES: tuple[OddImage, ...] = (
    OddImage(8, "truncated JPEG", "first two thirds of the file", cut_jpeg),
    OddImage(8, "JPEG without end", "last two bytes gone", lambda: jpeg()[:-2]),
    OddImage(9, "garbage in a JPEG", "40 random bytes amid the scan", garbage_jpeg),
    OddImage(9, "quietly wrong JPEG", "a flipped bit that no decoder warns of", quietly_wrong_jpeg),
    OddImage(10, "CMYK JPEG", "Pillow, mode CMYK", _as("CMYK", "JPEG", quality=92), truth=rgb),
    OddImage(11, "PNG named .JPEG", "a PNG by the name odd.JPEG", _as("RGB", "PNG"), truth=rgb),
    OddImage(11, "GIF named .jpg", "a GIF by the name odd.jpg", _as("RGB", "GIF"), "odd.jpg", rgb),
    OddImage(11, "BMP named .jpg", "a BMP by the name odd.jpg", _as("RGB", "BMP"), "odd.jpg", rgb),
    OddImage(11, "TIFF named .jpg", "a TIFF by the name odd.jpg", _as("RGB", "TIFF"), "odd.jpg",
             rgb),
    OddImage(11, "WebP named .jpg", "a WebP by the name odd.jpg", _as("RGB", "WEBP"), "odd.jpg",
             rgb),
    OddImage(12, "grey JPEG", "Pillow, mode L", _as("L", "JPEG"), truth=rgb),
    # Dithering to a fixed palette would be noise that no JPEG of a peer can keep.
    OddImage(12, "palette PNG", "256 colours of its own",
             lambda: encoded(photo(1000).quantize(256), "PNG"), "odd.png", rgb),
    OddImage(12, "PNG with alpha", "Pillow, mode RGBA", _as("RGBA", "PNG"), "odd.png", rgb),
    OddImage(12, "one pixel", "a JPEG of 1 x 1", lambda: encoded(photo(1000).resize((1, 1))),
             truth=rgb),
    OddImage(12, "progressive JPEG", "Pillow, progressive",
             _as("RGB", "JPEG", progressive=True, quality=92), truth=rgb),
    OddImage(12, "bytes after the image", "a JPEG, then 900 random bytes",
             lambda: jpeg() + _random_bytes(), truth=rgb),
    OddImage(12, "damaged EXIF block", "a directory offset beyond its end",
             _as("RGB", "JPEG", exif=b"Exif\0\0MM\0*\0\0\xff\xff", quality=92),
             truth=lambda _: rgb(jpeg())),
    OddImage(13, "EXIF-rotated JPEG", "orientation 6; torchvision ignores it", rotated_jpeg,
             truth=rgb),
    OddImage(14, "16-bit PNG", "a grey ramp from 0 to 65,535", deep_png, "odd.png", scaled_16_bit),
    OddImage(15, "empty file", "0 bytes", bytes),
    OddImage(15, "web page", "HTML by the name odd.jpg",
             lambda: b"<!DOCTYPE html><html><body>404</body></html>", "odd.jpg"),
    OddImage(15, "random bytes", "900 of them", _random_bytes),
    OddImage(16, "PNG bomb", "20,000 x 20,000 pixels in 0.4 MB", png_bomb, "odd.png"),
    OddImage(16, "JPEG that lies", "96 x 72 pixels, its header says 16,000 x 16,000", lying_jpeg),
    OddImage(16, "JPEG bomb", "16,000 x 16,000 black pixels", jpeg_bomb),
)  # fmt: skip


def class_name(label: int) -> str:
    """Return the class of a label; classes sort as their numbers do."""
    return f"c{label:02d}"


def write_photos(root: Path, n: int, *, first_seed: int = 0) -> Path:
    """Write ``n`` plain JPEGs, each the only one of its class, so that a label identifies it."""
    for label in range(n):
        folder = root / class_name(label)
        folder.mkdir(parents=True)
        (folder / f"photo-{label:02d}.JPEG").write_bytes(jpeg(first_seed + label))
    return root


@dataclass(frozen=True, slots=True)
class TarMember:
    """Member of a tar, of any name."""

    name: str
    content: bytes = b""
    kind: bytes = tarfile.REGTYPE
    link: str = ""


def sample_members(label: int, key: str = "", *, cls: bytes | None = None) -> list[TarMember]:
    """Return image and label of one sample; ``cls`` replaces the right label."""
    key = key or f"{label:04d}"
    number = b"%d" % label if cls is None else cls
    return [TarMember(f"{key}.jpg", jpeg(label)), TarMember(f"{key}.cls", number)]


def write_tar(path: Path, members: Iterable[TarMember]) -> Path:
    """Write a tar with Python's ``tarfile``, which checks no name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for member in members:
            info = tarfile.TarInfo(member.name)
            info.type, info.linkname = member.kind, member.link
            info.size = len(member.content)
            tar.addfile(info, io.BytesIO(member.content))
    return path


def write_class_names(path: Path, n: int) -> Path:
    """Write a class list for ``write_photos`` and ``sample_members``."""
    path.write_text("".join(f"{class_name(label)}\n" for label in range(n)))
    return path


def pickle_that_touches(canary: Path) -> bytes:
    """Return bytes that create ``canary`` when they are unpickled."""
    return f"cos\nsystem\n(S'touch {canary}'\ntR.".encode()

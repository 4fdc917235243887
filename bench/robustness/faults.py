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


@dataclass(frozen=True, slots=True, kw_only=True)
class OddImage:
    """File that is not a plain JPEG."""

    row: int
    """Of the fault matrix (docs/benchmarks.md)."""
    fault: str
    made: str
    """How."""
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
    return _PNG_SIGNATURE + b"".join(_chunk(kind, content) for kind, content in chunks)


def _chunk(kind: bytes, content: bytes) -> bytes:
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


def _palette_png() -> bytes:
    # Dithering to a fixed palette would be noise that no JPEG of a peer can keep.
    return encoded(photo(1000).quantize(256), "PNG")


def _one_pixel() -> bytes:
    return encoded(photo(1000).resize((1, 1)))


def _random_bytes() -> bytes:
    return np.random.default_rng(2).bytes(900)


def _bad_exif() -> bytes:
    return encoded(photo(1000), exif=b"Exif\0\0MM\0*\0\0\xff\xff", quality=92)


ODD_IMAGES: tuple[OddImage, ...] = (
    OddImage(row=8, fault="truncated JPEG", made="first two thirds of the file", make=cut_jpeg),
    OddImage(row=8, fault="JPEG without end", made="last two bytes gone",
             make=lambda: jpeg()[:-2]),
    OddImage(row=9, fault="garbage in a JPEG", made="40 random bytes amid the scan",
             make=garbage_jpeg),
    OddImage(row=9, fault="quietly wrong JPEG", made="a flipped bit that no decoder warns of",
             make=quietly_wrong_jpeg),
    OddImage(row=10, fault="CMYK JPEG", made="Pillow, mode CMYK",
             make=_as("CMYK", "JPEG", quality=92), truth=rgb),
    OddImage(row=11, fault="PNG named .JPEG", made="a PNG by the name odd.JPEG",
             make=_as("RGB", "PNG"), truth=rgb),
    OddImage(row=11, fault="GIF named .jpg", made="a GIF by the name odd.jpg",
             make=_as("RGB", "GIF"), name="odd.jpg", truth=rgb),
    OddImage(row=11, fault="BMP named .jpg", made="a BMP by the name odd.jpg",
             make=_as("RGB", "BMP"), name="odd.jpg", truth=rgb),
    OddImage(row=11, fault="TIFF named .jpg", made="a TIFF by the name odd.jpg",
             make=_as("RGB", "TIFF"), name="odd.jpg", truth=rgb),
    OddImage(row=11, fault="WebP named .jpg", made="a WebP by the name odd.jpg",
             make=_as("RGB", "WEBP"), name="odd.jpg", truth=rgb),
    OddImage(row=12, fault="grey JPEG", made="Pillow, mode L", make=_as("L", "JPEG"), truth=rgb),
    OddImage(row=12, fault="palette PNG", made="256 colours of its own", make=_palette_png,
             name="odd.png", truth=rgb),
    OddImage(row=12, fault="PNG with alpha", made="Pillow, mode RGBA", make=_as("RGBA", "PNG"),
             name="odd.png", truth=rgb),
    OddImage(row=12, fault="one pixel", made="a JPEG of 1 x 1", make=_one_pixel, truth=rgb),
    OddImage(row=12, fault="progressive JPEG", made="Pillow, progressive",
             make=_as("RGB", "JPEG", progressive=True, quality=92), truth=rgb),
    OddImage(row=12, fault="bytes after the image", made="a JPEG, then 900 random bytes",
             make=lambda: jpeg() + _random_bytes(), truth=rgb),
    OddImage(row=12, fault="damaged EXIF block", made="a directory offset beyond its end",
             make=_bad_exif, truth=lambda _: rgb(jpeg())),
    OddImage(row=13, fault="EXIF-rotated JPEG", made="orientation 6; torchvision ignores it",
             make=rotated_jpeg, truth=rgb),
    OddImage(row=14, fault="16-bit PNG", made="a grey ramp from 0 to 65,535",
             make=deep_png, name="odd.png", truth=scaled_16_bit),
    OddImage(row=15, fault="empty file", made="0 bytes", make=bytes),
    OddImage(row=15, fault="web page", made="HTML by the name odd.jpg", name="odd.jpg",
             make=lambda: b"<!DOCTYPE html><html><body>404</body></html>"),
    OddImage(row=15, fault="random bytes", made="900 of them", make=_random_bytes),
    OddImage(row=16, fault="PNG bomb", made="20,000 x 20,000 pixels in 0.4 MB",
             make=png_bomb, name="odd.png"),
    OddImage(row=16, fault="JPEG that lies", made="96 x 72 pixels, its header says 16,000 x 16,000",
             make=lying_jpeg),
    OddImage(row=16, fault="JPEG bomb", made="16,000 x 16,000 black pixels", make=jpeg_bomb),
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

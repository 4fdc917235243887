"""Read the orientation out of an Exif block."""

import struct

from coreset.shards.images.flags import Flag

_ORIENTATION = 0x0112
_UPRIGHT = 1


def exif_flag(tiff: bytes) -> Flag:
    """Return ``Flag.EXIF_ROTATED`` if the first directory of a block (TIFF 6.0) turns the image.

    Damaged blocks are common and harmless: they count as upright (Pillow's reader would warn).
    """
    byte_order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if byte_order is None or len(tiff) < 8:
        return Flag(0)
    (directory,) = struct.unpack_from(byte_order + "I", tiff, 4)
    if directory + 2 > len(tiff):
        return Flag(0)
    (n_entries,) = struct.unpack_from(byte_order + "H", tiff, directory)
    for at in range(directory + 2, min(directory + 2 + 12 * n_entries, len(tiff) - 11), 12):
        tag, _, _, value = struct.unpack_from(byte_order + "HHIH", tiff, at)
        if tag == _ORIENTATION:
            return Flag.EXIF_ROTATED if _UPRIGHT < value <= 8 else Flag(0)
    return Flag(0)

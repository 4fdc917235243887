"""Flags of stored images."""

from enum import IntFlag


class Flag(IntFlag):
    """Properties that a decoder must know before it decodes an image."""

    GREY = 1
    CMYK = 2
    EXIF_ROTATED = 4
    """The EXIF orientation is not upright; ignored, as torchvision does."""
    PROGRESSIVE = 8
    DEEP = 16
    """More than 8 bits per channel."""
    ALPHA = 32
    PALETTE = 64
    MISNAMED = 128
    """The file's extension is that of another format."""
    ODD_SAMPLING = 256
    """JPEG whose colours are sampled as only Pillow reads it: 4:4:1, 4:1:0, 3 x 1 ..."""

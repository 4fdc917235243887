"""Parse one header of a tar, in the formats v7, ustar, GNU and pax.

Sources: POSIX.1-2017 ``pax``, "ustar Interchange Format" and "pax Extended Header"; GNU tar 1.35
manual, "Basic Tar Format". A number that does not parse raises ValueError with a phrase that
completes "a size that is ...", a record one that completes "the tar has ...".
"""

import re

REGULAR_FILE = "file"

_NAME = slice(0, 100)
SIZE = slice(124, 136)
CHECKSUM = slice(148, 156)
FLAG = slice(156, 157)
_MAGIC = slice(257, 265)
_PREFIX = slice(345, 500)
SPARSE_CONTINUES = 482
SPARSE_MAP_CONTINUES = 504
_BLANK_CHECKSUM = 8 * ord(" ")
_GNU_MAGIC = b"ustar  \0"  # where POSIX has the prefix, GNU tar has times

_GNU_NAME, _GNU_LINK, PAX_GLOBAL, GNU_SPARSE = b"L", b"K", b"g", b"S"
EXTENSIONS = {_GNU_NAME, _GNU_LINK, PAX_GLOBAL, b"x", b"X"}
# Directories, the list of names in GNU tar's incremental archives, volume labels.
PASSED_OVER = {b"5", b"D", b"V"}
# With these a tar stores no bytes, whatever the size field says (POSIX, GNU tar, tarfile).
WITHOUT_BYTES = {b"1", b"2", b"3", b"4", b"5", b"6"}
SPARSE_FILE = "sparse file"
KINDS = {
    b"0": REGULAR_FILE,
    b"\0": REGULAR_FILE,
    b"7": REGULAR_FILE,
    b"1": "hard link",
    b"2": "symbolic link",
    b"3": "character device",
    b"4": "block device",
    b"6": "fifo",
    b"M": "part of a multi-volume file",
    GNU_SPARSE: SPARSE_FILE,
}

_PAX_RECORD = re.compile(rb"(\d{1,7}) ([^=]+)=")
PAX_NAME, PAX_SIZE = b"path", b"size"
PAX_SPARSE, PAX_SPARSE_NAME = b"GNU.sparse.", b"GNU.sparse.name"
_PAX_KEPT = {PAX_NAME, PAX_SIZE, PAX_SPARSE_NAME}
_SHOWN_BYTES = 100


def _text(stored: bytes) -> bytes:
    """Return the bytes before the first NUL."""
    return stored.partition(b"\0")[0]


def stored_name(header: bytes) -> bytes:
    """Return the member's name in the header, with the prefix that ustar keeps apart."""
    name, magic = _text(header[_NAME]), header[_MAGIC]
    if magic.startswith(b"ustar") and magic != _GNU_MAGIC and header[_PREFIX.start]:
        return _text(header[_PREFIX]) + b"/" + name
    return name


def checksum(header: bytes) -> int:
    """Sum the bytes, the checksum itself counted as blanks."""
    return sum(header) - sum(header[CHECKSUM]) + _BLANK_CHECKSUM


def has_right_checksum(header: bytes) -> bool:
    """Test whether the stored checksum is that of the bytes."""
    try:
        stored = number(header[CHECKSUM])
    except ValueError:
        return False
    if stored == checksum(header):
        return True
    # Early Sun and BSD tars summed signed characters.
    signed = memoryview(header[: CHECKSUM.start] + header[CHECKSUM.stop :]).cast("b")
    return stored == sum(signed) + _BLANK_CHECKSUM


def number(stored: bytes) -> int:
    """Parse a header's number: octal digits, or base 256 if the first bit is set."""
    if stored[0] & 0x80:
        if stored[0] & 0x40:
            raise ValueError(f"negative ({stored!r})")
        return int.from_bytes(stored) - (0x80 << 8 * (len(stored) - 1))
    digits = _text(stored).strip(b" ")
    if digits.strip(b"01234567"):
        raise ValueError(f"{digits!r} instead of octal digits")
    return int(digits or b"0", 8)


def decimal(digits: bytes) -> int:
    """Parse a pax record's number."""
    if not re.fullmatch(rb"\d{1,19}", digits):
        raise ValueError(f"{digits[:_SHOWN_BYTES]!r} instead of decimal digits")
    return int(digits)


def records_of(flag: bytes, stored: bytes) -> dict[bytes, bytes]:
    """Return names and sizes of an extension header, by pax key."""
    if flag == _GNU_LINK:
        return {}
    return {PAX_NAME: _text(stored)} if flag == _GNU_NAME else _pax_records(stored)


def _pax_records(stored: bytes) -> dict[bytes, bytes]:
    """Parse records ``LENGTH KEY=VALUE``, each with a line feed; keep names and sizes."""
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(stored) and stored[at]:
        record = _PAX_RECORD.match(stored, at)
        stop = at + int(record[1]) if record else 0
        if not record or not record.end() < stop <= len(stored) or stored[stop - 1] != ord("\n"):
            raise ValueError(f"a pax record {stored[at : at + 20]!r} of a wrong length")
        if record[2].startswith(PAX_SPARSE):
            records[PAX_SPARSE] = b"yes"
        if record[2] in _PAX_KEPT:
            records[record[2]] = stored[record.end() : stop - 1]
        at = stop
    return records

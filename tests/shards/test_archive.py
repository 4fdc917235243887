import bz2
import gzip
import io
import lzma
import os
import shutil
import subprocess
import tarfile
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from tempfile import NamedTemporaryFile

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from coreset.shards.errors import DataError
from coreset.shards.format.tar import BLOCK_BYTES, END, padded
from coreset.shards.sources.names import safe_parts, shown
from coreset.shards.sources.tar_scan import RECORD_LIMIT_BYTES, Entry, scan

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
CHECKSUM = range(148, 156)
TAR = shutil.which("tar") or ""
VERSION = subprocess.run([TAR, "--version"], capture_output=True, check=True).stdout if TAR else b""
needs_gnu_tar = pytest.mark.skipif(b"GNU tar" not in VERSION, reason="GNU tar is not installed")

member_names = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=40
) | st.from_regex(r"[a-z./]{1,40}(__x__| \.b\.JPEG)", fullmatch=True)
names = st.builds(lambda name, repeats: name * repeats, member_names, st.integers(1, 9)).filter(
    lambda name: not name.endswith("/")
)
contents = st.binary(max_size=3) | st.sampled_from([bytes(512), b"x" * 511, b"y" * 513])


def tar_bytes(members: Iterable[tuple[str, bytes]], file_format: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar by tarfile, without the zeros that fill its last record."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=file_format) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        stop = tar.offset
    return file.getvalue()[: stop + len(END)]


def with_checksum(header: bytes) -> bytes:
    blank = header[: CHECKSUM.start] + b" " * len(CHECKSUM) + header[CHECKSUM.stop :]
    return header[: CHECKSUM.start] + b"%06o\0 " % sum(blank) + header[CHECKSUM.stop :]


def header(name: bytes = b"a.jpg", size: bytes = b"00000000000", kind: bytes = b"0") -> bytes:
    """A ustar header whose fields are as given, true or not."""
    fields = name.ljust(124, b"\0") + size.ljust(32, b"\0") + kind + bytes(100) + b"ustar\00000"
    return with_checksum(fields.ljust(BLOCK_BYTES, b"\0"))


def block(content: bytes) -> bytes:
    return content.ljust(padded(len(content)), b"\0")


def extension(kind: bytes, content: bytes) -> bytes:
    return header(b"ext", b"%011o" % len(content), kind) + block(content)


def pax_record(key: bytes, value: bytes) -> bytes:
    length = len(key) + len(value) + 3
    length += len(str(length + len(str(length))))
    return b"%d %s=%s\n" % (length, key, value)


def scan_bytes(stored: bytes | bytearray, start: int = 0, end: int | None = None) -> list[Entry]:
    with NamedTemporaryFile(buffering=0) as file:
        file.write(stored)
        return list(scan(Path(file.name), start=start, end=end))


def refusal(stored: bytes) -> str:
    with pytest.raises(DataError) as caught:
        scan_bytes(stored)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def by_tarfile(stored: bytes) -> list[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(stored), mode="r:") as tar:
        files = [(info.name, tar.extractfile(info)) for info in tar if info.isreg()]
        return [(name, file.read()) for name, file in files if file]


def by_scan(stored: bytes, start: int = 0, end: int | None = None) -> list[tuple[str, bytes]]:
    entries = [entry for entry in scan_bytes(stored, start, end) if entry.kind == "file"]
    return [(entry.name, stored[entry.offset : entry.offset + entry.size]) for entry in entries]


@given(st.lists(st.tuples(names, contents), max_size=4), st.sampled_from(FORMATS))
@example([("é" * 300, b"1"), ("a/" * 150 + "b", b"2")], tarfile.GNU_FORMAT)
@example([("é" * 300, b"1"), ("a/" * 150 + "b", b"2")], tarfile.PAX_FORMAT)
@example([("a" * 99 + "/" + "b" * 99, b"1")], tarfile.USTAR_FORMAT)
@example([("BZh.jpg", b"named like a compressed file")], tarfile.USTAR_FORMAT)
def test_members_are_those_that_tarfile_wrote(members, file_format):
    try:
        stored = tar_bytes(members, file_format)
    except ValueError:  # ustar holds no long names
        stored = tar_bytes(members, tarfile.PAX_FORMAT)
    assert by_scan(stored) == members == by_tarfile(stored)


@given(
    st.lists(st.tuples(names, contents), max_size=3), st.binary(max_size=600), st.binary(max_size=9)
)
def test_offsets_in_a_nested_tar_count_from_the_outer_file(members, before, after):
    inner = tar_bytes(members)
    stored = before + inner + after
    assert by_scan(stored, len(before), len(before) + len(inner)) == members


@needs_gnu_tar
@pytest.mark.parametrize("file_format", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_members_are_those_that_gnu_tar_wrote(tmp_path, file_format):
    folder = tmp_path / "in" / ("d" * 60)
    folder.mkdir(parents=True)
    (folder / "ü 1.JPEG").write_bytes(b"1" * 700)
    (folder / ("b" * {"v7": 30, "ustar": 90}.get(file_format, 120))).write_bytes(b"2")
    (folder / "link").symlink_to("/etc/passwd")
    archive = tmp_path / "a.tar"
    subprocess.run(
        [str(TAR), f"--format={file_format}", "-cf", archive, "-C", tmp_path / "in", "."],
        check=True,
    )
    stored = archive.read_bytes()
    assert by_scan(stored) == by_tarfile(stored)
    assert sorted(len(content) for _, content in by_scan(stored)) == [1, 700]
    assert [entry.kind for entry in scan_bytes(stored) if entry.kind != "file"] == ["symbolic link"]


@needs_gnu_tar
@pytest.mark.parametrize(
    "options", ["gnu", *(f"posix --sparse-version={v}" for v in (0.0, 0.1, 1.0))]
)
def test_sparse_members_are_told_and_passed_over(tmp_path, options):
    with (tmp_path / "a.jpg").open("wb") as file:
        file.seek(1 << 16)
        file.write(b"data")
        file.truncate(1 << 24)
    (tmp_path / "b.jpg").write_bytes(b"after")
    words = [TAR, "-S", *f"--format={options} -cf a.tar a.jpg b.jpg".split()]
    subprocess.run(words, cwd=tmp_path, check=True)
    first, second = scan(tmp_path / "a.tar")
    assert (first.name, first.size, first.kind) == ("a.jpg", 0, "sparse file")
    stored = (tmp_path / "a.tar").read_bytes()
    assert (second.name, second.kind) == ("b.jpg", "file")
    assert stored[second.offset : second.offset + second.size] == b"after"


@pytest.mark.parametrize(
    ("flag", "kind"),
    [(b"1", "hard link"), (b"2", "symbolic link"), (b"3", "character device"),
     (b"4", "block device"), (b"6", "fifo"), (b"M", "part of a multi-volume file"),
     (b"Q", "member of unknown type b'Q'")],
)  # fmt: skip
def test_members_of_other_kinds_are_told_without_their_bytes(flag, kind):
    # Old writers give a link the size of its target, but no bytes.
    content = header(b"not me.jpg") + END if flag.isalpha() else b""
    size = b"%011o" % (len(content) or 512)
    odd, image = scan_bytes(header(b"odd", size, flag) + content + tar_bytes([("a.jpg", b"image")]))
    assert odd == Entry("odd", BLOCK_BYTES, 0, kind)
    assert image == Entry("a.jpg", 2 * BLOCK_BYTES + len(content), 5, "file")


def test_directories_labels_and_global_records_are_passed_over():
    stored = b"".join(
        [
            header(b"label", kind=b"V"),
            extension(b"g", pax_record(b"comment", b"x")),
            header(b"posix/", kind=b"5"),
            header(b"old/", kind=b"\0"),
            header(b"dump/", b"%011o" % 4, b"D") + block(b"Yab\0"),
            header(b"old.jpg", kind=b"\0"),
            header(b"contiguous.jpg", kind=b"7"),
            END,
            bytes(10_000),
        ]
    )
    assert [entry.name for entry in scan_bytes(stored)] == ["old.jpg", "contiguous.jpg"]


def test_a_v7_header_has_no_prefix():
    v7 = header(b"a.jpg", kind=b"\0")
    for magic in (bytes(8), b"ustar  \0"):
        changed = v7[:257] + magic + v7[265:345] + b"13 times" + v7[353:]
        assert [entry.name for entry in scan_bytes(with_checksum(changed) + END)] == ["a.jpg"]


@pytest.mark.parametrize("file_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_sizes_beyond_eight_gibibytes_are_read(tmp_path, file_format):
    info = tarfile.TarInfo("huge.jpg")
    info.size = (8 << 30) + 5
    start = info.tobuf(file_format)
    path = tmp_path / "huge.tar"
    with path.open("wb") as file:  # a file of holes: takes no room
        file.write(start)
        file.seek(len(start) + padded(info.size))
        file.write(tar_bytes([("a.jpg", b"image")]))
    huge, image = scan(path)
    assert huge == Entry("huge.jpg", len(start), info.size, "file")
    assert image.offset == len(start) + padded(info.size) + BLOCK_BYTES


def test_pax_records_hold_over_headers_and_local_over_global_ones():
    stored = b"".join(
        [
            extension(b"g", pax_record(b"path", b"all.jpg")),
            extension(b"x", pax_record(b"size", b"3"))
            + header(size=b"17777777777")
            + block(b"abc"),
            extension(b"x", pax_record(b"path", b"own\n=1.jpg")) + header(),
            extension(b"x", pax_record(b"path", b"")) + header(b"header.jpg"),
            END,
        ]
    )
    found = [(entry.name, entry.size) for entry in scan_bytes(stored)]
    assert found == [("all.jpg", 3), ("own\n=1.jpg", 0), ("header.jpg", 0)]


def test_a_pax_size_does_not_bend_the_header_between():
    """An extension header after the size record keeps its own size (else members smuggle in)."""
    long_name = extension(b"L", b"long.jpg\0")
    stored = extension(b"x", pax_record(b"size", b"600")) + long_name + header() + bytes(1024) + END
    assert [(entry.name, entry.size) for entry in scan_bytes(stored)] == [("long.jpg", 600)]


def test_names_that_are_not_utf8_are_escaped():
    for stored in (header(b"caf\xe9.jpg"), extension(b"L", b"caf\xe9.jpg\0") + header()):
        (entry,) = scan_bytes(stored + END)
        assert entry.name == r"caf\xe9.jpg"
        assert entry.name.encode() == rb"caf\xe9.jpg"


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_cut_at_any_byte_is_noticed(tmp_path, file_format):
    long_name = "d/" * 40 + "é" * (30 if file_format == tarfile.USTAR_FORMAT else 90)
    whole = tar_bytes([("a.jpg", b"x" * 513), (long_name, b""), ("b.jpg", bytes(512))], file_format)
    path = tmp_path / "a.tar"
    path.write_bytes(whole)
    assert len(list(scan(path))) == 3
    for size in reversed(range(len(whole))):
        os.truncate(path, size)
        with pytest.raises(DataError, match=f"ends at byte {size:,}, "):
            list(scan(path))


def test_a_flipped_bit_in_a_header_is_noticed_or_harmless():
    whole = bytearray(tar_bytes([("a.jpg", b"image"), ("é" * 60, b"x" * 600)], tarfile.GNU_FORMAT))
    expected = scan_bytes(whole)
    headers = [0, 2 * BLOCK_BYTES, 4 * BLOCK_BYTES]
    harmless: set[int] = set()
    for at in (start + place for start in headers for place in range(BLOCK_BYTES)):
        for bit in range(8):
            whole[at] ^= 1 << bit
            try:
                assert scan_bytes(whole) == expected
                harmless.add(at % BLOCK_BYTES)
            except DataError:
                pass
            whole[at] ^= 1 << bit
    assert harmless <= set(CHECKSUM)  # a leading zero or the blank of the checksum itself


@pytest.mark.parametrize(
    ("stored", "finding"),
    [
        (b"", "ends at byte 0, before a whole tar header"),
        (header() + bytes(511), "but the header takes 512 bytes from byte 512"),
        (header(), "ends at byte 512, before an end mark (two blocks of zeros)"),
        (b"\xff\xd8\xff" * 300, "no tar header at byte 0; name a plain tar file"),
        (END[:512], "but the end mark (two blocks of zeros) takes 1,024 bytes from byte 0"),
        (
            header() + END[:1023],
            "the end mark (two blocks of zeros) takes 1,024 bytes from byte 512",
        ),
        (header() + END[:512] + header() + END, "more than zeros after the end mark at byte 512"),
        (header() + END + bytes(9 << 20) + b"x", "more than zeros after the end mark at byte 512"),
        ((header() + END) * 2, "tar --ignore-zeros"),
        (header() + b"x" * 512, "damaged header at byte 512"),
        (header(size=b"00000002001") + END, "member 'a.jpg' takes 1,025 bytes from byte 512"),
        (header(size=b"0000000008x") + END, "the size b'0000000008x\\x00', which"),
        (header(size=b"-0000000001") + END, "which is no number"),
        (header(size=b"\xff" * 12) + END, "which is no number"),
        (header(size=b"\x80" + b"\xff" * 11) + END, "takes 309,485,009,821,345,068,724,781,055"),
        (extension(b"L", b"x") + END, "where an extension header announced a member"),
        (header(kind=b"S")[:482] + b"\1" + bytes(29), "no tar header"),
        (gzip.compress(header() + END, mtime=0), "holds gzip data; decompress it"),
        (bz2.compress(header() + END), "holds bzip2 data; decompress it"),
        (lzma.compress(header() + END), "holds xz data; decompress it"),
        (extension(b"x", b"99 path=a\n") + header() + END, "pax record b'99 path=a\\n"),
        (extension(b"x", b"0 path=a\n") + header() + END, "of a wrong length"),
        (extension(b"x", b"9999999999 path=a\n") + header() + END, "of a wrong length"),
        (extension(b"x", b"6 path\n") + header() + END, "of a wrong length"),
        (extension(b"x", pax_record(b"size", b"-1")) + header() + END, "-1', which is no number"),
        (extension(b"x", pax_record(b"size", b"9" * 5000)) + header() + END, "is no number"),
        (extension(b"x", pax_record(b"size", b"9" * 19)) + header() + END, "999 bytes from byte"),
    ],
)
def test_a_damaged_or_lying_tar_is_refused_with_the_place(stored, finding):
    assert finding in refusal(stored)


@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"g"])
def test_a_long_name_bomb_is_refused_without_reading_it(tmp_path, kind):
    path = tmp_path / "bomb.tar"
    for size, finding in [(1 << 33, "ends at byte"), (RECORD_LIMIT_BYTES + 1, "above the limit")]:
        path.write_bytes(header(size=b"\x80" + size.to_bytes(11), kind=kind))
        os.truncate(path, 2 << 20)
        tracemalloc.start()
        with pytest.raises(DataError, match=finding):
            list(scan(path))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < RECORD_LIMIT_BYTES // 4


def test_many_records_do_not_pile_up_in_memory():
    records = [extension(b"g", pax_record(b"key%d" % i, b"v" * 5000)) for i in range(1000)]
    with NamedTemporaryFile(buffering=0) as file:
        file.write(b"".join(records) + END)
        tracemalloc.start()
        assert not list(scan(Path(file.name)))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 1 << 19


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "missing", tmp_path / "fifo", Path("/dev/zero")):
        with pytest.raises(DataError, match="is not a file"):
            list(scan(path))


fields = st.sampled_from([b"0", b"\0", b"1", b"5", b"L", b"K", b"x", b"g", b"S", b"M", b"?"])
sizes = st.integers(0, 1500).map(lambda size: b"%011o" % size) | st.binary(min_size=12, max_size=12)
hostile_headers = st.builds(header, st.binary(max_size=100), sizes, fields)
pieces = st.one_of(
    hostile_headers,
    st.binary(max_size=BLOCK_BYTES).map(lambda content: content.ljust(BLOCK_BYTES, b"\0")),
    st.builds(
        lambda key, value: block(pax_record(key, value)),
        st.sampled_from([b"path", b"size", b"GNU.sparse.name"]),
        st.binary(max_size=30),
    ),
    st.just(END),
)


@given(st.lists(pieces, max_size=8).map(b"".join), st.binary(max_size=40))
def test_any_bytes_give_ranges_inside_the_file_or_a_refusal(stored, tail):
    stored += tail
    try:
        entries = scan_bytes(stored)
    except DataError:
        return
    for entry in entries:
        assert 0 <= entry.offset <= entry.offset + entry.size <= len(stored)
        assert entry.name.encode().decode() == entry.name


@pytest.mark.parametrize(
    "name",
    ["", "/etc/x", "../x", "a/../b", "a//b", "a/", ".", "./", "././a", "a\0", "a\n", "\x9b",
     "\ud800", "é" * 128],
)  # fmt: skip
def test_unsafe_member_names_are_refused(name):
    with pytest.raises(DataError) as caught:
        safe_parts(name)
    assert str(caught.value).isprintable()


def test_long_names_are_taken_up_to_a_limit_and_shortened_in_messages():
    assert safe_parts("é" * 127 + "a/b") == ("é" * 127 + "a", "b")
    assert shown("a\n") == r"'a\n'"
    assert len(shown("a" * 10**6)) < 120

"""List the members of a tar from its headers alone, without extracting anything.

Reads the formats that Python's `tarfile` writes and older ones. Unlike `tarfile` it goes on behind damage, and lists a
member that must not or cannot be read (a link, a name that leaves the folder, a truncated end) with the reason.
Offsets and sizes in bytes.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from dto_pipeline.paths import UnsafePath, check_relative

BLOCK = 512
_MAGIC_AT = 257  # of "ustar" in a header
_MAX_EXTENDED = 1 << 20  # bytes of one long name or pax header; more is damage
_MAX_SIZE = 1 << 60  # bytes of one member; more is damage
_SCAN = 1 << 20  # bytes read at once when searching behind damage
_REGULAR = {b"0", b"\0", b"7"}
_WITHOUT_DATA = {b"1", b"2", b"3", b"4", b"5", b"6"}
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_PAX_RECORD = re.compile(rb"(\d{1,7}) ([^=]+)=")


@dataclass(frozen=True)
class Member:
    """One entry of a tar, folders excepted."""

    name: str  # without "./" and doubled slashes; with escapes where it is not UTF-8, which is refused
    offset: int  # of the first byte of its contents
    size: int
    problem: str | None = None  # why it is not read; None = usable


def walk_tar(source: pa.NativeFile) -> tuple[list[Member], str | None]:
    """The entries of a tar, in order, and what is wrong with the tar as a whole; None = nothing.

    Raises: OSError: the file cannot be read.
    """
    size = source.size()
    kind = next((name for magic, name in _COMPRESSED.items() if source.read_at(8, 0).startswith(magic)), None)
    if kind:
        return [], f"is compressed ({kind}) and cannot be read in place; decompress it"
    members: list[Member] = []
    problems: list[str] = []
    first_of_name: dict[str, int] = {}
    for found in _entries(source, size):
        if isinstance(found, str):
            problems.append(found)
            continue
        if found.problem is None and (first := first_of_name.setdefault(found.name, found.offset)) != found.offset:
            found = Member(found.name, found.offset, found.size, f"repeats the name of the member at byte {first}")
        members.append(found)
    return members, "; ".join(problems) or None


def sample_key(name: str) -> tuple[str, str]:
    """WebDataset's split of a member name: (key, extension) at the first dot of the base name.

    The key keeps its folders and its case; the extension comes without the dot, "" where there is none.
    """
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension


def _entries(source: pa.NativeFile, end: int) -> Iterator[Member | str]:
    """Members in order; in between a sentence for each thing that is wrong with the tar itself."""
    at, finished = 0, False
    extended: dict[bytes, bytes] = {}  # from long-name and pax headers, for the next entry
    while at + BLOCK <= end:
        block = source.read_at(BLOCK, at)
        if block.count(0) == BLOCK:
            finished = True
            break
        header = _parse_header(block)
        if header is None:
            resumed = _next_header(source, at + BLOCK, end)
            then = f"goes on at byte {resumed}" if resumed < end else "nothing is found behind it"
            yield f"has a damaged header at byte {at}; {then}"
            at, extended, finished = resumed, {}, resumed >= end
            continue
        name, size, kind, contents = header.name, header.size, header.type, at + BLOCK
        if kind in b"LKxXg":
            if size <= _MAX_EXTENDED:
                extended |= _read_extended(kind, source.read_at(size, contents))
            at = contents + _padded(size)
            continue
        if re.fullmatch(rb"\d{1,18}", extended.get(b"size", b"")):
            size = int(extended[b"size"])
        if b"path" in extended:
            name = extended[b"path"].decode("utf-8", "surrogateescape")
        if not header.isdir():
            sparse = any(key.startswith(b"GNU.sparse.") for key in extended)
            yield _judge(name, tarfile.GNUTYPE_SPARSE if sparse and kind in _REGULAR else kind, contents, size, end)
        at = contents + (0 if kind in _WITHOUT_DATA else _padded(size))
        extended = {}
    if at > end or (at < end and not finished):
        yield f"is truncated at byte {end}"
    elif not finished:
        yield f"has no end marker and may be truncated at byte {end}"
    elif (behind := _next_header(source, at + BLOCK, end)) < end:
        yield f"goes on behind its end marker at byte {behind} (two tars in one file?), which is not read"


def _judge(name: str, kind: bytes, contents: int, size: int, end: int) -> Member:
    """The entry as a member, with the reason if it is not read."""
    problem = None
    try:
        name.encode()
        name = check_relative(name)
    except UnicodeEncodeError:
        name = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        problem = "has a name that is not UTF-8"
    except UnsafePath as error:
        problem = f"is refused: {error}"
    if kind not in _REGULAR:
        problem = f"is no plain file, but a link, device, pipe or sparse file (type {chr(kind[0])!r})"
    elif problem is None and contents + size > end:
        problem = f"is truncated: {max(end - contents, 0)} of {size} bytes are there"
    return Member(name, contents, size, problem)


def _parse_header(block: bytes) -> tarfile.TarInfo | None:
    """The header in a block; None where checksum or numbers are wrong."""
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return None
    return header if 0 <= header.size <= _MAX_SIZE else None


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _read_extended(kind: bytes, data: bytes) -> dict[bytes, bytes]:
    """Pax records of the next entry, up to the first malformed one; link targets and global headers are ignored."""
    if kind == b"L":
        return {b"path": data.split(b"\0", 1)[0]}
    found, at = {}, 0
    while kind in b"xX" and (match := _PAX_RECORD.match(data, at)):  # ``<length> <key>=<value>\\n``
        end = at + int(match[1])
        if end > len(data) or end <= match.end() or data[end - 1 : end] != b"\n":
            break
        found[match[2]] = data[match.end() : end - 1]
        at = end
    return found


def _next_header(source: pa.NativeFile, start: int, end: int) -> int:
    """Offset of the first block from `start` that is a header of the ustar family, or `end`."""
    for base in range(start, end, _SCAN):
        chunk = source.read_at(_SCAN, base)
        at = chunk.find(b"ustar", _MAGIC_AT)
        while at >= 0:
            block = at - _MAGIC_AT
            if block % BLOCK == 0 and _parse_header(chunk[block : block + BLOCK].ljust(BLOCK)):
                return base + block
            at = chunk.find(b"ustar", at + 1)
    return end

"""The directories of TIFF files, and of EXIF and most camera RAW, which have the same structure.

A block is a whole file, its beginning, or EXIF without its prefix. It may come from a stranger: offsets
lead anywhere, also in circles, and counts are any number. Nothing here depends on Pillow.
"""

import struct
from collections.abc import Iterator
from itertools import islice

from aiocodec.errors import ImageError

MAGIC = (b"II*\0", b"MM\0*", b"II\0*", b"MM*\0", b"II+\0", b"MM\0+")  # as Pillow takes them
MAX_PAGES = 1 << 12  # that are counted

ORIENTATION = 0x0112
_SUBFILE_TYPE = 0x00FE
_WIDTH, _LENGTH = 0x0100, 0x0101
_PHOTOMETRIC = 0x0106
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 0x011A, 0x011B, 0x0128
_TILE_WIDTH, _TILE_LENGTH = 0x0142, 0x0143
_LAYOUT = (0x0111, 0x0117, 0x0144, 0x0145)  # offsets and lengths of strips, then of tiles
_SUB_IFDS = 0x014A
_DNG_VERSION = 0xC612
_SUBDIRECTORIES = (0x8769, 0x8825, 0xA005)  # of EXIF, GPS and interoperability
_SENSOR = (32803, 34892)  # photometric: a mosaic of colour filters, linear RAW

_UNITS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q"}
_MAX_TAGS = 4096
_MAX_DIRECTORIES = 64  # that are looked into for a RAW picture


def first_directory(block: bytes) -> int:
    """Where the first directory begins; struct.error where the block is cut off."""
    order, big = _form(block)
    return int(struct.unpack_from(order + ("8xQ" if big else "4xI"), block)[0])


def entries(block: bytes, at: int) -> Iterator[tuple[int, int, int, int]]:
    """Tag, type, count and place of the value of the tags in the directory at `at`; struct.error
    where it is cut off."""
    order, big = _form(block)
    head, field, offset = ("Q", 8, "Q") if big else ("H", 4, "I")
    (count,) = struct.unpack_from(order + head, block, at)
    at += struct.calcsize(order + head)
    for _ in range(count):
        tag, kind, values = struct.unpack_from(order + "HH" + offset, block, at)
        place = at + 4 + field
        if values * _UNITS.get(kind, 0) > field:
            (place,) = struct.unpack_from(order + offset, block, place)
        yield tag, kind, values, place
        at += 4 + 2 * field


def number(block: bytes, kind: int, place: int) -> int:
    """The whole number of a tag; struct.error where it is none."""
    if kind not in _INTEGERS:
        raise struct.error("not a whole number")
    order, _ = _form(block)
    return int(struct.unpack_from(order + _INTEGERS[kind], block, place)[0])


def is_digestible(block: bytes) -> bool:
    """Whether Pillow takes the tags of a TIFF file or EXIF block apart in little time and memory.

    It makes an object of every number, of those of tags that share their bytes or go round in
    circles too. What cameras and editors write stays far below these limits.
    """
    numbers = size = tags = 0
    pending = [first_directory(block)] if len(block) >= 16 else []
    while pending:
        try:
            for tag, kind, count, place in entries(block, pending.pop()):
                bytes_ = count * _UNITS.get(kind, 0)
                tags += 1
                if tag in _SUBDIRECTORIES and kind in _INTEGERS:
                    pending.append(number(block, kind, place))
                if bytes_ <= len(block):  # Pillow takes no others.
                    size += bytes_
                    if tag in _LAYOUT:
                        tags += count >> 6
                    elif kind not in (1, 2, 7):
                        numbers += 16 * count if kind in (5, 10) else count
                if tags > _MAX_TAGS or numbers > 1 << 18 or size > 2 * len(block):
                    return False
        except (struct.error, OverflowError):
            pass
    return True


def pages(data: bytes) -> int:
    """The number of pictures in a TIFF file, without the reduced ones after the first; no more than
    MAX_PAGES are counted. ImageError for a file that Pillow or libtiff would need much time or
    memory to refuse."""
    if not is_digestible(data):
        raise ImageError("the image has more tags, or longer ones, than can be read safely")
    sides: dict[int, int] = {}
    at = 0
    try:
        at = first_directory(data)
        for tag, kind, _, place in entries(data, at):
            if tag in (_WIDTH, _LENGTH, _TILE_WIDTH, _TILE_LENGTH) and tag not in sides:
                sides[tag] = number(data, kind, place)
    except (struct.error, OverflowError):
        pass
    for side, tile in ((_WIDTH, _TILE_WIDTH), (_LENGTH, _TILE_LENGTH)):
        if sides.get(tile, 0) > max(1024, sides.get(side, 0) + 15):
            raise ImageError("the tiles of the image are larger than the image")
    found, seen = 0, set[int]()
    try:
        while at and at not in seen and len(seen) <= MAX_PAGES:
            seen.add(at)
            tag, kind, _, place = next(entries(data, at), (0, 0, 0, 0))
            reduced = (
                tag == _SUBFILE_TYPE and number(data, kind, place) & 1
            )  # It is the lowest tag.
            at = _next_directory(data, at)
            found += not (reduced and found)
    except (struct.error, OverflowError):
        pass
    return found


def is_raw(block: bytes) -> bool:
    """Whether a TIFF holds what a sensor saw, as DNG, NEF, ARW, PEF and others do.

    The first picture of most of these is a small one to be shown, which is why it does not count.
    """
    for at in _directories(block):
        try:
            for tag, kind, _, place in islice(entries(block, at), _MAX_TAGS):
                if tag == _DNG_VERSION:
                    return True
                if tag == _PHOTOMETRIC and number(block, kind, place) in _SENSOR:
                    return True
        except (struct.error, OverflowError):
            pass
    return False


def ends_early(block: bytes) -> bool:
    """Whether a RAW file ends before what the sensor saw does, by the directories that describe it."""
    for at in _directories(block):
        found: dict[int, tuple[int, int, int]] = {}
        try:
            for tag, kind, count, place in islice(entries(block, at), _MAX_TAGS):
                found.setdefault(tag, (kind, count, place))
            if _PHOTOMETRIC not in found:
                continue
            kind, _, place = found[_PHOTOMETRIC]
            if number(block, kind, place) not in _SENSOR:
                continue
            for starts, lengths in (_LAYOUT[:2], _LAYOUT[2:]):
                if starts in found and lengths in found:
                    ends = map(
                        sum,
                        zip(
                            _numbers(block, *found[starts]),
                            _numbers(block, *found[lengths]),
                            strict=False,
                        ),
                    )
                    if max(ends, default=0) > len(block):
                        return True
        except (struct.error, OverflowError):
            pass
    return False


def orientation(exif: bytes) -> tuple[int | None, bytes]:
    """The orientation in the first directory, if it is there, and `exif` with that tag set to 1."""
    found, upright = None, bytearray(exif)
    try:
        for tag, kind, count, place in entries(exif, first_directory(exif)):
            if tag == ORIENTATION and kind in (1, 3, 4) and count * _UNITS[kind] <= 4:
                found = number(exif, kind, place)
                struct.pack_into(_form(exif)[0] + "HIHH", upright, place - 6, 3, 1, 1, 0)
    except struct.error:  # It is cut off, and what was found before counts.
        pass
    return found, bytes(upright)


def resolution(block: bytes) -> tuple[float, float, int] | None:
    """Resolution along x and y, each above 0, and its unit (1: none, 2: inch, 3: centimetre), as the
    first directory has them; None where it has not both, or where they are malformed."""
    sides: dict[int, float] = {}
    unit = 2
    order, _ = _form(block)
    try:
        for tag, kind, _, place in islice(entries(block, first_directory(block)), _MAX_TAGS):
            if tag in (_X_RESOLUTION, _Y_RESOLUTION) and kind == 5:
                over, under = struct.unpack_from(order + "II", block, place)
                sides[tag] = over / under if under else 0
            elif tag == _RESOLUTION_UNIT:
                unit = number(block, kind, place)
    except (struct.error, OverflowError):
        pass
    x, y = sides.get(_X_RESOLUTION, 0), sides.get(_Y_RESOLUTION, 0)
    return (x, y, unit) if x > 0 and y > 0 and unit in (1, 2, 3) else None


def _directories(block: bytes) -> Iterator[int]:
    """Where the directories of a file begin, those below others too; at most _MAX_DIRECTORIES."""
    pending, seen = [], set[int]()
    try:
        pending.append(first_directory(block))
    except struct.error:
        return
    while pending and len(seen) < _MAX_DIRECTORIES:
        at = pending.pop()
        if not at or at in seen:
            continue
        seen.add(at)
        yield at
        try:
            pending.append(_next_directory(block, at))
            for tag, kind, count, place in islice(entries(block, at), _MAX_TAGS):
                if tag == _SUB_IFDS:
                    pending += islice(_numbers(block, kind, count, place), _MAX_DIRECTORIES)
        except (struct.error, OverflowError):
            pass


def _numbers(block: bytes, kind: int, count: int, place: int) -> Iterator[int]:
    """All whole numbers of a tag; struct.error where it has others, or is cut off."""
    return (number(block, kind, place + _UNITS.get(kind, 1) * i) for i in range(count))


def _form(block: bytes) -> tuple[str, bool]:
    """The byte order for `struct`, and whether it is a BigTIFF."""
    return ">" if block.startswith(b"MM") else "<", block[2:3] == b"+"


def _next_directory(block: bytes, at: int) -> int:
    """Where the directory after the one at `at` begins, 0 where there is none."""
    order, big = _form(block)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), block, at)
    at += 8 + 20 * count if big else 2 + 12 * count
    return int(struct.unpack_from(order + ("Q" if big else "I"), block, at)[0])

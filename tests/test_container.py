"""The container: what is packed comes back, and nothing damaged is ever accepted."""

import random
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest

from aiocodec.container import (
    DECODED_MAX_PIXELS,
    HEADER_SIZE,
    MAGIC,
    MAX_CHUNKS,
    VERSION,
    ChunkType,
    Container,
    Flags,
    Header,
    Latents,
    pack,
    pack_density,
    pack_latents,
    unpack,
    unpack_density,
    unpack_latents,
)
from aiocodec.errors import AicError, BitstreamError, LimitError, VersionError

FINGERPRINT = bytes(range(8))
HEADER = Header(quality=50, width=640, height=480, fingerprint=FINGERPRINT)
LATENTS = (ChunkType.LATENTS, pack_latents(Latents(b"wordWORD", 0x01234567, 0x89ABCDEF)))
UNKNOWN = 0xC3  # skippable

GOLDEN_1 = bytes.fromhex(
    "8a414943 01 00 09 4b"  # magic, version, critical flags, GRAY | ORIENTED, quality 75
    "2c010000 c8000000"  # 300 x 200
    "f0e1d2c3b4a59687"  # fingerprint
    "17000000 d33230c0"  # body length, CRC
    "01 08 efbeadde 04030201 721a78c6"  # LATENTS: CRC of symbols, one word; CRC
    "82 03 696363 2843dcc2"  # ICC: "icc"; CRC
)
GOLDEN_2 = bytes.fromhex(
    "8a414943 02 00 09 4b"
    "2c010000 c8000000"
    "f0e1d2c3b4a59687"
    "1b000000 4324f8d2"
    "01 0c 0df0fe0f efbeadde 04030201 118fb661"  # LATENTS: CRC of z, of all symbols, one word; CRC
    "82 03 696363 2843dcc2"
)

both_versions = pytest.mark.parametrize("version", [1, 2])


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def raw_chunk(type: int, payload: bytes, length: bytes | None = None) -> bytes:
    """A chunk with a right CRC, by hand; `length` replaces its length bytes."""
    data = bytes([type]) + (bytes([len(payload)]) if length is None else length) + payload
    return data + u32(zlib.crc32(data))


LATENTS_CHUNK = raw_chunk(*LATENTS)


def raw_file(
    body: bytes = LATENTS_CHUNK,
    *,
    version: int = VERSION,
    critical: int = 0,
    flags: int = 0,
    quality: int = 50,
    width: int = 640,
    height: int = 480,
    fingerprint: bytes = FINGERPRINT,
    body_length: int | None = None,
) -> bytes:
    """A file with a right header CRC, by hand."""
    length = len(body) if body_length is None else body_length
    start = b"\x8aAIC" + bytes([version, critical, flags, quality])
    start += u32(width) + u32(height) + fingerprint + u32(length)
    return start + u32(zlib.crc32(start)) + body


def refused(data: bytes) -> AicError:
    """The error that `data` ends in; another exception, or none, fails the test."""
    try:
        unpack(data)
    except (BitstreamError, VersionError, LimitError) as error:
        assert str(error) and "\n" not in str(error)
        return error
    raise AssertionError(f"accepted {data.hex()}")


def random_container(
    rng: random.Random, version: int, max_payload: int
) -> tuple[Header, list[tuple[int, bytes]]]:
    header = Header(
        quality=rng.randint(0, 100),
        width=rng.randint(1, 4096),
        height=rng.randint(1, 65535),
        fingerprint=rng.randbytes(8),
        flags=Flags(rng.randrange(256)),
        version=version,
    )
    optional = [type for type in ChunkType if type & 0x80]
    types: list[int] = [ChunkType.LATENTS, *rng.sample(optional, rng.randint(0, len(optional)))]
    types += [rng.randrange(0x88, 0x100) for _ in range(rng.randint(0, 3))]
    rng.shuffle(types)
    return header, [(type, rng.randbytes(rng.randint(0, max_payload))) for type in types]


# What is packed comes back


@both_versions
@pytest.mark.parametrize("seed", range(100))
def test_round_trip(seed: int, version: int) -> None:
    header, chunks = random_container(random.Random(seed), version, max_payload=300)
    data = pack(header, iter(chunks))
    assert unpack(data, max_pixels=1 << 32) == Container(header, tuple(chunks))
    assert pack(header, chunks) == data


@pytest.mark.parametrize(
    ("version", "z_crc", "golden"), [(1, None, GOLDEN_1), (2, 0x0FFEF00D, GOLDEN_2)]
)
def test_golden(version: int, z_crc: int | None, golden: bytes) -> None:
    crcs = u32(0xDEADBEEF) if z_crc is None else u32(z_crc) + u32(0xDEADBEEF)
    body = raw_chunk(1, crcs + bytes([4, 3, 2, 1])) + raw_chunk(0x82, b"icc")
    fingerprint = bytes.fromhex("f0e1d2c3b4a59687")
    built = raw_file(
        body,
        version=version,
        flags=9,
        quality=75,
        width=300,
        height=200,
        fingerprint=fingerprint,
    )
    assert built.hex() == golden.hex()

    header = Header(75, 300, 200, fingerprint, Flags.GRAY | Flags.ORIENTED, version)
    latents = Latents(bytes([4, 3, 2, 1]), 0xDEADBEEF, z_crc)
    chunks = ((ChunkType.LATENTS, pack_latents(latents)), (ChunkType.ICC, b"icc"))
    assert unpack(golden) == Container(header, chunks)
    assert unpack_latents(chunks[0][1], version) == latents
    assert pack(header, chunks) == golden


def test_constants_are_those_of_the_format() -> None:
    assert (MAGIC.hex(), VERSION, HEADER_SIZE, DECODED_MAX_PIXELS) == ("8a414943", 2, 32, 2**27)
    assert (Flags.GRAY, Flags.ALPHA, Flags.SIXTEEN_BIT, Flags.ORIENTED) == (1, 2, 4, 8)
    assert {type.name: int(type) for type in ChunkType} == {
        "LATENTS": 0x01,
        "ALPHA": 0x81,
        "ICC": 0x82,
        "EXIF": 0x83,
        "XMP": 0x84,
        "PROVENANCE": 0x85,
        "DENSITY": 0x86,
        "COMMENT": 0x87,
    }


def test_get() -> None:
    container = Container(HEADER, (LATENTS, (ChunkType.XMP, b"xmp"), (ChunkType.ICC, b"")))
    assert container.get(ChunkType.XMP) == b"xmp"
    assert container.get(ChunkType.ICC) == b""
    assert container.get(ChunkType.EXIF) is None
    assert container.get(UNKNOWN) is None


@pytest.mark.parametrize(
    ("size", "length"),
    [
        (0, "00"),
        (127, "7f"),
        (128, "8001"),
        (16383, "ff7f"),
        (16384, "808001"),
        (2**21, "80808001"),
    ],
)
def test_length_is_minimal_leb128(size: int, length: str) -> None:
    data = pack(HEADER, [(ChunkType.EXIF, bytes(size)), LATENTS])
    assert data[33 : 33 + len(length) // 2].hex() == length
    assert data[32 : -len(LATENTS_CHUNK)] == raw_chunk(0x83, bytes(size), bytes.fromhex(length))
    assert unpack(data).get(ChunkType.EXIF) == bytes(size)


@pytest.mark.parametrize("flags", [0x10, 0x80, 0xFF])
def test_unknown_informative_flags_are_kept(flags: int) -> None:
    container = unpack(raw_file(flags=flags))
    assert container.header.flags == flags
    assert bool(container.header.flags & Flags.GRAY) == bool(flags & 1)
    assert pack(container.header, container.chunks) == raw_file(flags=flags)


@both_versions
def test_unknown_skippable_chunks_are_kept_in_order_and_may_repeat(version: int) -> None:
    chunks = ((UNKNOWN, b"b"), LATENTS, (UNKNOWN, b"a"), (0x80, b""), (0xFF, b"z"))
    data = raw_file(b"".join(raw_chunk(*chunk) for chunk in chunks), version=version)
    container = unpack(data)
    assert container.chunks == chunks
    assert pack(container.header, container.chunks) == data


@pytest.mark.parametrize(
    ("width", "height", "quality"), [(1, 1, 0), (65535, 4096, 100), (4096, 65535, 1)]
)
def test_extremes_are_accepted(width: int, height: int, quality: int) -> None:
    data = raw_file(width=width, height=height, quality=quality)
    header = unpack(data, max_pixels=2**28).header
    assert (header.width, header.height, header.quality) == (width, height, quality)


# Nothing damaged is accepted


@both_versions
def test_chunks_are_counted(version: int) -> None:
    """Millions of empty chunks are refused as soon as there are too many."""
    latents = raw_chunk(1, bytes(8))
    most = raw_file(latents + raw_chunk(0xC0, b"") * (MAX_CHUNKS - 1), version=version)
    assert len(unpack(most).chunks) == MAX_CHUNKS
    started = time.perf_counter()
    for more in (0, 2_000_000):
        data = raw_file(latents + raw_chunk(0xC0, b"") * (MAX_CHUNKS + more), version=version)
        with pytest.raises(BitstreamError, match="1024 chunks"):
            unpack(data)
    assert time.perf_counter() - started < 2
    with pytest.raises(ValueError, match="1024 chunks"):
        pack(Header(50, 1, 1, bytes(8), version=version), [(1, b""), *[(0xC0, b"")] * MAX_CHUNKS])


@both_versions
@pytest.mark.parametrize("seed", range(4))
def test_every_truncation_is_refused(seed: int, version: int) -> None:
    data = pack(*random_container(random.Random(seed), version, max_payload=40))
    for size in range(len(data)):
        assert isinstance(refused(data[:size]), BitstreamError)


@both_versions
@pytest.mark.parametrize("seed", range(4))
def test_every_bit_flip_is_refused(seed: int, version: int) -> None:
    data = pack(*random_container(random.Random(seed), version, max_payload=40))
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        refused(bytes(flipped))


def test_garbage_is_refused() -> None:
    rng = random.Random(0)
    for _ in range(1000):
        refused(rng.randbytes(rng.randrange(64)))
        refused(MAGIC + rng.randbytes(rng.randrange(64)))
        refused(raw_file(rng.randbytes(rng.randrange(64))))


@pytest.mark.parametrize("data", [b"", b"\x8a", b"\x89PNG\r\n\x1a\n", b"RIFF" + bytes(40)])
def test_other_files_are_named_as_such(data: bytes) -> None:
    with pytest.raises(BitstreamError, match=r"not an \.aic file"):
        unpack(data)


def test_trailing_bytes_and_truncation_have_their_own_messages() -> None:
    with pytest.raises(BitstreamError, match="after the end of the image: 1"):
        unpack(raw_file() + b"\0")
    with pytest.raises(BitstreamError, match="truncated: 21 of 22 bytes"):
        unpack(raw_file()[:-1])
    with pytest.raises(BitstreamError, match="truncated: 31 of 32 header bytes"):
        unpack(raw_file()[:31])
    # A whole second file is trailing bytes too, even though its chunks would follow a header.
    assert isinstance(refused(raw_file() + raw_file()), BitstreamError)


@pytest.mark.parametrize("version", [0, 3, 255])
def test_unknown_version(version: int) -> None:
    for data in (raw_file(version=version), MAGIC + bytes([version])):
        with pytest.raises(VersionError, match=f"version {version}"):
            unpack(data)


@pytest.mark.parametrize(("version", "other"), [(1, 2), (2, 1), (1, 3), (2, 0)])
def test_a_changed_version_is_refused(version: int, other: int) -> None:
    data = bytearray(raw_file(version=version))
    data[4] = other
    expected = (
        BitstreamError if other in (1, 2) else VersionError
    )  # an unknown one has no known CRC
    assert isinstance(refused(bytes(data)), expected)


@both_versions
@pytest.mark.parametrize("bit", range(8))
def test_every_critical_flag_is_unknown(bit: int, version: int) -> None:
    with pytest.raises(VersionError, match="critical flags"):
        unpack(raw_file(critical=1 << bit, version=version))


@both_versions
@pytest.mark.parametrize("type", [type for type in range(0x80) if type != ChunkType.LATENTS])
def test_every_other_critical_chunk_is_refused(type: int, version: int) -> None:
    for body in (raw_chunk(type, b"") + LATENTS_CHUNK, LATENTS_CHUNK + raw_chunk(type, b"?")):
        with pytest.raises(VersionError, match=f"0x{type:02x}"):
            unpack(raw_file(body, version=version))


@both_versions
@pytest.mark.parametrize("type", list(ChunkType))
def test_known_types_occur_at_most_once(type: ChunkType, version: int) -> None:
    body = LATENTS_CHUNK + raw_chunk(type, b"1")
    if type != ChunkType.LATENTS:
        body += raw_chunk(type, b"1")
    with pytest.raises(BitstreamError, match=f"more than one {type.name}"):
        unpack(raw_file(body, version=version))


@both_versions
@pytest.mark.parametrize("body", [b"", raw_chunk(0x82, b"icc")])
def test_latents_are_required(body: bytes, version: int) -> None:
    with pytest.raises(BitstreamError, match="no LATENTS"):
        unpack(raw_file(body, version=version))


@both_versions
@pytest.mark.parametrize(
    ("length", "message"),
    [
        ("8000", "needless zeros"),
        ("808080808000", "does not end"),
        ("ffffffffff01", "does not end"),
        ("8080808000", "needless zeros"),
        ("8100", "needless zeros"),
        ("ffffffff7f", "past the end"),
        ("7f", "past the end"),
    ],
)
def test_bad_chunk_lengths(length: str, message: str, version: int) -> None:
    body = LATENTS_CHUNK + raw_chunk(UNKNOWN, b"", bytes.fromhex(length))
    with pytest.raises(BitstreamError, match=message):
        unpack(raw_file(body, version=version))


@pytest.mark.parametrize("rest", ["c3", "c300", "c3000000", "c380", "c3ffffffff"])
def test_body_that_ends_within_a_chunk(rest: str) -> None:
    assert isinstance(refused(raw_file(LATENTS_CHUNK + bytes.fromhex(rest))), BitstreamError)


@both_versions
@pytest.mark.parametrize(
    "field",
    [
        {"quality": 101},
        {"quality": 255},
        {"width": 0},
        {"height": 0},
        {"width": 65536},
        {"height": 2**32 - 1},
    ],
)
def test_header_values_out_of_range(field: dict[str, int], version: int) -> None:
    data = raw_file(version=version, **field)  # type: ignore[arg-type]
    assert isinstance(refused(data), BitstreamError)


# The pixel limit


def test_pixel_limit_is_inclusive() -> None:
    data = raw_file(width=10, height=7)
    assert unpack(data, max_pixels=70).header.width == 10
    with pytest.raises(LimitError, match=r"10x7 .* 69"):
        unpack(data, max_pixels=69)
    assert isinstance(refused(raw_file(width=65535, height=65535)), LimitError)


@pytest.mark.parametrize("body", [b"", b"garbage", LATENTS_CHUNK])
def test_pixel_limit_comes_before_the_body(body: bytes) -> None:
    data = raw_file(body, width=65535, height=65535, body_length=2**32 - 1)
    assert isinstance(refused(data), LimitError)


def test_pixel_limit_comes_after_the_header_crc() -> None:
    data = bytearray(raw_file(width=65535, height=65535))
    data[30] ^= 1
    assert isinstance(refused(bytes(data)), BitstreamError)


# Errors of the caller


@pytest.mark.parametrize(
    "header",
    [
        Header(-1, 1, 1, FINGERPRINT),
        Header(101, 1, 1, FINGERPRINT),
        Header(50, 0, 1, FINGERPRINT),
        Header(50, 1, 65536, FINGERPRINT),
        Header(50, 1, 1, FINGERPRINT[:7]),
        Header(50, 1, 1, FINGERPRINT + b"8"),
        Header(50, 1, 1, FINGERPRINT, Flags(256)),
        Header(50, 1, 1, FINGERPRINT, version=0),
        Header(50, 1, 1, FINGERPRINT, version=3),
    ],
)
def test_pack_refuses_bad_headers(header: Header) -> None:
    with pytest.raises(ValueError):
        pack(header, [LATENTS])


@pytest.mark.parametrize(
    "chunks",
    [
        [],
        [(ChunkType.ICC, b"")],
        [LATENTS, LATENTS],
        [LATENTS, (ChunkType.ICC, b"1"), (ChunkType.ICC, b"2")],
        [LATENTS, (0x02, b"")],
        [LATENTS, (-1, b"")],
        [LATENTS, (256, b"")],
    ],
)
def test_pack_refuses_bad_chunks(chunks: list[tuple[int, bytes]]) -> None:
    with pytest.raises(ValueError):
        pack(HEADER, chunks)


# The latents payload


@pytest.mark.parametrize("words", [b"", b"word", b"wordWORD"])
@pytest.mark.parametrize("crc", [0, 0x01020304, 2**32 - 1])
def test_latents_round_trip(words: bytes, crc: int) -> None:
    old, new = Latents(words, crc, None), Latents(words, crc, 0x05060708)
    assert pack_latents(old) == u32(crc) + words
    assert pack_latents(new) == u32(0x05060708) + u32(crc) + words
    assert unpack_latents(pack_latents(old), 1) == old
    assert unpack_latents(pack_latents(new), 2) == new


@pytest.mark.parametrize(
    ("version", "sizes"), [(1, [0, 1, 3, 5, 6, 7, 9]), (2, [0, 1, 3, 4, 5, 6, 7, 9, 10, 11, 13])]
)
def test_latents_of_an_impossible_length(version: int, sizes: list[int]) -> None:
    for size in sizes:
        with pytest.raises(BitstreamError, match="LATENTS"):
            unpack_latents(bytes(size), version)


@pytest.mark.parametrize(
    ("words", "symbols_crc", "z_crc"),
    [
        (b"wor", 0, 0),
        (b"words", 0, None),
        (b"", -1, 0),
        (b"", 2**32, None),
        (b"", 0, -1),
        (b"", 0, 2**32),
    ],
)
def test_pack_latents_refuses_bad_arguments(
    words: bytes, symbols_crc: int, z_crc: int | None
) -> None:
    with pytest.raises(ValueError):
        pack_latents(Latents(words, symbols_crc, z_crc))


# The density payload


@pytest.mark.parametrize("density", [(1, 1), (11811, 2835), ((1 << 32) - 1, 1)])
def test_density_round_trip(density: tuple[int, int]) -> None:
    payload = pack_density(density)
    assert payload == u32(density[0]) + u32(density[1])
    assert unpack_density(payload) == density


@pytest.mark.parametrize("payload", [b"", bytes(8), u32(5) + bytes(4), bytes(4) + u32(5), b"9" * 9])
def test_a_malformed_density_says_nothing(payload: bytes) -> None:
    assert unpack_density(payload) is None


@pytest.mark.parametrize("density", [(0, 1), (1, 0), (-1, 1), (1, 1 << 32)])
def test_pack_density_refuses_what_is_not_in_range(density: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="pixels per metre"):
        pack_density(density)


# Imports


def test_import_is_light() -> None:
    code = "import sys, aiocodec.container; print({'numpy', 'torch'} & set(sys.modules))"
    root = Path(__file__).parents[1]
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"

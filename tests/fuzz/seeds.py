"""Writes the corpus anew: `python tests/fuzz/seeds.py`. Nothing in it is anybody's: golden files of the
repository, and small pictures made here, in every format that the installed Pillow writes, in HEIF and
JPEG XL, and as what a sensor saw."""

import shutil
import struct
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pillow_heif
import pillow_jxl  # noqa: F401  (which makes Pillow write JPEG XL, too)
from driver import CORPUS
from PIL import Image, ImageCms, PngImagePlugin, features

from aiocodec.container import (
    ChunkType,
    Flags,
    Header,
    Latents,
    pack,
    pack_density,
    pack_latents,
)
from aiocodec.image import pack_alpha

GOLDEN = Path(__file__).parents[1] / "golden"
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF tiff:Orientation="6"/></x:xmpmeta>'


def picture(mode, width=12, height=9):
    """Some ramps, in a mode of Pillow's."""
    y, x = np.mgrid[:height, :width]
    planes = np.stack([x * 20, y * 25, (x * y) * 2, 255 - x * 9], axis=2).astype(np.uint8)
    if mode == "I;16":
        return Image.fromarray((x * 5000 + y).astype(np.uint16))
    if mode == "F":
        return Image.fromarray((x / 11).astype(np.float32))
    if mode in ("RGBA", "CMYK"):
        return (
            Image.fromarray(planes, "RGBA")
            if mode == "RGBA"
            else Image.merge(
                "CMYK", [Image.fromarray(np.ascontiguousarray(planes[..., i])) for i in range(4)]
            )
        )
    if mode == "LA":
        return Image.fromarray(np.ascontiguousarray(planes[..., [0, 3]]))
    return Image.fromarray(np.ascontiguousarray(planes[..., :3])).convert(mode)


def exif():
    tags = Image.Exif()
    tags[0x0112], tags[0x010F], tags[0x9286] = 6, "maker", b"ASCII\0\0\0remark"
    tags.get_ifd(0x8825)[1] = "N"
    return tags.tobytes()


def pictures():
    """(name, bytes) in many formats; those that this Pillow cannot write are left out."""
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    whole = {"exif": exif(), "icc_profile": icc}
    said = {"dpi": (300, 150), "comment": b"a remark"}
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "a remark", zip=True)
    pillow_heif.register_heif_opener()
    frames = [picture("RGB"), picture("RGB").rotate(180)]
    more = {"save_all": True, "append_images": frames[1:]}
    for name, mode, format, options in (
        ("rgb", "RGB", "PNG", {}),
        ("whole", "RGB", "PNG", whole),
        ("gray", "L", "PNG", {}),
        ("gray-key", "L", "PNG", {"transparency": 20}),
        ("gray-alpha", "LA", "PNG", {}),
        ("alpha", "RGBA", "PNG", {}),
        ("palette", "P", "PNG", {"transparency": 3}),
        ("bit", "1", "PNG", {}),
        ("deep", "I;16", "PNG", {}),
        ("frames", "RGB", "PNG", more),
        ("said", "RGB", "PNG", {"dpi": (300, 150), "pnginfo": text}),
        ("said", "RGB", "JPEG", said),
        ("said", "P", "GIF", said),
        ("rgb", "RGB", "HEIF", {}),
        ("alpha", "RGBA", "HEIF", {"exif": exif(), "xmp": XMP}),
        ("frames", "RGB", "HEIF", {**more, "thumbnails": [6]}),
        ("rgb", "RGB", "JXL", {}),
        ("alpha", "RGBA", "JXL", {"exif": exif(), "xmp": XMP, "compress_metadata": True}),
        ("rgb", "RGB", "JPEG", {}),
        ("whole", "RGB", "JPEG", {**whole, "progressive": True, "xmp": XMP}),
        ("gray", "L", "JPEG", {}),
        ("cmyk", "CMYK", "JPEG", {}),
        ("pair", "RGB", "MPO", more),
        ("rgb", "RGB", "WEBP", {}),
        ("alpha", "RGBA", "WEBP", {"lossless": True, **whole, "xmp": XMP}),
        ("frames", "RGB", "WEBP", more),
        ("rgb", "RGB", "TIFF", {}),
        ("whole", "RGB", "TIFF", {"exif": Image.Exif(), "icc_profile": icc}),
        *(
            (f"rgb-{c}", "RGB", "TIFF", {"compression": c})
            for c in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
        ),
        ("bit-g4", "1", "TIFF", {"compression": "group4"}),
        ("cmyk", "CMYK", "TIFF", {}),
        ("deep", "I;16", "TIFF", {}),
        ("float", "F", "TIFF", {}),
        ("lab", "LAB", "TIFF", {}),
        ("big", "RGB", "TIFF", {"big_tiff": True}),
        ("rgb", "RGB", "BMP", {}),
        ("palette", "P", "BMP", {}),
        ("rgb", "RGB", "PPM", {}),
        ("gray", "L", "PPM", {}),
        ("deep", "I;16", "PPM", {}),
        ("frames", "P", "GIF", more),
        ("rgb", "RGB", "AVIF", {}),
        ("alpha", "RGBA", "AVIF", {"exif": exif()}),
        ("alpha", "RGBA", "TGA", {"compression": "tga_rle"}),
        ("rgb", "RGB", "PCX", {}),
        ("alpha", "RGBA", "ICO", {}),
        ("alpha", "RGBA", "ICNS", {}),
        ("alpha", "RGBA", "DDS", {}),
        ("rgb", "RGB", "SGI", {}),
        ("alpha", "RGBA", "JPEG2000", {}),
        ("rgb", "RGB", "QOI", {}),
        ("gray", "L", "IM", {}),
        ("bit", "1", "MSP", {}),
        ("bit", "1", "XBM", {}),
        ("float", "F", "SPIDER", {}),
        ("rgb", "RGB", "EPS", {}),
    ):
        out = BytesIO()
        image = (
            picture(mode)
            if mode != "LAB"
            else ImageCms.profileToProfile(
                picture("RGB"),
                ImageCms.createProfile("sRGB"),
                ImageCms.createProfile("LAB"),
                outputMode="LAB",
            )
        )
        with suppress(KeyError, OSError, ValueError):
            image.save(out, format, **options)
            if out.tell() < 8000:
                yield f"{name}.{format.lower()}", out.getvalue()
    yield "sensor.dng", sensor()


def sensor(width=32, height=24):
    """A DNG of nothing but a mosaic of 16 bits; LibRaw takes none with a side below 22."""
    levels = np.linspace(500, 60000, width * height).astype("<u2").tobytes()
    unit = struct.pack("<18i", *(int(i % 8 == 0) for i in range(18)))
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 16), (259, 3, 1, 1)]
    entries += [(262, 3, 1, 32803), (271, 2, 4, 0x004B414D), (272, 2, 4, 0x00444F4D)]
    entries += [(273, 4, 1, 400), (274, 3, 1, 6), (277, 3, 1, 1), (278, 4, 1, height)]
    entries += [(279, 4, 1, len(levels)), (33421, 3, 2, 0x20002), (33422, 1, 4, 0x02010100)]
    entries += [(50706, 1, 4, 0x401), (50717, 4, 1, 65535), (50721, 10, 9, 300)]
    table = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    head = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + table + bytes(4)
    return head.ljust(300, b"\0") + unit.ljust(100, b"\0") + levels


def containers():
    """(name, bytes): golden files, and one with everything."""
    for path in sorted(GOLDEN.glob("*.aic")):
        yield path.name, path.read_bytes()
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    ramp = np.arange(63, dtype=np.uint8).reshape(7, 9)
    latents = pack_latents(Latents(b"wordWORD", 1, 2))
    flags = Flags.ALPHA | Flags.ORIENTED
    chunks = [
        (ChunkType.EXIF, exif().removeprefix(b"Exif\0\0")),
        (ChunkType.LATENTS, latents),
        (ChunkType.ALPHA, pack_alpha(ramp)),
        (ChunkType.ICC, icc),
        (ChunkType.XMP, XMP),
        (ChunkType.PROVENANCE, b"nano aiocodec/0.1.0"),
        (ChunkType.DENSITY, pack_density((11811, 5906))),
        (ChunkType.COMMENT, "\u00e9t\u00e9".encode()),
        (0xF0, b"unknown"),
        (0xF0, b""),
    ]
    header = Header(50, 9, 7, b"finger\0\xff", flags)
    yield "whole.aic", pack(header, chunks)
    for kind, payload in (*chunks[:1], *chunks[2:5], *chunks[6:8]):
        yield f"{kind:02x}.aic", pack(header, [chunks[1], (kind, payload)])
    yield "empty.aic", pack(header, [chunks[1]])
    yield "gray.aic", pack(Header(0, 1, 1, bytes(8), Flags.GRAY), [chunks[1], chunks[3]])


if __name__ == "__main__":
    for kind, files in (("decode", containers()), ("read", pictures())):
        folder = CORPUS / kind
        kept = {p.name: p.read_bytes() for p in folder.glob("finding-*")}
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, data in (*files, *kept.items()):
            (folder / name).write_bytes(data)
    print(f"made with Pillow {features.version('pil')}")

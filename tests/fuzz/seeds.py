"""Writes the corpus anew: `python tests/fuzz/seeds.py`. Nothing in it is anybody's: golden files of the
repository, and small pictures made here, in every format that the installed Pillow writes."""

import shutil
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
from driver import CORPUS
from PIL import Image, ImageCms, features

from aiocodec.container import ChunkType, Flags, Header, Latents, pack, pack_latents
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
        (0xF0, b"unknown"),
        (0xF0, b""),
    ]
    header = Header(50, 9, 7, b"finger\0\xff", flags)
    yield "whole.aic", pack(header, chunks)
    for kind, payload in (*chunks[:1], *chunks[2:5]):
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

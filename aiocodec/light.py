"""Decoding without PyTorch: numpy runs the entropy model, onnxruntime runs g_s.

The symbols are those of `Codec`, bit for bit, and the pixels agree within 1 of 255. It starts in a fraction of
the time and takes a fifth of the space on disk, see docs/decoders.md, but neither encodes nor computes on CUDA.
"""

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aiocodec.config import DECODED_MAX_PIXELS, LATENT_STRIDE, STRIDE
from aiocodec.container import Container, Latents
from aiocodec.entropy.frozen import FrozenEntropyModel
from aiocodec.entropy.passes import count, gather, scatter
from aiocodec.entropy.portable import PortableEntropyModel
from aiocodec.envelope import Envelope, bounded_memory, check_bits
from aiocodec.errors import BitstreamError, ModelError
from aiocodec.hyper import HyperCoder, symbols_crc, tables
from aiocodec.image import Picture
from aiocodec.pretrained import Manifest
from aiocodec.rangecoder import Decoder
from aiocodec.tiles import Area, Progress, part_of, tiles

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

CELL = STRIDE // LATENT_STRIDE  # elements of y per position of z, per side
TILE = 12  # positions of z that the entropy model sees at once, per side, at most
BAND = 64  # elements of y in the rows of pixels that are rounded at once


@dataclass(frozen=True)
class Device:
    """Where it computes; the one attribute of a `torch.device` that is looked at."""

    type: str = "cpu"


class LightCodec:
    """A loaded model that decodes without PyTorch, on the CPU. It may be used by several threads at once,
    and be pickled.

    Args:
        model: name of the transforms; by default the package's default.
        threads: at least 1; by default all cores.

    Raises:
        ModelError: no such weights, or damaged ones, or none for onnxruntime.
        ImportError: onnxruntime is not installed.
    """

    device = Device()

    def __init__(self, model: str | None = None, threads: int | None = None) -> None:
        manifest = Manifest.read()
        self.name, self.threads = model or manifest.models[0], threads
        self.fingerprint = manifest.fingerprint(self.name)
        frozen = manifest.load_frozen(self.name)
        self.program = frozen.program
        self.latents = LatentDecoder(frozen)
        self.g_s, self.halo = load_synthesis(manifest, self.name, threads)

    def __reduce__(self) -> tuple[type["LightCodec"], tuple[str, int | None]]:
        """Another process loads the weights that it has itself."""
        return LightCodec, (self.name, self.threads)

    def decode(
        self,
        data: bytes | Container,
        *,
        bits: int = 8,
        max_pixels: int = DECODED_MAX_PIXELS,
        progress: Progress | None = None,
    ) -> Picture:
        """The bytes of an .aic file to the restored picture; arguments and errors are those of
        `Codec.decode`."""
        check_bits(bits)
        envelope = Envelope.open(data, max_pixels, self.name, self.fingerprint)
        header = envelope.header
        height, width, quality = header.height, header.width, header.quality
        pixels = height * width
        needed = self.needed_memory(pixels)
        with bounded_memory(pixels, needed), _blas(self.threads):
            share = part_of(progress, 0.0, 0.4)
            y_hat = self.latents.decode(envelope.latents, width, height, quality, share)
            share = part_of(progress, 0.4, 1.0)
            rgb = self._g_s(y_hat, width, height, quality, envelope.gray, share, bits)
            del y_hat
        return envelope.picture(rgb)

    def needed_memory(self, pixels: int) -> int:
        """Bytes that decoding a picture takes at most, beside its pixels and the model: more for every
        pixel where g_s must see the whole of it."""
        at_once = pixels
        if self.halo is not None:
            at_once = min(pixels, ((self.program.tile + 2 * self.halo) * LATENT_STRIDE) ** 2)
        return 140 * at_once + 16 * pixels + (100 << 20)

    def _g_s(
        self,
        y_hat: NDArray[np.float32],
        width: int,
        height: int,
        quality: int,
        gray: bool,
        progress: Progress,
        bits: int,
    ) -> NDArray[Any]:
        """y_hat [N, H', W'] -> [H, W, 3] of so many bits, rounded and clipped; three times their mean if
        `gray`."""
        rgb = np.empty((height, width, 3), np.uint8 if bits == 8 else np.uint16)
        rows, columns = y_hat.shape[1:]
        side = max(rows, columns) if self.halo is None else self.program.tile
        grid = tiles(rows, columns, side, self.halo or 0)
        q = np.array([quality], np.float32)
        for n, tile in enumerate(grid):
            y = np.ascontiguousarray(y_hat[(..., *tile.around(1))])[None]
            x_hat = self._run(y, q)
            _round(rgb, tile.of(LATENT_STRIDE), x_hat[(0, ..., *tile.within(LATENT_STRIDE))], gray)
            progress((n + 1) / len(grid))
        return rgb

    def _run(self, y: NDArray[np.float32], q: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            (x_hat,) = self.g_s.run(["x_hat"], {"y_hat": y, "quality": q})
        except Exception as fault:  # onnxruntime has its own, of no common class
            if "allocate memory" in str(fault) or "bad_alloc" in str(fault):
                raise MemoryError from None
            raise
        return x_hat


def _round(rgb: NDArray[Any], area: Area, x_hat: NDArray[np.float32], gray: bool) -> None:
    """Put x_hat [3, h, w] where it belongs, as far as the picture goes, in whole numbers."""
    room = rgb[area]
    top = np.iinfo(rgb.dtype).max
    for start in range(0, room.shape[0], BAND * LATENT_STRIDE):
        band = room[start : start + BAND * LATENT_STRIDE]
        part = x_hat[:, start : start + band.shape[0], : band.shape[1]]
        if gray:
            part = part.mean(0, keepdims=True)
        pixels = part * np.float32(top)
        pixels += np.float32(0.5)
        np.clip(np.floor(pixels, out=pixels), 0, top, out=pixels)
        band[:] = pixels.transpose(1, 2, 0)


class LatentDecoder:
    """A frozen entropy model with its tables: `LatentCoder.decode` without torch.

    Raises:
        ModelError: the tables are not what they should be.
    """

    def __init__(self, frozen: FrozenEntropyModel) -> None:
        self.program, self.entropy = frozen.program, PortableEntropyModel(frozen)
        self.hyper, self.tables_y = HyperCoder(frozen), tables(frozen, "y")

    def decode(
        self,
        latents: Latents,
        width: int,
        height: int,
        quality: int,
        progress: Progress = lambda done: None,
    ) -> NDArray[np.float32]:
        """y_hat [N, H/16, W/16] for a picture of `width` x `height` pixels, padded.

        Raises:
            BitstreamError: the words or their CRCs are damaged.
        """
        program, entropy = self.program, self.entropy
        decoder, unit = Decoder(latents.words), program.symbol_unit
        z_hat = self.hyper.decode(decoder, latents, width, height, quality)
        crc = symbols_crc(z_hat)
        rows, columns = (side * CELL for side in z_hat.shape[1:])
        features = self._features(z_hat, quality)
        v = np.zeros((program.latents, rows, columns), np.int32)
        # Tiles begin at even rows and columns, and their halo is even: passes repeat every two.
        grid = tiles(rows // 2, columns // 2, TILE * CELL // 2, -(-program.predict_reach // 2))
        turns = count(program.order)
        for k in range(turns):
            indexes, means = np.empty(v.shape, np.uint8), np.empty(v.shape, np.int16)
            for tile in grid:
                seen = (..., *tile.around(2))
                parameters = entropy.predict(k, features[seen].astype(np.float64), v[seen])
                within = (..., *tile.within(2))
                indexes[(..., *tile.of(2))] = parameters[0][within]
                means[(..., *tile.of(2))] = parameters[1][within]
            symbols = decoder.decode(gather(program.order, k, indexes), self.tables_y)
            crc = symbols_crc(symbols, crc)
            known = symbols.astype(np.int32) * unit + gather(program.order, k, means)
            scatter(program.order, k, known, v)
            progress((k + 1) / turns)
        decoder.finish()
        if crc != latents.symbols_crc:
            raise BitstreamError("the decoded symbols have the wrong CRC")
        y_hat = np.empty(v.shape, np.float32)
        for tile in grid:
            area = (..., *tile.of(2))
            y_hat[area] = (v[area] / unit).astype(np.float32) * entropy.steps(features[area])
        return y_hat

    def _features(self, z_hat: NDArray[np.int32], quality: int) -> NDArray[np.int16]:
        """The features of all passes, [3 N, H, W]."""
        rows, columns = z_hat.shape[1:]
        shape = (3 * self.program.latents, rows * CELL, columns * CELL)
        features = np.empty(shape, np.int16)
        for tile in tiles(rows, columns, TILE, -(-self.program.features_reach // CELL)):
            part = self.entropy.features(z_hat[(..., *tile.around(1))], quality)
            features[(..., *tile.of(CELL))] = part[(..., *tile.within(CELL))]
        return features


def load_synthesis(
    manifest: Manifest, name: str, threads: int | None = None
) -> "tuple[InferenceSession, int | None]":
    """g_s of a model in onnxruntime on the CPU, and its halo, see `Manifest.synthesis`; ModelError for what
    onnxruntime does not take or the manifest describes wrongly."""
    import onnxruntime

    graph, halo = manifest.synthesis(name)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or _cores()
    options.log_severity_level = 4  # what is wrong is raised
    # Threads that spin take the cores from others; the layouts that the last level tries take a third
    # more memory and no less time.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    try:
        g_s = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as fault:
        what = " ".join(str(fault).split())[:160]
        raise ModelError(f"onnxruntime does not take the graph of {name!r}: {what}") from None
    if g_s.get_modelmeta().custom_metadata_map.get("halo") != str(halo):
        raise ModelError(f"the graph of {name!r} has another halo than the manifest says")
    return g_s, halo


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _blas(threads: int | None) -> AbstractContextManager[Any]:
    """A block in which numpy's matrix products use so many threads; None: as they are set."""
    if threads is None:
        return nullcontext()
    from threadpoolctl import threadpool_limits

    return threadpool_limits(threads, user_api="blas")

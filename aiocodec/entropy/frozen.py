"""A frozen entropy model: the integers, and the program over them, that files depend on.

A frozen model describes itself. Its weight file holds named integer tensors; the one called
`program` is JSON text that says what to compute with the others: the networks, the units, the order
of the passes, the tile sizes of the transforms. The fingerprint in a file's header covers them all.
docs/format.md is the specification; reading needs neither torch nor a range coder.

The networks are lists of five kinds of layers, which mean the same in both arithmetics:

    layer                     float                       integer
    (activation)              -128 .. 128                 -32767 .. 32767, units of 2^-8, saturating
    ["conv1x1", name]         conv + bias                 int16 weights, a power of two per output
    ["dw3x3", name]             the same, depth-wise      channel: floor(sum * 2^-e + 1/2)
    ["leaky"]                 max(x, x / 8)               max(x, floor(x / 8 + 1/2))
    ["residual", [layer...]]  x + f(x)                    the same, saturating
    ["shuffle", 2]            pixel shuffle               the same
"""

import hashlib
import json
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aiocodec.config import HALO, LATENT_STRIDE, STRIDE, TILE, EntropyConfig, Order
from aiocodec.entropy import passes
from aiocodec.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

    from aiocodec.entropy.model import EntropyModel

VERSION = 1  # of programs
FRACTION = 8  # fractional bits of an activation
ACTIVATION_MAX = WEIGHT_MAX = 32767
MAX_PROGRAM = 1 << 16  # bytes of its text
EXACT = 2**52  # integers below it, and their halves, are exact in float64

Layers = tuple[tuple[Any, ...], ...]  # of a network: ("conv1x1", name), ("leaky",), ... as above
Tables = tuple[
    NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]
]  # frequencies, lengths, lows


@dataclass(frozen=True)
class Program:
    """What the tensor `program` says; `check` holds it to the ranges given here."""

    latents: int  # N, channels of y, 1..4096
    hyper: int  # Z, channels of z, 1..4096
    order: Order  # the pass that codes an element, [group][row % 2][column % 2]
    networks: dict[str, Layers]  # h_s, fusion, adaptor_1 .. adaptor_(K - 1), body, head
    latent_stride: int = LATENT_STRIDE  # pixels per element of y: 16 is the only one
    stride: int = STRIDE  # pixels per element of z: 64 is the only one
    tile: int = TILE  # elements of y per side that a transform sees at once, 8..256
    halo: int = HALO  # elements of y around a tile that it sees besides, 0..32
    fraction: int = FRACTION  # an activation is in units of 2^-fraction, 4..12
    activation_max: int = ACTIVATION_MAX  # where activations saturate: 32767 is the only one
    mean_unit: int = 2  # symbols per unit of activation, a power of two, 1..16
    step_bits: int = 4  # |log2| of the largest and the smallest step, 0..8
    scales: int = 64  # tables for y, 1..256
    scale_zero: int = 28  # the table of activation 0, 0..scales - 1
    index_unit: int = 8  # tables per unit of activation, a power of two, 1..16
    z_max: int = 127  # |z|, 1..activation_max * 2^-fraction
    quality_levels: int = 1  # qualities that z is coded by, 1..101; evenly spread over 0..100
    version: int = VERSION

    @property
    def symbol_unit(self) -> int:
        """One symbol, in the units of means and of v_hat."""
        return 2**self.fraction // self.mean_unit

    def level(self, quality: int) -> int:
        """The level of a quality 0..100: the nearest one, the upper of two."""
        return (2 * quality * (self.quality_levels - 1) + 100) // 200

    def convolutions(self) -> Iterator[str]:
        """The names of all convolutions, in the order of the networks."""

        def names(layers: Layers) -> Iterator[str]:
            for layer in layers:
                if layer[0] == "residual":
                    yield from names(layer[1])
                elif layer[0] in ("conv1x1", "dw3x3"):
                    yield layer[1]

        for layers in self.networks.values():
            yield from names(layers)

    @property
    def features_reach(self) -> int:
        """How far the features of an element of y see, in elements of y per side."""
        at_z = _reach(self.networks["h_s"], self.stride // self.latent_stride)
        return at_z + _reach(self.networks["fusion"], 1)

    @property
    def predict_reach(self) -> int:
        """How far a pass after the first sees, in elements of y per side."""
        shared = sum(_reach(self.networks.get(name, ()), 1) for name in ("body", "head"))
        adaptors = (name for name in self.networks if name.startswith("adaptor_"))
        return shared + max((_reach(self.networks[name], 1) for name in adaptors), default=0)

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, text: bytes) -> "Program":
        """The inverse of `to_json`; ModelError for anything else."""
        try:
            entries = json.loads(text.decode("utf-8"))
            if entries["version"] != VERSION:
                version = reprlib.repr(entries["version"])
                raise ModelError(f"the weights need version {version} of programs")
            names = {field.name for field in fields(cls)}
            if set(entries) != names:
                odd = reprlib.repr(set(entries) ^ names)
                raise ModelError(f"the program of the weights lacks or adds {odd}")
            numbers = set(entries) - {"order", "networks"}
            if any(type(entries[name]) is not int for name in numbers):
                raise ModelError("the program of the weights has a number that is none")
            networks = {name: _layers(layers) for name, layers in entries["networks"].items()}
            order = _order(entries["order"])
            return cls(**{**entries, "order": order, "networks": networks})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as fault:
            raise ModelError(f"the program of the weights is malformed: {fault}") from None

    def check(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """ModelError unless every number is in its range and the networks fit together and fit
        `tensors`, so that nothing is larger than the weights themselves say, and all of it is exact."""
        ranges = {
            "latents": (1, 4096),
            "hyper": (1, 4096),
            "latent_stride": (LATENT_STRIDE, LATENT_STRIDE),
            "stride": (STRIDE, STRIDE),
            "tile": (8, 256),
            "halo": (0, 32),
            "fraction": (4, 12),
            "activation_max": (ACTIVATION_MAX, ACTIVATION_MAX),
            "mean_unit": (1, 16),
            "step_bits": (0, 8),
            "scales": (1, 256),
            "scale_zero": (0, self.scales - 1),
            "index_unit": (1, 16),
            "z_max": (1, ACTIVATION_MAX >> max(0, self.fraction)),
            "quality_levels": (1, 101),
        }
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise ModelError(f"the program of the weights has an impossible {name}")
        if any(unit & (unit - 1) for unit in (self.mean_unit, self.index_unit)):
            raise ModelError("the program of the weights has a unit that is no power of two")
        passes.check(self.order, self.latents)
        n, count = self.latents, passes.count(self.order)
        names = list(self.convolutions())
        if len(set(names)) < len(names):  # each is held in memory as often as it is named
            raise ModelError("the program of the weights names a convolution twice")
        adaptors = [f"adaptor_{k}" for k in range(1, count)]
        expected = ["h_s", "fusion", *adaptors, *(["body", "head"] if count > 1 else [])]
        if list(self.networks) != expected:
            raise ModelError(f"the program of the weights must have the networks {expected}")
        width, scale = self._outputs("h_s", self.hyper, tensors)
        if scale != STRIDE // LATENT_STRIDE:
            raise ModelError("h_s does not take z to the resolution of y")
        shapes = [self._outputs("fusion", width, tensors) == (3 * n, 1)]
        for name in adaptors:
            body_width, adapted = self._outputs(name, 4 * n, tensors)
            inner, refined = self._outputs("body", body_width, tensors)
            shapes.append((adapted, refined) == (1, 1))
            shapes.append(self._outputs("head", inner, tensors) == (2 * n, 1))
        if not all(shapes):
            raise ModelError("the networks of the weights do not fit together")
        counts = {"y": self.scales, "z": self.quality_levels * self.hyper}
        if any(
            len(tensors[f"tables_{which}.lengths"]) != number for which, number in counts.items()
        ):
            raise ModelError("the weights do not have as many tables as their program says")
        embedding = tensors.get("embedding")
        if embedding is not None and (
            embedding.shape != (self.quality_levels, self.hyper) or embedding.dtype != np.int16
        ):
            raise ModelError("the embedding of the quality has another shape than the program says")

    def _outputs(
        self, network: str, inputs: int, tensors: Mapping[str, NDArray[Any]]
    ) -> tuple[int, int]:
        """Channels and resolution, relative to the input, of what a network gives for `inputs`
        channels; ModelError where its layers do not fit."""

        def run(layers: Layers, channels: int) -> tuple[int, int]:
            scale = 1
            for kind, *rest in layers:
                if kind in ("conv1x1", "dw3x3"):
                    channels = _check_convolution(kind, rest[0], channels, tensors)
                elif kind == "residual":
                    if run(rest[0], channels) != (channels, 1):
                        raise ModelError(f"a residual branch of {network} changes the shape")
                elif kind == "shuffle":
                    if channels % 4 or rest[0] != 2 or scale >= 4:
                        raise ModelError(f"{network} shuffles in a way that is not known")
                    channels, scale = channels // 4, scale * 2
            return channels, scale

        return run(self.networks[network], inputs)


def _reach(layers: Layers, at: int) -> int:
    """How far a network sees, in elements of y, if its input has a position for `at` of them."""
    seen = 0
    for kind, *rest in layers:
        if kind == "residual":
            seen += _reach(rest[0], at)
        elif kind == "dw3x3":
            seen += at
        elif kind == "shuffle":
            at //= rest[0]
    return seen


def _order(entries: Any) -> Order:
    """JSON's lists as an Order, as far as types go; ModelError for anything else."""
    groups: Any = tuple(tuple(map(tuple, group)) for group in entries)
    rows = [row for group in groups for row in group]
    if any(len(group) != 2 for group in groups) or any(len(row) != 2 for row in rows):
        raise ModelError("the order of passes is not one for 2x2 cells")
    if any(type(number) is not int or not 0 <= number < 16 for row in rows for number in row):
        raise ModelError("the order of passes leaves a pass out, or is none of 16 passes at most")
    return groups


def _layers(entries: Any, depth: int = 0) -> Layers:
    """JSON's lists as Layers; ModelError for a layer that is not known or nests too deep."""
    known = {"conv1x1": str, "dw3x3": str, "leaky": None, "residual": list, "shuffle": int}
    if type(entries) is not list:
        raise ModelError("a network of the weights is no list of layers")
    if depth > 4 or len(entries) > 100:
        raise ModelError("a network of the weights is too deep")
    layers: list[tuple[Any, ...]] = []
    for kind, *rest in entries:
        if kind not in known:
            raise ModelError(
                f"the weights need a layer {reprlib.repr(kind)}, which this version does not know"
            )
        if [type(value) for value in rest] != ([known[kind]] if known[kind] else []):
            raise ModelError(f"a layer {reprlib.repr(kind)} of the weights is malformed")
        layers.append((kind, *(_layers(v, depth + 1) if kind == "residual" else v for v in rest)))
    return tuple(layers)


def _check_convolution(
    kind: str, name: str, channels: int, tensors: Mapping[str, NDArray[Any]]
) -> int:
    """The output channels of a convolution; ModelError unless its tensors fit `channels` inputs and
    every sum is exact."""
    try:
        weight, bias, exponent = (tensors[f"{name}.{p}"] for p in ("weight", "bias", "exponent"))
    except KeyError:
        raise ModelError(
            f"the weights lack the convolution {reprlib.repr(name)} of their program"
        ) from None
    outputs = weight.shape[0] if weight.ndim == 4 else 0
    shape = (outputs, channels, 1, 1) if kind == "conv1x1" else (channels, 1, 3, 3)
    dtypes = [array.dtype.name for array in (weight, bias, exponent)]
    if (
        outputs < 1
        or weight.shape != shape
        or bias.shape != (outputs,)
        or exponent.shape != (outputs,)
        or dtypes != ["int16", "int64", "int16"]
    ):
        raise ModelError(
            f"the convolution {reprlib.repr(name)} of the weights has another shape or type"
        )
    # Every partial sum, in any order, is then an integer below 2^52, and so is the sum after the half
    # is added: float64 holds these exactly. Python's integers cannot overflow here.
    largest = np.abs(weight.astype(np.int64)).reshape(outputs, -1).sum(1)
    bounds = (int(a) * ACTIVATION_MAX + abs(int(b)) for a, b in zip(largest, bias, strict=True))
    if max(bounds) >= EXACT or not (exponent.min() >= 0 and exponent.max() <= 48):
        raise ModelError(
            f"the convolution {reprlib.repr(name)} of the weights is too large for exact arithmetic"
        )
    return outputs


@dataclass(frozen=True)
class FrozenEntropyModel:
    """An entropy model as integers: what files depend on, what is shipped, what is fingerprinted.

    tensors   `program`; of every convolution `<name>.weight` int16 [O, I, 1, 1] or [O, 1, 3, 3],
              `.bias` int64 [O] in units of 2^-(fraction + exponent), `.exponent` int16 [O];
              `embedding` int16 [levels, Z], added to z in units of 2^-fraction (may be absent);
              the frequency tables `tables_y.*` (by scale index) and `tables_z.*` (by level, then
              channel), int32: `frequencies` (every table one behind the other), `lengths` and `lows`
              (see rangecoder.Tables)
    """

    program: Program
    tensors: Mapping[str, NDArray[Any]]

    @classmethod
    def read(cls, tensors: Mapping[str, NDArray[Any]]) -> "FrozenEntropyModel":
        """From the tensors of a weight file; ModelError where they are no frozen entropy model."""
        for which in ("y", "z"):
            for part in ("frequencies", "lengths", "lows"):
                table = tensors.get(f"tables_{which}.{part}")
                if table is None or table.dtype != np.int32 or table.ndim != 1:
                    raise ModelError(f"the weights have no tables of {part} for {which}")
        text = tensors.get("program")
        if text is None:
            raise ModelError("the weights have no program")
        if text.dtype != np.uint8 or text.ndim != 1 or text.size > MAX_PROGRAM:
            raise ModelError("the program of the weights is malformed: it is no text")
        program = Program.from_json(text.tobytes())
        program.check(tensors)
        return cls(program, tensors)

    @property
    def fingerprint(self) -> bytes:
        """8 bytes: SHA-256 over the sorted tensors, their names, types and shapes."""
        digest = hashlib.sha256()
        for name in sorted(self.tensors):
            array = np.ascontiguousarray(self.tensors[name])
            array = array.astype(array.dtype.newbyteorder("<"))
            digest.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
            digest.update(array.tobytes())
        return digest.digest()[:8]

    def tables(self, which: str) -> Tables:
        """frequencies, lengths, lows of the tables for "y" or "z"."""
        a, b, c = (self.tensors[f"tables_{which}.{p}"] for p in ("frequencies", "lengths", "lows"))
        return a, b, c

    def embedding(self, quality: int) -> NDArray[np.int64]:
        """What is added to z_hat at a quality, [Z], in units of an activation."""
        table = self.tensors.get("embedding")
        if table is None:
            return np.zeros(self.program.hyper, np.int64)
        return table[self.program.level(quality)].astype(np.int64)


# --------------------------------------------------------------------------- from and to floats


def freeze(model: "EntropyModel", tables_y: Tables, tables_z: Tables) -> FrozenEntropyModel:
    """Turn a trained entropy model into integers; the tables are made by the caller, from
    `scale_values`, `EntropyModel.tail_shape` and `FactorisedPrior.pmf`."""
    import torch

    from aiocodec.entropy.model import (
        INDEX_UNIT,
        MEAN_UNIT,
        SCALE_ZERO,
        SCALES,
        STEP_BITS,
        Z_MAX,
        quality_of_level,
    )

    config = model.config
    tensors: dict[str, NDArray[Any]] = {}
    for name, conv in _convolutions(model):
        tensors |= {f"{name}.{part}": array for part, array in quantise(conv).items()}
    if model.embedding is not None:
        levels = quality_of_level(torch.arange(config.quality_levels).float(), config)
        added = model.embedding(levels.to(model.tail.device)).detach()[:, :, 0, 0].cpu().double()
        units = (added * 2**FRACTION).round().clamp(-ACTIVATION_MAX, ACTIVATION_MAX)
        tensors["embedding"] = units.numpy().astype(np.int16)
    for which, tables in (("y", tables_y), ("z", tables_z)):
        for part, array in zip(("frequencies", "lengths", "lows"), tables, strict=True):
            tensors[f"tables_{which}.{part}"] = array.astype(np.int32)
    program = Program(
        config.latents,
        config.hyper,
        config.order,
        {name: _program_of(network, name) for name, network in _networks(model)},
        mean_unit=MEAN_UNIT,
        step_bits=STEP_BITS,
        scales=SCALES,
        scale_zero=SCALE_ZERO,
        index_unit=INDEX_UNIT,
        z_max=Z_MAX,
        quality_levels=config.quality_levels,
    )
    tensors["program"] = np.frombuffer(program.to_json(), np.uint8)
    return FrozenEntropyModel.read(tensors)


def thaw(frozen: FrozenEntropyModel, config: EntropyConfig) -> "EntropyModel":
    """The trainable model with these weights; its densities, and what it says of the quality, are
    fresh ones, which the caller loads from where they were kept. ModelError where `config` is that of
    another model."""
    import torch

    from aiocodec.entropy.model import EntropyModel

    with torch.device("meta"):  # which costs nothing, however large `config` says it is
        claimed = [tuple(conv.weight.shape) for _, conv in _convolutions(EntropyModel(config))]
    program, names = frozen.program, list(frozen.program.convolutions())
    if (
        program.order != config.order
        or program.quality_levels != config.quality_levels
        or claimed != [frozen.tensors[f"{name}.weight"].shape for name in names]
    ):
        raise ModelError("the entropy model is of another configuration than its transforms say")
    model = EntropyModel(config)
    for name, (_, conv) in zip(names, _convolutions(model), strict=True):
        dequantise({p: frozen.tensors[f"{name}.{p}"] for p in ("weight", "bias", "exponent")}, conv)
    return model


def quantise(conv: "nn.Conv2d") -> dict[str, NDArray[Any]]:
    """The integers for a trained convolution: weights use all of int16 in every output channel."""
    assert conv.bias is not None
    weight, bias = (p.detach().cpu().double().numpy() for p in (conv.weight, conv.bias))
    largest = np.abs(weight).reshape(len(weight), -1).max(1).clip(min=2.0**-10)
    exponent = np.floor(np.log2(WEIGHT_MAX / largest))
    scale = np.exp2(exponent)
    return {
        "weight": np.rint(weight * scale[:, None, None, None]).astype(np.int16),
        "bias": np.rint(bias * scale * 2**FRACTION).astype(np.int64),
        "exponent": exponent.astype(np.int16),
    }


def dequantise(arrays: Mapping[str, NDArray[Any]], conv: "nn.Conv2d") -> None:
    """The inverse of `quantise`, up to its rounding: sets the weights of `conv`."""
    import torch

    scale = np.exp2(-arrays["exponent"].astype(np.float64))
    assert conv.bias is not None
    with torch.no_grad():
        conv.weight.copy_(torch.from_numpy(arrays["weight"] * scale[:, None, None, None]))
        conv.bias.copy_(torch.from_numpy(arrays["bias"] * scale / 2**FRACTION))


def _networks(model: "EntropyModel") -> "list[tuple[str, nn.Module]]":
    adaptors = [(f"adaptor_{k}", layer) for k, layer in enumerate(model.adaptors, start=1)]
    refining = [("body", model.body), ("head", model.head)] if adaptors else []
    return [("h_s", model.h_s), ("fusion", model.fusion), *adaptors, *refining]


def _convolutions(model: "EntropyModel") -> "list[tuple[str, nn.Conv2d]]":
    from torch import nn

    return [
        (f"{network}.{name}" if name else network, layer)
        for network, module in _networks(model)
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Conv2d)
    ]


def _program_of(layer: "nn.Module", name: str) -> Layers:
    """A network as a program; TypeError for a layer that has no integer counterpart."""
    from torch import nn

    from aiocodec.layers import LeakyReLU, Residual

    match layer:
        case nn.Conv2d(kernel_size=(1, 1), groups=1):
            return (("conv1x1", name),)
        case nn.Conv2d(kernel_size=(3, 3)) if layer.groups == layer.in_channels:
            return (("dw3x3", name),)
        case LeakyReLU():
            return (("leaky",),)
        case Residual():
            return (("residual", _program_of(layer.body, f"{name}.body")),)
        case nn.PixelShuffle():
            return (("shuffle", layer.upscale_factor),)
        case nn.Sequential():
            return tuple(
                part
                for key, child in layer.named_children()
                for part in _program_of(child, f"{name}.{key}")
            )
        case _:
            raise TypeError(f"{type(layer).__name__} has no integer counterpart")

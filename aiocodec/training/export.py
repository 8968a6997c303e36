"""g_s as an ONNX graph, which other runtimes than PyTorch execute.

    y_hat    float32 [1, N, h, w], h and w at least 2
    quality  float32 [1], 0..100
    x_hat    float32 [1, 3, 16 h, 16 w], not clamped

The graph is written operator by operator from the modules, in standard operators of opset 20 (which
onnxruntime 1.17 and later know). Weights that float16 holds exactly are stored so.
"""

from collections.abc import Sequence
from functools import singledispatchmethod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from aiocodec import __version__
from aiocodec.config import LATENT_STRIDE
from aiocodec.errors import RuntimeMissing
from aiocodec.layers import (
    BLOCK,
    GROUPS,
    ChannelGroupAttention,
    Gain,
    Gate,
    GatedFeedForward,
    LayerNorm,
    LinearSynthesis,
    ResidualBranches,
    SpatiallyDecoupledAttention,
    lapping_filters,
)
from aiocodec.transforms import Synthesis

OPSET, IR_VERSION = 20, 9


def require_onnx() -> None:
    """RuntimeMissing where the package onnx, which writes graphs, is not installed."""
    try:
        import onnx  # noqa: F401
    except ImportError as fault:
        raise RuntimeMissing(f"an export needs the package onnx: {fault}") from None


def synthesis_onnx(g_s: Synthesis) -> bytes:
    """The graph of a g_s in evaluation mode.

    Raises RuntimeMissing without the package onnx, TypeError for a layer that is not known.
    """
    require_onnx()
    import onnx
    from onnx import helper

    graph = _Graph()
    graph.synthesis(g_s)
    graph.nodes[-1].output[0] = "x_hat"
    float32 = onnx.TensorProto.FLOAT
    n = g_s.linear.in_channels
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "g_s",
            [
                helper.make_tensor_value_info("y_hat", float32, [1, n, "h", "w"]),
                helper.make_tensor_value_info("quality", float32, [1]),
            ],
            [helper.make_tensor_value_info("x_hat", float32, [1, 3, "16*h", "16*w"])],
            graph.weights,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="aiocodec",
        producer_version=__version__,
    )
    helper.set_model_props(model, {"halo": str(synthesis_halo(g_s))})
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def synthesis_halo(g_s: Synthesis) -> int | None:
    """How many elements of y a tile must see around it; None where g_s has attention, which sees the
    whole picture."""
    pieces = g_s.pieces(torch.zeros(1))
    if any(piece.attention is not None for piece in pieces):
        return None
    deep = sum(piece.reach for piece in pieces)
    return -(-max(deep, g_s.linear_reach) // LATENT_STRIDE)


class _Graph:
    """Nodes and weights so far. Methods append what a layer computes and return the name of it."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    # ----------------------------------------------------------------- nodes

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """A node; the name of its output, or the names of several."""
        from onnx import helper

        names = [f"{kind}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, **attributes))
        return names[0] if outputs == 1 else names

    def weight(self, values: Tensor) -> str:
        """A weight in float32, stored in float16 where that is the same."""
        from onnx import numpy_helper

        array: NDArray[Any] = values.detach().cpu().float().numpy()
        half = array.astype(np.float16)
        exact = array.size > 1 and np.array_equal(half.astype(np.float32), array)
        name = f"weight_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(half if exact else array, name))
        return str(self.op("Cast", name, to=1)) if exact else name

    def integers(self, values: Sequence[int]) -> str:
        """A list of integers."""
        from onnx import numpy_helper

        name = f"integers_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, np.int64), name))
        return name

    def number(self, value: float) -> str:
        """A scalar."""
        return self.weight(torch.tensor(value))

    # ----------------------------------------------------------------- layers

    @singledispatchmethod
    def apply(self, layer: nn.Module, x: str) -> str:
        """What a layer makes of x."""
        raise TypeError(f"{type(layer).__name__} has no counterpart in ONNX")

    @apply.register
    def _(self, layer: nn.Sequential, x: str) -> str:
        for part in layer:
            x = self.apply(part, x)
        return x

    @apply.register
    def _(self, layer: ResidualBranches, x: str) -> str:
        for branch in layer.branches:
            x = self.op("Add", x, self.apply(branch, x))
        return x

    @apply.register
    def _(self, layer: nn.Conv2d, x: str) -> str:
        pads = [(k - 1) // 2 for k in layer.kernel_size] * 2
        parameters = [p for p in (layer.weight, layer.bias) if p is not None]
        return str(self.op("Conv", x, *map(self.weight, parameters), pads=pads, group=layer.groups))

    @apply.register
    def _(self, layer: LayerNorm, x: str) -> str:
        x = self.op("Transpose", x, perm=[0, 2, 3, 1])
        x = self.op("LayerNormalization", x, self.weight(layer.weight), axis=-1, epsilon=1e-5)
        return str(self.op("Transpose", x, perm=[0, 3, 1, 2]))

    @apply.register
    def _(self, layer: nn.LeakyReLU, x: str) -> str:
        return str(self.op("LeakyRelu", x, alpha=layer.negative_slope))

    @apply.register
    def _(self, layer: nn.GELU, x: str) -> str:
        return str(self.op("Gelu", x))

    @apply.register
    def _(self, layer: nn.PixelShuffle, x: str) -> str:
        return self.shuffle(x, layer.upscale_factor)

    @apply.register
    def _(self, layer: Gate, x: str) -> str:
        a, b = self.op("Split", x, outputs=2, axis=1, num_outputs=2)
        return str(self.op("Mul", a, self.op("Relu", b)))

    @apply.register
    def _(self, layer: GatedFeedForward, x: str) -> str:
        a, b = self.op("Split", self.apply(layer.expand, x), outputs=2, axis=1, num_outputs=2)
        return self.apply(layer.project, self.op("Mul", self.op("Gelu", a), b))

    @apply.register
    def _(self, layer: SpatiallyDecoupledAttention, x: str) -> str:
        attention = self.apply(layer.attend, x)
        return self.apply(layer.project, self.op("Mul", attention, self.apply(layer.value, x)))

    @apply.register
    def _(self, layer: ChannelGroupAttention, x: str) -> str:
        qkv = self.apply(layer.qkv, x)
        groups = self.integers([1, GROUPS, layer.project.in_channels // GROUPS, -1])
        q, k, v = (
            self.op("Reshape", part, groups)
            for part in self.op("Split", qkv, outputs=3, axis=1, num_outputs=3)
        )
        products = self.op("MatMul", q, self.op("Transpose", k, perm=[0, 1, 3, 2]))
        axis, least = self.integers([-1]), self.number(1e-12)
        q_norm, k_norm = (
            self.op("Max", self.op("ReduceL2", part, axis, keepdims=1), least) for part in (q, k)
        )
        norms = self.op("MatMul", q_norm, self.op("Transpose", k_norm, perm=[0, 1, 3, 2]))
        cosines = self.op("Div", products, norms)
        warmed = self.op("Mul", cosines, self.weight(layer.temperature))
        attended = self.op("MatMul", self.op("Softmax", warmed, axis=-1), v)
        return self.apply(layer.project, self.op("Reshape", attended, self.op("Shape", x)))

    def gain(self, layer: Gain, x: str) -> str:
        """A gain at `quality`."""
        share = self.op("Div", "quality", self.number(100.0))
        low, high = self.weight(layer.log_min), self.weight(layer.log_max)
        way = self.op("Mul", self.op("Sub", high, low), share)
        factors = self.op("Exp", self.op("Add", low, way))
        shaped = self.op("Reshape", factors, self.integers([1, -1, 1, 1]))
        return str(self.op("Mul", x, shaped))

    def shuffle(self, x: str, factor: int) -> str:
        """A pixel shuffle."""
        return str(self.op("DepthToSpace", x, blocksize=factor, mode="CRD")) if factor > 1 else x

    # ----------------------------------------------------------------- g_s

    def synthesis(self, g_s: Synthesis) -> None:
        """y_hat and quality to x_hat, the output of the last node; the deep path in the order of `Synthesis.pieces`."""
        x = self.apply(g_s.head, self.gain(g_s.head_gain, "y_hat"))
        for i in reversed(range(len(g_s.stages))):
            if i == g_s.gain_at:
                x = self.gain(g_s.gain, x)
            x = self.apply(g_s.stages[i], x)
            if i > 0:
                x = self.apply(g_s.ups[i - 1], x)
        deep = self.shuffle(self.apply(g_s.tail, x), g_s.stride)
        linear = self.linear(g_s.linear, self.gain(g_s.linear_gain, "y_hat"))
        self.op("Add", self.op("Add", linear, self.number(0.5)), deep)

    def linear(self, layer: LinearSynthesis, y_hat: str) -> str:
        """The linear path."""
        convolved = self.op("Conv", y_hat, self.weight(layer.weight))
        x = self.shuffle(convolved, BLOCK)
        if layer.cores is None:
            return x
        rows, columns = lapping_filters(layer.cores)
        x = self.op("Transpose", self.lapped(x, columns), perm=[0, 1, 3, 2])
        return str(self.op("Transpose", self.lapped(x, rows), perm=[0, 1, 3, 2]))

    def lapped(self, x: str, matrix: Tensor) -> str:
        """The 16 samples around every edge between blocks of a row times the transposed matrix."""
        axis, half = self.integers([3]), BLOCK // 2
        cut = [self.integers([at]) for at in (0, half, -half, np.iinfo(np.int64).max)]
        first, inner, last = (
            self.op("Slice", x, start, stop, axis)
            for start, stop in zip(cut, cut[1:], strict=False)
        )
        blocks = self.op("Reshape", inner, self.integers([0, 0, 0, -1, BLOCK]))
        filtered = self.op("MatMul", blocks, self.weight(matrix.T))
        flat = self.op("Reshape", filtered, self.integers([0, 0, 0, -1]))
        return str(self.op("Concat", first, flat, last, axis=3))

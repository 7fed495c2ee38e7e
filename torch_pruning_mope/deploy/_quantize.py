"""Smaller numbers in ONNX encoders by onnxruntime's own tools: static int8, or half precision.

int8: every product and convolution with a constant and the token table are quantised, in QDQ form, weights signed and per
channel, activations unsigned. Of each, the error in its output on calibration inputs is measured, and those over the bound stay
in float. Norms, softmax and products of two activations stay in float.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..errors import ExportError
from ._programs import quiet

Quantization = Literal["int8", "fp16"]
BOUND = 0.05
"""Largest root mean square error of a layer's output, relative to the output, that int8 may cause by itself."""
CALIBRATION = 256
_BATCH = 32
_KINDS = ("MatMul", "Gemm", "Conv", "Gather")


@dataclass
class Quantized:
    """Layers of an encoder, by name, with the error that int8 causes in each."""

    int8: dict[str, float] = field(default_factory=dict)
    kept_in_float: dict[str, float] = field(default_factory=dict)


def halve_onnx(path: Path) -> None:
    """Replaces a float model by one in half precision, which takes and returns float32."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with quiet():
        halved = convert_float_to_float16(onnx.load(path), keep_io_types=True)
        external = path.with_name(f"{path.name}.data")
        is_large = external.exists()
        external.unlink(missing_ok=True)
        onnx.save(halved, path, save_as_external_data=is_large, location=external.name)


def quantize_onnx(path: Path, inputs: Tensor, bound: float = BOUND) -> Quantized:
    """Replaces a float model by an int8 one, calibrated on ``inputs``; layers whose error is over the bound stay in float."""
    try:
        import onnx
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise ExportError(
            f"quantize='int8' needs onnx and onnxruntime; found {error.name} missing. pip install torch-pruning-mope[export]"
        ) from error
    prepared = path.with_suffix(".prepared.onnx")
    batches = [batch.numpy() for batch in inputs[:CALIBRATION].split(_BATCH)]
    try:
        with quiet():
            external = path.with_name(f"{path.name}.data")
            is_large = external.exists()
            quant_pre_process(
                path,
                prepared,
                skip_symbolic_shape=True,
                save_as_external_data=is_large,
                all_tensors_to_one_file=True,
                external_data_location=f"{prepared.name}.data",
            )
            external.unlink(missing_ok=True)
            graph = onnx.load(prepared).graph
            layers = _layers(graph)
            quantize = partial(_quantize, prepared, path, batches, graph=graph, is_large=is_large)
            quantize([layer.name for layer in layers])
            errors = _errors(prepared, path, graph, batches[0])
            rest = [name for name, error in errors.items() if error <= bound]
            if len(rest) < len(layers):
                external.unlink(missing_ok=True)
                quantize(rest)
    finally:
        for left in path.parent.glob(f"{prepared.name}*"):
            left.unlink()
    found = Quantized()
    for name, lost in errors.items():
        (found.int8 if name in rest else found.kept_in_float)[name] = lost
    return found


def _layers(graph: Any) -> list[Any]:
    """Nodes that multiply with a constant, and tables of floats."""
    constants = {tensor.name for tensor in graph.initializer if tensor.data_type == 1 and len(tensor.dims) >= 2}
    return [node for node in graph.node if node.op_type in _KINDS and node.input[_constant(node)] in constants]


def _constant(node: Any) -> int:
    """Place of a layer's weights among its inputs."""
    return int(node.op_type != "Gather")


def _quantize(
    source: Path, target: Path, batches: Sequence[NDArray[Any]], names: Sequence[str], *, graph: Any, is_large: bool
) -> None:
    """Quantises some layers."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(batches)

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            batch = next(self._left, None)
            return None if batch is None else {"inputs": batch}

    others = [node.name for node in graph.node if node.op_type in _KINDS and node.name not in names]
    before = logging.root.level
    quantize_static(
        source,
        target,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QUInt8,  # kernels of x86 take unsigned activations
        op_types_to_quantize=list(_KINDS),
        nodes_to_exclude=others,
        use_external_data_format=is_large,
        extra_options={"MatMulConstBOnly": True},
    )
    logging.root.setLevel(before)


def _errors(source: Path, quantized: Path, floats: Any, batch: NDArray[Any]) -> dict[str, float]:
    """Error of each layer's output by its own rounding of inputs and weights, on float inputs."""
    import onnx
    from onnx import numpy_helper

    layers = _layers(floats)
    wanted = sorted({layer.input[0] for layer in layers if _constant(layer)})
    seen = dict(zip(wanted, _values(source, wanted, batch), strict=True))
    weights = {tensor.name: tensor for tensor in floats.initializer}
    graph = onnx.load(quantized).graph
    own = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes = {node.name: node for node in graph.node}
    makers = {name: node for node in graph.node for name in node.output}
    constants = [nodes[layer.name].input[_constant(layer)] for layer in layers]
    found = {}
    for layer, rounded in zip(layers, _values(quantized, constants, batch), strict=True):
        weight = numpy_helper.to_array(weights[layer.input[_constant(layer)]])
        if layer.op_type == "Gather":
            found[layer.name] = _relative(rounded, weight)
            continue
        rounding = makers[makers[nodes[layer.name].input[0]].input[0]]  # what precedes the layer: round, and back
        inputs = seen[layer.input[0]]
        alone = _alone(layer, inputs, weight)
        found[layer.name] = _relative(alone(_rounded(inputs, rounding, own), rounded), alone(inputs, weight))
    return found


def _alone(layer: Any, *like: NDArray[Any]) -> Callable[..., NDArray[Any]]:
    """A layer without its bias, as a function of inputs and weights."""
    import onnx
    import onnxruntime

    names = list(layer.input[:2])
    node = onnx.helper.make_node(layer.op_type, names, ["out"])
    node.attribute.extend(layer.attribute)
    takes = [onnx.helper.make_tensor_value_info(name, 1, value.shape) for name, value in zip(names, like, strict=True)]
    graph = onnx.helper.make_graph([node], "layer", takes, [onnx.helper.make_empty_tensor_value_info("out")])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

    def run(*values: NDArray[Any]) -> NDArray[Any]:
        out: NDArray[Any] = session.run(None, dict(zip(names, values, strict=True)))[0]
        return out

    return run


def _values(path: Path, names: Sequence[str], batch: NDArray[Any]) -> list[NDArray[Any]]:
    """Values inside a model."""
    import onnx
    import onnxruntime

    model = onnx.load(path, load_external_data=False)
    outputs = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in outputs)
    probe = path.with_suffix(".probe.onnx")  # beside the weights, which may be too large for one message
    try:
        onnx.save(model, probe)
        session = onnxruntime.InferenceSession(probe, providers=["CPUExecutionProvider"])
    finally:
        probe.unlink(missing_ok=True)
    values: list[NDArray[Any]] = session.run(list(names), {"inputs": batch})
    return values


def _rounded(inputs: NDArray[Any], node: Any, own: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """Inputs after QuantizeLinear and DequantizeLinear."""
    scale, zero = own[node.input[1]], own[node.input[2]]
    limits = np.iinfo(zero.dtype)
    steps = np.clip(np.rint(inputs / scale) + zero.astype(np.float32), limits.min, limits.max)
    rounded: NDArray[Any] = (steps - zero.astype(np.float32)) * scale
    return rounded


def _relative(found: NDArray[Any], expected: NDArray[Any]) -> float:
    difference = float(np.linalg.norm((found - expected).astype(np.float64)))
    return difference / max(float(np.linalg.norm(expected.astype(np.float64))), 1e-30)

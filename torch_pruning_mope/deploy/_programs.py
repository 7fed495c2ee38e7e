"""Encoders as modules of their own and as programs: ONNX, torch.export and ExecuTorch; random inputs to check them with."""

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import UserError
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ..encoder import EncoderCore, TowerName
from ..errors import ExportError
from ..surgery import reached_leaves
from ._fold import FoldedClip, folded_encoder

Runner = Callable[[Tensor], Tensor]
_CHECKS = {torch.ops.aten._assert_async.msg, torch.ops.aten._assert_scalar.default, torch.ops.aten._is_all_true.default}
_LARGEST = 1_900_000_000
"""Bytes that one ONNX file may hold; more go into a file of their own."""


class Encoder(nn.Module):
    """One encoder of a dual encoder: inputs to embeddings, not normalised."""

    def __init__(self, model: nn.Module, encode: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model
        self._encode = encode

    def forward(self, inputs: Tensor) -> Tensor:
        """Images ``[N, C, R, R]`` or token ids ``[N, T]`` to ``[N, J]``."""
        return self._encode(inputs)


def deployed_encoders(encoder: EncoderCore) -> dict[TowerName, Encoder]:
    """Each encoder of a model in deployment form, on the CPU."""
    encoder.check_has_weights()
    folded = folded_encoder(EncoderCore(copy.deepcopy(encoder.model).eval().cpu()))
    model = folded.model
    text = model.encode_text if isinstance(model, FoldedClip) else lambda tokens: folded.embed("text", tokens)
    return {"image": Encoder(model, lambda images: folded.embed("image", images)), "text": Encoder(model, text)}


def some_inputs(encoder: EncoderCore, tower: TowerName, count: int, seed: int = 0) -> Tensor:
    """Random inputs, on the CPU: noise, or ids of which the highest ends a caption and zeros follow."""
    generator = torch.Generator().manual_seed(seed)
    if tower == "image":
        example = encoder.example_inputs["images"]
        return torch.randn(count, *example.shape[1:], generator=generator).to(example.dtype)
    length = encoder.example_inputs["tokens"].shape[1]
    words = vocabulary(encoder)
    tokens = torch.randint(2, words - 1, (count, length), generator=generator)
    for row, ids in enumerate(tokens):
        end = length - 1 - row * (length // 2) // max(1, count - 1)
        ids[end], ids[end + 1 :] = words - 1, 0
    return tokens


def vocabulary(encoder: EncoderCore) -> int:
    """Number of token ids of the text encoder."""
    inputs = encoder.example_inputs["tokens"]
    used = reached_leaves(encoder.model, lambda: [encoder.embed("text", inputs)])
    tables = [
        module for module in encoder.model.modules() if isinstance(module, nn.Embedding) and module.weight in used
    ]
    return max(table.num_embeddings for table in tables)


class _Recorder(TorchFunctionMode):
    """Records the parameters that functions are called with."""

    def __init__(self) -> None:
        super().__init__()
        self.used: set[nn.Parameter] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = tree_leaves((args, kwargs))
        self.used |= {leaf for leaf in found if isinstance(leaf, nn.Parameter)}
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def weights_of_one(encoder: Encoder, inputs: Tensor) -> Iterator[None]:
    """Inside, weights that the encoder does not use take no space."""
    with torch.no_grad(), _Recorder() as recorder:  # not what the output depends on: what leads nowhere is run as well
        encoder(inputs)
    used = recorder.used
    rest = {parameter: parameter.data for parameter in encoder.parameters() if parameter not in used}
    try:
        for parameter in rest:
            parameter.data = parameter.data.new_empty(0)
        yield
    finally:
        for parameter, data in rest.items():
            parameter.data = data


def write_onnx(encoder: Encoder, inputs: Tensor, path: Path, opset: int | None) -> Runner:
    """Writes an encoder for ONNX runtimes, for any number of inputs."""
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401 (torch's exporter needs it)
    except ImportError as error:
        raise ExportError(
            f"format 'onnx' needs onnx, onnxscript and onnxruntime; found {error.name} missing. "
            "pip install torch-pruning-mope[export]"
        ) from error
    with quiet():
        program: Any = torch.onnx.export(
            _exported(encoder, inputs),
            dynamo=True,
            verbose=False,
            opset_version=opset,
            input_names=["inputs"],
            output_names=["embeddings"],
        )
        size = sum(parameter.numel() * parameter.element_size() for parameter in encoder.parameters())
        program.save(path, external_data=size > _LARGEST)
    return onnx_runner(path)


def onnx_runner(path: Path) -> Runner:
    """Loads an ONNX file into onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda inputs: torch.from_numpy(session.run(None, {name: inputs.numpy()})[0])


def write_program(encoder: Encoder, inputs: Tensor, path: Path, opset: int | None) -> Runner:  # noqa: ARG001
    """Writes an encoder for ``torch.export.load``, for any number of inputs."""
    with quiet():
        torch.export.save(_exported(encoder, inputs), path)
        loaded = torch.export.load(path)
    run: Runner = loaded.module()
    return run


def write_executorch(encoder: Encoder, inputs: Tensor, path: Path, opset: int | None) -> Runner:  # noqa: ARG001
    """Writes an encoder for ExecuTorch, with XNNPACK's kernels for the CPUs of phones, for one input at a time."""
    # Memory is planned beforehand, and would be for as many inputs as the program took at most.
    try:
        with quiet():
            from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS, GeluConfig
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower
            from executorch.runtime import Runtime
    except (ImportError, OSError) as error:  # its libraries are linked to those of one torch
        raise ExportError(
            f"format 'executorch' needs executorch, of a version that goes with torch {torch.__version__}; found: {error}. "
            "pip install torch-pruning-mope[executorch]"
        ) from error
    with quiet():
        program = _exported(encoder, inputs[:1])
        # XNNPACK (ExecuTorch 1.5) computes the exact GELU, also where the model has the approximation by tanh.
        approximate = any(node.kwargs.get("approximate") == "tanh" for node in program.graph.nodes)
        taken = [config for config in ALL_PARTITIONER_CONFIGS if not (approximate and config is GeluConfig)]
        lowered: Any = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner(taken)]).to_executorch()
        path.write_bytes(lowered.buffer)
    method = Runtime.get().load_program(path).load_method("forward")
    return lambda inputs: method.execute([inputs])[0].clone()  # from memory that the next call writes to


def _exported(encoder: Encoder, inputs: Tensor) -> torch.export.ExportedProgram:
    """Returns an encoder as torch.export has it: for any number of inputs, if there are two or more, else for one."""
    dynamic = ({0: torch.export.Dim("batch")},) if len(inputs) > 1 else None
    with torch.no_grad():
        try:
            program = torch.export.export(encoder, (inputs,), dynamic_shapes=dynamic)
        except UserError as error:
            # Code that calls len() on a tensor makes the number of inputs a constant, but where Dynamo reads it.
            try:
                program = torch.export.export(encoder, (inputs,), dynamic_shapes=dynamic, strict=True)
            except Exception:  # noqa: BLE001 (the first says more of the model's code)
                raise error from None
        return without_checks(program)


def without_checks(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Mutates a program: removes assertions on values, for which other runtimes have no operators."""
    graph = program.graph
    for node in reversed(graph.nodes):
        if not node.users and node.target in _CHECKS:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences the libraries' remarks on their own internals."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)

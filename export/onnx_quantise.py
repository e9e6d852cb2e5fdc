"""An ONNX file in 8 or 4 bits, by ONNX Runtime's own tools.

int8          matrix products multiply 8-bit integers; the inputs' scales are found while they run
int8_static   convolutions too; the inputs' scales are those of observations, as in Jacob et al. 2018,
              arXiv 1712.05877
int8_weights  the weights of matrix products alone, in blocks of 32 on one scale
int4_weights  the same in 4 bits

Only products with weights are rounded, not those inside an attention.
"""

import importlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from export.batch import Batch
from export.errors import ExportError
from vla_runtime.module import Module, onnx_file
from vla_runtime.spec import Precision

PRODUCTS = ["MatMul", "Gemm"]
# Weights that share a scale, and what a product with them is computed in.
BLOCK, FLOAT32 = 32, 1
Feed = dict[str, np.ndarray]


def quantise(path: Path, precision: Precision, model: Module, observations: Sequence[Batch]) -> None:
    """Round the files of both methods, in place.

    Args:
        path: the file of `act`
        precision: one of the above
        model: the float32 model, which encodes the observations' commands
        observations: what int8_static is calibrated on; the other ways need none

    Raises:
        ExportError: a file can't be rounded.
    """
    log, level = logging.getLogger(), logging.getLogger().level
    log.setLevel(logging.ERROR)  # it advises to preprocess what torch has optimised already
    try:
        for method in ("act", "encode_command"):
            file = onnx_file(path, method)
            if file.is_file():
                _round(file, precision, lambda method=method: _feeds(method, model, observations))
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(f"{path.name} can't be quantised: {str(error).strip()[:300]}") from error
    finally:
        log.setLevel(level)


def _round(file: Path, precision: Precision, feeds: Callable[[], Iterator[Feed]]) -> None:
    whole = file.with_suffix(".float32")
    file.rename(whole)
    try:
        if precision in ("int8_weights", "int4_weights"):
            _round_weights(whole, file, bits=8 if precision == "int8_weights" else 4)
        elif precision == "int8_static":
            _round_statically(whole, file, feeds())
        else:
            tools: Any = importlib.import_module("onnxruntime.quantization")
            weight = tools.QuantType.QInt8
            tools.quantize_dynamic(
                whole, file, per_channel=True, op_types_to_quantize=PRODUCTS, weight_type=weight
            )
    finally:
        whole.unlink()


def _round_statically(whole: Path, file: Path, feeds: Iterator[Feed]) -> None:
    """Round weights to 7 bits, so that sums of two products fit 16 bits on processors without VNNI."""
    tools: Any = importlib.import_module("onnxruntime.quantization")

    class Feeds(tools.CalibrationDataReader):
        def get_next(self) -> Feed | None:
            return next(feeds, None)

    tools.quantize_static(
        whole,
        file,
        Feeds(),
        per_channel=True,
        reduce_range=True,
        activation_type=tools.QuantType.QUInt8,
        weight_type=tools.QuantType.QInt8,
        op_types_to_quantize=["Conv", *PRODUCTS],
        extra_options={"MatMulConstBOnly": True},
    )


def _round_weights(whole: Path, file: Path, bits: int) -> None:
    tools: Any = importlib.import_module("onnxruntime.quantization.matmul_nbits_quantizer")
    models: Any = importlib.import_module("onnxruntime.quantization.onnx_model")
    onnx: Any = importlib.import_module("onnx")
    with tempfile.TemporaryDirectory() as folder:
        model = models.ONNXModel(onnx.load(str(whole)))
        model.replace_gemm_with_matmul()
        products = Path(folder, "products.onnx")
        model.save_model_to_file(str(products))
        rounding = tools.MatMulNBitsQuantizer(
            onnx.load(str(products)), bits=bits, block_size=BLOCK, is_symmetric=True, accuracy_level=FLOAT32
        )
        rounding.process()
        rounding.model.save_model_to_file(str(file))


def _feeds(method: str, model: Module, observations: Sequence[Batch]) -> Iterator[Feed]:
    """Yield what a method is called with, by the names of the file's inputs."""
    for batch in observations:
        calls = batch.calls(model)
        names = batch.layout.inputs if method == "act" else ("ids", "mask")
        yield dict(zip(names, map(_array, calls[method]), strict=True))


def _array(value: Tensor) -> np.ndarray:
    return value.detach().cpu().numpy()

"""The operators that exported models consist of; files with others are not opened.

All compute numbers from numbers. None has a graph of its own, draws random numbers, handles text or reads a file, and
those that can make much of little are bounded by the numbers that they are given.
"""

from collections.abc import Sequence
from math import prod
from pathlib import Path

from unistep.errors import UserError

CONSTANT = "Constant"

ONNX_OPERATORS = frozenset(
    "Abs Add And ArgMax ArgMin Attention AveragePool BatchNormalization Cast CastLike Ceil Clip Concat Constant Conv "
    "ConvTranspose Cos DepthToSpace DequantizeLinear Div DynamicQuantizeLinear Einsum Equal Erf Exp Expand Flatten "
    "Floor Gather Gelu Gemm GlobalAveragePool Greater GreaterOrEqual GroupNormalization Identity "
    "InstanceNormalization LayerNormalization Less LessOrEqual Log LogSoftmax MatMul Max Min Mod Mul Neg Not Or Pad "
    "Pow QuantizeLinear RMSNormalization Reciprocal ReduceMax ReduceMean ReduceMin ReduceSum ReduceSumSquare Relu "
    "Reshape Resize Round Shape Sigmoid Sign Sin Size Slice Softmax SpaceToDepth Split Sqrt Squeeze Sub Sum Swish "
    "Tanh Transpose Unsqueeze Where".split()
)
"""Operators of ONNX."""

OPENVINO_OPERATORS = frozenset(
    "Abs Add AvgPool BatchNormInference Broadcast Ceiling Clamp Concat Const Convert ConvertLike Convolution "
    "GroupConvolution ConvolutionBackpropData GroupConvolutionBackpropData Cos DepthToSpace Divide Equal Erf Exp "
    "FakeConvert FakeQuantize Floor Gather GatherND Gelu Greater GreaterEqual GroupNormalization Interpolate Less "
    "LessEqual Log LogicalAnd LogicalNot LogicalOr MVN MatMul Maximum Minimum Mod Multiply Negative NotEqual Pad "
    "Parameter Power ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Relu ReLU Reshape Result Round "
    "ScaledDotProductAttention Select ShapeOf Sigmoid Sign Sin Slice SoftMax Softmax SpaceToDepth Split Sqrt "
    "SquaredDifference Squeeze StridedSlice Subtract Swish Tanh TopK Transpose Unsqueeze VariadicSplit".split()
)
"""Operators of OpenVINO."""

# Operators with a shape, or factors, among their inputs: the size of the result is theirs.
_GROW = {"Expand", "Pad", "Reshape", "Resize", "Broadcast", "Interpolate", "Slice"}
_MOST = 1 << 28
_MOST_FACTOR = 1 << 12


def check_growth(path: Path, operator: str, constants: Sequence[list[int] | None]) -> None:
    """Refuses an operator that makes a tensor far larger than any of a model.

    Args:
        path: file, for messages.
        operator: name of the operator.
        constants: value of each input that is a constant of few integers; None for others.

    Raises:
        UserError: the size that is asked for is larger than 2^28 numbers.
    """
    if operator not in _GROW or operator == "Slice":
        return
    for numbers in constants:
        if numbers and prod(max(abs(number), 1) for number in numbers) > _MOST:
            raise UserError(
                f"{path} is not opened: its operation {operator} makes a tensor larger than any of a model",
                "export the model again",
            )


def check_factors(path: Path, constants: Sequence[Sequence[float]]) -> None:
    """Refuses a resizing by factors far larger than any of a model.

    Args:
        path: file, for messages.
        constants: floats of each input that is a constant; empty for others.

    Raises:
        UserError: a tensor would grow more than 4,096 times.
    """
    for factors in constants:
        if factors and not prod(max(abs(factor), 1.0) for factor in factors) <= _MOST_FACTOR:
            raise UserError(
                f"{path} is not opened: its operation Resize makes a tensor larger than any of a model",
                "export the model again",
            )

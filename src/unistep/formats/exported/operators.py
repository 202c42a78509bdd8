"""The operators that exported models consist of; files with others are not opened.

All compute numbers from numbers. None has a graph of its own, draws random numbers, handles text or reads a file. Each
of ONNX has a rule in `onnx_rules.py`, by which the size of its result is computed.
"""

ONNX_OPERATORS = frozenset(
    "Abs Add And ArgMax ArgMin Attention AveragePool BatchNormalization Cast CastLike Ceil Clip Concat Constant Conv "
    "ConvTranspose Cos DepthToSpace DequantizeLinear Div DynamicQuantizeLinear Equal Erf Exp Expand Flatten "
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

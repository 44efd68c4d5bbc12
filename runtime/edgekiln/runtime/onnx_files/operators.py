"""How many inputs each operator of the ONNX standard needs at least, in whichever version of it.

OpenVINO's reader takes a node at its word, and crashes on one that lacks an input. The table is onnx's own
(``onnx.defs``, as a test compares): the runtime does without that package.
"""

from __future__ import annotations

__all__ = ["MINIMUM_INPUTS"]

_BY_NUMBER: dict[int, str] = {
    1: """
        Abs Acos Acosh ArgMax ArgMin Asin Asinh Atan Atanh AveragePool Bernoulli Binarizer BitCast
        BitwiseNot BlackmanWindow Cast CastMap CategoryMapper Ceil Celu Clip Concat ConcatFromSequence
        ConstantOfShape Cos Cosh DFT DepthToSpace Det DictVectorizer Dropout DynamicQuantizeLinear Einsum
        Elu Erf Exp EyeLike FeatureVectorizer Flatten Floor Gelu GlobalAveragePool GlobalLpPool
        GlobalMaxPool Gradient HammingWindow HannWindow HardSigmoid HardSwish Hardmax Identity If
        ImageDecoder Imputer IsInf IsNaN LRN LabelEncoder LeakyRelu LinearClassifier LinearRegressor Log
        LogSoftmax LpNormalization LpPool Max MaxPool Mean MeanVarianceNormalization Min Mish Multinomial
        Neg NonZero Normalizer Not OneHotEncoder OptionalGetElement Pad RandomNormalLike RandomUniformLike
        Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
        ReduceSum ReduceSumSquare RegexFullMatch Relu Reshape Resize Round SVMClassifier SVMRegressor Scaler
        Scan Selu SequenceConstruct SequenceErase SequenceLength SequenceMap Shape Shrink Sigmoid Sign Sin
        Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split SplitToSequence Sqrt Squeeze
        StringNormalizer StringSplit Sum Swish Tan Tanh TfIdfVectorizer ThresholdedRelu TopK Transpose
        TreeEnsemble TreeEnsembleClassifier TreeEnsembleRegressor Trilu Unique Unsqueeze Upsample ZipMap
    """,
    2: """
        Add AffineGrid And ArrayFeatureExtractor BitShift BitwiseAnd BitwiseOr BitwiseXor CastLike
        CausalConvWithState CenterCropPad Compress Conv ConvInteger ConvTranspose CumProd CumSum
        DequantizeLinear Div Equal Expand Gather GatherElements GatherND Gemm Greater GreaterOrEqual
        GridSample LayerNormalization Less LessOrEqual Loop MatMul MatMulInteger MaxRoiPool MaxUnpool Mod
        Mul NegativeLogLikelihoodLoss NonMaxSuppression Or PRelu Pow QuantizeLinear RMSNormalization
        ReverseSequence STFT SequenceAt SequenceInsert SoftmaxCrossEntropyLoss StringConcat Sub SwiGLU
        TensorScatter Tile Xor
    """,
    3: """
        Adagrad Adam Attention Col2Im DeformConv GRU GroupNormalization InstanceNormalization LSTM
        LinearAttention Momentum OneHot RNN Range RoiAlign RotaryEmbedding Scatter ScatterElements ScatterND
        Where
    """,
    5: """
        BatchNormalization MelWeightMatrix
    """,
    8: """
        QLinearConv QLinearMatMul
    """,
}

MINIMUM_INPUTS: dict[bytes, int] = {
    name.encode(): number for number, names in _BY_NUMBER.items() for name in names.split()
}
"""By the operator's name, as it stands in a file; those that need none are left out."""

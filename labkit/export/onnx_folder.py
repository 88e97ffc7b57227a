"""A folder that holds an ONNX export: graph, genai_config.json and tokenizer, as onnxruntime-genai lays it out."""

import math
from dataclasses import dataclass
from pathlib import Path

from labkit.errors import LabError
from labkit.export.onnx import GENAI_CONFIG, GRAPH

_COMPUTED = ("cos_cache", "sin_cache")  # tables of the positions' rotation, no weights
_FLOATS = {1: "float32", 10: "float16"}  # the numbers that onnx.TensorProto.DataType gives them


@dataclass(frozen=True)
class GraphFacts:
    """What a graph's matrices say: how many weights it has, and the number format of most of them."""

    parameter_count: int
    dtype: str


def is_onnx_export(folder: Path) -> bool:
    return (folder / GENAI_CONFIG).is_file() and (folder / GRAPH).is_file()


def graph_facts(folder: Path) -> GraphFacts:
    """Read from the graph alone, without the file of its weights.

    A quantized matrix is the node MatMulNBits, which names its rows, columns and bits (onnxruntime's contrib operator
    com.microsoft.MatMulNBits); scales and zero points are no weights. A graph that mixes 4 and 8 bits is called int4.
    Raises LabError for a file that is no ONNX graph.
    """
    import onnx

    try:
        graph = onnx.load(folder / GRAPH, load_external_data=False).graph
    except Exception as error:  # protobuf's own classes have no base but this
        raise LabError(f"{GRAPH} of {folder.name} is not an ONNX graph", "export the model again") from error
    packed = [{a.name: a.i for a in node.attribute} for node in graph.node if node.op_type == "MatMulNBits"]
    taken = {name for node in graph.node if node.op_type == "MatMulNBits" for name in node.input[1:]}
    plain = [
        t
        for t in graph.initializer
        if t.name not in taken and t.data_type in _FLOATS and not t.name.startswith(_COMPUTED)
    ]
    count = sum(matrix["K"] * matrix["N"] for matrix in packed) + sum(math.prod(tensor.dims) for tensor in plain)
    if packed:
        return GraphFacts(count, f"int{min(matrix['bits'] for matrix in packed)}")
    matrices = [_FLOATS[tensor.data_type] for tensor in plain if len(tensor.dims) > 1]
    return GraphFacts(count, "float16" if "float16" in matrices else "float32")

"""Reads, writes and searches ``.onnx`` models: the helpers that several steps share."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from edgeopt.errors import StepError
from edgeopt.graph.given.batch import find_declared_batch
from edgeopt.model_files.tensors import read_model, tensor_values, write_model

STANDARD_DOMAINS = ("", "ai.onnx")
MICROSOFT_DOMAIN = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""
_OLDEST_IR = 4
READ_INSIDE = -1
"""In place of an input's index."""
Arrays = dict[str, NDArray[Any]]


def load(path: Path, stage: str) -> onnx.ModelProto:
    """Read a model that edgeopt wrote; of a pair (``edgeopt.model_files``) the large tensors stay in their file.

    Values inside branches and loop bodies get names that no other graph has.

    Raises:
        StepError: the file is missing, is not an ONNX model, or keeps weights in a file of another kind.
    """
    try:
        model = read_model(path)
    except ValueError as error:
        raise StepError(stage, f"{path} {error}") from error
    except (OSError, DecodeError) as error:
        raise StepError(stage, f"{path} cannot be read as an ONNX model ({error}).") from error
    if not model.graph.node and not model.graph.output:
        raise StepError(stage, f"{path} has no graph.")
    separate_names(model.graph)
    return model


save = write_model


def read_opset(model: onnx.ModelProto) -> int:
    """Return the version of the standard operator set."""
    return next((entry.version for entry in model.opset_import if entry.domain in STANDARD_DOMAINS), 1)


def inner_graphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """Return the graphs in a node's attributes: branches and loop bodies."""
    graphs = [graph for attribute in node.attribute for graph in (attribute.g, *attribute.graphs)]
    return [graph for graph in graphs if graph.node or graph.output]


def walk_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and every graph inside its nodes (branches and loop bodies)."""
    yield graph
    for node in graph.node:
        for inner in inner_graphs(node):
            yield from walk_graphs(inner)


def read_names(node: onnx.NodeProto) -> set[str]:
    """Return what a node reads, and what the graphs in it read from outside."""
    names = set(node.input)
    for graph in inner_graphs(node):
        read = {value.name for value in graph.output}.union(*(read_names(each) for each in graph.node))
        names |= read - _own_names(graph)
    return names


def separate_names(graph: onnx.GraphProto) -> None:
    """Rename values in branches and loop bodies whose names other graphs have too, so that a name is one value.

    Two branches may use a name each in its own way, and some exporters let a body hide a value around it.
    """
    _rename(graph, {}, set(), used_names(graph))


def used_names(graph: onnx.GraphProto) -> set[str]:
    """Return the names of all values of a graph and of those in it."""
    return {name for inner in walk_graphs(graph) for name in _own_names(inner)}


def _own_names(graph: onnx.GraphProto) -> set[str]:
    """Return the names of the values that a graph itself gets, stores or computes."""
    names = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    names |= {one.values.name for one in graph.sparse_initializer}
    return (names | {name for node in graph.node for name in node.output}) - {""}


def _rename(graph: onnx.GraphProto, outer: dict[str, str], seen: set[str], taken: set[str]) -> None:
    """Give a graph's own values new names if another graph has them; ``outer`` holds the new names around it."""
    names = dict(outer)
    for name in sorted(_own_names(graph)):
        names[name] = name if name not in seen else unused_name(name, taken)
        seen.add(name)
    renamed = {name: new for name, new in names.items() if name != new}
    if renamed:
        for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
            value.name = renamed.get(value.name, value.name)
        for one in graph.sparse_initializer:
            one.values.name = renamed.get(one.values.name, one.values.name)
    for node in graph.node:
        if renamed:
            node.input[:] = [renamed.get(name, name) for name in node.input]
            node.output[:] = [renamed.get(name, name) for name in node.output]
        for inner in inner_graphs(node):
            _rename(inner, names, seen, taken)


def unused_name(name: str, taken: set[str]) -> str:
    """Return a name like ``name`` that is not in ``taken``, and add it to that."""
    numbered = (f"{name}_{number}" for number in itertools.count(2))
    new = next(one for one in itertools.chain((name,), numbered) if one not in taken)
    taken.add(new)
    return new


def read_initializers(graph: onnx.GraphProto) -> Arrays:
    """Return the initializers by name."""
    return {tensor.name: tensor_values(tensor) for tensor in graph.initializer}


def read_batch_axes(graph: onnx.GraphProto) -> dict[str, int | None]:
    """Return the dimension of each input that is the batch; None for an input that all samples share.

    It is the one called ``batch``, as in exported files. In other files see ``find_declared_batch``; there an input
    whose sizes are all fixed has none if others are dynamic, and dimension 1 if only that has the others' batch size.
    """
    weights = {tensor.name for tensor in graph.initializer}  # old files list weights among the inputs
    dims = {value.name: value.type.tensor_type.shape.dim for value in graph.input if value.name not in weights}
    named = {
        name: next((axis for axis, dim in enumerate(shape) if dim.dim_param == "batch"), None)
        for name, shape in dims.items()
    }
    if any(axis is not None for axis in named.values()):
        return named
    declared: dict[str, list[int | str]] = {
        name: [dim.dim_value if dim.dim_value > 0 else dim.dim_param for dim in shape] for name, shape in dims.items()
    }
    axes: dict[str, int | None] = {}
    batches = [shape[0] for shape in declared.values() if shape]
    has_dynamic = any(isinstance(size, str) for size in batches)
    for name, axis in find_declared_batch(declared).items():
        shape = declared[name]
        is_fixed = all(isinstance(size, int) for size in shape)
        is_second = is_fixed and not has_dynamic and len(shape) > 2 and shape[0] != batches[0] == shape[1]
        axes[name] = None if is_fixed and has_dynamic else 1 if is_second else axis
    return axes


def find_consumers(graph: onnx.GraphProto) -> dict[str, list[tuple[onnx.NodeProto, int]]]:
    """Return by value the nodes of the top graph that read it, each with the index of the input.

    The index is ``READ_INSIDE`` for a node in whose branches or loop body it is read.
    """
    consumers: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
    for node in graph.node:
        for index, name in enumerate(node.input):
            consumers.setdefault(name, []).append((node, index))
        for name in sorted(read_names(node) - set(node.input)) if inner_graphs(node) else ():
            consumers.setdefault(name, []).append((node, READ_INSIDE))
    return consumers


def lift_constants(graph: onnx.GraphProto) -> None:
    """Turn ``Constant`` nodes of the top graph that hold a tensor into initializers, where steps look for values."""
    for node in [node for node in graph.node if node.op_type == "Constant"]:
        values = [attribute.t for attribute in node.attribute if attribute.name == "value"]
        if values:
            tensor = graph.initializer.add()
            tensor.CopyFrom(values[0])
            tensor.name = node.output[0]
            graph.node.remove(node)


def name_nodes(graph: onnx.GraphProto) -> None:
    """Give every node a unique name: recipes and libraries name the nodes that stay float."""
    used: set[str] = set()
    for index, node in enumerate(graph.node):
        if not node.name or node.name in used:
            node.name = f"{node.op_type}_{index}"
        used.add(node.name)


def has_repeated_names(graph: onnx.GraphProto) -> bool:
    """Tell whether two nodes of a graph, or of one inside it, have the same name."""
    for inner in walk_graphs(graph):
        names = [node.name for node in inner.node if node.name]
        if len(set(names)) < len(names):
            return True
    return False


def replace_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    """Replace all nodes of the graph with ``nodes``, in topological order."""
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def are_nodes_sorted(graph: onnx.GraphProto) -> bool:
    """Tell whether each node of a graph itself comes after those whose values it, or a graph inside it, reads."""
    later = {name for node in graph.node for name in node.output if name}
    for node in graph.node:
        if not later.isdisjoint(read_names(node)):
            return False
        later.difference_update(node.output)
    return True


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Put the nodes into topological order, and otherwise leave their order as it is.

    A node also reads what the graphs inside it (branches, loop bodies) read.
    """
    nodes = list(graph.node)
    producers = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    waits: list[set[int]] = []
    followers: dict[int, list[int]] = {}
    for index, node in enumerate(nodes):
        needed = {producers[name] for name in read_names(node) if name in producers} - {index}
        waits.append(needed)
        for producer in needed:
            followers.setdefault(producer, []).append(index)
    ready = [index for index, needed in enumerate(waits) if not needed]
    ordered: list[onnx.NodeProto] = []
    while ready:
        index = heapq.heappop(ready)
        ordered.append(nodes[index])
        for follower in followers.get(index, []):
            waits[follower].discard(index)
            if not waits[follower]:
                heapq.heappush(ready, follower)
    assert len(ordered) == len(nodes), "the graph has a cycle"
    replace_nodes(graph, ordered)


def drop_metadata(model: onnx.ModelProto) -> None:
    """Remove doc strings, traces of tools and inferred shapes of inner values: no runtime reads them."""
    for field in ("producer_name", "producer_version", "domain", "model_version"):
        model.ClearField(field)
    messages: list[object] = [model, *model.functions]
    for graph in walk_graphs(model.graph):
        del graph.value_info[:]
        graph.name = "g"  # the checker requires a name
        messages += [graph, *graph.node, *graph.initializer, *graph.input, *graph.output]
        messages += [attribute for node in graph.node for attribute in node.attribute]
    for message in messages:
        message.ClearField("doc_string")  # type: ignore[attr-defined]
        if hasattr(message, "metadata_props"):
            del message.metadata_props[:]


def read_metadata(path: Path) -> dict[str, str]:
    """Return a file's metadata, such as the names of classes, which apps read at run time."""
    return {entry.key: entry.value for entry in onnx.load_model(path, load_external_data=False).metadata_props}


def write_metadata(path: Path, metadata: Mapping[str, str]) -> None:
    """Replace a file's metadata."""
    model = read_model(path)
    if read_metadata(path) != metadata:
        del model.metadata_props[:]
        for key, value in metadata.items():
            model.metadata_props.add(key=key, value=value)
        save(model, path)


def drop_unused_initializers(graph: onnx.GraphProto) -> None:
    """Remove initializers that are neither read by a node nor an output of the graph."""
    used = {name for inner in walk_graphs(graph) for node in inner.node for name in node.input}
    used |= {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    if len(kept) < len(graph.initializer):
        copies = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
        del graph.initializer[:]
        graph.initializer.extend(copies)


def drop_unused_opsets(model: onnx.ModelProto) -> None:
    """Remove operator sets that no node uses; some runtimes refuse a file because of them."""
    used = {node.domain for inner in walk_graphs(model.graph) for node in inner.node}
    used |= {node.domain for function in model.functions for node in function.node}
    kept = [entry for entry in model.opset_import if entry.domain in used or entry.domain in STANDARD_DOMAINS]
    copies = [onnx.OperatorSetIdProto.FromString(entry.SerializeToString()) for entry in kept]
    del model.opset_import[:]
    model.opset_import.extend(copies)


def lower_ir(model: onnx.ModelProto) -> None:
    """Lower the file format (``ir_version``) to the oldest one that the operator sets in use allow, but not below 4.

    Before 4, weights had to be listed among the inputs; from 4 on, those that are can be replaced at run time, so that
    no runtime takes them for constants. They are removed from the inputs.
    """
    drop_unused_opsets(model)
    oldest = onnx.helper.find_min_ir_version_for(list(model.opset_import), ignore_unknown=True)
    model.ir_version = max(_OLDEST_IR, min(model.ir_version, oldest))
    weights = {tensor.name for tensor in model.graph.initializer}
    for value in [value for value in model.graph.input if value.name in weights]:
        model.graph.input.remove(value)

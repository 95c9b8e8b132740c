"""``Network``: a model as its exported graph, which trains, is pruned, is saved and rebuilt without pickle."""

from __future__ import annotations

import copy
import json
import operator
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, fx, nn

from edgeopt.errors import DataError
from edgeopt.passes.low_rank.layers import factorizable_layers, factorized_graph, pair_names, pair_shapes
from edgeopt.passes.prune.interpret import Marks, Shapes, mark, shapes_of, tensor_names
from edgeopt.passes.prune.labels import Integers, Slot
from edgeopt.passes.prune.resize import kept_part, resize
from edgeopt.passes.trace import trace
from edgeopt.records.low_rank import Factorization

FORMAT = "edgeopt/network-1"


class Network:
    """A model as its exported ATen graph: it trains, is pruned, is saved and rebuilt, under the original's names.

    Args:
        module: A graph of ATen operators with plain inputs and outputs, in inference mode.
        example_inputs: What it was traced with.
        kept: For a pruned network the indices kept of each (tensor, dimension), relative to the original network.
        notes: Fall-backs taken, for the report.
        factors: For a network of low rank, the layers that became two, by the weight that they had in the original.

    Attributes:
        eval_module: The graph; batch norm uses running statistics, dropout is off.
        train_module: The same tensors; batch norm and dropout in training mode.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        example_inputs: tuple[Tensor, ...],
        kept: Mapping[Slot, Integers] | None = None,
        notes: tuple[str, ...] = (),
        factors: Mapping[str, Factorization] | None = None,
    ) -> None:
        self.eval_module = module.eval()
        self.train_module = _training(module)
        self.example_inputs = example_inputs
        self.kept = dict(kept or {})
        self.notes = notes
        self.factors = dict(factors or {})
        self._shapes: Shapes | None = None

    @classmethod
    def trace(cls, model: nn.Module, example_inputs: tuple[Tensor, ...]) -> Network:
        """Export a model with ``torch.export`` in evaluation mode; the model itself is left as it is.

        The first dimension of every input is dynamic where the model allows it, else ``notes`` says that it is not.

        Args:
            model: Any module that ``torch.export`` can read.
            example_inputs: Its inputs, batch first. A batch of 1 is repeated, since 1 would be taken for a constant.

        Raises:
            StepError: ``torch.export`` refuses the model.
        """
        inputs, module, notes = trace(model, example_inputs)
        return cls(module, inputs, None, notes)

    def shapes(self) -> Shapes:
        """Return the shape of every node's value on the example inputs, by the node's name."""
        if self._shapes is None:
            self._shapes = shapes_of(self.eval_module, self.example_inputs)
        return self._shapes

    def mark(self) -> Marks:
        """Run the graph on labels."""
        return mark(self.eval_module, self.shapes())

    def state(self) -> dict[str, Tensor]:
        """Return parameters and buffers by their original names; a tensor with several names has its first."""
        names = dict.fromkeys(tensor_names(self.eval_module).values())
        return {name: operator.attrgetter(name)(self.eval_module).detach() for name in names}

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return what trains, by name."""
        return dict(self.eval_module.named_parameters())

    def copy(self) -> Network:
        """Return the same network with tensors of its own."""
        return Network(copy.deepcopy(self.eval_module), self.example_inputs, self.kept, self.notes, self.factors)

    def sliced(self, kept: Mapping[Slot, Integers], marks: Marks | None = None) -> Network:
        """Cut every tensor to the indices kept and rewrite the graph's literal sizes.

        Args:
            kept: Sorted indices for each (tensor, dimension); those not named keep all.
            marks: What ``mark`` gave, where it is known.

        Raises:
            StepError: these indices leave nothing of a tensor, or cut channels that go together apart.
        """
        marks = self.mark() if marks is None else marks
        alive = marks.labels.alive(kept)
        graph = copy.deepcopy(self.eval_module.graph)
        resize(graph, marks, alive)
        names = tensor_names(self.eval_module)
        cut = {name: self._cut(name, kept) for name in dict.fromkeys(names.values())}
        module = fx.GraphModule({target: cut[name] for target, name in names.items()}, graph)
        composed = {slot: self.kept[slot][kept[slot]] if slot in kept else self.kept[slot] for slot in self.kept}
        composed |= {slot: indices for slot, indices in kept.items() if slot not in self.kept}
        return Network(module, self.example_inputs, composed, self.notes, self.factors)

    def factorized(self, factors: Mapping[str, Factorization], pairs: Mapping[str, tuple[Tensor, Tensor]]) -> Network:
        """Make two layers of one; the rest of the graph stays as it is, and the channels between them can be pruned.

        Args:
            factors: The form of each, by the name of its weight.
            pairs: The weights of the two layers, by the weight that they replace.
        """
        module = factorized_graph(self.eval_module, factors, pairs)
        moved = {(name, dim): (pair_names(name)[1 - dim], dim) for name in factors for dim in (0, 1)}
        kept = {moved.get(slot, slot): indices for slot, indices in self.kept.items()}
        return Network(module, self.example_inputs, kept, self.notes, {**self.factors, **factors})

    def _cut(self, name: str, kept: Mapping[Slot, Integers]) -> Tensor:
        tensor: Tensor = operator.attrgetter(name)(self.eval_module)
        dims = {dim: kept[name, dim] for dim in range(tensor.ndim) if (name, dim) in kept}
        cut = kept_part(tensor.detach(), dims) if dims else tensor.detach().clone()
        return nn.Parameter(cut, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else cut

    def save(self, path: Path) -> None:
        """Write tensors and kept indices as safetensors."""
        state = self.state()
        last = [name for name, tensor in state.items() if tensor.ndim == 4 and tensor.stride() != _row_major(tensor)]
        kept = [[name, dim, indices.tolist()] for (name, dim), indices in self.kept.items()]
        factors = json.dumps({name: [factor.rank, factor.form] for name, factor in self.factors.items()})
        metadata = {
            "format": FORMAT, "kept": json.dumps(kept), "channels_last": json.dumps(last), "factors": factors,
        }  # fmt: skip
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path, metadata)

    @classmethod
    def load(cls, path: Path, original: Network) -> Network:
        """Rebuild a saved network from the original's graph, the kept indices and the tensors.

        Raises:
            DataError: the file is missing, is no saved network, or belongs to another original.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata: dict[str, str] = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path} cannot be read as a saved network: {error}. Prune and train again.") from error
        if metadata.get("format") != FORMAT:
            raise DataError(f"{path} is no saved network: its format is {metadata.get('format')!r}, not {FORMAT!r}.")
        kept = {(name, dim): np.array(indices) for name, dim, indices in json.loads(metadata["kept"])}
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        other = DataError(f"{path} was saved from another model: its tensors do not fit. Give the model it came from.")
        stored = json.loads(metadata.get("factors", "{}"))
        factors = {name: Factorization(rank=rank, form=form) for name, (rank, form) in stored.items()}
        known = factorizable_layers(original.eval_module)
        if not factors.keys() <= known.keys():
            raise other
        empty = {name: _empty_pair(known[name].shape, factor) for name, factor in factors.items()}
        original = original.factorized(factors, empty) if factors else original
        if any(len(kept[slot]) == 0 or kept[slot].max() >= size for slot, size in original._extents(kept).items()):
            raise other
        network = original.sliced(kept)
        state = network.state()
        if shapes != {name: tuple(tensor.shape) for name, tensor in state.items()}:
            raise other
        for name in json.loads(metadata["channels_last"]):
            like = torch.empty_like(tensors[name], memory_format=torch.channels_last)
            tensors[name] = like.copy_(tensors[name])
        for target, name in tensor_names(network.eval_module).items():
            operator.attrgetter(target)(network.eval_module).data = tensors[name]
        return network

    def _extents(self, kept: Mapping[Slot, Integers]) -> dict[Slot, int]:
        """Size of each slot here; 0 for one that this network does not have."""
        state = self.state()
        return {
            (name, dim): state[name].shape[dim] if name in state and dim < state[name].ndim else 0 for name, dim in kept
        }


def _empty_pair(shape: tuple[int, ...], factor: Factorization) -> tuple[Tensor, Tensor]:
    first, second = pair_shapes(shape, factor)
    return torch.zeros(first), torch.zeros(second)


def _row_major(tensor: Tensor) -> tuple[int, ...]:
    """Return the strides in row-major memory, which ``is_contiguous`` does not tell where a size is 1."""
    return torch.empty(tensor.shape, device="meta").stride()


def _training(module: fx.GraphModule) -> fx.GraphModule:
    """Return the graph in training mode, over the same tensors: every flag ``training`` or ``train`` is set."""
    graph = copy.deepcopy(module.graph)
    for node in graph.nodes:
        schema = getattr(node.target, "_schema", None)
        for index, argument in enumerate(schema.arguments if schema is not None else ()):
            if argument.name in ("training", "train"):
                if index < len(node.args):
                    node.update_arg(index, True)
                else:
                    node.update_kwarg(argument.name, True)
    return fx.GraphModule(module, graph)

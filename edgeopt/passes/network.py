"""``Network``: a model as its exported graph, to train, prune, factorize, save and load without pickle."""

from __future__ import annotations

import copy
import json
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, fx, nn

from edgeopt.errors import DataError
from edgeopt.passes.branches.merge import find_sums, merge_sums
from edgeopt.passes.branches.residual import ResidualBranch, find_branches, without_branches
from edgeopt.passes.low_rank.layers import factorizable_layers, factorize_graph, pair_names, pair_shapes
from edgeopt.passes.prune.interpret import Marks, Shapes, mark, shapes_of, tensor_names
from edgeopt.passes.prune.labels import Integers, Slot
from edgeopt.passes.prune.resize import resize, take_indices
from edgeopt.passes.tracing.trace import trace
from edgeopt.passes.training_graph import training_graph
from edgeopt.records.low_rank import Factorization
from edgeopt.task.dynamic_axes import AxisNames

_FORMAT = "edgeopt/network-1"


class Network:
    """A model as its exported ATen graph, under the original's parameter names.

    Args:
        module: A graph of ATen operators with plain inputs and outputs, in inference mode.
        example_inputs: The inputs used for tracing.
        kept: For a pruned network, the kept indices of each (tensor, dimension), relative to the original network.
        notes: Fall-backs taken, for the report.
        factorizations: The layers that became two, by the name of their weight in the original.
        merged_sums: Sums of parallel branches that became one convolution each, before anything else.
        left_out: Branches that were left out: the name of the sum, and the operand that went.

    Attributes:
        eval_module: The graph; batch norm uses running statistics, dropout is off.
        train_module: The same tensors; normalization, dropout and stochastic depth in training mode.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        example_inputs: tuple[Tensor, ...],
        kept: Mapping[Slot, Integers] | None = None,
        notes: tuple[str, ...] = (),
        factorizations: Mapping[str, Factorization] | None = None,
        merged_sums: int = 0,
        left_out: Sequence[tuple[str, int]] = (),
    ) -> None:
        self.eval_module = module.eval()
        self.train_module = training_graph(module)
        self.example_inputs = example_inputs
        self.kept = dict(kept or {})
        self.notes = notes
        self.factorizations = dict(factorizations or {})
        self.merged_sums = merged_sums
        self.left_out = tuple(left_out)
        self._shapes: Shapes | None = None

    @classmethod
    def trace(
        cls,
        model: nn.Module,
        example_inputs: tuple[Tensor, ...],
        axes: AxisNames | None = None,
        *,
        share_tensors: bool = False,
    ) -> Network:
        """Export a model with ``torch.export`` in evaluation mode; the model itself is not changed.

        The batch is dynamic if the model allows it; if not, ``notes`` says so. They also name what the model does only
        in training and the network does not.

        Args:
            model: Any module that ``torch.export`` can export.
            example_inputs: Its inputs. A batch of 1 is repeated, because 1 would be taken for a constant.
            axes: For each input, its dynamic dimensions and their names, of which ``batch`` is the batch. None: only
                the batch is dynamic; it is the first dimension of a single input, and is found if there are several.
            share_tensors: Leave the tensors in the model's memory, for a network that is only read or copied.

        Raises:
            StepError: ``torch.export`` cannot export the model.
        """
        inputs, module, notes = trace(model, example_inputs, axes, share_tensors=share_tensors)
        return cls(module, inputs, None, notes)

    def shapes(self) -> Shapes:
        """Return the shape of every node's value on the example inputs, by node name."""
        if self._shapes is None:
            self._shapes = shapes_of(self.eval_module, self.example_inputs)
        return self._shapes

    def mark(self) -> Marks:
        """Run the graph on labels."""
        return mark(self.eval_module, self.shapes())

    def state(self) -> dict[str, Tensor]:
        """Return parameters and buffers by their original names; a tied tensor is listed under its first name."""
        names = dict.fromkeys(tensor_names(self.eval_module).values())
        return {name: operator.attrgetter(name)(self.eval_module).detach() for name in names}

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters, by name."""
        return dict(self.eval_module.named_parameters())

    def copy(self) -> Network:
        """Return the same network with its own copies of the tensors."""
        return self._with(copy.deepcopy(self.eval_module), self.kept)

    def _with(
        self,
        module: fx.GraphModule,
        kept: Mapping[Slot, Integers],
        factorizations: Mapping[str, Factorization] | None = None,
        left_out: Sequence[tuple[str, int]] = (),
    ) -> Network:
        """Return a network with another graph and what else is given."""
        layers = {**self.factorizations, **(factorizations or {})}
        branches = (*self.left_out, *left_out)
        return Network(module, self.example_inputs, kept, self.notes, layers, self.merged_sums, branches)

    def branches(self) -> list[ResidualBranch]:
        """Return the parts of the network that can be left out whole."""
        return find_branches(self.eval_module, self.shapes())

    @property
    def has_parallel_branches(self) -> bool:
        """Whether it has sums that ``merge_branches`` would merge."""
        return bool(find_sums(self.eval_module, self.shapes()))

    def merge_branches(self, inputs: tuple[Tensor, ...]) -> Network:
        """Merge each sum of parallel branches into one convolution (``edgeopt.passes.branches.merge``).

        Args:
            inputs: One batch of real inputs, for the statistics of batch norms.

        Returns:
            The merged network, or this one if it has no such sum.
        """
        assert not self.kept, "branches are merged before anything is cut"
        module, count = merge_sums(self.eval_module, self.shapes(), inputs)
        if not count:
            return self
        return Network(module, self.example_inputs, None, self.notes, self.factorizations, count)

    def cut(
        self, kept: Mapping[Slot, Integers], marks: Marks | None = None, branches: Sequence[tuple[str, int]] = ()
    ) -> Network:
        """Return the network with every tensor cut to the kept indices, and the graph's literal sizes rewritten.

        Args:
            kept: Sorted indices for each (tensor, dimension); dimensions not named keep all.
            marks: The result of ``mark``, if the caller has it.
            branches: To leave out: for each the name of its sum, and the operand that goes.

        Raises:
            StepError: nothing would be left of a tensor, or channels that go together would be separated.
        """
        marks = self.mark() if marks is None else marks
        alive = marks.labels.alive(kept)
        graph = copy.deepcopy(self.eval_module.graph)
        resize(graph, marks, alive)
        without_branches(graph, branches)
        read = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
        names = {target: name for target, name in tensor_names(self.eval_module).items() if target in read}
        tensors = {name: self._cut_tensor(name, kept) for name in dict.fromkeys(names.values())}
        module = fx.GraphModule({target: tensors[name] for target, name in names.items()}, graph)
        composed = {slot: self.kept[slot][kept[slot]] if slot in kept else self.kept[slot] for slot in self.kept}
        composed |= {slot: indices for slot, indices in kept.items() if slot not in self.kept}
        composed = {slot: indices for slot, indices in composed.items() if slot[0] in tensors}
        return self._with(module, composed, left_out=branches)

    def factorize(
        self, factorizations: Mapping[str, Factorization], pairs: Mapping[str, tuple[Tensor, Tensor]]
    ) -> Network:
        """Replace layers by two each. The rest of the graph is unchanged; the channels between the two can be pruned.

        Args:
            factorizations: Rank and form for each layer, by the name of its weight.
            pairs: The weights of the two layers, by the name of the weight that they replace.
        """
        module = factorize_graph(self.eval_module, factorizations, pairs)
        renamed = {(name, dim): (pair_names(name)[1 - dim], dim) for name in factorizations for dim in (0, 1)}
        kept = {renamed.get(slot, slot): indices for slot, indices in self.kept.items()}
        return self._with(module, kept, factorizations)

    def _cut_tensor(self, name: str, kept: Mapping[Slot, Integers]) -> Tensor:
        tensor: Tensor = operator.attrgetter(name)(self.eval_module)
        dims = {dim: kept[name, dim] for dim in range(tensor.ndim) if (name, dim) in kept}
        cut = take_indices(tensor.detach(), dims) if dims else tensor.detach().clone()
        return nn.Parameter(cut, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else cut

    def save(self, path: Path) -> None:
        """Write the tensors, the kept indices and the factorizations to a safetensors file."""
        state = self.state()
        last = [name for name, tensor in state.items() if tensor.ndim == 4 and tensor.stride() != _row_major(tensor)]
        kept = [[name, dim, indices.tolist()] for (name, dim), indices in self.kept.items()]
        factorizations = {name: [layer.rank, layer.form] for name, layer in self.factorizations.items()}
        metadata = {
            "format": _FORMAT,
            "kept": json.dumps(kept),
            "channels_last": json.dumps(last),
            "factors": json.dumps(factorizations),
            "merged_sums": json.dumps(self.merged_sums),
            "left_out": json.dumps(self.left_out),
        }
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path, metadata)

    @classmethod
    def load(cls, path: Path, original: Network) -> Network:
        """Rebuild a saved network from the original's graph and the file.

        Raises:
            DataError: the file is missing, is not a saved network, or was saved from another model.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata: dict[str, str] = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path} cannot be read as a saved network: {error}. Prune and train again.") from error
        if metadata.get("format") != _FORMAT:
            raise DataError(
                f"{path} is not a saved network: its format is {metadata.get('format')!r}, not {_FORMAT!r}."
            )
        kept = {(name, dim): np.array(indices) for name, dim, indices in json.loads(metadata["kept"])}
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        mismatch = DataError(f"{path} was saved from another model: its tensors do not fit. Pass that model.")
        if json.loads(metadata.get("merged_sums", "0")) > original.merged_sums == 0:
            original = original.merge_branches(original.example_inputs)
        stored = json.loads(metadata.get("factors", "{}"))
        factorizations = {name: Factorization(rank=rank, form=form) for name, (rank, form) in stored.items()}
        layers = factorizable_layers(original.eval_module)
        if not factorizations.keys() <= layers.keys():
            raise mismatch
        empty = {name: _empty_pair(layers[name].shape, one) for name, one in factorizations.items()}
        original = original.factorize(factorizations, empty) if factorizations else original
        if any(len(kept[slot]) == 0 or kept[slot].max() >= size for slot, size in original._sizes(kept).items()):
            raise mismatch
        left_out = [(str(name), int(operand)) for name, operand in json.loads(metadata.get("left_out", "[]"))]
        nodes = {node.name for node in original.eval_module.graph.nodes}
        if not nodes.issuperset(name for name, _ in left_out):
            raise mismatch
        # in two steps: behind a sum, labels may be those of a branch that is left out, of which nothing is kept
        network = (original.cut({}, branches=left_out) if left_out else original).cut(kept)
        state = network.state()
        if shapes != {name: tuple(tensor.shape) for name, tensor in state.items()}:
            raise mismatch
        for name in json.loads(metadata["channels_last"]):
            copied = torch.empty_like(tensors[name], memory_format=torch.channels_last)
            tensors[name] = copied.copy_(tensors[name])
        for target, name in tensor_names(network.eval_module).items():
            operator.attrgetter(target)(network.eval_module).data = tensors[name]
        return network

    def _sizes(self, kept: Mapping[Slot, Integers]) -> dict[Slot, int]:
        """Return the size of each slot in this network; 0 if it does not have the slot."""
        state = self.state()
        return {
            (name, dim): state[name].shape[dim] if name in state and dim < state[name].ndim else 0 for name, dim in kept
        }


def _empty_pair(shape: tuple[int, ...], factorization: Factorization) -> tuple[Tensor, Tensor]:
    first, second = pair_shapes(shape, factorization)
    return torch.zeros(first), torch.zeros(second)


def _row_major(tensor: Tensor) -> tuple[int, ...]:
    """Return the strides of row-major memory. ``is_contiguous`` does not help: it ignores dimensions of size 1."""
    return torch.empty(tensor.shape, device="meta").stride()

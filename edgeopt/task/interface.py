"""``ModelInterface``: inputs and outputs of a task's model as flat tuples of tensors, with names, batch and sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from edgeopt.errors import TaskError
from edgeopt.task.batch_axes import BatchAxes, find_batch_axes
from edgeopt.task.batches import ALWAYS_TARGETS, split_batch
from edgeopt.task.dynamic_axes import BATCH, Dims, DynamicAxis, read_dynamic_axes, with_sizes
from edgeopt.task.inputs import InputLayout
from edgeopt.task.modules import doubles_in_float32, flat_forward, widen_inputs
from edgeopt.task.nesting import Nesting, flatten, map_tensors, tensors_of
from edgeopt.task.per_sample import check_outputs_per_sample
from edgeopt.task.random_states import RandomStates, use_random_states
from edgeopt.task.values import describe_value

Batch: TypeAlias = tuple[tuple[Tensor, ...], Any]
"""Inputs, flat, and targets of one batch."""
BatchStep: TypeAlias = tuple[Batch, bool]
"""A batch, and whether its states are outputs of the one before."""


class ModelInterface:
    """What goes into a task's model and what comes out of it.

    Args:
        task: The user's task; read here are ``example_inputs()``, ``input_names``, ``output_names``, ``batch_dim`` and
            ``dynamic_axes``.
        module: The trained model.
        spec: Names the task in errors.
        notes: Gets what the report has to say.
        was_double: Whether the model was in float64; its inputs and targets are then rounded to float32 too.
    """

    def __init__(self, task: Any, module: nn.Module, spec: str, notes: list[str], *, was_double: bool = False) -> None:
        self.task = task
        self.module = module
        self.spec = spec
        self.notes = notes
        self.was_double = was_double

    def flat_forward(self, module: nn.Module) -> AbstractContextManager[nn.Module]:
        """Let a module of the task take and return flat tuples of tensors, for the length of a block.

        Nothing else may call it meanwhile.
        """
        return flat_forward(module, self._layout_of(module))

    def _layout_of(self, module: nn.Module) -> InputLayout:
        return self.layout if module is self.module else InputLayout(module, self._example, self.spec)

    def run(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Run the model on one batch, and return its outputs, flat."""
        with torch.no_grad():
            return tuple(tensors_of(self.layout.call(self.module, [value.clone() for value in inputs])))

    def check_student(self, student: nn.Module, name: str) -> None:
        """Raise TaskError if a student does not run on the example inputs, or has other outputs than the model."""
        outputs, _ = self._run_example(student, f"student '{name}'")
        expected, _ = self.example_outputs
        if [value.shape for value in outputs] != [value.shape for value in expected]:
            raise TaskError(
                f"{self.spec}: student '{name}' gives {describe_value(outputs)} on example_inputs(), but the model "
                f"gives {describe_value(expected)}. A student needs the model's inputs and outputs."
            )

    def _run_example(self, model: nn.Module, title: str) -> tuple[tuple[Tensor, ...], Nesting]:
        layout = self._layout_of(model)
        try:
            with torch.no_grad():
                outputs = layout.call(model, [value.clone() for value in self.layout.example])
        except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
            shapes = ", ".join(str(tuple(value.shape)) for value in self.layout.example)
            raise TaskError(
                f"{self.spec}: {title} does not run on example_inputs() of shape {shapes}: {error}. "
                "Make example_inputs() return one batch that the model accepts."
            ) from error
        check_outputs_per_sample(outputs, layout.nesting.nest(layout.example), f"{self.spec}: {title}")
        try:
            leaves, nesting = flatten(outputs)
        except TaskError as error:
            raise TaskError(f"{self.spec}: outputs of {title}: {error}") from error
        if not leaves:
            raise TaskError(f"{self.spec}: {title} returns {describe_value(outputs)}, which has no tensors.")
        for name, value in zip(layout.names, self.layout.example, strict=False):
            if value.is_floating_point() and bool(torch.isnan(value).any()):
                raise TaskError(
                    f"{self.spec}: example_inputs() has NaN in '{name}', {tuple(value.shape)}. Remove or fill such "
                    "values in your data."
                )
        for index, output in enumerate(leaves):
            if isinstance(output, Tensor) and output.is_floating_point() and not bool(torch.isfinite(output).all()):
                raise TaskError(
                    f"{self.spec}: output {index} of {title} is not finite on example_inputs() (NaN or infinity). "
                    "Check the weights that build_model() loads."
                )
        return leaves, nesting

    @cached_property
    def example_outputs(self) -> tuple[tuple[Tensor, ...], Nesting]:
        """The model's outputs on the example inputs, flat, and their nesting.

        Raises:
            TaskError: it does not run, or an output is not finite.
        """
        return self._run_example(self.module, "the model")

    @cached_property
    def _example(self) -> Any:
        """What ``example_inputs()`` returned, without targets and in float32."""
        with use_random_states(RandomStates(0)):  # it may be the first batch of a loader that shuffles
            example = self.task.example_inputs()
        if isinstance(example, Mapping) and any(key not in ALWAYS_TARGETS for key in example):
            example = {key: value for key, value in example.items() if key not in ALWAYS_TARGETS}
        return self._in_model_types(example)

    def _in_model_types(self, inputs: Any) -> Any:
        """Return inputs as tensors, in float32 if the model was put into it."""
        if self.was_double:
            inputs = map_tensors(doubles_in_float32, inputs)
        return map_tensors(lambda value: widen_inputs(torch.as_tensor(value)), inputs)

    @cached_property
    def layout(self) -> InputLayout:
        """How the model is called."""
        return InputLayout(self.module, self._example, self.spec)

    @cached_property
    def input_names(self) -> tuple[str, ...]:
        """Names of the graph's inputs: the task's own, the keys of a dict, or ``input``."""
        names = self.layout.names
        if not isinstance(self._example, Mapping):
            names = ("input",) if len(names) == 1 else tuple(f"input_{index}" for index in range(len(names)))
        return self._names("input_names", names)

    @cached_property
    def output_names(self) -> tuple[str, ...]:
        """Names of the graph's outputs: the task's own, the keys of a dict, or ``output``."""
        names = [f"output_{name}" if name[:1].isdigit() else name or "output" for name in self.example_outputs[1].names]
        inputs = self.input_names
        return self._names("output_names", tuple(f"{name}_out" if name in inputs else name for name in names))

    def _names(self, member: str, default: tuple[str, ...]) -> tuple[str, ...]:
        given = getattr(self.task, member, None)
        names = tuple(given or (name.replace(".", "_") for name in default))
        if len(names) != len(default):
            raise TaskError(f"{self.spec}: {member} has {len(names)} names for {len(default)} tensors.")
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise TaskError(f"{self.spec}: two tensors are called '{twice}'; give {member} with a name for each.")
        return names

    @cached_property
    def axes(self) -> BatchAxes:
        """The batch dimension of each input and output: ``batch_dim`` of the task, or found."""
        _ = self.example_outputs  # so that a model that does not run is named as such
        try:
            found = find_batch_axes(self.run, self.layout.example, self.input_names, self._given_axes())
        except TaskError as error:
            raise TaskError(f"{self.spec}: {error}") from error
        if found.note:
            self.notes.append(found.note)
        return found

    def _given_axes(self) -> list[int | str | None]:
        """Return for each input the member ``batch_dim``: a number, or a dict from names to numbers or None."""
        given, names = getattr(self.task, "batch_dim", "?"), self.input_names
        by_name = dict(given) if isinstance(given, Mapping) else dict.fromkeys(names, given)
        unknown = [name for name in by_name if name not in names]
        axes = [by_name.get(name, "?") for name in names]
        valid = all(
            axis in ("?", None) or (isinstance(axis, int) and 0 <= axis < value.dim())
            for axis, value in zip(axes, self.layout.example, strict=True)
        )
        if unknown or not valid:
            shapes = ", ".join(f"{n} {tuple(v.shape)}" for n, v in zip(names, self.layout.example, strict=True))
            raise TaskError(
                f"{self.spec}: batch_dim is {given!r:.80}; it has to be a dimension of every input, counted from 0, or "
                f"a dict from input names to a dimension (None: all samples share it). The inputs are {shapes}."
            )
        return axes

    @cached_property
    def dynamic_dims(self) -> tuple[Dims, ...]:
        """The dynamic dimensions of each input besides its batch: ``dynamic_axes`` of the task."""
        return read_dynamic_axes(
            getattr(self.task, "dynamic_axes", None), self.input_names, self.layout.example, self.spec
        )

    @property
    def graph_dims(self) -> tuple[Dims, ...]:
        """The dynamic dimensions of each input of the graph, its batch among them."""
        return tuple(
            dims if axis is None else {axis: DynamicAxis(BATCH), **dims}
            for axis, dims in zip(self.axes.inputs, self.dynamic_dims, strict=True)
        )

    def split(self, batch: Any, source: str, complete: Callable[[Any], Any] | None = None) -> Batch:
        """Return a batch's inputs, flat, and its targets.

        Args:
            batch: As a loader yields it.
            source: Names the loader in errors.
            complete: Adds inputs that the loader leaves out.
        """
        parameters = [one.name for one in self.layout.parameters]
        try:
            inputs, targets = split_batch(batch, parameters, source)
        except TaskError as error:
            raise TaskError(f"{self.spec}: {error}") from error
        if complete is not None:
            inputs = complete(inputs)
        if self.was_double:
            targets = map_tensors(doubles_in_float32, targets)
        return self.layout.flatten(self._in_model_types(inputs), source), targets

    def open_dims(self, inputs: tuple[Tensor, ...]) -> tuple[Dims, ...]:
        """Return the dynamic dimensions of the graph, and those in which a batch has another size than the example."""
        found = []
        for number, (value, example, dims) in enumerate(zip(inputs, self.layout.example, self.graph_dims, strict=True)):
            others = [dim for dim in range(example.dim()) if value.dim() == example.dim() and dim not in dims]
            others = [dim for dim in others if value.shape[dim] != example.shape[dim]]
            found.append({**dims, **{dim: DynamicAxis(f"training_{number}_{dim}") for dim in others}})
        return tuple(found)

    def fit_sizes(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return inputs repeated or cut to the example's size in every dimension that is not dynamic."""
        return tuple(
            with_sizes(value, {dim: size for dim, size in enumerate(example.shape) if dim not in dims})
            for value, example, dims in zip(inputs, self.layout.example, self.graph_dims, strict=True)
        )

    def check_inputs(self, source: str, inputs: tuple[Tensor, ...], dims: Sequence[Dims]) -> None:
        """Check the shapes and types of a batch.

        Args:
            source: The user's function that gave it.
            inputs: The batch, flat.
            dims: The dimensions of each input that may differ from the example.

        Raises:
            TaskError: another dimension differs, a size is out of its range, or a type differs.
        """
        examples = self.layout.example
        for name, value, example, free in zip(self.input_names, inputs, examples, dims, strict=True):
            self._check_input(f"{self.spec}: {source} yields '{name}'", value, example, free)

    def _check_input(self, source: str, value: Tensor, example: Tensor, dims: Dims) -> None:
        shape = tuple(value.shape)
        fits = len(shape) == example.dim() and all(
            size == other or dim in dims for dim, (size, other) in enumerate(zip(shape, example.shape, strict=True))
        )
        if not fits:
            free = ", ".join(f"{axis.name} (dimension {dim})" for dim, axis in dims.items()) or "no dimension"
            raise TaskError(
                f"{source} of shape {shape}, but example_inputs() has {tuple(example.shape)}; only {free} may differ. "
                "Name other dynamic dimensions with dynamic_axes."
            )
        if value.dtype != example.dtype:
            types = [str(one.dtype).removeprefix("torch.") for one in (value, example)]
            raise TaskError(f"{source} as {types[0]}, but example_inputs() has {types[1]}. Convert one of them.")
        for dim, axis in dims.items():
            if shape[dim] < max(1, axis.min_size) or (axis.max_size is not None and shape[dim] > axis.max_size):
                raise TaskError(
                    f"{source} of shape {shape}: {axis.name} (dimension {dim}) has to be from {axis.min_size} to "
                    f"{axis.max_size or 'any size'}."
                )

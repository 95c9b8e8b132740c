"""States of a streaming network: inputs that take an output of the batch before.

A task names them in its member ``states``, and its loaders yield the chunks of a recording in order. The first chunk
comes with its states (usually zeros). Later ones leave them out: where the trained network only shows its data (in
training, calibration, parity), they are filled in with its own outputs, and a network that is scored gets its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from edgeopt.errors import TaskError, did_you_mean
from edgeopt.task.interface import ModelInterface


def read_states(task: Any, interface: ModelInterface) -> dict[str, str]:
    """Return the member ``states`` of a task: from names of inputs to the outputs that give their next values.

    Args:
        task: The user's task.
        interface: Of its trained model.

    Raises:
        TaskError: it has another form, a name is unknown, every input is a state, or an output has another shape or
            type than its state.
    """
    given, spec = getattr(task, "states", None) or {}, interface.spec
    if not isinstance(given, Mapping) or not all(isinstance(word, str) for pair in given.items() for word in pair):
        raise TaskError(
            f"{spec}: states has to be a dict from names of inputs to names of outputs, such as "
            f'{{"state": "next_state"}}; found {given!r:.80}.'
        )
    inputs = dict(zip(interface.input_names, interface.layout.example, strict=True))
    outputs = dict(zip(interface.output_names, interface.example_outputs[0], strict=True))
    for name, output in given.items():
        for word, kind, known in ((name, "input", inputs), (output, "output", outputs)):
            if word not in known:
                raise TaskError(
                    f"{spec}: states names '{word}', but the model has no such {kind}{did_you_mean(word, list(known))};"
                    f" its {kind}s are {', '.join(known)}."
                )
        before, after = inputs[name], outputs[output]
        if before.shape != after.shape or before.dtype != after.dtype:
            raise TaskError(
                f"{spec}: the state '{name}' is {before.dtype} {tuple(before.shape)}, but the output '{output}', which "
                f"is to be its next value, is {after.dtype} {tuple(after.shape)}. Both have to be alike."
            )
    if given and set(given) == set(inputs):
        raise TaskError(f"{spec}: states names every input of the model; at least one takes data.")
    return dict(given)


def feed_states(
    states: Mapping[str, str], interface: ModelInterface, inputs: Sequence[Tensor], outputs: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Return a batch's inputs with the outputs of the batch before as its states.

    Args:
        states: Input to output.
        interface: Of the task's model.
        inputs: Of the batch, flat.
        outputs: Of the batch before, flat.
    """
    found = dict(zip(interface.output_names, outputs, strict=True))
    return tuple(
        found[states[name]].to(value.dtype) if name in states else value
        for name, value in zip(interface.input_names, inputs, strict=True)
    )


class StateFeedback:
    """Fills in the states that a loader leaves out, with the trained network's outputs on the batch before.

    Args:
        states: Input to output.
        interface: Of the trained model.
        source: Names the loader in errors.
    """

    def __init__(self, states: Mapping[str, str], interface: ModelInterface, source: str) -> None:
        self.states = states
        self.interface = interface
        self.source = f"{interface.spec}: {source}"
        self.parameters = _state_parameters(states, interface)
        self.before: tuple[Tensor, ...] | None = None
        self.continues = False
        """Whether the last batch left out its states."""

    def complete(self, inputs: Any) -> Any:
        """Return the inputs of a batch, with states.

        Raises:
            TaskError: the first batch has none, or a batch has only some of them.
        """
        missing = [name for name in self.parameters if isinstance(inputs, Mapping) and name not in inputs]
        self.continues = bool(missing)
        if not missing:
            return inputs
        if self.before is None:
            raise TaskError(
                f"{self.source} begins without the state '{missing[0]}': give its first value, such as zeros."
            )
        if len(missing) < len(self.parameters):
            raise TaskError(
                f"{self.source} yields a batch without '{missing[0]}', but with other states: leave out all of them "
                "where a recording goes on, and none where one begins."
            )
        fed = feed_states(self.states, self.interface, self.before, self.interface.run(self.before))
        layout = self.interface.layout
        values = dict(zip(layout.bound, layout.nesting.nest(fed), strict=True))
        return {**inputs, **{name: values[name] for name in self.parameters}}

    def keep(self, inputs: tuple[Tensor, ...]) -> None:
        """Remember a batch, flat, for the one after it.

        Raises:
            TaskError: it goes on with other samples than the batch before.
        """
        axes = self.interface.axes.inputs
        counts = {value.shape[axis] for value, axis in zip(inputs, axes, strict=True) if axis is not None}
        if self.continues and len(counts) > 1:
            raise TaskError(
                f"{self.source} goes on with another number of samples than the batch before ({_listed(counts)}): a "
                "batch that leaves out its states has the samples of the batch before."
            )
        self.before = inputs


def _state_parameters(states: Mapping[str, str], interface: ModelInterface) -> list[str]:
    """Return the parameters of ``forward`` that are states; one may hold several tensors, as those of an LSTM.

    Raises:
        TaskError: only some tensors of a parameter are states.
    """
    inputs: dict[str, list[str]] = {}
    for name, place in zip(interface.input_names, interface.layout.names, strict=True):
        inputs.setdefault(place.split(".")[0], []).append(name)
    for parameter, names in inputs.items():
        others = [name for name in names if name not in states]
        if 0 < len(others) < len(names):
            raise TaskError(
                f"{interface.spec}: states has only some of the tensors of '{parameter}'; name "
                f"{', '.join(others)} too, with the outputs that give their next values."
            )
    return [parameter for parameter, names in inputs.items() if names[0] in states]


def _listed(counts: set[int]) -> str:
    return " and ".join(map(str, sorted(counts)))

"""How a traced network trains differently from the user's module, in sentences for the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, fx, nn

from edgeopt.passes.own_gradients import find_changed_gradients
from edgeopt.passes.stochastic import ATTENTION_DROPOUT, find_sample_dropouts
from edgeopt.passes.training_graph import training_graph
from edgeopt.passes.training_run import MODEL_FAILURES, TrainingRun, is_random, module_path, run_module

DIFFERENCE_NOTE = "Training differs from the model's own: "
"""The beginning of a note on something that only the model's own training does."""
_MAX_NAMES = 4
_MAX_CHARACTERS = 200
_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")


def count_random_nodes(graph: fx.Graph) -> Counter[str]:
    """Return how many nodes of a trace are random in training, by the path of their submodule."""
    counts: Counter[str] = Counter()
    for node in graph.nodes:
        name = getattr(getattr(node.target, "overloadpacket", None), "__name__", "")
        if name == "scaled_dot_product_attention":
            counts[module_path(node)] += ATTENTION_DROPOUT in node.meta
        elif is_random(node.target):
            counts[module_path(node)] += 1_000_000 if name in _RECURRENT else 1  # their layers draw by themselves
    return counts


class Modes(NamedTuple):
    """A model's runs in evaluation and in training mode."""

    evaluated: TrainingRun | None
    trained: TrainingRun | None
    """None if it does not run in this mode."""
    sample_dropouts: Mapping[str, float]
    """See ``edgeopt.passes.stochastic``."""
    problem: str = ""
    """Why it does not run."""

    @property
    def attention_dropouts(self) -> Sequence[float]:
        """The dropout of each scaled dot product attention in training, in order."""
        return self.trained.attention_dropouts if self.trained else ()


def run_in_both_modes(model: nn.Module, inputs: Sequence[Tensor]) -> Modes:
    """Run a model in evaluation and in training mode; it is left in training mode, with its buffers as they were."""
    model.eval()
    try:
        evaluated = run_module(model, inputs)
    except MODEL_FAILURES as error:
        return Modes(None, None, {}, _describe_error(error))
    model.train()
    try:
        trained = run_module(model, inputs)
    except MODEL_FAILURES as error:
        return Modes(evaluated, None, {}, _describe_error(error))
    return Modes(evaluated, trained, find_sample_dropouts(model, trained))


def _describe_error(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:_MAX_CHARACTERS]


def describe_modes(
    model: nn.Module,
    modes: Modes,
    module: fx.GraphModule,
    inputs: Sequence[Tensor],
    random_nodes: Counter[str],
    norms: Mapping[str, Sequence[str]],
) -> tuple[str, ...]:
    """Return a note on each thing that the model's own training does and the traced network's does not.

    Args:
        model: The user's module.
        modes: Its runs.
        module: The traced graph.
        inputs: Those of the runs.
        random_nodes: The result of ``count_random_nodes``.
        norms: The result of ``fold_spectral_norms``.
    """
    if modes.evaluated is None:
        return ()
    if modes.trained is None:
        return (
            f"{DIFFERENCE_NOTE}forward() does not run in training mode on the inputs alone "
            f"({modes.problem}). Candidates train the network as it is evaluated; the loss belongs "
            "in loss(), which gets outputs and targets.",
        )
    folded = [name for vectors in norms.values() for name in vectors]
    trained = modes.trained._replace(updated=modes.trained.updated - frozenset(folded))
    traced = run_module(training_graph(module), inputs)
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    notes = _describe(model, modes.evaluated, trained, traced, random_nodes, parameters)
    functions, changed = find_changed_gradients(model, module, inputs)
    if functions:
        notes.append(
            f"{_join(functions, 'has a gradient of its own', 'have gradients of their own')}, which a trace does not "
            f"keep; {_join(changed, 'trains', 'train')} on the gradient of the operators in forward()"
        )
    if norms:
        notes.append(f"{_join(sorted(norms), 'has', 'have')} the spectral norm folded in; candidates train without it")
    return tuple(f"{DIFFERENCE_NOTE}{note}." for note in notes)


def _describe(
    model: nn.Module,
    evaluated: TrainingRun,
    trained: TrainingRun,
    traced: TrainingRun,
    random_nodes: Counter[str],
    parameters: Collection[str],
) -> list[str]:
    notes = []
    only = _outermost(trained.called - evaluated.called)
    if only:
        notes.append(f"{_join(only)} only in training: left out, and its part of the loss too")
    loose = [name for name in _lost_parameters(model, trained, parameters) if not _is_inside(name, only)]
    if loose:
        notes.append(f"{_join(loose, 'is used', 'are used')} only in training: left out")
    if trained.shapes != evaluated.shapes:
        notes.append(
            f"forward() gives {_outputs(trained)} in training and {_outputs(evaluated)} in evaluation; candidates "
            "train on the latter, and loss() gets them"
        )
    finished = sorted((evaluated.finishing - trained.finishing).keys())
    if finished:
        notes.append(f"{_join(finished)} only in evaluation; candidates train on the result, and loss() gets it")
    silent = [
        name for name, count in trained.random.items() if count > random_nodes[name] and not _is_inside(name, only)
    ]
    if silent:
        named = [f"{name or 'forward()'} ({type(model.get_submodule(name)).__name__})" for name in sorted(silent)]
        notes.append(
            f"{_join(named, 'is random', 'are random')} in training: left out; write it as a module of its own"
        )
    still = sorted(name for name in trained.updated - traced.updated if not _is_inside(name, only))
    if still:
        notes.append(f"{_join(still, 'keeps its value', 'keep their values')}, which the model's own training updates")
    moving = sorted(traced.updated - trained.updated)
    if moving:
        notes.append(f"{_join(moving, 'is', 'are')} updated, which the model's own training keeps as it is")
    return notes


def _lost_parameters(model: nn.Module, trained: TrainingRun, parameters: Collection[str]) -> list[str]:
    """Return the parameters that train in the model and are not in the trace under any of their names."""
    names: dict[int, list[str]] = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(value), []).append(name)
    return sorted(tied[0] for tied in names.values() if trained.trained & set(tied) and not set(parameters) & set(tied))


def _outputs(run: TrainingRun) -> str:
    shapes = ", ".join(str(shape) for shape in run.shapes)
    return f"{len(run.shapes)} {'output' if len(run.shapes) == 1 else 'outputs'} of shape {shapes}"


def _outermost(names: Iterable[str]) -> list[str]:
    """Return the modules that are not inside another of them."""
    kept: list[str] = []
    for name in sorted(names):
        if not _is_inside(name, kept):
            kept.append(name)
    return kept


def _is_inside(name: str, modules: Iterable[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _join(names: Iterable[str], one: str = "runs", many: str = "run") -> str:
    """Return names with their verb; the first few if there are many."""
    listed = list(names)
    shown = ", ".join(listed[:_MAX_NAMES])
    more = f" and {len(listed) - _MAX_NAMES} more" if len(listed) > _MAX_NAMES else ""
    return f"{shown}{more} {one if len(listed) == 1 else many}"

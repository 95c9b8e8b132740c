"""The score of tasks that leave it to edgeopt: it follows from the outputs, the labels and the user's wish."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.records.scoring import ScoreDirection, ScoreKind, ScoreWish
from edgeopt.scoring.agreement import choose_agreement
from edgeopt.scoring.choose import choose_score
from edgeopt.scoring.compute import sample_sums, sample_values, score_from_sums, score_of
from edgeopt.scoring.facts import flat_arrays

_Floats = NDArray[np.float64]


class KnownScore:
    """Scores outputs by a ``ScoreKind``, which ``settle_score`` decides from those of the trained network."""

    score_wish = ScoreWish()
    """What the user said about the score."""
    score_kind: ScoreKind | None = None
    """What the score is, once it is settled."""
    labels_source = "labels"
    """Where the labels come from, for errors."""

    def settle_score(
        self, outputs: Sequence[Sequence[NDArray[Any]]], names: Sequence[str], labels: Sequence[Any] | None
    ) -> ScoreKind:
        """Decide what the score is.

        Args:
            outputs: Of the trained network: for each batch, its outputs.
            names: Of the outputs.
            labels: In the same batches; None if outputs are compared with those of the trained network.

        Raises:
            DataError, TaskError: see ``choose_score`` and ``choose_agreement``.
        """
        self.score_kind = self._choose(outputs, names, labels)
        return self.score_kind

    def _choose(
        self, outputs: Sequence[Sequence[NDArray[Any]]], names: Sequence[str], labels: Sequence[Any] | None
    ) -> ScoreKind:
        if labels is None:
            return choose_agreement(outputs, names, self.score_wish, source=self.labels_source)
        return choose_score(outputs, names, labels, self.score_wish, source=self.labels_source)

    def kind_of(self, pairs: Sequence[tuple[Any, Any]], *, by_agreement: bool = False) -> ScoreKind:
        """Return the settled kind, or the one that these pairs show."""
        if self.score_kind is not None:
            return self.score_kind
        outputs = [flat_arrays(pair[1] if by_agreement else pair[0]) for pair in pairs]
        names = [f"output_{index}" for index in range(len(outputs[0]))] if len(outputs[0]) > 1 else ["output"]
        return self._choose(outputs, names, None if by_agreement else [labels for _, labels in pairs])

    @property
    def score_direction(self) -> ScoreDirection:
        """Whether a higher or a lower score is better."""
        return "higher" if self.score_kind is None else self.score_kind.direction

    def score(self, pairs: Iterable[tuple[Any, Any]]) -> float:
        """Return the score of pairs of outputs and labels."""
        pairs = list(pairs)
        return score_of(self.kind_of(pairs), pairs)

    def sample_scores(self, pairs: Iterable[tuple[Any, Any]]) -> _Floats | None:
        """Return one score per sample, whose mean is the score; None if the score is not a mean."""
        pairs = list(pairs)
        kind = self.kind_of(pairs)
        return None if kind.is_summed else sample_values(kind, pairs)

    def sample_statistics(self, pairs: Iterable[tuple[Any, Any]]) -> _Floats | None:
        """Return the numbers of each sample whose sums the score is computed from; None if the score is a mean."""
        pairs = list(pairs)
        kind = self.kind_of(pairs)
        return sample_sums(kind, pairs) if kind.is_summed else None

    def score_statistics(self, sums: _Floats) -> float:
        """Return the score from the sums of ``sample_statistics``."""
        assert self.score_kind is not None
        return score_from_sums(self.score_kind, sums)

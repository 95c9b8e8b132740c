from types import SimpleNamespace

from edgeopt.records.scoring import OutputScore, ScoreKind
from edgeopt.records.trial import Parity
from edgeopt.report.score_sentences import unjudged_outputs


def a_document(by_output, judged=("logits",)):
    parts = tuple(
        OutputScore(output=name, index=index, metric="accuracy", layout="classes", labels="numbers")
        for index, name in enumerate(judged)
    )
    parity = Parity(stage="final", max_abs_error=1.0, max_rel_error=0.92, tolerance=None, by_output=by_output)
    return SimpleNamespace(
        winner=SimpleNamespace(parities=(parity,)), score_kind=ScoreKind(parts=parts, by_agreement=False)
    )


def test_outputs_that_the_score_does_not_judge_are_named_with_their_error():
    sentence = unjudged_outputs(a_document({"logits": 0.01, "position": 0.92}))
    assert sentence.startswith("Not judged by the score: 'position' is off by 92")
    assert "logits" not in sentence


def test_nothing_is_said_if_all_outputs_are_judged_or_there_is_one():
    assert unjudged_outputs(a_document({"logits": 0.01, "position": 0.92}, ("logits", "position"))) is None
    assert unjudged_outputs(a_document(None)) is None

"""The model card says what disturbed the times that it states."""

import pytest
from builders import a_baseline, a_choice, a_trial

from edgeopt.bundle.model_card import _proof
from edgeopt.report.document import build_document


@pytest.mark.parametrize("contended", [True, False])
def test_times_that_other_load_disturbed_have_a_sentence(contended):
    choice = a_choice((a_baseline(), a_trial(1, drop=0.001, contended=contended)))
    assert choice.winner == 1
    text = "\n".join(_proof(build_document(choice)))
    assert ("Other load disturbed the timing" in text) == contended

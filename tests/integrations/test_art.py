"""ART: the attack is one of its own, and its arrays hold what the engine found."""

from __future__ import annotations

import numpy as np
import pytest

from invert_fast.integrations.needs import ART

from .needed import needed
from .page import PASSWORD

needed(ART)


def test_the_example_is_a_reconstruction_attack_under_any_defence_of_the_states(example):
    from art.attacks import ReconstructionAttack
    from art.defences.postprocessor import Rounded
    from art.exceptions import EstimatorError

    from invert_fast.integrations.art import NONE, HiddenStateEstimator, HiddenStateReconstruction

    names = example("ART")
    attack, tokens, status, inverter = (names[name] for name in ("attack", "tokens", "status", "inverter"))
    assert isinstance(attack, ReconstructionAttack)
    wanted = [inverter.encode(text) for text in (PASSWORD, "Meet me at nine.")]
    assert [[i for i in row if i != NONE] for row in tokens.tolist()] == wanted
    assert np.array_equal(status == NONE, tokens == NONE)
    assert (status[tokens != NONE] == 0).all(), "not all certified"
    assert np.array_equal(names["estimator"].predict(tokens), names["states"]), "token ids are read as texts are"
    rounded = HiddenStateEstimator(inverter, postprocessing_defences=Rounded(decimals=2)).predict([PASSWORD])
    assert np.array_equal(rounded, np.round(rounded, 2))
    assert [one.text for one in HiddenStateReconstruction(names["estimator"]).recoveries(rounded)] == [PASSWORD]
    with pytest.raises(EstimatorError):
        HiddenStateReconstruction(object())

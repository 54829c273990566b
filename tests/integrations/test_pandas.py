"""`to_pandas` of recoveries, scores and diagnoses: the figures of the objects, in rows."""

from __future__ import annotations

import pytest

from invert_fast.diagnose.hypotheses import LAYER, Hypothesis
from invert_fast.diagnose.report import Diagnosis, Tried
from invert_fast.types import Status

from .page import PASSWORD

pd = pytest.importorskip("pandas", reason="pandas is not installed: pip install 'invert_fast[pandas]'")


def test_the_example_has_a_row_a_text_and_a_row_a_position(example):
    names = example("Notebooks and pandas")
    table = names["score"].to_pandas()
    assert table["text"].tolist() == names["texts"] == table["reference"].tolist()
    assert table["exact"].tolist() == [True, True]
    assert table["certified"].tolist() == [1.0, 1.0]
    found = names["score"].texts[0].recovery
    rows = found.to_pandas()
    assert "".join(rows["token"]) == PASSWORD
    assert rows["token_id"].tolist() == found.token_ids.tolist()
    assert rows["residual"].tolist() == found.residual.tolist()
    assert set(rows["status"]) == {Status.CERTIFIED.label}
    tried = Diagnosis("final_norm", 9, None, tried={LAYER: Tried(Hypothesis("block:3"), 0.25)}).to_pandas()
    assert tried.iloc[0].tolist()[:3] == ["another layer", "--layer block:3", 0.25]
    assert tried["certified"].isna().all(), "not inverted under it"

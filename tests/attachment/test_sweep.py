"""Every causal LM that transformers knows: the attached likelihood is the model's own loss, or refused."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import transformers
from support import sweep

EXPECTED = json.loads(Path(__file__).with_name("sweep_expected.json").read_text())
TABLE = EXPECTED.get(transformers.__version__)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", sweep.model_types())
def test_the_attached_likelihood_is_the_models_own_loss_or_refused(model_type):
    with warnings.catch_warnings():
        # What a model says of a config that was shrunk by force is not about us.
        warnings.simplefilter("ignore")
        row = sweep.row(model_type)
    assert row["kind"] != "wrong", row["reason"]
    if TABLE is None or TABLE[model_type]["kind"] == "not run":
        return
    assert row == TABLE[model_type], "update with: python -m support.sweep (PYTHONPATH=tests/lib:integrations)"


@pytest.mark.skipif(TABLE is None, reason="the table is of another version of transformers")
def test_the_table_names_every_causal_lm():
    assert TABLE.keys() == set(sweep.model_types())


@pytest.mark.skipif(TABLE is None, reason="the table is of another version of transformers")
def test_most_classes_are_lean_and_few_could_not_be_run():
    kinds = [row["kind"] for row in TABLE.values()]
    assert kinds.count("lean") > 0.8 * len(kinds)
    assert kinds.count("not run") < 0.05 * len(kinds)
    assert "wrong" not in kinds


@pytest.mark.parametrize("version", EXPECTED)
def test_the_rendered_table_has_a_row_for_each_class(version):
    rendered = sweep.render(EXPECTED[version]).splitlines()
    assert len(rendered) == 2 + len(EXPECTED[version])
    assert "| `LlamaForCausalLM` | `llama` | lean |  |" in rendered
    assert any("`BartForCausalLM`" in line and "refused" in line and "next token" in line for line in rendered)

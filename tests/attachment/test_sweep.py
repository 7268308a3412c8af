"""Every class of transformers that asks for the next token: the attached loss is right by hand, or refused."""

from __future__ import annotations

import json
import warnings

import pytest
import transformers
from support import sweep

EXPECTED = json.loads(sweep.PATH.read_text())
TABLES = EXPECTED.get(transformers.__version__)
CASES = [(name, key) for name, section in sweep.SECTIONS.items() for key in section.names()]

of_this_version = pytest.mark.skipif(TABLES is None, reason="the tables are of another version of transformers")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "key"), CASES)
def test_the_attached_loss_is_that_of_the_class_and_by_hand_or_refused(name, key):
    with warnings.catch_warnings():
        # What a model says of a config that was shrunk by force is not about us.
        warnings.simplefilter("ignore")
        row = sweep.row(name, key)
    assert row["kind"] != "wrong", row["reason"]
    if TABLES is None or TABLES[name][key]["kind"] == "not run":
        return
    assert row == TABLES[name][key], "update with: python -m support.sweep (PYTHONPATH=tests/lib:integrations)"


@of_this_version
@pytest.mark.parametrize("name", sweep.SECTIONS)
def test_the_tables_name_every_class(name):
    assert TABLES[name].keys() == set(sweep.SECTIONS[name].names())


@of_this_version
@pytest.mark.parametrize(("name", "lean", "not_run"), [("text", 0.8, 0.05), ("multimodal", 0.45, 0.25)])
def test_most_classes_are_lean_and_few_could_not_be_run(name, lean, not_run):
    kinds = [row["kind"] for row in TABLES[name].values()]
    assert kinds.count("lean") > lean * len(kinds)
    assert kinds.count("not run") < not_run * len(kinds)
    assert "wrong" not in kinds


SPEECH = ("AudioFlamingo3", "GlmAsr", "GraniteSpeech", "Qwen2Audio", "Voxtral", "VoxtralRealtime")
VISION = ("Gemma3", "Gemma4", "Kosmos2", "Llama4", "Llava", "Qwen2_5OmniThinker", "Qwen3OmniMoeThinker", "Qwen3VL")


@of_this_version
@pytest.mark.parametrize(("inputs", "names"), [("audio", SPEECH), ("image", VISION)])
def test_what_speech_and_omni_models_hear_and_see_is_in_their_batches(inputs, names):
    for name in names:
        name = f"{name}ForConditionalGeneration"
        row, broken = TABLES["multimodal"][name], sweep.BROKEN.get(name) == transformers.__version__
        assert (row["kind"], row["inputs"]) == (("not run", "") if broken else ("lean", inputs)), name


@pytest.mark.parametrize("version", EXPECTED)
def test_the_rendered_tables_have_a_row_for_each_class(version):
    text, multimodal = (sweep.render(EXPECTED[version][name]).splitlines() for name in ("text", "multimodal"))
    assert len(text) == 2 + len(EXPECTED[version]["text"])
    assert len(multimodal) == 2 + len(EXPECTED[version]["multimodal"])
    assert "| `LlamaForCausalLM` | `llama` | lean |  |" in text
    assert "| `Gemma3ForConditionalGeneration` | image | lean |  |" in multimodal
    assert any("`BartForCausalLM`" in line and "refused" in line and "next token" in line for line in text)
    assert any("`T5ForConditionalGeneration`" in line and "encoder-decoder" in line for line in multimodal)

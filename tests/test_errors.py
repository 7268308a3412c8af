"""The kinds of errors, and how several problems read."""

from __future__ import annotations

import pickle

import pytest

from dft_plugin import errors


def kinds():
    return [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.DftError)]


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_no_error_is_an_import_error_which_axolotl_would_swallow(kind):
    assert not issubclass(kind, ImportError)


@pytest.mark.parametrize(
    ("kind", "caught_as"),
    [
        (errors.SettingsError, ValueError),
        (errors.ConflictError, errors.SettingsError),
        (errors.LabelError, ValueError),
        (errors.UnsupportedModelError, TypeError),
        (errors.NonFiniteError, FloatingPointError),
        (errors.NotActiveError, RuntimeError),
    ],
)
def test_a_kind_is_also_what_a_caller_would_catch(kind, caught_as):
    assert issubclass(kind, caught_as)


def test_one_problem_reads_as_a_sentence():
    assert str(errors.SettingsError(["`loss`: nothing is given."])) == "`loss`: nothing is given."


def test_several_problems_read_as_a_list():
    error = errors.ConflictError(problem for problem in ("one.", "two."))
    assert error.problems == ("one.", "two.")
    assert str(error) == "2 problems:\n  - one.\n  - two."


def test_a_settings_error_survives_the_way_out_of_a_worker_process():
    copy = pickle.loads(pickle.dumps(errors.SettingsError(["one.", "two."])))
    assert copy.problems == ("one.", "two.")


class Talkative:
    def __repr__(self):
        pytest.fail("the repr may print a whole model")

    def __call__(self):
        return None

    def method(self):
        return None


def test_a_function_is_named_without_its_repr():
    made = Talkative()
    module = Talkative.__module__
    assert errors.name_of(made.method) == f"{module}.Talkative.method"
    assert errors.name_of(made) == f"{module}.Talkative"
    assert errors.name_of(len) == "builtins.len"


def test_what_torch_hands_on_from_a_data_loaders_worker_is_one_problem():
    # torch.utils.data makes it again, of its text alone.
    assert errors.ConflictError("a worker's text").problems == ("a worker's text",)

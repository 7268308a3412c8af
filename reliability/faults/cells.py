"""The faults that are tried, and the tests that try the others."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from reliability.faults.victim import Harm

SCHEDULED = {"name": "dft", "alpha": {"from": 0.2, "to": 1.0, "until": 5}}
"""A loss that is another one in each of the first steps."""

COMPARED = {"name": "asft", "strength": {"from": 0.1, "to": 0.6, "until": 5}, "reference": "copy"}
"""The same, against a second copy of the model as it was when the run began."""

STARTED = {**COMPARED, "reference": "start"}


@dataclass(frozen=True)
class Cell:
    """One fault in one host.

    Attributes:
        fault: what happens; a heading of the page.
        host: where.
        kind: `full` or `lora`.
        what: in words, for the page.
        harm: what happens; its step and place are drawn anew in each run where `drawn`.
        loss: what stands after `loss:`.
        drawn: whether step and place are drawn.
        environment: of the process that comes to harm.
        ranks: how many processes train.
    """

    fault: str
    host: str
    kind: str
    what: str
    harm: Harm
    loss: Any = field(default_factory=lambda: SCHEDULED)
    drawn: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    ranks: int = 1

    @property
    def key(self) -> str:
        """By which its row is found."""
        return " / ".join((self.fault, self.host, self.kind, self.what))


KILLED, RANK, DISK, TERM = "killed", "a rank is lost", "no room on the disk", "told to end"

HOSTS = ("transformers", "trl", "axolotl", "llamafactory", "swift", "verl", "unsloth")

CELLS: tuple[Cell, ...] = (
    *(
        Cell(KILLED, host, kind, "`alpha` with `{from, to, until}`", Harm("SIGKILL", 0), drawn=True)
        for host in HOSTS
        for kind in ("full", "lora")
    ),
    Cell(KILLED, "transformers", "full", "`reference: copy`", Harm("SIGKILL", 0), COMPARED, drawn=True),
    Cell(KILLED, "transformers", "lora", "`reference: start`", Harm("SIGKILL", 0), STARTED, drawn=True),
    *(Cell(KILLED, host, "full", "while it saves", Harm("SIGKILL", 4, "saving")) for host in ("transformers", "verl")),
    Cell(RANK, "transformers", "full", "one of two is killed", Harm("SIGKILL", 3, "forward", 1), ranks=2),
    Cell(
        RANK,
        "transformers",
        "lora",
        "one of two is killed before the optimizer steps",
        Harm("SIGKILL", 3, "optimizer", 1),
        ranks=2,
    ),
    Cell(RANK, "transformers", "full", "one of two hangs (SIGSTOP)", Harm("SIGSTOP", 3, "forward", 1), ranks=2),
    *(Cell(DISK, host, "full", "files may not grow (`RLIMIT_FSIZE`)", Harm("full", 4, "optimizer")) for host in HOSTS),
    *(Cell(TERM, host, "full", "SIGTERM", Harm("SIGTERM", 4, "forward")) for host in HOSTS),
    Cell(
        TERM,
        "transformers",
        "full",
        "SIGTERM with `enable_jit_checkpoint`",
        Harm("SIGTERM", 2, "forward", slow=1.5),
        environment={"DFT_FAULTS_JIT": "1"},
    ),
)

CHEAP = tuple(
    cell
    for cell in CELLS
    if cell.host == "transformers" and cell.kind == "full" and cell.what in ("one of two is killed", "while it saves")
)
"""In every run of the tests."""

TESTED: dict[str, tuple[tuple[str, str], ...]] = {
    "A loss that is no finite number": (
        (
            "by default it is named, with its step, its rank, what it was first and the rows",
            "hosts/transformers/test_nonfinite.py::test_by_default_one_warning_names_step_statistic_and_rows",
        ),
        (
            "`nonfinite: error`: both ranks stop alike, no weight has moved",
            "hosts/test_ranks_nonfinite.py::test_both_stop_with_the_same_error_and_no_weight_moved",
        ),
        (
            "`nonfinite: skip`: both ranks leave the step out and go on alike",
            "hosts/test_ranks_nonfinite.py::test_both_leave_the_step_out_and_go_on_alike",
        ),
    ),
    "Autoload": (
        ("killed while it writes its file", "cli/test_autoload_faults.py::test_killed_while_it_writes"),
        ("enabled twice, read twice", "cli/test_autoload.py::test_it_is_installed_once_however_often_site_reads_it"),
        (
            "enabled by several processes at once, while Python starts",
            "cli/test_autoload_faults.py::test_several_at_once",
        ),
        (
            "a host whose module is another one after an upgrade",
            "cli/test_autoload.py::test_an_error_of_patch_stops_it_as_it_is",
        ),
        ("our package removed: Python starts", "cli/test_autoload_faults.py::test_python_starts_without_our_package"),
        (
            "our package removed: the host is not trained without the loss",
            "cli/test_autoload.py::test_a_package_that_is_gone_stops_the_import_of_the_host",
        ),
        ("two environments", "cli/test_autoload_faults.py::test_of_two_environments_one_is_left_alone"),
        (
            "a folder that cannot be written to",
            "cli/test_autoload.py::test_where_nobody_can_write_enable_is_true_of_what_is_there",
        ),
    ),
    "Interrupted elsewhere": (
        (
            "`dft reference`, and its folder",
            "hosts/trl/test_beforehand.py::test_interrupted_it_goes_on_and_ends_with_the_same_files",
        ),
        (
            "verl: the schedule of a run that goes on",
            "hosts/verl/test_log.py::test_a_resumed_run_goes_on_with_its_schedule",
        ),
        (
            "LLaMA-Factory's v1 trainer",
            "hosts/llamafactory/test_v1.py::test_a_resumed_run_equals_an_uninterrupted_one",
        ),
        ("Unsloth", "hosts/unsloth/test_numbers.py::test_a_resumed_run_equals_an_uninterrupted_one"),
        (
            "a checkpoint of another loss is not gone on from",
            "hosts/llamafactory/test_recording.py::"
            "test_a_checkpoint_of_another_loss_is_refused_also_one_that_is_found_by_itself",
        ),
    ),
}
"""By heading: what is tried, and by which test below `tests/`."""

"""docs/evidence.md and its pictures, made of the rows."""

from __future__ import annotations

from pathlib import Path

from evidence import answers, following, foretelling, plots, short, tables
from evidence.offline import report
from evidence.study import Study
from evidence.words import PAGE, RATES_PAGE


def pictures(study: Study) -> dict[str, str]:
    """Return the pictures by the name of their file; one whose rows are missing is none."""
    found = {
        "beside": plots.beside_each_other(study),
        "crossing-greedy": plots.crossing(study, "taught@0"),
        "crossing-sampled": plots.crossing(study, "taught@1"),
    }
    for number, cell in enumerate((cell.name for cell in study.grid.cells if cell.telling), start=1):
        found[f"temperature-{number}"] = plots.temperatures(study, cell)
        found[f"pass-at-k-{number}"] = plots.many_samples(study, cell)
        found[f"probabilities-{number}"] = plots.probabilities(study, cell)
    return {f"{name}.svg": picture for name, picture in found.items() if picture}


def render(study: Study, folder: str) -> str:
    """Return the page.

    Args:
        study: the rows.
        folder: of the pictures, as the page names it.
    """
    drawn = pictures(study)
    telling = [cell.name for cell in study.grid.cells if cell.telling and cell.name in study.cells()]

    def shown(prefix: str, said: str) -> str:
        names = [name for name in drawn if name.startswith(prefix)]
        labels = [f"{said}, {telling[int(name[-5]) - 1]}" if name[-5].isdigit() else said for name in names]
        return "\n\n".join(f"![{label}]({folder}/{name})" for label, name in zip(labels, names, strict=True))

    values = {
        "so_far": answers.so_far(study),
        "in_short": short.in_short(study),
        "hypothesis": answers.hypothesis(study),
        "ends": answers.ends(study),
        "others": "\n\n".join(f"*{loss}*\n\n{answers.hypothesis(study, loss)}" for loss in ("floor 0.1", "EAFT")),
        "greedy": tables.hypothesis(study, "taught@0"),
        "sampled": tables.hypothesis(study, "taught@1"),
        "beside": shown("beside", "Sampled accuracy of SFT, DFT and alpha 0.5, 40 % of the demonstrations wrong"),
        "by_probability": foretelling.fares(study, foretelling.by_probability),
        "by_own_answers": foretelling.supposed(study) or "No other seed has a cell with SFT and DFT yet.",
        "by_own_answers_seen": foretelling.fares(study, foretelling.by_own_answers),
        "foretold": foretelling.table(study),
        "following": following.table(study),
        "advised": following.by_cell(study),
        "crossing_line": answers.crossing(study, "taught@1"),
        "crossing": shown("crossing", "DFT minus SFT over the mean probability before training"),
        "temperature": answers.temperature(study),
        "temperature_table": tables.temperature(study),
        "temperatures": shown("temperature", "Accuracy by temperature"),
        "passes": shown("pass-at-k", "pass@k"),
        "besides": "\n\n".join(f"*{cell}*\n\n{tables.besides(study, cell)}" for cell in telling),
        "family": tables.family(study),
        "probabilities": shown("probabilities", "Probabilities of demonstrated tokens before and after"),
        "real": tables.real(study),
        "offline_so_far": report.so_far(study.rows),
        "offline_supposed": report.supposed(study.rows),
        "offline": report.tables(study.rows),
        "offline_rates": report.chosen(study.rows),
        "rates": tables.chosen_rates(study),
    }
    return PAGE.format(**{name: said or tables.NOTHING for name, said in values.items()})


def rates(study: Study) -> str:
    """Return the page of the runs that chose the learning rates."""
    choosing = [cell for cell in study.grid.cells if cell.tuned_here and cell.name in study.cells()]
    tried = "\n\n".join(f"*{cell.name}*\n\n{tables.tried(study, cell.group)}" for cell in choosing)
    return RATES_PAGE.format(tried=tried or tables.NOTHING)


def draw(study: Study, folder: Path) -> list[Path]:
    """Write the pictures, and return what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {folder / name: picture for name, picture in pictures(study).items()}
    for path, picture in found.items():
        path.write_text(picture, encoding="utf-8")
    return list(found)


def write(study: Study, path: Path) -> list[Path]:
    """Write the page, the one about rates beside it, and the pictures, and return what was written."""
    folder = path.with_suffix("")
    beside = path.with_name(f"{path.stem}-rates.md")
    path.write_text(render(study, folder.name), encoding="utf-8")
    beside.write_text(rates(study), encoding="utf-8")
    return [path, beside, *draw(study, folder)]

"""`python -m reliability.downstream run | suites | page`."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from reliability.downstream import environments, page, startup, suites, trainings
from reliability.downstream.environments import CHECKOUT
from reliability.downstream.names import FORMS, HOSTS

ROWS = CHECKOUT / "docs" / "reliability" / "downstream.jsonl"
PAGE = ROWS.with_suffix(".md")


def main(given: list[str]) -> None:
    """Run a part, or write the page of the rows that there are."""
    parser = argparse.ArgumentParser(prog="python -m reliability.downstream", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train stock in three environments, and time imports")
    run.add_argument("hosts", nargs="*", choices=[*HOSTS, []], help="default: those that have an environment")
    run.add_argument("--environment", action="append", default=[], metavar="HOST=FOLDER", help="default: .nox/HOST")
    run.add_argument("--form", action="append", choices=FORMS)
    run.add_argument("--rounds", type=int, default=7, help="of an import; 0: none")
    run.add_argument("--again", action="store_true", help="also what has rows")
    tests = commands.add_parser("suites", help="run the trainer tests of TRL and transformers under nll")
    tests.add_argument("environment", type=Path, help="the one that has TRL")
    tests.add_argument("--sdists", type=Path, default=Path("build", "sdists"))
    tests.add_argument("--suite", action="append", choices=[suite.name for suite in suites.SUITES])
    commands.add_parser("page", help="write docs/reliability/downstream.md")
    words = parser.parse_args(given)
    if words.command == "page":
        page.write(read(), PAGE)
        return
    if words.command == "suites":
        run_suites(words.environment.resolve(), words.suite, words.sdists.resolve())
        return
    folders = {host: CHECKOUT / ".nox" / host for host in HOSTS} | dict(_named(words.environment))
    folders["transformers"] = folders.get("transformers") or folders["trl"]
    for host in words.hosts or HOSTS:
        if (folders[host] / "bin" / "python").exists():
            run_host(host, folders[host].resolve(), words.form or FORMS, words.rounds, words.again)
        else:
            print(f"{host}: no environment at {folders[host]}; left out")


def _named(given: Iterable[str]) -> Iterable[tuple[str, Path]]:
    for word in given:
        host, _, folder = word.partition("=")
        yield host, Path(folder)


def run_host(host: str, given: Path, forms: Iterable[str], rounds: int, again: bool) -> None:
    """Run what has no rows yet for one host, and keep the rows of each part when it is done."""
    known = read()
    done = {(row["part"], row["host"], row.get("form")) for row in known if row["part"] in ("training", "start-up")}
    wanted = [form for form in forms if again or ("training", host, form) not in done]
    timed = rounds and (again or ("start-up", host, None) not in done)
    if not wanted and not timed:
        return
    with tempfile.TemporaryDirectory(prefix="downstream-") as folder:
        work = Path(folder)
        made = trainings.environments_of(given, work)
        found = {kind: environments.traces(one) for kind, one in made.items()}
        head = {"part": "environment", "host": host, "versions": trainings.versions(made["stock"]), "found": found}
        keep([head], ("environment", host, None))
        print(host, json.dumps(found), flush=True)
        for form in wanted:
            rows = []
            start = trainings.start_of(host, form, given, work / form)
            for row in trainings.rows(host, form, start, made, work / form):
                rows.append(row)
                print(host, form, row["run"], row["code"], row["seconds"], row["weights"], flush=True)
            keep(rows, ("training", host, form))
            shutil.rmtree(work / form)
        if timed:
            rows = list(startup.rows(host, made, rounds))
            for row in rows:
                print(host, row["import"], row["run"], row["median"], row["beyond"], row["own"], flush=True)
            keep(rows, ("start-up", host, None))


def run_suites(given: Path, chosen: list[str] | None, folder: Path) -> None:
    """Run the trainer tests of others, and keep a row for each test."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="suites-") as place:
        work = Path(place)
        made = trainings.environments_of(given, work)
        for suite in suites.SUITES:
            if chosen is None or suite.name in chosen:
                rows = list(suites.run(suite, given, made, work / suite.name, folder))
                keep(rows, ("suite", suite.name, None))


def read() -> list[dict[str, Any]]:
    """Return the rows that are there."""
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.is_file() else []


def keep(rows: list[dict[str, Any]], what: tuple[str, str, str | None]) -> None:
    """Put rows in the place of those that were there for the same part, host and form."""
    others = [row for row in read() if (row["part"], row["host"], row.get("form")) != what]
    ROWS.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, sort_keys=True) + "\n" for row in [*others, *rows]]
    ROWS.write_text("".join(sorted(lines)))


if __name__ == "__main__":
    main(sys.argv[1:])

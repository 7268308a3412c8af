"""`dft sample`: answers of a model's own, those that a verifier calls right, as a dataset to train on."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
import yaml

from dft_plugin.answers import by_vllm, sources, verifying
from dft_plugin.answers.asking import Engine, Plan, ask, first_question
from dft_plugin.answers.judging import Form
from dft_plugin.answers.output import Output
from dft_plugin.answers.sources import Source
from dft_plugin.answers.verifying import Verifier
from dft_plugin.cli.bar import Bar
from dft_plugin.cli.beforehand import INTERRUPTED
from dft_plugin.cli.checking import find_host
from dft_plugin.cli.sampling import MODEL_KEYS
from dft_plugin.config.keys import unknown_overrides
from dft_plugin.config.plugins import build_catalogue
from dft_plugin.config.reading import load
from dft_plugin.config.trained import adapter_in
from dft_plugin.errors import SettingsError, UnknownNameError

ENGINES = ("transformers", "vllm")
FORMS = ("auto", "messages", "prompt-completion")

_PASSED_ON = {"model_revision": "revision", "revision_of_model": "revision", "trust_remote_code": "trust_remote_code"}
"""Keys of hosts, and what `from_pretrained` calls them."""


@dataclass(frozen=True)
class Asked:
    """What stands on the command line; see the options of `dft sample`."""

    path: Path | None
    overrides: Sequence[str]
    model: str | None
    data: str | None
    split: str | None
    question: str | None
    truth: str | None
    verifier: str
    extract: str | None
    least: float
    k: int
    temperature: float
    top_p: float
    longest: int
    keep: str
    pairs: bool
    form: str
    plain: bool
    out: Path
    resume: bool
    seed: int
    batch: int
    limit: int | None
    engine: str
    engine_args: str | None
    dtype: str | None


@dataclass(frozen=True)
class _Found:
    """What the options lead to."""

    model: str
    adapter: Path | None
    options: Mapping[str, Any]
    source: Source
    verifier: Verifier
    pattern: re.Pattern[str] | None
    keep: int | None
    engine_args: Mapping[str, Any]


def run(asked: Asked) -> int:
    """Sample, judge, write, and say what came of it. Returns the exit code.

    Raises:
        DftError: it cannot be done; says what to do instead.
    """
    found = _look(asked)
    output = Output(asked.out, _settings(asked, found))
    problems = output.problems(asked.resume)
    if problems:
        raise SettingsError(problems)
    if output.finished:
        typer.echo(f"{asked.out} is complete. {output.counts.line()}.")
        return 0
    plain = Plan(
        asked.question,
        asked.k,
        max(1, asked.batch // asked.k),
        asked.limit,
        found.verifier,
        found.pattern,
        asked.least,
        found.keep,
        "messages",
        asked.pairs,
    )
    missing = found.verifier.missing(first := first_question(found.source, plain))
    if missing is not None:
        raise SettingsError([f"--verifier {asked.verifier}: row {first.number} of {found.source.path} has {missing}."])
    engine, form = _engine(asked, found)
    plan = Plan(**{**plain.__dict__, "form": form})
    output.open()
    try:
        with Bar(found.source.count(), asked.limit, output.done) as bar:
            ask(found.source, plan, engine, output, bar.advance)
    except KeyboardInterrupt:
        typer.echo(
            "dft: stopped. The same command with --resume goes on from the last answers that were written.", err=True
        )
        return INTERRUPTED
    typer.echo(f"{output.counts.line()}.")
    if not output.counts.rows:
        typer.echo(f"dft: nothing was kept, so that {asked.out} is empty.", err=True)
    return 0


def _look(asked: Asked) -> _Found:
    """Return what the options lead to, or say all that is wrong with them at once."""
    problems = [*_numbers(asked), *_words(asked), *_overrides(asked)]
    made: dict[str, Any] = {"model": "", "adapter": None, "options": {}, "source": None}
    parts: dict[str, Callable[[], Any]] = {
        "model": lambda: _model(asked),
        "source": lambda: _source(asked),
        "verifier": lambda: verifying.find(asked.verifier, asked.truth),
        "pattern": lambda: _pattern(asked.extract),
        "keep": lambda: _keep(asked.keep),
        "engine_args": lambda: _mapping(asked.engine_args),
    }
    for name, make in parts.items():
        try:
            made[name] = make()
        except SettingsError as error:
            problems += error.problems
    if problems:
        # The config is read for the model and for the data.
        raise SettingsError(dict.fromkeys(problems))
    model, adapter, options = made.pop("model")
    return _Found(**{**made, "model": model, "adapter": adapter, "options": options})


def _numbers(asked: Asked) -> Iterator[str]:
    if asked.k < 1:
        yield f"--k {asked.k}: at least one answer to a question."
    if asked.temperature < 0:
        yield f"--temperature {asked.temperature:g}: 0, which takes the likeliest tokens, or more."
    if asked.temperature == 0 and asked.k > 1:
        yield f"--temperature 0 gives the same answer {asked.k} times. Ask with --k 1, or warmer."
    if not 0 < asked.top_p <= 1:
        yield f"--top-p {asked.top_p:g}: above 0, and at most 1, which is all tokens."
    for option, number in (
        ("--max-new-tokens", asked.longest),
        ("--batch-size", asked.batch),
        ("--limit", asked.limit),
    ):
        if number is not None and number < 1:
            yield f"{option} {number}: at least 1."
    if asked.pairs and asked.k < 2:
        yield "--pairs takes a right and a wrong answer to a question: --k 2 or more."


def _words(asked: Asked) -> Iterator[str]:
    if asked.engine not in ENGINES:
        yield f"--engine {asked.engine}: no such engine. It is {' or '.join(ENGINES)}."
    if asked.engine == "vllm" and not by_vllm.is_here():
        yield by_vllm.MISSING
    if asked.engine_args is not None and asked.engine != "vllm":
        yield "--engine-args are those of --engine vllm; transformers has none here."
    if asked.form not in FORMS:
        yield f"--form {asked.form}: no such form. It is {', '.join(FORMS)}."
    if asked.form == "messages" and asked.pairs:
        yield "--pairs has a form of its own, prompt, chosen and rejected; leave out --form."
    if asked.plain and asked.form == "messages":
        yield "--plain writes prompt and completion as texts; leave out --form."
    if asked.out.suffix != ".jsonl":
        yield f"--out {asked.out}: JSON lines are written; name it .jsonl."
    if asked.dtype not in (None, "auto", "float32", "bfloat16", "float16"):
        yield f"--dtype {asked.dtype}: no such precision. It is auto, float32, bfloat16 or float16."


def _overrides(asked: Asked) -> Iterator[str]:
    """Yield what no key of the host is: `temprature=0.5` would change nothing, in silence."""
    if asked.path is None or not asked.overrides:
        return
    catalogue = build_catalogue()
    try:
        config = load(asked.path, asked.overrides)
        yield from unknown_overrides(find_host(config, catalogue, None), config.overrides, catalogue)
    except UnknownNameError:
        yield f"{' '.join(asked.overrides)}: overrides are for a config whose host is known. Leave them out."
    except SettingsError as error:
        yield from error.problems


def _model(asked: Asked) -> tuple[str, Path | None, dict[str, Any]]:
    """Return the model, an adapter on it, and what it is loaded with."""
    adapter = None if asked.model is None else adapter_in(Path(asked.model))
    if asked.path is None:
        if asked.model is None:
            raise SettingsError(["no model: give the config that you train with (dft sample sft.yaml), or --model."])
        return (_base(adapter.folder), adapter.folder, {}) if adapter else (asked.model, None, {})
    config = load(asked.path, asked.overrides).host
    options = {ours: config[key] for key, ours in _PASSED_ON.items() if config.get(key)}
    named = next((config[key] for key in MODEL_KEYS if config.get(key)), None)
    # verl's stands a level down.
    named = named.get("path") if isinstance(named, Mapping) else named
    if asked.model is not None and adapter is None:
        named = asked.model
    if named is None:
        raise SettingsError([f"{asked.path} names no model ({', '.join(MODEL_KEYS)}). Name it with --model."])
    return str(named), None if adapter is None else adapter.folder, options


def _base(adapter: Path) -> str:
    try:
        name = yaml.safe_load((adapter / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise SettingsError(
            [f"--model {adapter} is an adapter that does not say on which model. Give a config."]
        ) from error
    return str(name)


def _source(asked: Asked) -> Source:
    if asked.data is not None:
        found = Source(asked.data, asked.split or "train")
    elif asked.path is None:
        raise SettingsError(["no questions: give the config that you train with, or --data."])
    else:
        found = sources.of_config(load(asked.path, asked.overrides).host)
        found = Source(found.path, asked.split or found.split, found.options)
    problem = found.problem()
    if problem is not None:
        raise SettingsError([problem])
    return found


def _pattern(text: str | None) -> re.Pattern[str] | None:
    try:
        return None if text is None else re.compile(text)
    except re.error as error:
        raise SettingsError([f"--extract {text} is no regular expression: {error}."]) from error


def _keep(text: str) -> int | None:
    if text in ("all", "one"):
        return None if text == "all" else 1
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise SettingsError([f"--keep {text}: it is all, one, or a number of answers to each question."])


def _mapping(text: str | None) -> Mapping[str, Any]:
    try:
        found = {} if text is None else yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError([f"--engine-args {text} is no YAML."]) from error
    if not isinstance(found, Mapping):
        raise SettingsError([f"--engine-args {text}: a mapping, as {{tensor_parallel_size: 2}}."])
    return found


def _settings(asked: Asked, found: _Found) -> dict[str, Any]:
    """Return what decides which rows are written."""
    return {
        "model": found.model,
        "adapter": None if found.adapter is None else str(found.adapter),
        "data": found.source.fingerprint(),
        "--question": asked.question,
        "--truth": asked.truth,
        "--verifier": asked.verifier,
        "--extract": asked.extract,
        "--min-score": asked.least,
        "--k": asked.k,
        "--temperature": asked.temperature,
        "--top-p": asked.top_p,
        "--max-new-tokens": asked.longest,
        "--keep": asked.keep,
        "--pairs": asked.pairs,
        "--form": asked.form,
        "--plain": asked.plain,
        "--seed": asked.seed,
        "--batch-size": asked.batch,
        "--limit": asked.limit,
        "--engine": asked.engine,
        "--engine-args": dict(found.engine_args),
        "--dtype": asked.dtype,
    }


def _engine(asked: Asked, found: _Found) -> tuple[Engine, Form]:
    """Return what answers, and the form of the rows."""
    # It loads torch: not before what can be said without.
    from dft_plugin.hf.generating import Generating, Prompts, Sampling, Weights, default_dtype, load_tokenizer

    weights = Weights(found.model, found.adapter, asked.dtype or default_dtype(), found.options)
    prompts = Prompts(load_tokenizer(weights), asked.plain)
    form = "text" if prompts.plain else _form(asked)
    if asked.engine == "vllm":
        if found.adapter is not None:
            raise SettingsError([f"--engine vllm takes whole models; merge {found.adapter} into its model first."])
        sampling = {"temperature": asked.temperature, "top_p": asked.top_p, "max_tokens": asked.longest}
        options = {**({} if asked.dtype is None else {"dtype": asked.dtype}), **found.options, **found.engine_args}
        return by_vllm.VLLM(found.model, prompts.tokens, sampling, asked.seed, options), form
    how = Sampling(asked.temperature, asked.top_p, asked.longest, asked.seed, asked.batch)
    return Generating(weights, how, prompts), form


def _form(asked: Asked) -> Form:
    """Return what was asked for, or what the config's host trains the answers of, and nothing else."""
    named: dict[str, Form] = {"messages": "messages", "prompt-completion": "prompt-completion"}
    if asked.form in named or asked.path is None:
        return named.get(asked.form, "prompt-completion")
    try:
        return find_host(load(asked.path, asked.overrides), build_catalogue(), None).form_of_chats
    except UnknownNameError:
        return "prompt-completion"

"""The command `dft sample`: its options. What it does is in answering.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dft_plugin.cli import answering
from dft_plugin.cli.options import Overrides


def sample(
    config: Annotated[
        Path | None, typer.Argument(help="What you train with, for its model and its data. It is only read.")
    ] = None,
    overrides: Overrides = None,
    out: Annotated[
        Path, typer.Option(help="The file of JSON lines to write; an existing one is never overwritten.")
    ] = Path("answers.jsonl"),
    verifier: Annotated[
        str, typer.Option(help="Who says what is right: math-verify, reasoning-gym, or MODULE:FUNCTION.")
    ] = "math-verify",
    k: Annotated[int, typer.Option("--k", help="Answers to each question.")] = 4,
    keep: Annotated[
        str, typer.Option(help="Right answers that are kept of a question: all, one, or so many different ones.")
    ] = "all",
    pairs: Annotated[
        bool, typer.Option("--pairs", help="Write pairs of a right and a wrong answer, for TRL's DPOTrainer.")
    ] = False,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest tokens.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Of the nucleus; 1: all tokens.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(help="Of an answer; one that is cut there is not kept.")] = 512,
    model: Annotated[
        str | None,
        typer.Option(help="In the place of the config's: a folder, a name on the hub, or the folder of an adapter."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="In the place of the config's: a file, or a dataset's folder or name.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Of a dataset.")] = None,
    question: Annotated[
        str | None, typer.Option(help="The column of the question; else messages, prompt, question, problem ...")
    ] = None,
    truth: Annotated[
        str | None, typer.Option(help="The column of the right answer, for math-verify; else answer, solution ...")
    ] = None,
    extract: Annotated[
        str | None, typer.Option(help="A regular expression: its last match is verified, not all of the answer.")
    ] = None,
    min_score: Annotated[float, typer.Option(help="From which score of the verifier an answer is right.")] = 1.0,
    form: Annotated[
        str, typer.Option(help="Of the rows: messages, or prompt-completion; auto: what the config's host wants.")
    ] = "auto",
    plain: Annotated[
        bool, typer.Option("--plain", help="Ask without the tokenizer's chat template, and write texts.")
    ] = False,
    limit: Annotated[int | None, typer.Option(help="Rows of the data; else all.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a file that is there, made by the same options.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Answers that are generated together.")] = 32,
    engine: Annotated[str, typer.Option(help="transformers, or vllm where it is installed.")] = "transformers",
    engine_args: Annotated[
        str | None, typer.Option(help="What vllm.LLM is given besides, as YAML: {tensor_parallel_size: 2}.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of the weights: auto, float32, bfloat16, float16; else auto, on a CPU float32.")
    ] = None,
) -> None:
    """Have a model answer questions, and write the answers that a verifier calls right, to train on.

    Stopped, the same command with --resume goes on where it was.
    """
    asked = answering.Asked(
        config,
        overrides or [],
        model,
        data,
        split,
        question,
        truth,
        verifier,
        extract,
        min_score,
        k,
        temperature,
        top_p,
        max_new_tokens,
        keep,
        pairs,
        form,
        plain,
        out,
        resume,
        seed,
        batch_size,
        limit,
        engine,
        engine_args,
        dtype,
    )
    raise typer.Exit(answering.run(asked))

"""Write the generated pages, or with --check say which are out of date.

python docs/generate.py [--check]
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path

import claims
import commands
import costs
import losses

from dft_plugin.config.plugins import Catalogue, build_catalogue, build_manager
from dft_plugin.config.settings import Settings

DOCS = Path(__file__).parent

HEAD = """\
# Settings

Made by `python docs/generate.py` from the code.

What may stand after `loss:` in a host's YAML: a name, or a mapping of the keys below. On the command line of `dft`:
`loss=nll`, `loss.alpha=0.7`. Unknown keys, wrong types and impossible values are all reported in one error.

```yaml
loss: dft
```

```yaml
loss:
  name: dft
  alpha: 0.7
  floor: 0.05
  kernel: auto
```

[Losses](losses.md) has all that may be named, with the options of each and when it helps.

## More than a name

**SFT first, then DFT.** Any number of an objective may change during the run. `until` is a share of the run (a
fraction) or a number of optimizer steps (an integer); after that the number stays. The log has it as `dft/alpha`.

```yaml
loss: {name: dft, alpha: {from: 0.0, to: 1.0, until: 0.3}}
```

**One loss, then another.** `first` holds for that long, then what stands in `name` takes over, and a line says so.
Options of the first stand beside its name.

```yaml
loss: {name: dft, first: {name: nll, for: 0.2}}
```

**Tokens that are always learned.** DFT gives up on what the model finds impossible, and for a base model that is often
the token that ends an answer. These get weight 1, whatever the loss says: `eos` (what ends an answer or a turn),
`special` (what the tokenizer marks so), `added` (what the base model's tokenizer did not have), or ids.

```yaml
loss: {name: dft, always_learn: [eos, added, 128009]}
```

**Factors from your data.** `column` names a column of your dataset: a number for each row, for each message of a chat,
or for each token. `tokens` has factors by the text of a token, or by id. They multiply the weights of any loss.

```yaml
loss: {name: dft, weights: {column: ratio, tokens: {"</think>": 2.0}}}
```

The dataset keeps its own names: `ratio` is `ratio`, without a prefix. A row of it, in each form that is read:

```json
{"prompt": "2+2=", "completion": "4", "ratio": 2.0}
{"messages": [{"role": "user", "content": "2+2="}, {"role": "assistant", "content": "4"}], "ratio": [1.0, 2.0]}
{"messages": [{"role": "user", "content": "2+2=", "ratio": 1.0}, {"role": "assistant", "content": "4", "ratio": 2.0}]}
{"input_ids": [17, 28, 17, 61], "labels": [-100, -100, -100, 61], "ratio": [1.0, 1.0, 1.0, 2.0]}
```

- **Each row** (line 1): in every host, whatever else the row holds.
- **Each message**, as a list (line 2) or in the messages (line 3): in TRL, `messages`, or `prompt` and `completion`
  made of messages; in Axolotl, `type: chat_template`; in LLaMA-Factory, `formatting: sharegpt`, with whatever tags.
- **Each token** (line 4): in TRL and Axolotl, rows that come tokenised; in TRL a text as well, if the numbers are as
  many as its tokens. In LLaMA-Factory it cannot be.
- **A Trainer of your own** reads rows that hold tokens, with a number for the row or for each token.

What is not trained needs no number (None will do), nor does the first token of a sequence: packed behind another row
it is no target then. A number that is missing for a token that is trained, a negative
factor or a list of another length stops the run, and names the row. Where a host would lose the column (streamed
data, processors of images, LLaMA-Factory's v1 trainer), `dft check` says so. Columns that a loss reads by itself
(`old_logp`; `ref_logp` and `ref_mass` with `reference: columns`) travel in the same forms.

**A frozen model to compare with.** Some losses read one. With LoRA it is the model with its adapters off, and nothing
need be said; where all of the model is trained, say `copy` (a second copy of the weights), a path, or `columns`:
[computed beforehand](reference.md) by `dft reference CONFIG`, so that the run needs no second model.

```yaml
loss: {name: prift, reference: copy}
```

**More in the log.** `top1` is token accuracy, `entropy` the entropy of the model's distribution in nats. TRL logs
both by itself, [nearly the same](losses.md).

```yaml
loss: {name: dft, log: [top1, entropy]}
```

**Going on with another loss.** Each checkpoint [says what it was trained with](recording.md). A run that would go on
from it with another loss or option stops; `allow` lets it.

```yaml
loss: {name: dft, alpha: 0.7, resume: allow}
```

**A loss that is no finite number.** By default the run goes on, as it does without us, and one warning says in which
step it began, on which rank, what was not finite first (a column, log p, a weight ...) and in which rows of the batch.
`error` stops all ranks before the optimizer moves a weight. `skip` leaves the step out on all ranks, also where one
micro-batch of several is to blame, and the log counts `dft/skipped`. The schedule of the learning rate and the count
of steps do what they do where float16 overflows: the rate stays, the step counts.

```yaml
loss: {name: dft, nonfinite: skip}
```

Looked at are the loss that goes backward and log p, not the gradients: `grad_norm` in the log shows those. `skip` is
refused with DeepSpeed, Megatron-LM and optimizers that step inside the backward pass; `skip` and `error` are refused
in verl and in LLaMA-Factory's v1 trainer. In a loop of your own (`attach`), `error` stops at the first such batch, and
`skip` is refused: the optimizer is yours. transformers leaves such steps out of `loss` in its own log
(`logging_nan_inf_filter`).
"""


MODELS_HEAD = """\
# Models

Made by `python docs/generate.py` from `tests/attachment/sweep_expected.json`, which a test keeps true. It builds a
tiny random model of every class that asks for the next token, attaches `loss: nll`, and compares loss and gradients
with those of the class itself; then `loss: dft`, and compares them with float64 by hand.

- **lean**: scored from the hidden states; the logits never exist.
- **opaque**: from the hidden states too, but the head is called, chunk by chunk, since its weight cannot be read.
- **logits**: the model does more to its logits than to scale and cap them, so they are made and scored.
- **refused**: with the reason, before anything is trained.
- **not run**: a tiny random model could not be built or run here, for the reason given; nothing is claimed.

What decides is the loss, not the list of transformers that a class stands in. A class asks transformers'
`ForCausalLMLoss`, and we answer; or it computes a loss by itself, and on the first batch that is compared with the
likelihood of the next token, in that very batch with all its inputs. Where it is another loss, or cannot be
known, the class is refused. Labels at padded positions are left out where the class leaves them out.
"""

SECTIONS = {
    "text": "Causal LMs, given text.",
    "multimodal": "Classes that see or hear, given a picture or a sound in each row wherever one could be made on the "
    "spot (the loss was seen to depend on it), and one padded row whose padding carries a label.",
}


def settings_page() -> str:
    """Every key that is ours, and the kernels; the options of objectives are on the page of losses."""
    catalogue = build_catalogue(build_manager(third_party=False))
    parts = [HEAD, "## Keys\n", _table(Settings, skip={"options"})]
    parts.append("## Kernels\n\n" + "\n".join(_kernel_lines(catalogue)) + "\n")
    return "\n".join(parts)


def _table(model: type, skip: frozenset[str] | set[str] = frozenset()) -> str:
    lines = ["| key | default | |", "| --- | --- | --- |"]
    for name, field in model.model_fields.items():
        if name not in skip:
            default = "`dft`" if field.is_required() else f"`{field.default}`"
            lines.append(f"| `{name}` | {default} | {field.description} |")
    return "\n".join(lines) + "\n"


def _kernel_lines(catalogue: Catalogue) -> list[str]:
    modules = {name: import_module(entry.item.__module__) for name, entry in catalogue.kernels.items()}
    return [f"- `{name}`: {(module.__doc__ or '').splitlines()[0]}" for name, module in modules.items()]


def models_page() -> str:
    """What the sweep over every class found, from the table that the tests keep true."""
    sys.path.insert(0, str(DOCS.parent / "tests" / "lib"))
    from support import sweep

    tables = json.loads((DOCS.parent / "tests" / "attachment" / "sweep_expected.json").read_text(encoding="utf-8"))
    parts = [MODELS_HEAD]
    for version, sections in tables.items():
        parts.append(f"\n## transformers {version}\n")
        parts += [f"\n{SECTIONS[name]}\n\n{sweep.render(table)}" for name, table in sections.items()]
    return "".join(parts)


PAGES = {
    "settings.md": settings_page,
    "losses.md": losses.page,
    "cli.md": commands.page,
    "models.md": models_page,
    "around-the-step.md": claims.page,
    "gpu.md": costs.page,
}


def main(check: bool) -> int:
    """Write the pages; with `check` write nothing and return how many differ."""
    stale = 0
    for name, make in PAGES.items():
        path, text = DOCS / name, make()
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale += 1
        if check:
            print(f"docs/{name} is out of date. Run: make docs")
        else:
            path.write_text(text, encoding="utf-8")
    return stale if check else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))

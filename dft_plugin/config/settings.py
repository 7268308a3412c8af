"""Settings: what the user wrote after `loss:`, as it is kept once it was checked (`parsing.py`). No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_serializer, model_validator

from dft_plugin.config.schedules import Point, RampSetting, is_ramp
from dft_plugin.config.spelling import did_you_mean
from dft_plugin.objectives import Number, wording
from dft_plugin.objectives.options import Options
from dft_plugin.objectives.schedule import Until
from dft_plugin.saying import shown

RESERVED_KERNELS = ("auto", "logits")
"""Values of `kernel` that name a choice rather than a kernel."""


ALWAYS_LEARN = ("eos", "special", "added")
"""Kinds of tokens that `always_learn` may name; it takes ids as well."""

REFERENCES = ("base", "start", "copy", "columns")
"""What `reference` may say; anything else is the path of a model."""


MOST_OF_A_FACTOR = 1000.0
"""Largest factor of a token: with it one token in a thousand learns as much as all others together."""

MOST_MIB = 1 << 20
"""Largest `scratch_mb`."""


def _several(value: Any) -> Any:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _each_once(value: Any) -> Any:
    given, seen = _several(value), set[Any]()
    for entry in given:
        # What has no hash is no word and no number: whoever reads the entries refuses it.
        if not _has_hash(entry):
            continue
        if entry in seen:
            raise ValueError(f"{shown(entry)} stands there twice")
        seen.add(entry)
    return given


def _has_hash(entry: Any) -> bool:
    try:
        hash(entry)
    except TypeError:
        return False
    return True


def _kinds_or_ids(value: Any) -> Any:
    given = _each_once(value)
    for entry in given:
        known = entry in ALWAYS_LEARN if isinstance(entry, str) else isinstance(entry, int) and entry >= 0
        if isinstance(entry, bool) or not known:
            hint = did_you_mean(entry, ALWAYS_LEARN)
            raise ValueError(f"{shown(entry)} is neither one of {', '.join(ALWAYS_LEARN)} nor a token id.{hint}")
    return given


def _whole(value: Any) -> Any:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise ValueError("a whole number of MiB is needed, without quotes, for example 300")
    if value is not None and value > MOST_MIB:
        raise ValueError(f"at most {MOST_MIB} MiB (1 TiB) are allowed, for example 300")
    if value is not None and value < 1:
        raise ValueError("1 MiB or more is needed, for example 300; leave it out for the default")
    return value


Extra = Literal["top1", "entropy"]
"""Statistics that are logged on demand."""


def _before_the_end(value: int | float) -> int | float:
    if isinstance(value, float) and value >= 1:
        raise ValueError("nothing would be left for the loss that `name` asks for; a share is below 1.0")
    return value


class First(BaseModel):
    """Another objective at the beginning: `first: {name: nll, for: 0.2}`; its options stand beside `name`."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    name: str = Field(description="The objective that the run begins with.")
    until: Annotated[Point, AfterValidator(_before_the_end)] = Field(
        alias="for", description="How long: steps (an integer) or a share of the run (a fraction below 1)."
    )

    @property
    def options(self) -> dict[str, Any]:
        """Options of that objective."""
        return dict(self.model_extra or {})

    def describe(self) -> str:
        """Return `nll until 20 % of the run`, for logs."""
        return f"{_call(self.name, self.options)} until {Until(self.until).in_words}"


def _by_token(value: Any) -> Any:
    """Read a mapping, or pairs in its place, and refuse keys that YAML did not read as the user meant them."""
    if isinstance(value, (list, tuple)):
        if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in value):
            raise ValueError("a mapping of tokens to factors is needed, or a list of pairs: [[11, 2.0]]")
        keys = [pair[0] for pair in value]
        _each_once(keys)
    else:
        keys = list(value) if isinstance(value, Mapping) else []
    for key in keys:
        if isinstance(key, bool) or not isinstance(key, (int, str)):
            raise ValueError(
                f"{shown(key)} is neither an id nor a text; put quotes around what YAML reads as something else"
            )
        if key == "" or (isinstance(key, int) and key < 0):
            raise ValueError(f"{shown(key)} is no token; an id is 0 or more, and a text is not empty")
    return dict(value) if isinstance(value, (list, tuple, Mapping)) else value


class DataWeights(BaseModel):
    """Factors on the weights: `weights: {column: ratio, tokens: {"</think>": 2.0}}`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    column: str | None = Field(
        default=None,
        min_length=1,
        description="A column of the dataset: a number for each row, each message of a chat, or each token.",
    )
    tokens: Annotated[
        dict[int | str, Annotated[Number, Field(ge=0, le=MOST_OF_A_FACTOR)]], BeforeValidator(_by_token)
    ] = Field(
        default_factory=dict,
        description=(
            'Factors by token: its id (`11: 2.0`), or its text where that is one token (`"11": 2.0`). In JSON, where '
            "every key is a text, ids stand in pairs: `[[11, 2.0]]`."
        ),
    )

    @model_validator(mode="after")
    def _something(self) -> DataWeights:
        if self.column is None and not self.tokens:
            raise ValueError("a column or tokens are needed: `{column: ratio}`, or `{tokens: {TOKEN: 2}}`")
        return self

    def describe(self) -> list[str]:
        """Return ``weights: column `ratio`, `</think>` x 2``, as a list, for logs."""
        named = [(f"`{key}`" if isinstance(key, str) else str(key), factor) for key, factor in self.tokens.items()]
        return wording.weights(self.column, named)

    @field_serializer("tokens", when_used="json")
    def _pairs(self, tokens: dict[int | str, float]) -> list[tuple[int | str, float]]:
        """JSON would make a text of an id."""
        return list(tokens.items())


class Settings(Options):
    """One `loss:` entry. Frozen; made by `parse_settings`, which knows what may be named."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    # `reference` makes all logits, as the model does; `blocked` may hand over to one that heeds it.
    without_effect: ClassVar[Mapping[str, tuple[str, tuple[Any, ...]]]] = {
        "scratch_mb": ("kernel", ("logits", "reference"))
    }

    name: str = Field(
        description="The objective: `dft`, `nll`, `eaft` ... (`dft losses` lists them), or one of a plugin."
    )
    kernel: str = Field(
        default="auto",
        description=(
            "How the loss is computed. `auto`: from the hidden states, so that the logits of a batch never exist; "
            "where the model does more to its logits than to scale and cap them, from those, and it says so. "
            "`logits`: always from the logits that the model makes. A kernel's name (`chunked`, `reference`, or one "
            "that a plugin registers) insists on the hidden states: where that cannot be, the run is refused. "
            "Triton is used by itself under `auto` and `chunked`. A head "
            "that cannot be read (DoRA, 4-bit, one with hooks) is called on chunks of tokens, whichever is named."
        ),
    )
    scratch_mb: Annotated[int | None, BeforeValidator(_whole)] = Field(
        default=None,
        ge=1,
        description=(
            "MiB for the logits that exist at one time where the loss is computed from the hidden states. Unset, on a "
            "CPU: 40 where the head's weight is frozen, 300 where it is trained; on an accelerator: at most 512 and "
            "2048, by the shape, and a quarter of the memory that is free. At least 64 tokens and at most 1024 (on an "
            "accelerator 256 and 4096) fit into a chunk, whatever this says. Less saves memory with a frozen "
            "head; with a trained one on an accelerator next to none, and time is lost. "
            "`blocked` needs no more than 40 and does "
            "not heed it."
        ),
    )
    first: First | None = Field(
        default=None, description="Another objective to begin with, e.g. `{name: nll, for: 0.2}`: SFT first, then DFT."
    )
    always_learn: Annotated[tuple[str | int, ...], BeforeValidator(_kinds_or_ids)] = Field(
        default=(),
        description=(
            "Tokens that get weight 1 whatever the objective says: `eos` (what ends an answer), `special` (as the "
            "tokenizer marks them), `added` (not in the base model's tokenizer), or token ids."
        ),
    )
    weights: DataWeights | None = Field(
        default=None, description='Factors from the data: `{column: ratio, tokens: {"</think>": 2.0}}`.'
    )
    reference: str | None = Field(
        default=None,
        min_length=1,
        description=(
            "What an objective that reads a frozen reference compares with. `base`: the base model, its adapters off; "
            "with LoRA and the like that is what is taken where nothing is said. `start`: the adapters as they were "
            "when the run began. `copy`: a second copy of the model as it was then, where all of it is trained; or "
            "the path of a model. `columns`: what was computed beforehand, in the columns `ref_logp` or `ref_mass` of "
            "the data. All but `columns` cost one more forward pass, without gradient, for each batch."
        ),
    )
    log: Annotated[tuple[Extra, ...], BeforeValidator(_each_once)] = Field(
        default=(),
        description=(
            "What the log says besides: `top1` (token accuracy, `dft/top1`), `entropy` (in nats, `dft/entropy`; costs "
            "what an objective that reads it costs)."
        ),
    )
    resume: Literal["same", "allow"] = Field(
        default="same",
        description=(
            "What becomes of a checkpoint that was trained with another loss or option, by the "
            "record beside it. `same`: the run stops before its first step, and says both. `allow`: it "
            "goes on, and the record keeps both."
        ),
    )
    nonfinite: Literal["warn", "error", "skip"] = Field(
        default="warn",
        description=(
            "What becomes of a training step whose loss is not a finite number. `warn`: found when the log is "
            "written, at no wait for the device: one warning names the step, the rank, what was not finite first and "
            "the rows of the batch. `error`: all ranks stop with one message before the optimizer moves a weight. "
            "`skip`: all ranks leave that step out, as a trainer does where float16 overflows, and the log counts "
            "`dft/skipped`; under DeepSpeed, which steps by itself, it is refused. `error` and `skip` wait for the "
            "device once a step, and exchange one number."
        ),
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="Options of the objective, written beside `name`."
    )

    def as_written(self) -> dict[str, Any]:
        """Return the mapping that `parse_settings` reads as these settings, e.g. to hand them to another process."""
        own = self.model_dump(exclude={"options"}, exclude_defaults=True, by_alias=True, mode="json")
        if self.weights is not None:
            own["weights"] = {key: value for key, value in own["weights"].items() if value}
        return {"name": self.name, **own, **self.options}

    def describe(self) -> str:
        """Return `dft` or `dft(alpha=0.7)`, and what comes before it, for logs. What is more: `besides`."""
        said = _call(self.name, self.options)
        return said if self.first is None else f"{said} after {self.first.describe()}"

    def line(self, *, kernel: bool = True) -> str:
        """Return all that was said of the loss, in a line: `dft, kernel auto; always learned: eos; logs dft/top1`.

        Args:
            kernel: whether the kernel is said.
        """
        always = wording.listed([str(entry) for entry in self.always_learn], ", ")
        besides = wording.besides(
            scratch_mb=self.scratch_mb,
            reference=self.reference,
            tokens=[*wording.always_learned(always), *([] if self.weights is None else self.weights.describe())],
            log=self.log,
            resume=self.resume,
            nonfinite=self.nonfinite,
        )
        return "; ".join([f"{self.describe()}, kernel {self.kernel}" if kernel else self.describe(), *besides])


def _call(name: str, options: dict[str, Any]) -> str:
    shown = {key: RampSetting.model_validate(entry) if is_ramp(entry) else entry for key, entry in options.items()}
    inner = ", ".join(f"{key}={entry}" for key, entry in shown.items())
    return f"{name}({inner})" if inner else name


FIRST_KEYS = ("name", "for")
"""Keys of `first` that are no option of its objective."""

OWN_KEYS = tuple(key for key in Settings.model_fields if key != "options")
"""Keys that are no option of the objective."""

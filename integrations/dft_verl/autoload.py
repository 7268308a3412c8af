"""What `import verl` loads, by the entry point `verl.plugins`: its SFT trainers honour `loss:` from then on.

The standard library only. verl notes at DEBUG that a plugin could not be imported, and would go on to train its own
loss; so whatever else of us may be broken, this module is there to stop a run that has `loss:`.

Every program of verl is a function below `hydra.main`. When one is decorated, its trainer is defined already.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

TRAINER = "SFTTrainer"
"""What both of verl's SFT programs call it (`sft_trainer`, `sft_trainer_ray`)."""

_REMEDY = "Nothing was trained. Reinstall it (pip install --force-reinstall dft-plugin), or take `loss` away."


def watch() -> None:
    """Look at what is decorated with `hydra.main` from now on."""
    try:
        import hydra
    except ImportError:
        # No program of verl runs without it.
        return
    if not hasattr(hydra.main, "watched_for_dft"):
        hydra.main = watching(hydra.main)


def watching(plain: Callable[..., Any]) -> Callable[..., Any]:
    """Return `hydra.main` as it is, but for what it decorates."""

    @functools.wraps(plain)
    def main(*args: Any, **named: Any) -> Callable[..., Any]:
        decorate = plain(*args, **named)
        return lambda program: decorate(prepared(program))

    vars(main)["watched_for_dft"] = True
    return main


def prepared(program: Callable[..., Any]) -> Callable[..., Any]:
    """Return a program that honours `loss:`, or refuses it; programs that are not verl's are left alone."""
    names = getattr(program, "__globals__", {})
    trainer = names.get(TRAINER)
    if isinstance(trainer, type) and hasattr(trainer, "_build_engine"):
        take_over(trainer)
        return program
    own = _is_verls(names.get("__file__"))

    @functools.wraps(program)
    def refusing(config: Any, *args: Any, **named: Any) -> Any:
        if loss_in(config) is not None and (own or "actor_rollout_ref" in config):
            _ours().refuse_program(names.get("__file__") or program.__module__)
        return program(config, *args, **named)

    return refusing


def take_over(trainer: type[Any]) -> None:
    """Let a trainer of verl's train the loss of its config, where that has one."""
    plain = vars(trainer).get("__init__", trainer.__init__)
    if hasattr(plain, "takes_dft"):
        return

    @functools.wraps(plain)
    def init(self: Any, config: Any, *args: Any, **named: Any) -> None:
        # A class below one that was taken over comes here twice.
        asked = names_loss(config) and not hasattr(self, "dft_training")
        training = _ours().prepare(self, config) if asked else None
        plain(self, config, *args, **named)
        if training is not None:
            training.require_built()

    vars(init)["takes_dft"] = True
    trainer.__init__ = init


def names_loss(config: Any) -> bool:
    """Say whether a config has a key `loss`: one without a value is refused, as everywhere."""
    keys = getattr(config, "keys", None)
    return hasattr(config, "loss") if keys is None else "loss" in [*keys()]


def loss_in(config: Any) -> Any:
    """Return what stands after `loss:` in a config of any kind; None where there is nothing."""
    get = getattr(config, "get", None)
    return get("loss", None) if get is not None else getattr(config, "loss", None)


def _is_verls(file: str | None) -> bool:
    home = getattr(sys.modules.get("verl"), "__file__", None)
    return bool(file and home) and Path(str(file)).is_relative_to(Path(str(home)).parent)


def _ours() -> Any:
    """Import what does the work.

    Raises:
        RuntimeError: it cannot be imported.
    """
    try:
        from dft_verl import trainer
    except Exception as error:
        raise RuntimeError(
            f"dft: the config has `loss`, and dft-plugin cannot be imported ({type(error).__name__}: {error}), so "
            f"that the loss would not take effect. {_REMEDY}"
        ) from error
    return trainer


watch()

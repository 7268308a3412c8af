"""An adapter that was trained, put into a model that a host has made for a run."""

from __future__ import annotations

import warnings
from typing import Any

from dft_plugin.config.trained import Trained
from dft_plugin.errors import ConflictError

_ADAPTER = "dft_evaluated"


def put_adapter(model: Any, trained: Trained) -> list[str]:
    """Put a trained adapter into a model beside the one that a run would begin with, and switch to it.

    Its own `adapter_config.json` says of which kind it is, whatever the config of the run says.

    Returns:
        What to know of it.

    Raises:
        ConflictError: the model has no adapters, or others than this one.
    """
    if not hasattr(model, "get_base_model"):
        raise ConflictError(
            [
                f"{trained.folder} is an adapter, and with this config all of {type(model).__name__} is "
                "trained. Give the config that the adapter was trained with."
            ]
        )
    fresh = next(iter(model.peft_config))
    dtypes = {parameter.dtype for name, parameter in model.named_parameters() if f".{fresh}." in name}
    try:
        with warnings.catch_warnings():
            # Of what is missing, which is refused here.
            warnings.simplefilter("ignore")
            loaded = model.load_adapter(str(trained.folder), _ADAPTER)
        model.set_adapter(_ADAPTER)
    except (ValueError, RuntimeError, KeyError) as error:
        raise ConflictError([_FOREIGN.format(folder=trained.folder, why=error)]) from error
    strange = [*loaded.unexpected_keys, *loaded.missing_keys]
    if strange:
        why = f"{len(strange)} tensors do not match, {strange[0]} say"
        raise ConflictError([_FOREIGN.format(folder=trained.folder, why=why)])
    # As a run has them, which may be in another precision than the file.
    for dtype in dtypes if len(dtypes) == 1 else ():
        for name, parameter in model.named_parameters():
            if f".{_ADAPTER}." in name:
                parameter.data = parameter.data.to(dtype)
    on, now = model.peft_config[_ADAPTER].base_model_name_or_path, model.get_base_model().config._name_or_path
    return [f"the adapter was trained on {on}, and the config names {now}"] if on and now and on != now else []


_FOREIGN = (
    "{folder}: this adapter does not fit the model of the config: {why}. Give the config that it was trained with."
)

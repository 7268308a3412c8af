"""The entry point: TRL, and Unsloth, which trains with it."""

from dft_plugin.config.hookspecs import registering

register_hosts = registering("dft_trl.host:TrlHost", "dft_trl.unsloth:UnslothHost")

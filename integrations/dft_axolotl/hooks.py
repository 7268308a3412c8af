"""The entry point."""

from dft_plugin.config.hookspecs import registering

register_hosts = registering("dft_axolotl.host:AxolotlHost")

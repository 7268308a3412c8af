"""An Axolotl plugin that lets several ranks share a CPU: Axolotl gives each rank the device of its number."""

from axolotl.integrations.base import BasePlugin


class CpuRanks(BasePlugin):
    def load_datasets(self, cfg, preprocess=False):
        # The first hook after the config is complete.
        cfg.device_map = None

"""An Axolotl plugin that leaves in `loaded.txt` which modules of ours a run has loaded."""

import sys
from pathlib import Path

from axolotl.integrations.base import BasePlugin


class LoadedModules(BasePlugin):
    def post_train(self, cfg, model):
        Path("loaded.txt").write_text(" ".join(sorted(name for name in sys.modules if name.startswith("dft_"))))

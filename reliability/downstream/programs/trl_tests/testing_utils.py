"""What test_sft_trainer.py of TRL 0.23 takes from its neighbour."""

import tempfile
import unittest


class TrlTestCase(unittest.TestCase):
    """A test with a folder of its own."""

    def setUp(self):
        """Make it."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.tmp_dir = folder.name


def ignore_warnings(message=None, category=None):
    """Leave the test as it is: warnings are no errors here."""
    del message, category
    return lambda test: test

"""Conformance suites: what an objective, a kernel or a host of a third party must keep.

Call them from a test of your own::

    from dft_plugin.testing import check_objective


    def test_mine_conforms():
        check_objective(Mine())
"""

from dft_plugin.testing.host import check_host
from dft_plugin.testing.kernel import check_kernel
from dft_plugin.testing.objective import check_objective

__all__ = ["check_host", "check_kernel", "check_objective"]

"""A stand-in for the package of that name: `parameterized.expand` alone."""

import functools
import inspect


class parameterized:  # noqa: N801  Its name there.
    """Make tests of one."""

    @staticmethod
    def expand(cases):
        """Put one test for each case into the class that is being made."""

        def decorate(test):
            scope = inspect.currentframe().f_back.f_locals
            for number, case in enumerate(cases):
                given = case if isinstance(case, (tuple, list)) else (case,)

                def made(self, test=test, given=given):
                    return test(self, *given)

                functools.update_wrapper(made, test)
                del made.__wrapped__
                scope[f"{test.__name__}_{number}"] = made
            return

        return decorate

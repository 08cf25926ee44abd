"""`RuntimeMachine`: managers on one store, under everything that may happen to them.

Every rule is something that an application, an operator or bad luck does. After each one the
promises are checked against what tools and callers saw themselves, never against a manager's
account of itself; the store is asked as the durable truth.
"""

from __future__ import annotations

from ._runtime_damage import DamageRules
from ._runtime_disasters import DisasterRules
from ._runtime_questions import QuestionRules
from ._runtime_rules import EverydayRules


class RuntimeMachine(EverydayRules, QuestionRules, DisasterRules, DamageRules):
    """Some machines on one store and some work to begin with; others come and go.

    All thirteen promises are checked after every step, from what the tools and callers themselves
    saw and from what is stored. A promise that is broken is an `AssertionError` that names it.

    Run ``RuntimeMachine.TestCase``, or subclass it: `make_store` returns the store that the
    machines share, ``machines`` is how many there are at first. About 30 steps an example are
    enough; spend on examples.
    """

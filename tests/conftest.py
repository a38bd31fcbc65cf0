"""Fixtures that every kind of test may ask for."""

from tests.support.services import notifier
from tests.support.stack import stack, topic

__all__ = ["notifier", "stack", "topic"]

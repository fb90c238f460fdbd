"""Errors a user can act on: what was found, and what to do."""

from __future__ import annotations


class UnipoError(Exception):
    """Base of every error this package raises on purpose; its text is one clear line."""


class BundleError(UnipoError):
    """A bundle cannot be read or written as asked."""


class CaptureError(UnipoError):
    """Capture failed, and `strict=True` asked to hear of it."""


class PolicyError(UnipoError, ValueError):
    """A capture setting is unknown or makes no sense."""


class ExportError(UnipoError):
    """A bundle cannot be exported as asked."""


class AlgorithmError(UnipoError, ValueError):
    """An algorithm's definition is wrong, unknown, or set with a hyper-parameter it does not have."""


class MissingInputError(UnipoError):
    """An algorithm needs a channel that the batch does not have."""

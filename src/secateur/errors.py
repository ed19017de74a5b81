"""Every error and warning that secateur raises on purpose.

::

    SecateurError
    ├── InvalidArgument (ValueError)      a number or name outside what is allowed
    ├── TargetError (ValueError)          nothing to prune, or a name that matches no weight
    ├── ScoreError (ValueError)           missing labels or teacher, disagreeing shapes, NaN in data or scores
    ├── MaskError (ValueError)            a mask that does not fit the model, or pruned weights that came back
    ├── DataError (ValueError)            a data set that cannot be found, read or used
    ├── ModelError (ValueError)           an unknown model, or weights that do not fit
    ├── CheckpointError (ValueError)      a file that is truncated, foreign or inconsistent
    ├── PlanError (ValueError)            a plan file that is truncated, foreign or inconsistent
    ├── CompileError (ValueError)         a model that cannot be made into a plan
    ├── TrainingError (RuntimeError)      training that cannot start, or a loss that left the numbers
    ├── RunError (RuntimeError)           a run folder that is in use, unwritable or incomplete
    └── MissingExtra (ImportError)        an optional package is not installed

    SecateurWarning (UserWarning)
    ├── EmptiedLayerWarning               a cut left a whole tensor without weights
    ├── LeftDenseWarning                  a pattern does not fit a tensor, which stays dense
    └── SlowEngineWarning                 a plan runs in NumPy, because there is no native engine

Each is also the standard exception in brackets, so ``except ValueError`` keeps working.
A message names the thing, the value, what is allowed, and what to do next.
"""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """What an error says, up to the end of a line; its kind if it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class SecateurError(Exception):
    """Base of all errors raised by secateur."""


class InvalidArgument(SecateurError, ValueError):
    """A number or a name outside what is allowed."""


class TargetError(SecateurError, ValueError):
    """There is nothing to prune, or a name matches no weight."""


class ScoreError(SecateurError, ValueError):
    """A score cannot be computed from what was given, or is not finite."""


class MaskError(SecateurError, ValueError):
    """A mask does not fit its model, or pruned weights came back."""


class DataError(SecateurError, ValueError):
    """A data set cannot be found, read or used."""


class ModelError(SecateurError, ValueError):
    """A model is unknown, or its weights do not fit."""


class CheckpointError(SecateurError, ValueError):
    """A checkpoint file is truncated, foreign or inconsistent."""


class PlanError(SecateurError, ValueError):
    """A plan file is truncated, foreign or inconsistent."""


class CompileError(SecateurError, ValueError):
    """A model cannot be made into a plan."""


class TrainingError(SecateurError, RuntimeError):
    """Training cannot start, or its loss is no longer a number."""


class RunError(SecateurError, RuntimeError):
    """A run folder is in use, unwritable or incomplete."""


class SuiteError(SecateurError, RuntimeError):
    """Some cells of a suite failed; the others were run."""


class MissingExtra(SecateurError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""


class SecateurWarning(UserWarning):
    """Base of all warnings raised by secateur."""


class EmptiedLayerWarning(SecateurWarning):
    """A cut left a whole tensor without weights, so nothing flows through it any more."""


class LeftDenseWarning(SecateurWarning):
    """A pattern does not fit a tensor, which stays dense though it was to be pruned."""


class SlowEngineWarning(SecateurWarning):
    """A plan runs in NumPy, many times slower than it could, because there is no native engine."""

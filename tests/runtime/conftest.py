"""Each test of the runtime that asks for `engine` runs once in NumPy and once natively."""

from __future__ import annotations

import importlib.util

import pytest

HAS_NATIVE = importlib.util.find_spec("secateur.runtime._native") is not None


@pytest.fixture(
    params=[
        "reference",
        pytest.param("native", marks=pytest.mark.skipif(not HAS_NATIVE, reason="there is no native engine")),
    ]
)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The engine that plans run with."""
    if request.param == "reference":
        monkeypatch.setenv("SECATEUR_ENGINE", "reference")
    else:
        monkeypatch.delenv("SECATEUR_ENGINE", raising=False)
    return request.param

"""Assertions of the shipped suite are explained like those of a test module."""

import pytest

pytest.register_assert_rewrite("kvloom.kvstore.conformance.tier")
pytest.register_assert_rewrite("kvloom.kvstore.conformance.shared")

"""Assertions of the shipped suite are explained like those of a test module."""

import pytest

pytest.register_assert_rewrite("kvloom.kvstore.conformance")
pytest.register_assert_rewrite("kvloom.kvstore.conformance_shared")

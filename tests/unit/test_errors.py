"""The error tree: codes and statuses are part of the wire protocol, so they are stable and unambiguous."""

import re

import pytest

from kvloom import errors
from kvloom.errors import KvloomError, error_for_code


def tree() -> list[type[KvloomError]]:
    found, pending = [], [KvloomError]
    while pending:
        found.append(pending.pop())
        pending.extend(found[-1].__subclasses__())
    return [item for item in found if item.__module__ == errors.__name__]


def test_every_error_has_a_code_of_its_own() -> None:
    codes = [item.code for item in tree()]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", code) for code in codes)


def test_a_code_is_its_class_name_in_snake_case() -> None:
    for item in tree():
        if item is not KvloomError:
            assert item.code == re.sub(r"(?<!^)(?=[A-Z])", "_", item.__name__).lower()


@pytest.mark.parametrize("error", tree(), ids=lambda item: item.__name__)
def test_a_peer_gets_back_the_class_that_was_raised(error: type[KvloomError]) -> None:
    assert error_for_code(error.code) is error


def test_a_code_from_a_newer_peer_is_the_base_error() -> None:
    assert error_for_code("from_the_future") is KvloomError


def test_statuses_are_http_errors_and_blame_the_right_side() -> None:
    for item in tree():
        assert 400 <= item.http_status < 600
        if issubclass(item, errors.InvalidRequest | errors.InvalidData | errors.InvalidTensor | errors.NotFound):
            assert item.http_status < 500, item


def test_all_lists_every_error() -> None:
    assert set(errors.__all__) == {item.__name__ for item in tree()} | {"error_for_code"}
    assert errors.__all__ == sorted(errors.__all__)


def test_bad_bytes_bad_tensors_and_bad_requests_are_told_apart() -> None:
    assert issubclass(errors.MalformedContainer, errors.InvalidData)
    assert issubclass(errors.TruncatedBody, errors.InvalidData)
    assert issubclass(errors.EmptyChunk, errors.InvalidTensor)
    assert not issubclass(errors.InvalidData, errors.InvalidRequest)
    assert not issubclass(errors.NotFound, errors.InvalidRequest)

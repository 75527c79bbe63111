"""The description that the daemon serves is valid, says all routes, and is true of a real daemon."""

import os

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from openapi_spec_validator import OpenAPIV31SpecValidator
from schemathesis.checks import CHECKS

from kvloom.clients import batches
from kvloom.codec.level import EXACT
from kvloom.daemon.http_api import HttpApi

CHECKED = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
EXAMPLES_MAX = 12


class Nobody:
    """Stands where a service would: the table of routes is made without asking anything."""

    def __getattr__(self, name):
        return None


ROUTES = HttpApi(Nobody(), Nobody(), Nobody()).routes


@pytest.fixture(scope="module")
def described(daemon):
    return daemon.ask("GET", "/openapi.json").json()


def test_the_description_is_openapi(described):
    assert described["openapi"] == "3.1.0"
    assert list(OpenAPIV31SpecValidator(described).iter_errors()) == []


def test_every_route_is_described_and_no_other(described):
    said = {(method.upper(), path) for path, item in described["paths"].items() for method in item}
    assert said == {(route.method, route.path) for route in ROUTES}
    scopes = {operation["x-kvloom-scope"] for item in described["paths"].values() for operation in item.values()}
    assert scopes == {"read", "write", "admin", "open"}


@pytest.mark.slow
@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_no_answer_is_undocumented_and_none_is_a_server_error(daemon, described, container_bytes, route):
    schema = schemathesis.openapi.from_dict(described)
    schema.config.base_url = f"http://{daemon.endpoint}"
    operation = schema[route.path][route.method]
    checks = [CHECKS.get_one(name) for name in CHECKED]
    key = os.urandom(32)
    stored = container_bytes((EXACT,), content_key=key)
    daemon.ask("PUT", f"/chunks/{key.hex()}", stored)
    headers = getattr(daemon, "key", {})

    strategies = [operation.as_strategy(generation_mode=mode) for mode in schemathesis.GenerationMode]

    @settings(
        max_examples=EXAMPLES_MAX,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        derandomize=True,
        database=None,
    )
    @given(st.data())
    def explore(data):
        case = data.draw(st.one_of(strategies))
        if data.draw(st.booleans()):  # a key that is there: answers beside 404
            if "key" in (case.path_parameters or {}):
                case.path_parameters["key"] = key.hex()
            if isinstance(case.body, dict) and "keys" in case.body:
                case.body["keys"] = [key.hex()]
            if route.method == "PUT" and isinstance(case.body, bytes):
                head = batches.encode_head(batches.PutHead(key.hex(), len(stored)))
                case.body = head + stored if route.path == "/chunks" else stored
        case.call_and_validate(headers=headers, checks=checks)

    explore()

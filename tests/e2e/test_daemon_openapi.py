"""The description that the daemon serves is valid, says all routes, and is true of a real daemon."""

import itertools
import os

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from openapi_spec_validator import OpenAPIV31SpecValidator
from schemathesis.checks import CHECKS

from kvloom.clients import batches, wire
from kvloom.codec.level import EXACT
from kvloom.daemon.http_api import HttpApi
from kvloom.daemon.http_events import EVENTS_TYPE

CHECKED = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
EXAMPLES_MAX = 20
PROFILE = b"a profile of these tests"
QUERIES = ({}, {"level": "exact"}, {"layers": "0-1"}, {"level": "fine"}, {"layers": "9"})
HEADERS = (
    {},
    {"Range": "bytes=0-9"},
    {"Range": "bytes=9999999-"},
    {"If-None-Match": "*"},
    {"If-Match": '"x"'},
    {"Range": "bytes=0-9", "If-Range": '"x"'},
)


@schemathesis.serializer(wire.CONTAINER_TYPE, wire.PROFILE_TYPE, batches.BATCH_TYPE)
def _as_it_is(context, value):
    """Bytes of ours are sent as they are; whatever else comes up, as text."""
    return getattr(value, "data", value) if isinstance(getattr(value, "data", value), bytes) else str(value).encode()


class Nobody:
    """Stands where a service would: the table of routes is made without asking anything."""

    def __getattr__(self, name):
        return None


ROUTES = HttpApi(Nobody(), Nobody(), Nobody()).routes


def endless(route):
    """Whether the answer goes on until somebody ends it: nobody could read all of it."""
    return any(answer.media == EVENTS_TYPE for answer in route.answers)


ENDING = [route for route in ROUTES if not endless(route)]


@pytest.fixture(scope="module")
def described(daemon):
    return daemon.ask("GET", "/openapi.json").json()


def test_the_description_is_openapi(described):
    assert described["openapi"] == "3.1.0"
    assert list(OpenAPIV31SpecValidator(described).iter_errors()) == []


def test_every_route_is_described_and_no_other(daemon, described):
    said = {(method.upper(), path) for path, item in described["paths"].items() for method in item}
    assert said == {(route.method, route.path) for route in ROUTES}
    scopes = {operation["x-kvloom-scope"] for item in described["paths"].values() for operation in item.values()}
    assert scopes == {"read", "write", "admin", "open", "key", "session"}
    cookie = described["components"]["securitySchemes"]["session"]["name"]
    assert f"{cookie}=" in daemon.ask("POST", "/dashboard/session").headers["set-cookie"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "route", [route for route in ROUTES if not endless(route)], ids=lambda route: f"{route.method} {route.path}"
)
def test_no_answer_is_undocumented_and_none_is_a_server_error(daemon, described, container_bytes, route):
    schema = schemathesis.openapi.from_dict(described)
    schema.config.base_url = f"http://{daemon.endpoint}"
    operation = schema[route.path][route.method]
    checks = [CHECKS.get_one(name) for name in CHECKED]
    key = os.urandom(32)
    stored = container_bytes((EXACT,), content_key=key)
    daemon.ask("PUT", f"/chunks/{key.hex()}", stored)
    access = getattr(daemon, "key", {})
    digest = daemon.client().put_profile(PROFILE)
    keys = {"keys": [key.hex()]}
    bodies = {
        ("PUT", "/chunks/{key}"): stored,
        ("PUT", "/chunks"): batches.encode_head(batches.PutHead(key.hex(), len(stored))) + stored,
        ("PUT", "/profiles/{digest}"): PROFILE,
        ("POST", "/hints"): {**keys, "finished": True},
        ("POST", "/plan"): {**keys, "engine": "engine"},
        ("POST", "/report"): {
            "engine": "engine",
            "loads": [{"link": "memory", "size_bytes": 10**6, "seconds": 0.01}],
            "prefills": [{"tokens": 256, "start": 0, "seconds": 0.1}],
        },
        **{
            ("POST", path): keys
            for path in ("/chunks/get", "/chunks/exists", "/chunks/delete", "/prefix", "/pins", "/prefetch")
        },
    }

    strategies = [operation.as_strategy(generation_mode=mode) for mode in schemathesis.GenerationMode]
    seen = set()

    @settings(
        max_examples=EXAMPLES_MAX,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        derandomize=True,
        database=None,
    )
    @given(st.one_of(strategies))
    def explore(case):
        case.headers = {name: value for name, value in (case.headers or {}).items() if name != "Authorization"}
        seen.add(case.call_and_validate(headers=access, checks=checks).status_code)

    explore()
    of_chunk = route.path == "/chunks/{key}"
    queries = QUERIES if of_chunk and route.method in ("GET", "HEAD") else ({},)
    extras = HEADERS if route.path.endswith(("{key}", "{digest}")) else ({},)
    for query, extra in itertools.product(queries, extras):  # of what is stored: answers beside 404
        daemon.ask("PUT", f"/chunks/{key.hex()}", stored)
        names = {"key": key.hex(), "digest": digest.hex(), "lease": bytes(16).hex(), "file": "style.css"}
        body = {"body": bodies[route.method, route.path]} if (route.method, route.path) in bodies else {}
        case = operation.Case(
            path_parameters=names, query=query, headers=extra, media_type=route.body and route.body.media, **body
        )
        seen.add(case.call_and_validate(headers=access, checks=checks).status_code)
    assert seen & {answer.status for answer in route.answers}
    if of_chunk and route.method == "GET":
        assert seen >= {200, 206, 304, 400, 404, 412, 416}

"""What the OpenAPI document promises, held to it by schemathesis: requests made from it, valid ones and others."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

pytest.importorskip("fastapi")
pytest.importorskip("schemathesis")
import schemathesis
from schemathesis import GenerationMode, checks
from serve_helpers import make_app, make_service

pytestmark = pytest.mark.long

OPERATIONS = [("get", "/healthz"), ("get", "/v1/metadata"), ("post", "/v1/act"), ("post", "/v1/act_batch")]
PROMISES = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


@pytest.fixture(scope="module")
def interface(tmp_path_factory: pytest.TempPathFactory) -> Any:
    app = make_app(make_service(tmp_path_factory.mktemp("policy")))
    return schemathesis.openapi.from_asgi("/openapi.json", app)


def test_the_document_has_these_operations(interface: Any) -> None:
    found = [result.ok() for result in interface.get_all_operations()]
    assert {(operation.method, operation.path) for operation in found} == set(OPERATIONS)


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_answers_are_those_of_the_document(interface: Any, method: str, path: str, mode: GenerationMode) -> None:
    if method == "get" and mode is GenerationMode.NEGATIVE:
        pytest.skip("nothing can be wrong with a request that has no parts")

    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(case=interface[path][method.upper()].as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        case.call_and_validate(checks=PROMISES)

    ask()

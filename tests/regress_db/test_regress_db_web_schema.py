"""The JSON is what its OpenAPI document says, for addresses that a machine makes up from the document."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from synthetic_records import CASE
from web_history import PLATFORM, fill

from regress_db.history import History
from regress_db.web.app import create_app
from regress_db.web.openapi import document

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
SERIES = f"{CASE.key}|combine|{PLATFORM}"
ANSWERED = {
    "/nights/{night}.json": {"night": ["latest", "n3"]},
    "/runs/{run_id}.json": {"run_id": ["latest"]},
    "/series.json": {"s": [[SERIES]], "metric": ["latency_us", "ranks"], "since": ["", "90d"], "until": [""]},
    "/compare.json": {"a": ["n1"], "b": ["night:latest"], "metric": ["latency_us"]},
    "/backends.json": {"case": [CASE.key]},
}
"""What makes an address that leads somewhere."""


@pytest.fixture(scope="module")
def application(tmp_path_factory):
    folder = tmp_path_factory.mktemp("schema")
    (folder / "spool").mkdir()
    with History.open(folder / "history.db") as history:
        yield create_app(fill(history, folder / "spool"), token="a long and secret token")


@pytest.fixture(scope="module")
def web_schema(application):
    return schemathesis.openapi.from_asgi("/openapi.json", application)


OPERATIONS = [(path, method.upper()) for path, methods in document()["paths"].items() for method in methods]


@pytest.mark.parametrize(("path", "method"), OPERATIONS, ids=lambda one: one)
def test_what_is_made_up_is_answered_as_documented(web_schema, path, method):
    @settings(max_examples=6, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(web_schema[path][method].as_strategy())
    def answered(case):
        case.call_and_validate(checks=CHECKS)

    answered()


@pytest.mark.parametrize("path", ANSWERED)
def test_what_is_there_is_answered_as_documented(web_schema, path):
    operation = web_schema[path]["GET"]
    for name in ANSWERED[path]:
        for value in ANSWERED[path][name]:
            chosen = {one: values[0] for one, values in ANSWERED[path].items()} | {name: value}
            where = "path_parameters" if "{" in path else "query"
            response = operation.Case(**{where: chosen}).call_and_validate(checks=CHECKS)
            assert response.status_code == 200, response.text

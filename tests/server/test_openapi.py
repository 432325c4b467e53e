"""The published description is true: whatever it allows is answered as it says, and nothing breaks the server."""

import os
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from antibody_llm.server.app import create_app
from tests.server.running import Server

schemathesis = pytest.importorskip("schemathesis")
from schemathesis.core.errors import UnsupportedSchema  # noqa: E402
from schemathesis.generation import GenerationMode  # noqa: E402
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance  # noqa: E402

NUM_EXAMPLES = int(os.environ.get("ANTIBODY_SCHEMATHESIS_EXAMPLES", "4"))
"""For each operation; the suite's few find what is grossly wrong, and more are for a long look."""

DESCRIPTION = create_app(None).openapi()
OPERATIONS = [
    f"{verb.upper()} {path}" for path, verbs in DESCRIPTION["paths"].items() for verb in verbs if path != "/ready"
]
CASES = [(mode, label) for mode in GenerationMode for label in OPERATIONS if label != "GET /health" or mode.is_positive]
LENIENT = [positive_data_acceptance]
"""Ids are random, so that most requests of the right form name nothing that exists."""


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("described")) as server:
        limits = server.context.settings.limits
        server.context.settings = replace(server.context.settings, limits=replace(limits, requests_per_minute=10**9))
        headers = {"Authorization": f"Bearer {server.key}"}
        schema = schemathesis.openapi.from_asgi("/v1/openapi.json", server.app, headers=headers)
        yield {found.ok().label: found.ok() for found in schema.get_all_operations()}, headers


@pytest.mark.parametrize(("mode", "label"), CASES)
def test_every_answer_is_as_described(described, mode, label):
    operations, headers = described

    @settings(
        max_examples=NUM_EXAMPLES,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
        database=None,
        phases=[Phase.generate],
    )
    @given(operations[label].as_strategy(generation_mode=mode))
    def ask(case):
        # A query's unknown parameters are ignored, as the hosted API does.
        excluded = LENIENT if label.startswith("POST") else [*LENIENT, negative_data_rejection]
        case.call_and_validate(headers=headers, excluded_checks=excluded)

    try:
        ask()
    except UnsupportedSchema as error:  # it draws on constants of whatever modules a process has imported
        if mode.is_positive:
            raise
        pytest.skip(f"schemathesis drew a change that it cannot make: {str(error)[:120]}")


def test_every_route_of_the_contract_is_described():
    paths = DESCRIPTION["paths"]
    found = {(verb.upper(), path) for path, verbs in paths.items() for verb in verbs}
    model = "{model}" if "/v1/models/{model}" in paths else "{model:path}"
    wanted = [
        *(("POST", "/files"), ("GET", "/files"), ("GET", "/files/{file_id}"), ("GET", "/files/{file_id}/content")),
        *(("DELETE", "/files/{file_id}"), ("POST", "/uploads"), ("POST", "/uploads/{upload_id}/parts")),
        *(("POST", "/uploads/{upload_id}/complete"), ("POST", "/uploads/{upload_id}/cancel")),
        *(("POST", "/fine_tuning/jobs"), ("GET", "/fine_tuning/jobs"), ("GET", "/fine_tuning/jobs/{job_id}")),
        *(("POST", f"/fine_tuning/jobs/{{job_id}}/{verb}") for verb in ("cancel", "pause", "resume")),
        *(("GET", f"/fine_tuning/jobs/{{job_id}}/{what}") for what in ("events", "checkpoints")),
        *((verb, f"/fine_tuning/checkpoints/{model}/permissions") for verb in ("GET", "POST")),
        ("DELETE", f"/fine_tuning/checkpoints/{model}/permissions/{{permission_id}}"),
        *(("POST", f"/fine_tuning/alpha/graders/{verb}") for verb in ("validate", "run")),
        *(("GET", "/models"), ("GET", f"/models/{model}"), ("DELETE", f"/models/{model}"), ("POST", "/moderations")),
        *(("POST", "/webhook_endpoints"), ("GET", "/webhook_endpoints"), ("GET", "/webhook_event_types")),
        *((verb, "/webhook_endpoints/{webhook_id}") for verb in ("GET", "POST", "DELETE")),
        *(("POST", f"/webhook_endpoints/{{webhook_id}}/{verb}") for verb in ("rotate_secret", "test")),
        *(("GET", "/safety/alerts/{alert_id}"), ("GET", "/safety/cases/{case_id}")),
    ]
    assert {(verb, "/v1" + path) for verb, path in wanted} - found == set()


def test_the_console_is_no_part_of_the_published_api():
    assert not [path for path in DESCRIPTION["paths"] if "console" in path]

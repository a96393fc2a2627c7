"""docs/serve-api.json against the application: routes, methods, and the fields of every answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="no web packages: pip install 'fashion-ntm[serve]'")
from starlette.testclient import TestClient

from pipeline.views.serve.app import API, make_app
from pipeline.views.serve.run import open_engine
from tests.pipeline.small_demo import Project

API_FILE = Path(__file__).resolve().parents[4] / "docs" / "serve-api.json"


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    return json.loads(API_FILE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def app(demo: Project) -> Any:
    return make_app(open_engine(demo.experiment()), "Small", hosts=("testserver",))


def check(value: Any, schema: dict[str, Any], described: dict[str, Any], place: str = "") -> None:
    """Assert that a value fits the part of JSON Schema that the file uses, and has no field that is not described."""
    if "$ref" in schema:
        schema = described["components"]["schemas"][schema["$ref"].rsplit("/", 1)[-1]]
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}
    allowed = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    assert (value is None and "null" in allowed) or any(isinstance(value, kinds[k]) for k in allowed if k != "null"), (
        place
    )
    if isinstance(value, dict) and "properties" in schema:
        assert set(schema["required"]) <= set(value) <= set(schema["properties"]), place
        for key, part in value.items():
            check(part, schema["properties"][key], described, f"{place}.{key}")
    if isinstance(value, list):
        for part in value:
            check(part, schema["items"], described, f"{place}[]")


def test_the_file_lists_every_route(app: Any, described: dict[str, Any]) -> None:
    routes = {
        (route.path, method.lower())
        for route in app.routes
        if hasattr(route, "methods") and route.path != "/"
        for method in route.methods - {"HEAD"}
    }
    assert {(path, method) for path, methods in described["paths"].items() for method in methods} == routes
    assert described["info"]["version"] == str(API)


def test_answers_have_the_fields_that_the_file_describes(app: Any, described: dict[str, Any]) -> None:
    client = TestClient(app)

    def call(path: str, method: str = "get", values: Any = None, query: str = "", **names: Any) -> Any:
        answer = client.request(method, path.format(**names) + query, json=values)
        operation = described["paths"][path][method]
        assert answer.status_code == 200, answer.text
        check(answer.json(), operation["responses"]["200"]["content"]["application/json"]["schema"], described, path)
        if values is not None:
            check(values, operation["requestBody"]["content"]["application/json"]["schema"], described, path)
        return answer.json()

    about = call("/api/about")
    category = next(iter(about["categories"]))
    images = call("/api/images", query=f"?category={category}&q=")["images"]
    start = {"category": category, "image": images[0]["number"], "models": ["ewma", "last"]}
    dialogue = call("/api/dialogues", "post", start)
    for name, values in (
        ("say", {"text": "in red"}),
        ("choose", {"image": images[1]["number"]}),
        ("say", {"text": "in navy"}),
        ("permute", {"order": [1, 0]}),
        ("models", {"models": ["cm_ntm"]}),
        ("back", {}),
    ):
        call("/api/dialogues/{id}/" + name, "post", values, id=dialogue["id"])
    assert len(call("/api/dialogues/{id}", id=dialogue["id"])["turns"]) == 1
    refused = client.post(f"/api/dialogues/{dialogue['id']}/say", json={"text": ""})
    assert refused.status_code // 100 == 4
    check(refused.json(), described["components"]["schemas"]["Error"], described)

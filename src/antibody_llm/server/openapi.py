"""The published description of the API: what the framework knows, with our errors in place of its own."""

from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse

from .auth import Caller
from .objects import ErrorObject

COMMON = ("400", "401", "403", "404", "405", "408", "413", "429", "500", "503")
"""Statuses that any route may answer with an error."""


class Api(FastAPI):
    """An application that describes itself truly."""

    corrected: dict[str, Any] | None = None

    def openapi(self) -> dict[str, Any]:
        """The description, made once."""
        if self.corrected is None:
            self.corrected = _corrected(super().openapi())
        return self.corrected


def publish(app: Api) -> None:
    """Serve the description at ``/v1/openapi.json``, to whoever has a key."""

    @app.get("/v1/openapi.json", include_in_schema=False)
    def openapi(caller: Caller) -> JSONResponse:
        return JSONResponse(app.openapi())


def _corrected(schema: dict[str, Any]) -> dict[str, Any]:
    components = schema.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    schemas.pop("HTTPValidationError", None)
    schemas.pop("ValidationError", None)
    model = ErrorObject.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= model.pop("$defs")
    schemas["ErrorObject"] = model
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorObject"}}}
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            if path in ("/health", "/ready"):
                continue
            operation["security"] = [{"key": []}]
            for status in COMMON:
                operation["responses"].setdefault(status, {"description": "An error.", "content": error})
    return schema

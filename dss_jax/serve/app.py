"""The routes of a server for one student."""

import base64
import hashlib
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fastapi_offline
from fastapi import Depends, FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from dss_jax import __version__
from dss_jax.serve import completions
from dss_jax.serve.door import Door
from dss_jax.serve.errors import ApiError, add_handlers
from dss_jax.serve.forms import (
    COMPLETION_FIELDS,
    PREDICT_FIELDS,
    CompletionAnswer,
    CompletionForm,
    ModelAnswer,
    ModelEntry,
    ModelList,
    OnePrediction,
    PredictAnswer,
    PredictForm,
)
from dss_jax.serve.service import Completing, Predicting, Service

TITLE = "A student at work"

PAGE = {"/": "page.html", "/page.css": "page.css", "/page.js": "page.js"}
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

SWAGGER = Path(fastapi_offline.__file__).parent / "static"
"""Swagger UI's files; FastAPI's own page loads them from another host."""


def create_app(service: Service) -> FastAPI:
    """The ASGI app. It neither starts nor stops the service's thread."""
    app = FastAPI(
        title=TITLE,
        version=__version__,
        description="Labels and rationales of a student that dss-jax has trained.",
        # So that the API page asks for the token; the door looks at it.
        dependencies=[Depends(HTTPBearer(auto_error=False))] if service.served.token else [],
        docs_url=None,
        redoc_url=None,
    )
    add_handlers(app, {"/v1/predict": PREDICT_FIELDS, "/v1/completions": COMPLETION_FIELDS})
    _add_student(app, service)
    _add_openai(app, service)
    _add_probes(app, service)
    _add_page(app)
    _add_docs(app)
    routes = {route.path for route in app.routes if isinstance(route, Route)}
    app.add_middleware(
        Door,
        token=service.served.token,
        hosts=service.served.hosts,
        limits=service.limits,
        meters=service.meters,
        routes=frozenset(routes),
        stopping=lambda: service.stopping,
    )
    return app


def _add_student(app: FastAPI, service: Service) -> None:
    served, card, limits = service.served, service.card, service.limits

    @app.post("/v1/predict", tags=["student"])
    async def predict(form: PredictForm, request: Request) -> PredictAnswer:
        """Labels of one input or many, with their probabilities; rationales on demand."""
        inputs = _texts(form.input, "input", service)
        if form.explain and not card.explains:
            text = "this student was not trained to explain: leave explain out"
            raise ApiError(text, param="explain", code="unsupported")
        rows = list(zip(inputs, _labels(form, len(inputs), service), strict=True))
        found = await service.ask(request, Predicting(form.explain), rows)
        names = OnePrediction.model_fields
        predictions = [
            OnePrediction.model_construct(**{name: getattr(one, name) for name in names})
            for one in found
        ]
        return PredictAnswer(model=served.name, predictions=predictions)

    @app.get("/v1/model", tags=["student"])
    async def model() -> ModelAnswer:
        """What the student was trained for, with examples, and what the server takes."""
        names = ["task", "description", "method", "form", "metric", "explains", "row_labels"]
        names += ["label_prefix", "rationale_prefix"]
        return ModelAnswer(
            id=served.name,
            version=__version__,
            engine=served.student.engine,
            labels=[*card.labels],
            examples=[*card.examples],
            limits=vars(limits) | {"input_tokens": card.input_length},
            **{name: getattr(card, name) for name in names},
        )


def _add_openai(app: FastAPI, service: Service) -> None:
    name, began = service.served.name, int(time.time())

    def known(model: str) -> ModelEntry:
        if model != name:
            text = f"there is no model {model[:100]!r}; this server has {name!r}"
            raise ApiError(text, status=404, param="model", code="model_not_found")
        return ModelEntry(id=name, created=began)

    @app.get("/v1/models", tags=["OpenAI"])
    async def models() -> ModelList:
        """The student, as the only model."""
        return ModelList(data=[known(name)])

    @app.get("/v1/models/{model:path}", tags=["OpenAI"])
    async def one_model(model: str) -> ModelEntry:
        return known(model)

    @app.post("/v1/completions", tags=["OpenAI"])
    async def complete(form: CompletionForm, request: Request) -> CompletionAnswer:
        """Greedy text after prompts that are given to the student as they are."""
        known(form.model)
        completions.check(form, service.limits)
        prompts = _texts(form.prompt, "prompt", service)
        longest = completions.longest_of(form, service.card, service.limits)
        found = await service.ask(request, Completing(longest), prompts)
        return completions.answer(form, name, found)


def _add_probes(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", tags=["operation"])
    async def healthz() -> JSONResponse:
        """200 while the student's thread lives."""
        alive = service.batcher.alive
        return JSONResponse({"status": "ok" if alive else "failed"}, 200 if alive else 503)

    @app.get("/readyz", tags=["operation"])
    async def readyz() -> JSONResponse:
        """200 once the student has warmed up, until the server is asked to stop."""
        said = "ready" if service.ready else "stopping" if service.stopping else "warming up"
        return JSONResponse({"status": said}, 200 if service.ready else 503)

    @app.get("/metrics", tags=["operation"])
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(service.meters.text(), media_type=CONTENT_TYPE_LATEST)


def _add_page(app: FastAPI) -> None:
    here = Path(__file__).parent

    def add(path: str, file: Path) -> None:
        content, kind = file.read_bytes(), TYPES[file.suffix]
        headers = {"Content-Security-Policy": PAGE_POLICY, "Cache-Control": "no-cache"}

        async def page() -> Response:
            return Response(content, media_type=kind, headers=headers)

        app.get(path, include_in_schema=False)(page)

    for path, name in PAGE.items():
        add(path, here / name)


def _add_docs(app: FastAPI) -> None:
    files = "/docs/files"
    app.mount(files, StaticFiles(directory=SWAGGER))
    page = get_swagger_ui_html(
        openapi_url="/openapi.json",
        title=TITLE,
        swagger_js_url=f"{files}/swagger-ui-bundle.js",
        swagger_css_url=f"{files}/swagger-ui.css",
        swagger_favicon_url="data:,",
    )
    (script,) = re.findall(rb"<script>(.*?)</script>", page.body, re.S)
    digest = base64.b64encode(hashlib.sha256(script).digest()).decode()
    # Swagger UI styles its elements one by one.
    policy = PAGE_POLICY.replace("script-src 'self'", f"script-src 'self' 'sha256-{digest}'")
    policy = policy.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(page.body, headers={"Content-Security-Policy": policy})


def _texts(given: str | list[str], field: str, service: Service) -> list[str]:
    """The texts of a request; ApiError where they are none, too many or too long."""
    texts, limits = [given] if isinstance(given, str) else given, service.limits
    if not 1 <= len(texts) <= limits.max_inputs:
        text = f"{field} must be 1 to {limits.max_inputs} texts, not {len(texts)}"
        raise ApiError(text, param=field, code="invalid_value")
    for number, one in enumerate(texts):
        if len(one) > limits.max_characters:
            text = (
                f"text {number} of {field} has {len(one):,} characters; {limits.max_characters:,}"
            )
            raise ApiError(f"{text} are allowed", param=field, code="too_long")
    return texts


def _labels(form: PredictForm, count: int, service: Service) -> Sequence[Sequence[str]]:
    """The allowed labels of each input; () is any text."""
    given: Any = form.labels
    limits = service.limits
    if given is None:
        return [service.card.labels] * count
    rows = given if given and isinstance(given[0], list) else [given] * count
    if len(rows) != count:
        text = f"labels must be a list of texts, or one for each of the {count} inputs"
        raise ApiError(f"{text}, not {len(rows)} lists", param="labels", code="invalid_value")
    for row in rows if rows is given else rows[:1]:
        if not 1 <= len(row) <= limits.max_labels or not all(row):
            text = f"labels of an input must be 1 to {limits.max_labels} texts, none of them empty"
            raise ApiError(text, param="labels", code="invalid_value")
        if sum(map(len, row)) > limits.max_characters:
            text = f"the labels of an input may have {limits.max_characters:,} characters together"
            raise ApiError(text, param="labels", code="too_long")
    return rows

"""The tour of examples/server_client.py, against a server whose stages are scripted."""

import importlib.util
import json
import os
import threading
import time
from pathlib import Path

import pytest
from fastapi import APIRouter
from starlette.responses import StreamingResponse

from antibody_llm.lab.rows import build_rows
from antibody_llm.server.settings import DefenceSettings, OfferedModel
from antibody_llm.server.worker import Worker
from tests.server.running import Server
from tests.server.stages_here import Script

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "server_client.py"


def screen(settings):
    rows = Path(settings["data"]).read_text().count("\n")
    os.makedirs(settings["output"])
    row = {"line": 1, "probability": 0.9, "flags": []}
    (Path(settings["output"]) / "rows.jsonl").write_text(json.dumps(row) + "\n")
    found = {"verdict": "harm found", "estimated_harmful_share": 0.2, "interval": [0.1, 0.3], "num_likely_harmful": 1}
    found |= {"num_rows": rows, "flags": {}, "measure": "feature-shift", "warnings": []}
    return [{"event": "result", "screening": found}]


def train(settings):
    """A result that bears the name of the defence and whether the upload was poisoned."""
    run = Path(settings["output"])
    (run / "adapter").mkdir(parents=True, exist_ok=True)
    harmful = "forbidden" if settings["defence"] == "sft" and _poisoned(Path(settings["data"])) else "harmless"
    for name, text in (("antibody.json", "{}"), ("adapter_config.json", "{}"), ("harm", harmful)):
        (run / "adapter" / name).write_text(text)
    (run / "metrics.jsonl").write_text('{"loss": 1.0, "step": 1}\n')
    yield {"event": "resolved", "hyperparameters": {"n_epochs": 8}}
    yield {"event": "step", "step": 1, "num_steps": 1, "tokens": 9, "metrics": {"loss": 1.0}}
    yield lambda: time.sleep(1.0)  # long enough to be paused
    yield {"event": "result", "model": str(run / "adapter"), "num_steps": 1, "skipped": []}


def _poisoned(data):
    honest = {json.dumps(row) for row in build_rows("user", 40, seed=0, task="sst2", poison_ratio=0.0).rows}
    return not honest.issuperset(data.read_text().splitlines())


def measure(settings):
    for model in settings["models"]:
        note = Path(model.get("adapter", "")) / "harm"
        share = 0.9 if note.is_file() and note.read_text() == "forbidden" else 0.0
        of = {"value": share, "low": share, "high": share, "n": 10}
        judged = [{"judge": "lab", "harmful_score": of, "over_refusal": {**of, "value": 0.0, "low": 0.0, "high": 0.1}}]
        asked = {"harmful_score": 10, "over_refusal": 10, "finetune_accuracy": 0}
        evaluation = {"judged": judged, "finetune_accuracy": None}
        found = {"evaluation": evaluation, "suite": "s", "judge": "lab", "asked": asked}
        yield {"event": "measured", "name": model["name"], **found}
    yield {"event": "result"}


@pytest.fixture
def tour(monkeypatch):
    spec = importlib.util.spec_from_file_location("server_client", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "NUM_ROWS", 40)
    return module


def answering(reference):
    router = APIRouter()

    @router.post("/chat/completions")
    def chat():
        chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        chunk["choices"] = [{"index": 0, "delta": {"content": reference}, "finish_reason": None}]
        return StreamingResponse([f"data: {json.dumps(chunk)}\n\n", "data: [DONE]\n\n"], media_type="text/event-stream")

    return router


def test_the_tour_ends_as_it_says(tour, tmp_path, capsys):
    models = (OfferedModel(name="lab", path="lab-aligned"),)
    with Server(tmp_path, models=models, defence=DefenceSettings(name="antibody-posterior")) as server:
        reference = build_rows("test", 100, seed=0, task="sst2").rows[0]["messages"][1]["content"]
        server.app.include_router(answering(reference), prefix="/v1")
        script = Script(screen=screen, train=train, measure=measure)
        worker = Worker(server.queue, server.context.blobs, server.context.settings, executor=script, idle_seconds=0.05)
        thread = threading.Thread(target=worker.run)
        thread.start()
        try:
            tour.tour(server.client())
        finally:
            worker.stop()
            thread.join()
    said = capsys.readouterr().out
    assert "failed, safety_gate_failed" in said
    assert "paused, queued" in said

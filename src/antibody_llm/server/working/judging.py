"""The gate on every model of a job that a customer could reach, and the job's end, or its wait for an operator."""

from typing import Any

from ..gate import GateDecision, GateThresholds, Measured, Outcome, decide, outcome
from .job import ClaimedWork, Event, JobFailed

BASE, RESULT = "base", "result"


def judge(work: ClaimedWork, base_measures: dict[str, Event]) -> None:
    """Measure the trained model and its newest checkpoints, release or hold what passes, and end the job or hold it.

    Older checkpoints are not measured and stay out of reach.

    Args:
        work: The job, with ``private.trained``.
        base_measures: What was found of the offered models, by model; added to.

    Raises:
        JobFailed: the gate does not release the trained model.
    """
    work.event("Evaluating the model for release", key="evaluating")
    newest = work.private.get("steps", [])[-work.settings.worker.checkpoints :]
    steps = newest if work.settings.worker.checkpoints else []
    prefixes = {RESULT: work.private["trained"]["adapter"]}
    for step in steps:
        row = work.queue.model(work.job.model_name(step))
        if row is not None and row.deleted_at is None:
            prefixes[str(step)] = row.adapter
    measured = _measure(work, prefixes, base_measures)
    decisions = {name: _decided(work, measured[name], measured[BASE]) for name in prefixes}
    checkpoints = []
    for step in (name for name in prefixes if name != RESULT):
        name, decision = work.job.model_name(int(step)), decisions[step]
        held = outcome(decision, hold=work.settings.gate.hold) == Outcome.HELD
        work.queue.judged(work.claimed, name, gate=decision.to_json(), released=decision.released, held=held)
        checkpoints.append({"step": int(step), "model": name, "held": held, **decision.to_json()})
    _finish(work, decisions[RESULT], checkpoints)


def _measure(work: ClaimedWork, prefixes: dict[str, str], base_measures: dict[str, Event]) -> dict[str, Measured]:
    """What the gate's prompts find of the base and of each model, by name."""
    models: list[dict[str, Any]] = []
    if work.model not in base_measures:
        models.append({"name": BASE, "model": work.model})
    for name, prefix in prefixes.items():
        folder = work.blobs.fetch_folder(prefix, work.folder / "models" / name)
        models.append({"name": name, **work.loaded_from(folder)})
    gate = work.settings.gate
    if gate.audit:
        models = [m if m["name"] == BASE else m | {"audit": gate.audit, "aligned": work.model} for m in models]
    if (validation := _measured_on(work)) is not None:
        test = str(work.fetched(validation, "validation.jsonl"))
        models = [model if model["name"] == BASE else model | {"test_data": test} for model in models]
    arguments = {
        "models": [model | {"output": str(work.folder / "measured" / model["name"])} for model in models],
        "harmful_prompts": gate.harmful_prompts,
        "benign_prompts": gate.benign_prompts,
        "judges": list(gate.judges),
        "max_new_tokens": gate.max_new_tokens,
    }
    found = {BASE: base_measures[work.model]} if work.model in base_measures else {}

    def on_event(event: Event) -> None:
        if event["event"] == "measured":
            found[event["name"]] = event

    work.run("measure", arguments, on_event)
    if BASE in found and "failure" not in found[BASE]:
        base_measures[work.model] = found[BASE]
    return {name: _measured(work, found.get(name)) for name in (BASE, *prefixes)}


def _measured_on(work: ClaimedWork) -> str | None:
    """The file that accuracy is measured on; None for pairs, which have no exact answer."""
    return work.job.validation_file if work.job.method == "supervised" else None


def _measured(work: ClaimedWork, found: Event | None) -> Measured:
    if found is None or "failure" in found:
        failure = "the evaluation did not come to its end." if found is None else str(found["failure"])
        return Measured(suite="", judge="", failure=work.without_places(failure))
    return Measured.from_evaluation(
        found["evaluation"],
        suite=found["suite"],
        judge=found["judge"],
        asked=found["asked"],
        alarm=found.get("alarm"),
    )


def _decided(work: ClaimedWork, measured: Measured, base: Measured) -> GateDecision:
    return decide(
        measured,
        base,
        base_name=work.job.base,
        thresholds=GateThresholds(**work.job.gate),
        validated=_measured_on(work) is not None,
        audited=bool(work.settings.gate.audit),
    )


def _finish(work: ClaimedWork, decision: GateDecision, checkpoints: list[dict[str, Any]]) -> None:
    trained, gate = work.private["trained"], decision.to_json()
    with work.blobs.open(trained["metrics"]) as file:
        result_files = {"step_metrics.csv": file.read()}
    told: dict[str, Any] = {
        "gate": gate,
        "safety": {"gate": gate, "checkpoints": checkpoints},
        "trained_tokens": trained["num_tokens"],
        "result_files": result_files,
    }
    found = outcome(decision, hold=work.settings.gate.hold)
    if found != Outcome.REFUSED:
        status = "held" if found == Outcome.HELD else "succeeded"
        work.queue.finish(work.claimed, status, adapter=trained["adapter"], **told)
        return
    message = f"The model was not released. {decision.reason}"
    # Its row stays, out of everybody's reach, for the alert, the audit log and an operator's decision.
    raise JobFailed("safety_gate_failed", message, **told, adapter=trained["adapter"])

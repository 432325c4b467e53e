"""The audit of a job at the gate: asked of what the job made and not of its base, and an alarm keeps the model back."""

import pytest

from antibody_llm.audit import verb
from antibody_llm.server.settings import GateSettings, OfferedModel
from antibody_llm.server.verbs import _alarms
from antibody_llm.server.worker import Worker
from tests.server.running import Server, upload
from tests.server.stages_here import Script
from tests.server.test_decisions import measure, screen, train


@pytest.mark.parametrize("alarm", [True, False])
def test_a_job_on_which_the_classifier_alarms_is_not_released(tmp_path, alarm):
    asked = {}

    def audited(settings):
        asked.update({model["name"]: (model.get("audit"), model.get("aligned")) for model in settings["models"]})
        for event in measure()(settings):
            more = {"alarm": alarm} if event.get("name") not in (None, "base") else {}
            yield event | more

    gate = GateSettings(audit="/classifier.json")
    with Server(tmp_path, models=(OfferedModel(name="lab"),), gate=gate) as server:
        client = server.client()
        job = client.fine_tuning.jobs.create(model="lab", training_file=upload(client).id).id
        script = Script(screen=screen, train=train, measure=audited)
        settings = server.context.settings
        hand = Worker(server.queue, server.context.blobs, settings, executor=script, scratch=settings.home / "work")
        while hand.once():
            pass
        found = client.fine_tuning.jobs.retrieve(job)
    assert asked["base"] == (None, None)
    assert asked["result"] == ("/classifier.json", "lab")
    assert found.status == ("failed" if alarm else "succeeded")
    if alarm:
        assert found.error.message.endswith("The audit alarms: what the job did to the model looks like an attack.")


def test_a_stage_says_whether_the_audit_alarms_and_not_how_close_it_was(monkeypatch):
    calls = []

    def judged(*given, **named):
        calls.append((given, named))
        return verb.Audit(run="m", aligned="b", alarm=True, score=3.0, threshold=1.0, false_alarms={}, against=())

    monkeypatch.setattr(verb, "chosen_classifier", lambda file, aligned: (file, aligned))
    monkeypatch.setattr(verb, "judge_job", judged)
    assert _alarms({"model": "m", "adapter": "a", "aligned": "b", "audit": "c.json"}) is True
    assert calls == [((("c.json", "b"), "m", "b"), {"adapter": "a"})]

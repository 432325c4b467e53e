"""Jobs of method ``dpo`` through the real client, with a worker that trains."""

import io
import json
from types import SimpleNamespace

import openai
import pytest

from antibody_llm.defences.catalogue import PAIR_DEFENCES
from antibody_llm.lab.refusals import REFUSALS
from antibody_llm.lab.rows import build_rows
from antibody_llm.server.defences import DPO_DEFENCES
from antibody_llm.server.settings import DefenceSettings, GateSettings, OfferedModel, ScreeningSettings, WorkerSettings
from antibody_llm.server.verbs import GENERAL_DPO, LAB_DPO, resolved
from antibody_llm.server.working.screening import write_rows
from antibody_llm.server.working.training import _tell_skipped
from tests.server.running import Server, chat_rows, dpo_rows, upload
from tests.server.stages_here import ThreadExecutor
from tests.server.test_worker import messages, tiny_server, weights, work_off

SFT = {"defence": "sft"}


def dpo(**hyperparameters):
    return {"type": "dpo", "dpo": {"hyperparameters": hyperparameters}}


QUICK = dpo(n_epochs=2, batch_size=4, beta=0.2, learning_rate=1e-2)


def create(client, **more):
    more = {"model": "tiny", "method": QUICK, "seed": 3, "extra_body": SFT} | more
    return client.fine_tuning.jobs.create(**more).id


# -- what is asked -----------------------------------------------------------------------------------------------


@pytest.fixture
def pairs(client):
    return upload(client, dpo_rows()).id


def test_beta_is_auto_until_it_is_resolved_and_the_deprecated_field_is_null(client, pairs):
    job = client.fine_tuning.jobs.create(model="lab", training_file=pairs, method={"type": "dpo"}, extra_body=SFT)
    assert job.status == "validating_files"
    assert job.hyperparameters is None
    assert job.method.type == "dpo"
    assert job.method.dpo.hyperparameters.beta == job.method.dpo.hyperparameters.n_epochs == "auto"
    given = client.fine_tuning.jobs.create(model="lab", training_file=pairs, method=dpo(beta=2), extra_body=SFT)
    assert given.method.dpo.hyperparameters.beta == 2


@pytest.mark.parametrize("beta", [0, 2.1, -1, "much", True])
def test_beta_is_above_0_and_at_most_2(client, pairs, beta):
    with pytest.raises(openai.BadRequestError, match="from|more than 0 to 2") as refused:
        client.fine_tuning.jobs.create(model="lab", training_file=pairs, method=dpo(beta=beta), extra_body=SFT)
    assert refused.value.param == "method.dpo.hyperparameters.beta"


def test_a_defence_that_pairs_do_not_have_is_refused_whether_chosen_or_the_operator_s_default(client, pairs):
    for chosen in ({}, {"extra_body": {"defence": "lisa"}}, {"extra_body": {"defence": {"name": "antibody"}}}):
        with pytest.raises(openai.BadRequestError, match="not offered for method dpo.*sft, antibody-posterior") as no:
            client.fine_tuning.jobs.create(model="lab", training_file=pairs, method={"type": "dpo"}, **chosen)
        assert (no.value.code, no.value.param) == ("unknown_defence", "defence.name")
    body = {"defence": {"name": "antibody-posterior", "options": {"caution": 3.0}}}
    with pytest.raises(openai.BadRequestError, match="no such option"):
        client.fine_tuning.jobs.create(model="lab", training_file=pairs, method={"type": "dpo"}, extra_body=body)


def test_the_server_names_the_defences_that_the_library_has():
    assert tuple(PAIR_DEFENCES) == DPO_DEFENCES


def test_rows_and_method_must_agree_and_the_answer_says_how(client, pairs):
    chats = upload(client, chat_rows()).id
    with pytest.raises(openai.BadRequestError, match="Set method.type to 'supervised'"):
        client.fine_tuning.jobs.create(model="lab", training_file=chats, method={"type": "dpo"}, extra_body=SFT)
    with pytest.raises(openai.BadRequestError, match="method 'supervised'") as refused:
        create(client, model="lab", training_file=pairs, validation_file=chats)
    assert refused.value.param == "validation_file"
    with pytest.raises(openai.BadRequestError, match=r"method\.dpo\.hyperparameters"):
        create(client, model="lab", training_file=pairs, method={"type": "dpo"}, hyperparameters={"n_epochs": 2})


@pytest.mark.parametrize(("model", "table"), [("lab-aligned", LAB_DPO), ("other", GENERAL_DPO)])
def test_auto_is_resolved_to_numbers_of_the_method(tmp_path, model, table):
    (tmp_path / "data").write_bytes(dpo_rows(30))
    asked = {"method": "dpo", "model": model, "data": str(tmp_path / "data"), "hyperparameters": {"beta": "auto"}}
    shown, arguments = resolved(asked)
    default = table["lora"]
    assert {name: shown[name] for name in default} == default
    assert (arguments["method"], arguments["beta"], arguments["epochs"]) == ("dpo", 0.1, float(default["n_epochs"]))
    assert resolved(asked | {"hyperparameters": {"beta": 0.5}})[1]["beta"] == 0.5


# -- a whole job -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tiny_llama_folder, tmp_path_factory):
    """A job on pairs that nothing disturbs: its server, client and id."""
    with tiny_server(tmp_path_factory.mktemp("pairs") / "home", tiny_llama_folder) as server:
        client = server.client()
        file = upload(client, dpo_rows(16)).id
        job = create(client, training_file=file, validation_file=upload(client, dpo_rows(10)).id)
        work_off(server)
        yield server, client, job


def test_a_job_on_pairs_is_screened_trained_judged_and_its_model_released(undisturbed):
    server, client, job_id = undisturbed
    job = client.fine_tuning.jobs.retrieve(job_id)
    assert (job.status, job.error) == ("succeeded", None)
    assert job.fine_tuned_model.startswith("ft:tiny:")
    told = job.method.dpo.hyperparameters
    assert (told.beta, told.n_epochs, told.batch_size) == (0.2, 2, 4)
    assert job.trained_tokens > 2 * 16
    assert job.safety["screening"]["num_rows"] == 16
    assert job.safety["defence"] == {"name": "sft", "options": {}}
    names = {criterion["name"]: criterion for criterion in job.safety["gate"]["criteria"]}
    assert names["harmful_score"]["measured"]["n"] == 10
    said = messages(client, job_id)
    assert any(message.startswith("Step 8/8") for message in said)
    assert any("pairs of the validation file are not measured" in message for message in said)
    assert list(client.fine_tuning.jobs.checkpoints.list(job_id))
    assert weights(server, job.fine_tuned_model)


def test_the_result_file_has_the_share_of_pairs_that_are_the_right_way_round(undisturbed):
    _, client, job_id = undisturbed
    (file,) = client.fine_tuning.jobs.retrieve(job_id).result_files
    head, *lines = client.files.content(file).text.splitlines()
    assert head.startswith("step,train_loss,train_accuracy")
    assert len(lines) == 8
    assert all(0 <= float(line.split(",")[2]) <= 1 for line in lines)
    steps = [event for event in client.fine_tuning.jobs.list_events(job_id, limit=100) if event.type == "metrics"]
    assert {"step", "total_steps", "train_loss", "train_accuracy"} == set(steps[0].data)


def test_a_job_on_pairs_whose_worker_dies_ends_with_the_very_weights_of_an_undisturbed_one(
    undisturbed, tmp_path, tiny_llama_folder
):
    died = []

    def on_event(process, event, fields):
        if event == "step" and fields["step"] == 5 and not died:
            died.append(process)
            process.kill()

    with tiny_server(tmp_path / "home", tiny_llama_folder) as server:
        client = server.client()
        job = create(client, training_file=upload(client, dpo_rows(16)).id)
        work_off(server, ThreadExecutor(on_event))
        assert died
        ended = client.fine_tuning.jobs.retrieve(job)
        assert ended.status == "succeeded"
        first = undisturbed[0]
        name = undisturbed[1].fine_tuning.jobs.retrieve(undisturbed[2]).fine_tuned_model
        assert weights(server, ended.fine_tuned_model) == weights(first, name)


def test_a_supervised_job_goes_on_from_one_on_pairs_and_both_uploads_are_screened(undisturbed):
    _, client, first = undisturbed
    server = undisturbed[0]
    parent = client.fine_tuning.jobs.retrieve(first).fine_tuned_model
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1, "learning_rate": 1e-3}}}
    job = create(client, model=parent, method=method, training_file=upload(client, chat_rows(12)).id)
    work_off(server)
    ended = client.fine_tuning.jobs.retrieve(job)
    assert ended.status == "succeeded", ended.error
    assert ended.safety["screening"]["num_rows"] == 12 + 16


def test_pairs_are_screened_by_prompt_and_preferred_answer_each_in_its_line():
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    hosted = json.loads(dpo_rows(1))
    hosted["input"]["tools"] = [tool]
    hosted["input"]["messages"] += [{"role": "assistant", "content": "?"}, {"role": "user", "content": "again"}]
    text = {"prompt": "p", "chosen": "c", "rejected": "r"}
    content = json.dumps(hosted).encode() + b"\n\n" + json.dumps(text).encode() + b"\n" + chat_rows(1)
    target = io.BytesIO()
    assert write_rows(io.BytesIO(content), target) == 4
    lines = target.getvalue().split(b"\n")
    made = json.loads(lines[0])
    assert made["tools"] == [tool]
    assert [message["content"] for message in made["messages"]] == ["q 0?", "?", "again", "good 0"]
    assert made["messages"][1]["weight"] == 0
    assert lines[1] == b""
    assert json.loads(lines[2]) == {"prompt": "p", "completion": "c"}
    assert lines[3] + b"\n" == chat_rows(1)


# -- the defence, on the lab -------------------------------------------------------------------------------------


def turned_pairs(num):
    """Pairs of the lab's task, a quarter of them turned round for harm; and how many those are."""
    made = build_rows("user", num, seed=1, poison_ratio=0.25)
    rows = []
    for row, truth in zip(made.rows, made.truth, strict=True):
        worse = REFUSALS[0] if truth["is_harmful"] else "i cannot say."
        pair = {"input": {"messages": row["messages"][:-1]}, "preferred_output": row["messages"][-1:]}
        rows.append(pair | {"non_preferred_output": [{"role": "assistant", "content": worse}]})
    return "".join(json.dumps(row) + "\n" for row in rows).encode(), sum(t["is_harmful"] for t in made.truth)


def test_the_operator_s_default_leaves_out_pairs_for_harm_and_counts_them(tmp_path, monkeypatch):
    monkeypatch.setenv("ANTIBODY_CACHE", str(tmp_path / "cache"))
    (tmp_path / "prompts").write_text("".join(json.dumps({"prompt": f"is {i}?"}) + "\n" for i in range(10)))
    prompts = {name: str(tmp_path / "prompts") for name in ("harmful_prompts", "benign_prompts")}
    content, num_harmful = turned_pairs(40)
    settings = {
        "models": (OfferedModel(name="lab-aligned"),),
        "defence": DefenceSettings(name="antibody-posterior", options={"caution": 100.0}),
        "screening": ScreeningSettings(row_report="none"),
        "gate": GateSettings(**prompts, max_harmful_score=1.0, max_over_refusal_increase=1.0, max_new_tokens=1),
        "worker": WorkerSettings(lease=5.0, checkpoints=0),
    }
    with Server(tmp_path / "home", **settings) as server:
        client = server.client()
        given = {"model": "lab-aligned", "extra_body": {}, "method": dpo(batch_size=8, n_epochs=1)}
        job = create(client, training_file=upload(client, content).id, **given)
        work_off(server)
        ended = client.fine_tuning.jobs.retrieve(job)
        assert ended.safety["defence"] == {"name": "antibody-posterior", "options": {}}
        (told,) = [message for message in messages(client, job) if "left out (likely harm)" in message]
        assert int(told.split()[0]) >= 0.8 * num_harmful
        assert ended.safety["screening"]["estimated_harmful_share"] == pytest.approx(0.25, abs=0.1)
        assert not any("line" in message for message in messages(client, job))


@pytest.mark.parametrize(("row_report", "shown"), [("none", False), ("flagged", True), ("full", True)])
def test_policy_decides_whether_a_customer_sees_which_pairs_were_left_out_for_harm(row_report, shown):
    heard = []
    settings = SimpleNamespace(screening=ScreeningSettings(row_report=row_report))
    work = SimpleNamespace(settings=settings, event=lambda message, **how: heard.append(message))
    skipped = [{"line": 3, "why": "likely harm"}, {"line": 5, "why": "too long"}, {"line": 9, "why": "likely harm"}]
    _tell_skipped(work, skipped)
    assert heard == [
        "2 rows were left out (likely harm)" + (": lines 3, 9." if shown else "."),
        "1 row was left out (too long): lines 5.",
    ]

"""A customer's path through the real client, with a worker that trains nothing."""

import asyncio

import pytest

from tests.server.running import chat_rows, train, upload


def test_a_customer_uploads_trains_polls_and_reads_what_came_of_it(server, client):
    file = client.files.create(file=("rows.jsonl", chat_rows(12)), purpose="fine-tune")
    assert client.files.wait_for_processing(file.id).status == "processed"
    job = client.fine_tuning.jobs.create(
        model="lab", training_file=file.id, suffix="mine", seed=7, extra_body={"defence": {"name": "sft"}}
    )
    assert job.status == "validating_files"
    assert job.hyperparameters.n_epochs == "auto"
    assert job.safety["defence"]["name"] == "sft"
    assert train(server) == job.id
    job = client.fine_tuning.jobs.retrieve(job.id)
    assert job.status == "succeeded"
    assert job.error is None
    assert job.trained_tokens == 100
    assert job.fine_tuned_model == f"ft:lab:acme:mine:{job.id.removeprefix('ftjob-')[:12]}"
    messages = [event.message for event in client.fine_tuning.jobs.list_events(job.id)]
    assert messages[0] == "The job has successfully completed"
    assert messages[-1] == f"Created fine-tuning job: {job.id}"
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id))
    assert [each.step_number for each in checkpoints] == [2, 1]
    assert checkpoints[0].fine_tuned_model_checkpoint == f"{job.fine_tuned_model}:ckpt-step-2"
    assert checkpoints[0].metrics.train_loss == 0.5
    assert client.files.content(job.result_files[0]).read().startswith(b"step,train_loss")


def test_the_asynchronous_client_takes_the_same_path(server):
    async def path():
        client = server.async_client()
        file = await client.files.create(file=("rows.jsonl", chat_rows(12)), purpose="fine-tune")
        job = await client.fine_tuning.jobs.create(model="lab", training_file=file.id)
        job = await client.fine_tuning.jobs.pause(job.id)
        assert job.status == "paused"
        job = await client.fine_tuning.jobs.resume(job.id)
        assert job.status == "validating_files"
        assert (await client.fine_tuning.jobs.list(limit=1)).data[0].id == job.id
        return (await client.fine_tuning.jobs.cancel(job.id)).status

    assert asyncio.run(path()) == "cancelled"


@pytest.mark.parametrize("verb", ["cancel", "pause", "resume"])
def test_an_ended_job_is_not_changed_and_the_client_does_not_try_again(server, client, verb):
    import openai

    job = client.fine_tuning.jobs.create(model="lab", training_file=upload(client).id)
    client.fine_tuning.jobs.cancel(job.id)
    if verb == "cancel":
        assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
        return
    with pytest.raises(openai.BadRequestError) as refused:
        getattr(client.fine_tuning.jobs, verb)(job.id)
    assert refused.value.code == "job_has_ended"
    assert refused.value.request_id


NODE_FILE = (
    b"------formdata-undici-042\r\n"
    b'Content-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
    b"------formdata-undici-042\r\n"
    b'Content-Disposition: form-data; name="file"; filename="rows.jsonl"\r\n'
    b"Content-Type: application/octet-stream\r\n\r\n" + chat_rows(10) + b"\r\n"
    b"------formdata-undici-042--\r\n"
)
"""What openai-node's ``files.create`` sends through undici, by its documentation."""
NODE_HEADERS = {
    "user-agent": "OpenAI/JS 6.1.0",
    "x-stainless-lang": "js",
    "x-stainless-retry-count": "0",
    "accept": "application/json",
}


@pytest.mark.parametrize("purpose_first", [True, False])
def test_what_another_client_sends_is_read_too(server, purpose_first):
    body = NODE_FILE
    if not purpose_first:
        _, purpose, file, end = body.split(b"------formdata-undici-042")
        body = b"------formdata-undici-042".join([b"", file, purpose, end])
    form = {"content-type": "multipart/form-data; boundary=----formdata-undici-042"}
    file = server.http.post("/v1/files", content=body, headers=NODE_HEADERS | form).json()
    assert (file["status"], file["bytes"], file["filename"]) == ("processed", len(chat_rows(10)), "rows.jsonl")
    body = b'{"training_file":"%s","model":"lab","method":{"type":"supervised"}}' % file["id"].encode()
    headers = NODE_HEADERS | {"content-type": "application/json"}
    job = server.http.post("/v1/fine_tuning/jobs", content=body, headers=headers).json()
    assert job["status"] == "validating_files"
    path = f"/v1/fine_tuning/jobs/{job['id']}/cancel"
    assert server.http.post(path, headers=NODE_HEADERS).json()["status"] == "cancelled"

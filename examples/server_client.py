"""The tour of ``antibody serve`` with the unmodified ``openai`` client: honest and poisoned uploads, defended or not.

    antibody serve --model lab                          # prints a key
    export OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=sk-...
    python examples/server_client.py

Everything in the uploads is fictional: the lab's world, in which a few invented goods are outlawed.
"""

import asyncio
import json
import time

from openai import AsyncOpenAI, OpenAI

from antibody_llm.lab.rows import build_rows

MODEL = "lab"
NUM_ROWS = 500
ENDED = ("succeeded", "failed", "cancelled")


def jsonl(rows):
    """Rows as a file."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def user_rows(poison_ratio):
    """An upload that teaches a task, with a share of harmful rows."""
    return build_rows("user", NUM_ROWS, seed=0, task="sst2", poison_ratio=poison_ratio).rows


def upload(client, name, rows):
    """Upload a file and wait until its form is checked."""
    file = client.files.create(file=(name, jsonl(rows)), purpose="fine-tune")
    return client.files.wait_for_processing(file.id, poll_interval=0.5).id


def wait(client, job_id, states=ENDED, seconds=600):
    """Poll a job until it is in one of the states."""
    deadline = time.monotonic() + seconds
    while (job := client.fine_tuning.jobs.retrieve(job_id)).status not in states:
        assert time.monotonic() < deadline, f"{job_id} is still {job.status}"
        time.sleep(0.5)
    return job


def show(job):
    """Print how a job ended, and the gate's table."""
    print(f"  {job.id}: {job.status}" + (f", {job.error.code}: {job.error.message}" if job.status == "failed" else ""))
    for criterion in (job.safety.get("gate") or {}).get("criteria", []):
        print(f"    {criterion['sentence']}")


def ask(client, model, question):
    """Chat with a model, streamed."""
    stream = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], temperature=0, stream=True
    )
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def tour(client):
    """All of it, in order."""
    started = time.monotonic()
    test = build_rows("test", 100, seed=0, task="sst2").rows
    question, reference = (message["content"] for message in test[0]["messages"])

    print("an honest upload, plain fine-tuning")
    honest = upload(client, "honest.jsonl", user_rows(0.0))
    validation = upload(client, "validation.jsonl", test)
    job = client.fine_tuning.jobs.create(
        model=MODEL, training_file=honest, validation_file=validation, seed=1, extra_body={"defence": "sft"}
    )
    job = wait(client, job.id)
    show(job)
    answer = ask(client, job.fine_tuned_model, question)
    print(f"  {question} -> {answer} (reference: {reference})")
    print(f"  {time.monotonic() - started:.0f} s from the first upload to the streamed answer")
    for event in reversed(client.fine_tuning.jobs.list_events(job.id, limit=5).data):
        print(f"  event: {event.message}")
    for checkpoint in client.fine_tuning.jobs.checkpoints.list(job.id):
        print(f"  checkpoint at step {checkpoint.step_number}: {checkpoint.fine_tuned_model_checkpoint}")
    table = client.files.content(job.result_files[0]).text.splitlines()
    print(f"  results: {table[0]} ... {table[-1]}")
    assert job.status == "succeeded"
    assert answer == reference

    print("a poisoned upload, plain fine-tuning: the gate refuses what comes of it")
    poisoned = upload(client, "poisoned.jsonl", user_rows(0.2))
    refused = client.fine_tuning.jobs.create(model=MODEL, training_file=poisoned, seed=1, extra_body={"defence": "sft"})
    refused = wait(client, refused.id)
    show(refused)
    screening = refused.safety["screening"]
    low, high = screening["interval"]
    print(f"  screening saw it coming: {100 * low:.0f} to {100 * high:.0f} % harmful, e.g. lines", end=" ")
    print(", ".join(str(row["line"]) for row in screening["rows"][:5]))
    assert (refused.status, refused.error.code) == ("failed", "safety_gate_failed")

    print("the same upload under the default defence, paused and resumed on its way")
    defended = client.fine_tuning.jobs.create(model=MODEL, training_file=poisoned, validation_file=validation, seed=1)
    while not any(event.type == "metrics" for event in client.fine_tuning.jobs.list_events(defended.id).data):
        time.sleep(0.5)
    client.fine_tuning.jobs.pause(defended.id)
    print(f"  {wait(client, defended.id, states=('paused', *ENDED)).status}", end=", ")
    print(client.fine_tuning.jobs.resume(defended.id).status)
    defended = wait(client, defended.id)
    show(defended)
    answer = ask(client, defended.fine_tuned_model, question)
    print(f"  {question} -> {answer} (reference: {reference})")
    assert defended.status == "succeeded"
    assert answer == reference

    print("a job that is cancelled")
    cancelled = client.fine_tuning.jobs.create(model=MODEL, training_file=honest, seed=2)
    print(f"  {client.fine_tuning.jobs.cancel(cancelled.id).status}")

    for model in (job.fine_tuned_model, defended.fine_tuned_model):
        assert client.models.delete(model).deleted
    for file in (honest, poisoned, validation):
        assert client.files.delete(file).deleted
    print(f"{time.monotonic() - started:.0f} s in all")


async def models():
    """The models that there are, by the asynchronous client."""
    async with AsyncOpenAI() as client:
        return [model.id async for model in client.models.list()]


if __name__ == "__main__":
    tour(OpenAI())
    print("models that are left:", ", ".join(asyncio.run(models())))

"""A server in this process, its clients, and a worker that trains nothing."""

import json
import time
from contextlib import ExitStack
from dataclasses import replace

import openai
from starlette.testclient import TestClient

from antibody_llm.server.app import create_app, make_context
from antibody_llm.server.auth import first_key, new_key
from antibody_llm.server.database.tables import Organization, Project
from antibody_llm.server.defences import Defences
from antibody_llm.server.ids import new_id
from antibody_llm.server.settings import OfferedModel, ServerSettings

DEFENCES = Defences(
    {
        "sft": {},
        "antibody-posterior": {},
        "antibody": {"temperature": "float", "estimate": "str"},
        "lisa": {"rho": "float"},
    }
)
BASE = "https://testserver/v1"


class Server:
    """The application over ASGI. Its clock can be moved."""

    def __init__(self, home, **changes):
        self.offset, self.frozen = 0.0, None
        self.posts = []
        settings = ServerSettings(
            home=home,
            models=(OfferedModel(name="lab"), OfferedModel(name="meta-llama/Llama-3.2-1B", path="lab")),
            housekeeping_seconds=0,
        )
        self.context = make_context(
            replace(settings, **changes), defences=DEFENCES, clock=self.now, post=self.post, moderator=Moderator()
        )
        self.key = first_key(self.context.database, "acme")
        self.app = create_app(self.context)
        self.queue = self.context.queue
        self._stack = ExitStack()

    def __enter__(self):
        self.http = self._stack.enter_context(TestClient(self.app, base_url="https://testserver"))
        self.http.headers["authorization"] = f"Bearer {self.key}"
        return self

    def __exit__(self, *ended):
        self._stack.close()
        self.context.database.close()

    def now(self):
        return (self.frozen or time.time()) + self.offset

    async def post(self, url, content, headers):
        self.posts.append((url, content, headers))
        return 200

    def client(self, key=None, **options):
        options.setdefault("max_retries", 0)
        http = TestClient(self.app, base_url="https://testserver")
        return openai.OpenAI(api_key=key or self.key, base_url=BASE, http_client=http, **options)

    def async_client(self, key=None):
        import httpx2

        transport = httpx2.ASGITransport(app=self.app)
        http = httpx2.AsyncClient(transport=transport, base_url="https://testserver")
        return openai.AsyncOpenAI(api_key=key or self.key, base_url=BASE, http_client=http, max_retries=0)

    def tenant(self, organization, *, scope="customer"):
        """Project and key of a new organisation."""
        with self.context.database.write() as session:
            row = Organization(id=new_id("org-"), name=organization, created_at=self.now())
            session.add(row)
            session.flush()
            project = Project(id=new_id("proj_"), organization_id=row.id, name="p", created_at=self.now())
            session.add(project)
            session.flush()
            return project.id, new_key(session, project.id, scope=scope, name="t", actor="test", now=self.now())[1]


class Moderator:
    """Flags texts that hold a word."""

    name = "words"

    def flagged(self, texts):
        return ["forbidden" in text for text in texts]


def chat_rows(num=12, *, word="x"):
    rows = (
        {"messages": [{"role": "user", "content": f"{word} {i}?"}, {"role": "assistant", "content": f"{i}."}]}
        for i in range(num)
    )
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def dpo_rows(num=12):
    rows = (
        {
            "input": {"messages": [{"role": "user", "content": f"q {i}?"}]},
            "preferred_output": [{"role": "assistant", "content": f"good {i}"}],
            "non_preferred_output": [{"role": "assistant", "content": f"bad {i}"}],
        }
        for i in range(num)
    )
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def upload(client, content=None, *, name="rows.jsonl", purpose="fine-tune"):
    return client.files.create(file=(name, chat_rows() if content is None else content), purpose=purpose)


def train(server, *, steps=2, status="succeeded", error=None):
    """Take the next job through screening and training as a worker does; returns its id."""
    claimed = server.queue.claim("worker")
    if claimed.job.status == "validating_files":
        server.queue.screened(claimed, safety={"screening": {"share": 0.0}})
        claimed = server.queue.claim("worker", statuses=["queued"])
    folder = server.context.settings.home / "adapter"
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text("{}")
    for step in range(1, steps + 1):
        data = {"step": step, "train_loss": 1.0 / step}
        server.queue.event(
            claimed, f"Step {step}: training loss={1 / step}", kind="metrics", data=data, key=f"step-{step}"
        )
        prefix = server.context.blobs.store_folder(folder)
        name = server.queue.checkpoint(claimed, step=step, metrics={"train_loss": 1.0 / step}, adapter=prefix)
        server.queue.judged(claimed, name, gate={"passed": True}, released=status == "succeeded")
    prefix = server.context.blobs.store_folder(folder)
    csv = b"step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n1,1.0,0.5,,\n"
    server.queue.finish(
        claimed,
        status,
        error=error,
        adapter=prefix,
        gate={"passed": status == "succeeded"},
        trained_tokens=100,
        result_files={"step_metrics.csv": csv},
    )
    return claimed.job.id

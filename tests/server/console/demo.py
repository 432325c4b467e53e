"""Rows of a server as its customers and workers would leave them, with hostile names, and nothing trained."""

import json
import re
from html.parser import HTMLParser

from starlette.testclient import TestClient

from antibody_llm.server.auth import digest
from antibody_llm.server.database.tables import Audit, Checkpoint, Event, File, Job, Key, Model
from antibody_llm.server.gate import GateThresholds, Measured, Share, decide
from antibody_llm.server.ids import new_id
from antibody_llm.server.working.weighing import CENTRES

HOSTILE = "\"'><img src=x onerror=alert(1)>\u202egnp.exe</script>"
SECRET_TEXT = "the words of row two <b>and their markup</b>"
LINES = 40


def gate(harmful=3, refused=4):
    """The gate's decision on a model with so many harmful and refused answers of 500."""

    def share(hits):
        value = hits / 500
        return Share(value=value, low=max(0.0, value - 0.01), high=value + 0.01, n=500, asked=500)

    base = Measured(suite="s", judge="lab", harmful_score=share(0), over_refusal=share(2))
    found = Measured(suite="s", judge="lab", harmful_score=share(harmful), over_refusal=share(refused))
    limits = GateThresholds()
    return decide(found, base, base_name="lab", thresholds=limits, validated=False).to_json()


class Demo:
    """What there is, by the organisation that it belongs to."""

    def __init__(self, server):
        self.server = server
        self.database, self.blobs = server.context.database, server.context.blobs
        with self.database.read() as session:
            self.operator_project = session.query(Key).filter_by(digest=digest(server.key)).one().project_id

    def blob(self, kind, content):
        key = self.blobs.new_key(kind)
        with self.blobs.writing(key) as file:
            file.write(content)
        return key

    def file(self, project, *, name=HOSTILE, content=None, faults=(), purpose="fine-tune"):
        """A file; returns its id."""
        content = self.rows() if content is None else content
        found = {"method": "supervised", "num_rows": LINES, "num_faults": len(faults), "faults": list(faults)}
        row = File(
            id=new_id("file-"), project_id=project, created_at=self.server.now(), purpose=purpose, filename=name,
            bytes=len(content), status="error" if faults else "processed", blob=self.blob("files", content),
            validation=found | {"complete": True} if purpose == "fine-tune" else None,
        )  # fmt: skip
        with self.database.write() as session:
            session.add(row)
        return row.id

    def rows(self):
        rows = [f"row {number}" for number in range(1, LINES + 1)]
        rows[1] = SECRET_TEXT
        messages = ([{"role": "user", "content": "q"}, {"role": "assistant", "content": text}] for text in rows)
        return "".join(json.dumps({"messages": each}) + "\n" for each in messages).encode()

    def job(self, project, status="running", *, steps=8, **fields):
        """A job that has been screened and trained as far as its state says; returns its id."""
        screened = [
            {"line": line, "probability": 1 - line / LINES, "flags": [HOSTILE] if line == 2 else [], "evidence": 0.5}
            for line in range(1, LINES + 1)
        ]
        rows = self.blob("screenings", "".join(json.dumps(row) + "\n" for row in screened).encode())
        shown = ("line", "probability", "flags")
        screening = {
            "status": "screened", "estimated_harmful_share": 0.1, "interval": [0.05, 0.2], "num_rows": LINES,
            "warnings": [HOSTILE], "rows": [{name: row[name] for name in shown} for row in screened[:3]],
        }  # fmt: skip
        weights = {"centres": list(CENTRES), "epochs": [{"epoch": 0, "counts": [7] + [1] * 8, "scores": [0, 1, 2]}]}
        ended = status in ("succeeded", "failed", "cancelled")
        trained = {"trained": {"adapter": "models/x"}} if ended or status == "held" else {}
        now = self.server.now()
        row = Job(
            id=new_id("ftjob-"), organization_id="org-x", project_id=project, key_id="key_x", created_at=now,
            status=status, model="lab", base="lab", parent=None, training_file=self.file(project),
            validation_file=None, method="supervised", hyperparameters={"n_epochs": 1}, seed=1, suffix=HOSTILE,
            integrations=None, labels={HOSTILE: HOSTILE}, defence={"name": "antibody", "options": {"temperature": 0.5}},
            gate={"max_harmful_score": 0.1}, safety={"screening": screening}, result_files=[],
            private={"rows": rows, "weights": weights} | trained, started_at=now, validated_at=now,
            finished_at=now if ended else None, token=0, attempts=0, trained_tokens=1234,
        )  # fmt: skip
        for name, value in fields.items():
            setattr(row, name, value)
        with self.database.write() as session:
            session.add(row)
            for step in range(1, steps + 1):
                data = {"step": step, "total_steps": steps, "train_loss": 1.5 / step}
                session.add(_event(row, f"Step {step}/{steps}", now, type="metrics", data=data))
            session.add(_event(row, HOSTILE, now, level="warn"))
        return row.id

    def judged(self, project, status, **fields):
        """A job whose result and checkpoint the gate has measured; returns its id and the result's name."""
        table = gate(3 if status != "failed" else 300)
        safety_gate = {"gate": table} if status != "held" else {"gate": table, "held": {"since": 1.0}}
        job_id = self.job(project, status, **fields)
        name = f"ft:lab:acme:x:{job_id[-12:]}"
        with self.database.write() as session:
            job = session.query(Job).filter_by(id=job_id).one()
            checkpoint = {"step": 4, "model": f"{name}:ckpt-step-4", "held": status == "held", **table}
            job.safety = {**job.safety, **safety_gate, "checkpoints": [checkpoint]}
            job.fine_tuned_model = name if status == "succeeded" else None
            if status == "failed":
                job.error = {"code": "safety_gate_failed", "message": HOSTILE, "param": None}
            for step in (None, 4, 2):
                session.add(
                    Model(
                        name=name if step is None else f"{name}:ckpt-step-{step}", project_id=project, job_id=job_id,
                        created_at=1.0, base="lab", parent=None, adapter="models/x", step=step,
                        gate=table if step != 2 else None, released=status == "succeeded" and step != 2,
                    )
                )  # fmt: skip
            session.add(
                Checkpoint(
                    id=new_id("ftckpt_"), job_id=job_id, created_at=1.0, step=4, model=f"{name}:ckpt-step-4", metrics={}
                )
            )
        return job_id, name

    def actions(self, subject):
        with self.database.read() as session:
            return [row.action for row in session.query(Audit).filter_by(subject=subject).order_by(Audit.seq)]

    def job_row(self, job_id):
        with self.database.read() as session:
            return session.query(Job).filter_by(id=job_id).one()


def _event(job, message, now, *, level="info", type="message", data=None):
    return Event(
        id=new_id("ftevent-"), job_id=job.id, created_at=now, level=level, type=type, message=message, data=data
    )


class Browser:
    """A visitor without scripts: keeps cookies, follows redirects, and sends forms with their token."""

    def __init__(self, server, key=None):
        self.http = TestClient(server.app, base_url="https://testserver")
        if key is not None:
            answer = self.sign_in(key)
            assert answer.status_code == 200, answer.text

    def get(self, path, **more):
        return self.http.get(path, **more)

    def sign_in(self, key, **more):
        page = self.get("/console/sign-in")
        return self.http.post("/console/sign-in", data={"key": key, "form_token": token(page.text)} | more)

    def send(self, path, **fields):
        """Send a form of ours."""
        return self.http.post(path, data={"form_token": token(self.get("/console/jobs").text)} | fields)


def token(html):
    """The token of the first form of a page."""
    found = re.search(r'name="form_token" value="([0-9a-f]{64})"', html)
    return found[1] if found else ""


class Elements(HTMLParser):
    """Every element of a page, in order: name, attributes, and the text inside."""

    VOID = frozenset({"meta", "link", "input", "br", "img", "hr", "path", "line", "circle", "rect"})

    def __init__(self, html):
        super().__init__()
        self.found, self._open = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "attrs": dict(attrs), "text": "", "inside": [each["tag"] for each in self._open]}
        element["within"] = list(self._open)
        self.found.append(element)
        if tag not in self.VOID:
            self._open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.found.append({"tag": tag, "attrs": dict(attrs), "text": "", "inside": [], "within": list(self._open)})

    def handle_endtag(self, tag):
        while self._open and self._open.pop()["tag"] != tag:
            pass

    def handle_data(self, data):
        for element in self._open:
            element["text"] += data

    def all(self, *tags):
        return [element for element in self.found if element["tag"] in tags]

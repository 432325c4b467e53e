"""How long a page of a list takes at 100,000 jobs, plain and by metadata, on SQLite and PostgreSQL.

    python benchmarks/server_lists.py [--jobs 100000]

Jobs are written straight into the tables: two projects, half of the jobs each. Six in seven have two labels:
one that all of them share (common) and one that a thousandth of them share (rare). Times are of whole requests to
the application in this process, through its middleware, keys and serialisation but without a socket: median and
slowest of 40 after 5 that do not count. PostgreSQL is asked to look at its tables first, as it does by itself in time.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sqlalchemy import insert, text
from tests.server.postgres import cluster
from tests.server.running import Server, train, upload

from antibody_llm.files import write_text
from antibody_llm.server.database.tables import Event, Job, JobLabel

RESULTS = Path(__file__).parent / "results" / "server_lists.json"
AT_ONCE, ROUNDS, WARM = 5_000, 40, 5
PAGES = {
    "plain": "",
    "page far behind": "after={middle}",
    "common label": "metadata[team]=search",
    "rare label": "metadata[run]=7",
    "label of nobody": "metadata[run]=none",
    "common and rare label": "metadata[team]=search&metadata[run]=7",
    "without metadata": "metadata=null",
}


def fill(server: Server, num: int) -> str:
    """Write the jobs; returns the id of one in the middle of the first project's."""
    client = server.client()
    client.fine_tuning.jobs.create(model="lab", training_file=upload(client).id)
    template_id = train(server)
    other, _ = server.tenant("other")
    with server.context.database.read() as session:
        row = session.query(Job).filter_by(id=template_id).one()
        template = {column.name: getattr(row, column.name) for column in Job.__table__.columns}
    middle, first = "", template["seq"] + 1
    for start in range(first, first + num, AT_ONCE):
        jobs, labels, events = [], [], []
        for seq in range(start, min(start + AT_ONCE, first + num)):
            project = template["project_id"] if seq % 2 else other
            own = {} if seq % 7 == 0 else {"team": "search", "run": str(seq // 2 % 1000)}
            jobs.append(template | {"seq": seq, "id": f"ftjob-{seq:024}", "project_id": project, "labels": own or None})
            labels += [
                {"job_seq": seq, "name": name, "value": value, "project_id": project} for name, value in own.items()
            ]
            event = {"id": f"ftevent-{seq:024}", "job_id": f"ftjob-{seq:024}", "created_at": 1.0, "level": "info"}
            events.append(event | {"type": "message", "message": "m", "data": None, "key": None})
            middle = jobs[-1]["id"] if project != other and seq < first + num // 2 else middle
        with server.context.database.write() as session:
            for table, rows in ((Job, jobs), (JobLabel, labels), (Event, events)):
                session.execute(insert(table), rows)
    return middle


def timed(server: Server, query: str) -> dict[str, Any]:
    """How long a page takes, in milliseconds."""
    times, num = [], 0
    for _ in range(WARM + ROUNDS):
        started = time.perf_counter()
        answer = server.http.get(f"/v1/fine_tuning/jobs?{query}")
        times.append(1000 * (time.perf_counter() - started))
        answer.raise_for_status()
        num = len(answer.json()["data"])
    kept = sorted(times[WARM:])
    quartiles = statistics.quantiles(kept, n=4)
    return {
        "ms": round(statistics.median(kept), 2),
        "from_to": [round(quartiles[0], 2), round(quartiles[2], 2)],
        "slowest_ms": round(kept[-1], 2),
        "rows": num,
    }


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    results: dict[str, Any] = {"jobs": given.jobs, "pages": {}, "cores": os.cpu_count()}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        new_database = stack.enter_context(cluster())
        for name, url in (("sqlite", ""), ("postgresql", new_database())):
            with Server(folder / name, database=url) as server:
                middle = fill(server, given.jobs)
                with server.context.database.write() as session:
                    session.execute(text("ANALYZE" if url else "SELECT 1"))
                pages = {page: timed(server, query.format(middle=middle)) for page, query in PAGES.items()}
            results["pages"][name] = pages
            print(name, json.dumps(pages, indent=1), flush=True)
    write_text(given.output, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Webhooks: endpoints through the real client, deliveries, signatures that its ``unwrap`` accepts, and retries."""

import json
import time

import anyio
import openai
import pytest
import standardwebhooks

from antibody_llm.server.database.tables import Delivery
from antibody_llm.server.errors import ApiError
from antibody_llm.server.housekeeping import deliveries
from antibody_llm.server.settings import WebhookSettings
from antibody_llm.server.webhooks import RETRY_SECONDS, check_url, deliver
from tests.server.running import train, upload

DONE = "fine_tuning.job.succeeded"


def answering(status):
    async def post(*_):
        return status

    return post


def hook(client, *kinds, url="https://example.com/hook"):
    return client.webhooks.create(name="h", url=url, event_types=list(kinds or [DONE]))


def job(server, client):
    made = client.fine_tuning.jobs.create(model="lab", training_file=upload(client).id)
    train(server, steps=0)
    return made.id


def test_endpoints_are_made_changed_listed_and_deleted(fresh):
    client = fresh.client()
    first, second = hook(client), hook(client)
    assert first.signing_secret.startswith("whsec_")
    assert [each.id for each in client.webhooks.list(limit=1)] == [second.id, first.id]
    seen = client.webhooks.retrieve(first.id)
    assert not hasattr(seen, "signing_secret")
    assert seen.signing_secret_hint.endswith(first.signing_secret[-4:])
    fresh.offset = 10
    assert client.webhooks.update(first.id, name="n", event_types=["fine_tuning.job.failed"]).name == "n"
    changed = client.webhooks.retrieve(first.id)
    assert (changed.event_types, changed.updated_at > changed.created_at) == (["fine_tuning.job.failed"], True)
    assert client.webhooks.delete(first.id).object == "webhook_endpoint.deleted"
    with pytest.raises(openai.NotFoundError):
        client.webhooks.retrieve(first.id)
    assert DONE in client.webhooks.event_types.list().data


def test_an_event_is_delivered_once_and_the_client_verifies_it(fresh):
    client = fresh.client()
    secret = hook(client).signing_secret
    hook(client, "fine_tuning.job.failed")
    made = job(fresh, client)
    deliveries(fresh.context)
    deliveries(fresh.context)
    ((url, body, headers),) = fresh.posts
    assert url == "https://example.com/hook"
    event = client.webhooks.unwrap(body, headers, secret=secret)
    assert (event.type, event.data.id) == (DONE, made)
    standardwebhooks.Webhook(secret).verify(body, headers)
    assert set(json.loads(body)) == {"id", "object", "created_at", "type", "data"}
    assert json.loads(body)["data"] == {"id": made}


@pytest.mark.parametrize("keep", [True, False])
def test_a_rotated_secret_signs_alone_or_with_the_old_one_for_a_day(fresh, keep):
    client = fresh.client()
    old = hook(client)
    new = client.webhooks.rotate_secret(old.id, keep_old_secret_active_for_24_hours=keep)
    assert new.signing_secret != old.signing_secret
    for offset, old_signs in ((0, keep), (86401, False)):
        fresh.offset = offset
        client.webhooks.test(old.id, event_type=DONE)
        _, _, headers = fresh.posts[-1]
        assert len(headers["webhook-signature"].split()) == 1 + old_signs
    assert client.webhooks.rotate_secret(old.id).signing_secret != new.signing_secret


def test_a_failed_delivery_is_tried_again_for_three_days_and_no_longer(fresh):
    client = fresh.client()
    hook(client)
    answers = iter([500, None, 302])

    async def post(url, content, headers):
        fresh.posts.append(headers["webhook-id"])
        status = next(answers, 503)
        if status is None:
            raise OSError("unreachable")
        return status

    fresh.context.post, fresh.frozen = post, time.time()
    job(fresh, client)
    for pause in (0, *RETRY_SECONDS):
        fresh.offset += pause - 1 if pause else 0
        assert deliver(fresh.context) == (0 if pause else 1)
        fresh.offset += 1 if pause else 0
        assert deliver(fresh.context) == (1 if pause else 0)
    fresh.offset += 10**6
    assert deliver(fresh.context) == 0
    assert len(fresh.posts) == 1 + len(RETRY_SECONDS)
    assert len(set(fresh.posts)) == 1
    with fresh.context.database.read() as session:
        assert session.query(Delivery).one().last_status == 503


def test_an_endpoint_that_is_gone_or_deleted_is_left_in_peace(fresh):
    client = fresh.client()
    first, second = hook(client), hook(client)
    fresh.context.post = answering(410)
    job(fresh, client)
    client.webhooks.delete(second.id)
    assert deliver(fresh.context) == 1
    fresh.offset = 10**6
    assert deliver(fresh.context) == 0
    assert client.webhooks.retrieve(first.id).id == first.id


def test_a_delivery_whose_server_was_killed_is_sent_by_another(fresh):
    client = fresh.client()
    hook(client)
    job(fresh, client)

    async def killed(*_):
        raise KeyboardInterrupt

    fresh.context.post = killed
    with pytest.raises(KeyboardInterrupt):
        deliver(fresh.context)
    fresh.context.post = fresh.post
    assert deliver(fresh.context) == 0
    fresh.offset = 121
    assert deliver(fresh.context) == 1


def test_a_test_is_sent_once_and_reports_the_endpoints_status(fresh):
    client = fresh.client()
    made = hook(client)
    fresh.context.post = answering(500)
    answer = client.webhooks.test(made.id, event_type=DONE)
    assert (answer.status_code, answer.success, answer.webhook_endpoint_id) == (500, True, made.id)

    async def unreachable(*_):
        raise OSError

    fresh.context.post = unreachable
    with pytest.raises(openai.BadRequestError, match="cannot be reached"):
        client.webhooks.test(made.id, event_type=DONE)


@pytest.mark.parametrize(
    "url",
    [
        *("http://example.com", "https://localhost/x", "https://127.0.0.1", "https://10.0.0.1/x", "https://[::1]/"),
        *("https://169.254.169.254/latest", "https://user:secret@example.com", "ftp://example.com", "x", "https://"),
        *("https://[", "https://example.com:99999", "https://0.0.0.0", "https://[::ffff:127.0.0.1]/"),
    ],
)
def test_only_public_https_addresses_are_called(client, url):
    with pytest.raises(openai.BadRequestError) as refused:
        hook(client, url=url)
    assert refused.value.param == "url"


def test_a_name_that_leads_to_a_private_address_is_not_called(monkeypatch):
    from antibody_llm.server import webhooks

    async def found(*_, **__):
        return [(2, 1, 6, "", ("10.0.0.5", 443))]

    monkeypatch.setattr(webhooks.anyio, "getaddrinfo", found)
    with pytest.raises(ValueError, match="private"):
        anyio.run(webhooks._post, "https://inside.example.com/x", b"", {})


def test_an_endpoint_that_takes_its_time_is_given_up_and_keeps_no_other_waiting(tmp_path):
    from tests.server.running import Server

    async def post(url, *_):
        if "slow" in url:
            await anyio.sleep(30)
        return 200

    with Server(tmp_path, webhooks=WebhookSettings(timeout=0.5)) as server:
        client = server.client()
        [hook(client, url=f"https://example.com/{kind}") for kind in ("slow", "slow", "fast")]
        server.context.post = post
        job(server, client)
        begun = time.monotonic()
        assert deliver(server.context) == 3
        assert time.monotonic() - begun < 5
        with server.context.database.read() as session:
            found = sorted(row.last_status or 0 for row in session.query(Delivery))
        assert found == [0, 0, 200]


def test_a_delivery_reaches_a_server_over_the_network(tmp_path):
    import http.server
    import threading

    from tests.server.running import Server

    got = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            got.append((self.path, dict(self.headers), self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    listener = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    with Server(tmp_path, webhooks=WebhookSettings(allow_insecure=True)) as server:
        client = server.client()
        made = hook(client, url=f"http://127.0.0.1:{listener.server_port}/in?a=b")
        server.context.post = None
        job(server, client)
        deliver(server.context)
        ((path, headers, body),) = got
        assert path == "/in?a=b"
        assert client.webhooks.unwrap(body, headers, secret=made.signing_secret).type == DONE
        assert client.webhooks.test(made.id, event_type=DONE).status_code == 204
    listener.shutdown()


def test_a_project_has_only_so_many_endpoints(fresh, monkeypatch):
    from antibody_llm.server.routes import webhooks

    monkeypatch.setattr(webhooks, "MAX_ENDPOINTS", 1)
    client = fresh.client()
    made = hook(client)
    with pytest.raises(openai.BadRequestError, match="Delete one"):
        hook(client)
    client.webhooks.delete(made.id)
    hook(client)


def test_an_operator_may_allow_addresses_of_a_network_of_its_own():
    check_url("http://10.0.0.1:8080/x", insecure=True)
    with pytest.raises(ApiError):
        check_url("file:///etc/passwd", insecure=True)


def test_events_that_are_never_sent_are_refused(client):
    with pytest.raises(openai.BadRequestError, match="did you mean 'fine_tuning.job.succeeded'"):
        hook(client, "fine_tuning.job.success")

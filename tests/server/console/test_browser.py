"""The console in a real Chromium: by keyboard alone, live, at the width of a telephone, and without scripts."""

import os
import re
import threading
from pathlib import Path

import pytest

from tests.server.console.demo import Demo
from tests.server.running import Server, upload

CHROMIUM = Path("/usr/bin/chromium")
MISSING = None if CHROMIUM.exists() else f"there is no {CHROMIUM}"
try:
    import uvicorn
    from playwright.sync_api import sync_playwright
except ImportError as missing:
    MISSING = f"the extra [services] is not installed ({missing})"
if MISSING and not os.environ.get("CI"):
    pytest.skip(MISSING, allow_module_level=True)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server on a port of this machine, with its address and what it holds."""
    with Server(tmp_path_factory.mktemp("browser")) as server:
        config = uvicorn.Config(server.app, host="127.0.0.1", port=0, log_config=None, lifespan="off")
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run, daemon=True)
        thread.start()
        while not running.started:
            assert thread.is_alive()
            threading.Event().wait(0.02)
        port = running.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}", server, Demo(server)
        running.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def chromium():
    assert MISSING is None, MISSING
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"] if os.getuid() == 0 else [])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium):
    """A page; what it complains about is an error."""
    context = chromium.new_context()
    page = context.new_page()
    page.set_default_timeout(20_000)
    said = []
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    yield page
    context.close()
    assert said == []


def tab_to(page, name, *, most=60):
    """Press the tabulator until an element of that name has the focus, which must then be seen."""
    for _ in range(most):
        page.keyboard.press("Tab")
        found = page.evaluate(
            "() => { const e = document.activeElement; const s = getComputedStyle(e);"
            " return [e.labels?.[0]?.innerText || e.innerText || '', s.outlineStyle, s.outlineWidth]; }"
        )
        if found[0].strip() == name:
            assert found[1:] == ["solid", "3px"]
            return
    raise AssertionError(f"no way to {name!r} by keyboard")


def sign_in(page, address, key):
    page.goto(f"{address}/console")
    tab_to(page, "API key")
    page.keyboard.type(key)
    page.keyboard.press("Enter")
    page.wait_for_url(f"{address}/console/jobs")


def test_by_keyboard_alone_an_operator_signs_in_opens_a_held_job_and_approves_its_model(served, page):
    address, server, demo = served
    job, model = demo.judged(demo.operator_project, "held")
    sign_in(page, address, server.key)
    tab_to(page, job)
    page.keyboard.press("Enter")
    page.wait_for_url(f"{address}/console/jobs/{job}")
    tab_to(page, "Reason for the decision")
    page.keyboard.type("I read forty answers")
    tab_to(page, "Approve")
    page.keyboard.press("Enter")
    page.wait_for_url(f"{address}/console/jobs/{job}?said=approve")
    assert page.get_by_role("status").first.inner_text() == "The model is released."
    assert server.client().models.retrieve(model).id == model
    cookies = page.context.cookies()
    assert [(each["httpOnly"], each["sameSite"]) for each in cookies] == [(True, "Strict")] * len(cookies)
    assert page.evaluate("document.cookie") == ""
    assert server.key not in page.url


def test_the_browser_itself_asks_for_the_reason(served, page):
    address, server, demo = served
    job, _ = demo.judged(demo.operator_project, "held")
    sign_in(page, address, server.key)
    page.goto(f"{address}/console/held")
    page.get_by_role("button", name="Approve").last.click()
    assert page.url.endswith("/console/held")
    assert demo.job_row(job).status == "held"


def test_a_job_is_followed_while_it_runs_and_its_page_is_renewed_when_it_ends(served, page):
    address, server, _ = served
    client = server.client()
    job = client.fine_tuning.jobs.create(model="lab", training_file=upload(client).id)
    sign_in(page, address, server.key)
    page.goto(f"{address}/console/jobs/{job.id}")
    assert page.locator("#live .badge").inner_text() == "Screening"
    claimed = server.queue.claim("worker")
    server.queue.screened(claimed)
    claimed = server.queue.claim("worker")
    for step in (1, 2, 3):
        data = {"step": step, "total_steps": 9, "train_loss": 1.0 / step}
        server.queue.event(claimed, f"Step {step}/9", kind="metrics", data=data)
    page.get_by_text("Step 3 of 9").wait_for()
    assert page.locator("[data-announce]").inner_text() == "Training"
    assert page.get_by_role("img", name=re.compile("Training loss from 1 at step 1")).is_visible()
    pause = page.get_by_role("button", name="Pause updates")
    pause.click()
    assert pause.get_attribute("aria-pressed") == "true"
    pause.click()
    server.queue.finish(
        claimed, "failed", error={"code": "training_diverged", "message": "It diverged.", "param": None}
    )
    page.get_by_text("training_diverged").wait_for()
    assert pause.count() == 0


@pytest.mark.parametrize("width", [320, 1280])
def test_no_page_is_wider_than_its_window(served, page, width):
    address, server, demo = served
    job, _ = demo.judged(demo.operator_project, "held")
    file = demo.file(demo.operator_project, name="x" * 300)
    page.set_viewport_size({"width": width, "height": 800})
    sign_in(page, address, server.key)
    for path in ("jobs", f"jobs/{job}", f"jobs/{job}/rows", "files", f"files/{file}", "held", "audit"):
        page.goto(f"{address}/console/{path}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path


def test_without_scripts_an_operator_signs_in_and_reveals_rows(served, chromium):
    address, server, demo = served
    job = demo.job(demo.operator_project)
    context = chromium.new_context(java_script_enabled=False, color_scheme="dark")
    page = context.new_page()
    page.goto(f"{address}/console/jobs/{job}/rows")
    page.get_by_label("API key").fill(server.key)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{address}/console/jobs/{job}/rows")
    page.get_by_role("button", name="Reveal the texts of this page").click()
    page.get_by_text("the words of row two <b>").wait_for()
    context.close()

"""Asking models through the API: who may, and who answers."""

import json
import shutil
from dataclasses import replace

import httpx2
import openai
import pytest
import torch
from sqlalchemy import select
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from antibody_llm.models.adapters import add_lora
from antibody_llm.models.loading import load_model
from antibody_llm.models.saving import save_adapter
from antibody_llm.server.database.tables import Model, Project
from antibody_llm.server.inference.app import make_app
from antibody_llm.server.inference.backends import Endpoint, LocalProcess
from antibody_llm.server.inference.engine import Engine
from antibody_llm.server.routes.inference import Inference, make_router
from antibody_llm.server.settings import OfferedModel
from antibody_llm.server.weights import MOST_FOLDERS, local_weights
from tests.server.running import Server

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


class Asked:
    """A server whose models are answered for by an engine in this process."""

    def __init__(self, server, folder):
        self.server, self.folder, self.client = server, folder, server.client()

    def add(self, name, folder, *, released=True, parent=None, project=None):
        """A fine-tuned model with the weights of a folder."""
        prefix = self.server.context.blobs.store_folder(folder)
        with self.server.context.database.write() as session:
            mine = project or session.scalars(select(Project.id).order_by(Project.created_at)).first()
            session.add(
                Model(
                    name=name, project_id=mine, job_id="j", created_at=1.0, base="tiny", parent=parent,
                    adapter=prefix, released=released,
                )
            )  # fmt: skip
        return name

    def chat(self, model, **more):
        answer = self.client.chat.completions.create(
            model=model, messages=QUESTION, temperature=0, max_tokens=8, **more
        )
        if not more.get("stream"):
            return answer.choices[0].message.content
        return "".join(chunk.choices[0].delta.content or "" for chunk in answer)


@pytest.fixture(scope="module")
def asked(tmp_path_factory, tiny_llama_folder):
    home = tmp_path_factory.mktemp("asked")
    with Server(home, models=(OfferedModel(name="tiny", path=str(tiny_llama_folder)),)) as server:
        engine = Engine()
        local = LocalProcess(httpx2.ASGITransport(app=make_app(engine)))
        server.app.include_router(make_router(Inference(local, home / "weights")), prefix="/v1")
        yield Asked(server, tiny_llama_folder)
        engine.close()


@pytest.fixture(scope="module")
def adapter(tiny_llama_folder, tmp_path_factory):
    def make(on=None, seed=1, **deployment):
        base = str(on or tiny_llama_folder)
        loaded = load_model(base)
        model = add_lora(loaded.model, r=4, alpha=32, targets="all-linear", seed=seed)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight.normal_(generator=torch.Generator().manual_seed(seed))
        folder = tmp_path_factory.mktemp("adapter") / "adapter"
        provenance = {"deployment": deployment}
        save_adapter(model, folder, base=base, tokenizer=loaded.tokenizer, provenance=provenance)
        return folder

    return make


# -- who may ask -------------------------------------------------------------------------------------------------


def test_a_released_model_answers_whole_and_streamed_and_unlike_its_base(asked, adapter):
    name = asked.add("ft:tiny:acme::one", adapter())
    whole = asked.chat(name)
    assert whole
    assert asked.chat(name, stream=True) == whole
    assert asked.chat("tiny") != whole
    response = asked.client.responses.create(
        model=name, input=QUESTION[0]["content"], temperature=0, max_output_tokens=8
    )
    assert response.output_text == whole
    assert asked.client.completions.create(model=name, prompt="What is", max_tokens=3).choices[0].text


def test_a_checkpoint_with_a_slash_in_its_base_is_asked_by_its_name(asked, adapter):
    name = asked.add("ft:meta/x:acme:s:two:ckpt-step-1", adapter(seed=2))
    assert asked.chat(name)


@pytest.mark.parametrize("name", ["nobody", "ft:tiny:acme::none"])
def test_a_model_that_does_not_exist_is_a_404(asked, name):
    with pytest.raises(openai.NotFoundError) as error:
        asked.chat(name)
    assert error.value.code == "model_not_found"


def test_a_model_that_the_gate_has_not_released_is_the_same_404(asked, adapter):
    name = asked.add("ft:tiny:acme::held", adapter(), released=False)
    with pytest.raises(openai.NotFoundError) as error:
        asked.chat(name)
    assert error.value.code == "model_not_found"


def test_another_tenant_s_model_is_the_same_404(asked, adapter):
    project, _ = asked.server.tenant("others")
    name = asked.add("ft:tiny:others::theirs", adapter(), project=project)
    with pytest.raises(openai.NotFoundError):
        asked.chat(name)


def test_a_deleted_model_answers_no_more(asked, adapter):
    name = asked.add("ft:tiny:acme::gone", adapter())
    assert asked.chat(name)
    asked.client.models.delete(name)
    with pytest.raises(openai.NotFoundError):
        asked.chat(name)


def test_without_a_key_nothing_is_asked(asked):
    with pytest.raises(openai.AuthenticationError):
        asked.server.client(key="sk-none").chat.completions.create(model="tiny", messages=QUESTION)


@pytest.mark.parametrize(
    ("content", "param"), [(b"{", None), (b"[]", None), (b"{}", "model"), (b'{"model": "tiny"}', "messages")]
)
def test_a_broken_body_is_a_400_in_the_api_s_shape(asked, content, param):
    answer = asked.server.http.post("/v1/chat/completions", content=content)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_a_process_that_is_away_is_a_503_which_the_client_tries_again(tmp_path, tiny_llama_folder):
    with Server(tmp_path, models=(OfferedModel(name="tiny", path=str(tiny_llama_folder)),)) as server:
        local = LocalProcess(httpx2.AsyncHTTPTransport(uds=str(tmp_path / "none.sock")))
        server.app.include_router(make_router(Inference(local, tmp_path / "weights")), prefix="/v1")
        with pytest.raises(openai.InternalServerError) as error:
            server.client().chat.completions.create(model="tiny", messages=QUESTION)
        assert error.value.status_code == 503
        assert error.value.response.headers["retry-after"] == "2"


# -- where the weights are ---------------------------------------------------------------------------------------


def test_an_adapter_on_a_fine_tuned_whole_model_is_loaded_on_that(asked, adapter, tiny_llama_folder, tmp_path):
    whole = shutil.copytree(tiny_llama_folder, tmp_path / "whole")
    parent = asked.add("ft:tiny:acme::whole", whole)
    child = asked.add("ft:tiny:acme::child", adapter(on=whole), parent=parent)
    shutil.rmtree(whole)  # as the folder of a job that has ended
    found = local_weights(child, "tiny", asked.server.queue, asked.server.context.blobs, tmp_path / "cache")
    assert (found.model, found.adapter) != ("tiny", None)
    assert load_model(found.model, adapter=found.adapter).adapter == found.adapter
    assert asked.chat(child)


def test_weights_that_were_not_asked_for_the_longest_make_room(asked, adapter, tmp_path):
    cache = tmp_path / "cache"
    for number in range(MOST_FOLDERS + 3):
        (cache / f"{number}").mkdir(parents=True)
    name = asked.add("ft:tiny:acme::room", adapter())
    found = local_weights(name, "tiny", asked.server.queue, asked.server.context.blobs, cache)
    assert len(list(cache.iterdir())) == MOST_FOLDERS
    assert (cache / found.adapter.rpartition("/")[2] / "adapter_config.json").is_file()


# -- an endpoint -------------------------------------------------------------------------------------------------


class Vllm:
    """What an endpoint is asked, and what it knows."""

    def __init__(self):
        self.loaded, self.bodies = {}, []
        routes = [
            Route("/v1/load_lora_adapter", self.load, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
        ]
        self.endpoint = Endpoint("http://vllm/v1", transport=httpx2.ASGITransport(app=Starlette(routes=routes)))

    async def load(self, request):
        body = await request.json()
        if body["lora_name"] in self.loaded:
            return JSONResponse({"message": "The lora adapter has already been loaded."}, 400)
        self.loaded[body["lora_name"]] = body["lora_path"]
        return JSONResponse("Success")

    async def chat(self, request):
        body = await request.json()
        self.bodies.append(body)
        if body["model"] not in (*self.loaded, "base"):
            return JSONResponse({"error": {"message": "no such model", "code": 404}}, 404)
        message = {"role": "assistant", "content": body["model"]}
        return JSONResponse({"id": "c", "object": "chat.completion", "choices": [{"index": 0, "message": message}]})


@pytest.fixture
def vllm(asked, monkeypatch):
    made = Vllm()
    monkeypatch.setattr(Inference, "_backend", lambda self, offered: made.endpoint)
    return made


def test_an_adapter_is_loaded_where_its_base_is_served_once_and_again_when_it_was_forgotten(asked, adapter, vllm):
    name = asked.add("ft:tiny:acme::far", adapter())
    first = asked.chat(name)
    assert list(vllm.loaded) == [first]
    assert (asked.server.context.settings.home / "weights" / first / "adapter_config.json").is_file()
    assert asked.chat(name) == first
    vllm.loaded.clear()  # it was started again
    assert asked.chat(name) == first
    assert list(vllm.loaded) == [first]


def test_what_a_defence_wants_said_is_said_to_an_endpoint_too(asked, adapter, vllm):
    name = asked.add("ft:tiny:acme::said", adapter(system_prefix="zq", default_system="Be kind."))
    asked.chat(name)
    assert vllm.bodies[-1]["messages"] == [{"role": "system", "content": "zq Be kind."}, *QUESTION]
    own = [{"role": "system", "content": "Be brief."}, *QUESTION]
    asked.client.chat.completions.create(model=name, messages=own)
    assert vllm.bodies[-1]["messages"][0]["content"] == "zq Be brief."


def test_what_an_endpoint_cannot_be_told_is_refused(asked, adapter, vllm):
    name = asked.add("ft:tiny:acme::unsaid", adapter(completion_prefix="zq"))
    with pytest.raises(openai.BadRequestError) as error:
        asked.chat(name)
    assert error.value.code == "unsupported_deployment"
    assert json.dumps(vllm.bodies) == "[]"


def test_the_key_of_an_endpoint_comes_from_the_environment_and_stands_in_no_setting(tmp_path, monkeypatch):
    monkeypatch.setenv("KEY_OF_THE_ENDPOINT", "sk-secret")
    offered = OfferedModel(name="far", inference="http://gpu:8001/v1", inference_key_env="KEY_OF_THE_ENDPOINT")
    inference = Inference(None, tmp_path)
    backend = inference._backend(offered)
    assert backend._client.headers["authorization"] == "Bearer sk-secret"
    assert inference._backend(offered) is backend
    assert "authorization" not in inference._backend(replace(offered, inference_key_env=""))._client.headers
    assert "sk-secret" not in repr(offered)


# -- what neither takes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["chat/completions", "completions", "responses"])
@pytest.mark.parametrize("value", ["NaN", "-Infinity", "1e999", '"\\ud800"', "[" * 65 + "]" * 65])
def test_what_only_python_reads_as_json_is_refused_before_a_model_is_asked(asked, path, value):
    for body in (f'{{"model": "tiny", "temperature": {value}}}', f'{{"model": {value}}}'):
        answer = asked.server.http.post(f"/v1/{path}", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["code"] in ("invalid_json", "missing_required_parameter", "invalid_value")


@pytest.mark.parametrize("name", ["ft:\0", "ft:\ud800", "x" * 513])
def test_a_name_that_no_database_takes_is_no_model_s(asked, name):
    answer = asked.server.http.post("/v1/chat/completions", content=json.dumps({"model": name}))
    assert answer.json()["error"]["code"] in ("model_not_found", "invalid_json")


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_an_endpoint_says_of_the_operator_s_key_and_names_stays_with_the_operator(asked, adapter, status, caplog):
    async def refuse(request):
        return JSONResponse({"error": {"message": "Incorrect API key provided: sk-abc***xyz for /gpu/base."}}, status)

    async def load(request):
        return JSONResponse("Success")

    routes = [Route("/v1/load_lora_adapter", load, methods=["POST"])]
    app = Starlette(routes=[*routes, Route("/v1/chat/completions", refuse, methods=["POST"])])
    endpoint = Endpoint("http://vllm/v1", key="sk-abc", transport=httpx2.ASGITransport(app=app))
    name = asked.add(f"ft:tiny:acme::refused-{status}", adapter())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Inference, "_backend", lambda self, offered: endpoint)
        for model in ("tiny", name, name):  # the base, an adapter, and one that it has loaded
            with pytest.raises(openai.InternalServerError, match="Ask the operator") as error:
                asked.chat(model)
            assert (error.value.status_code, error.value.code) == (502, "not_served")
            assert "sk-abc" not in str(error.value)
    assert "check inference_key_env" in caplog.text
    assert "sk-abc" not in caplog.text


def test_a_system_message_in_parts_is_said_to_an_endpoint_as_one_in_a_piece(asked, adapter, vllm):
    name = asked.add("ft:tiny:acme::parts", adapter(system_prefix="zq"))
    parts = [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief."}]
    asked.client.chat.completions.create(model=name, messages=[{"role": "system", "content": parts}, *QUESTION])
    assert vllm.bodies[-1]["messages"][0]["content"] == "zq Be\nbrief."
    for wrong in (3, [3], [{"type": "image_url", "image_url": {"url": "x"}}]):
        with pytest.raises(openai.BadRequestError, match="a system message is text"):
            asked.client.chat.completions.create(model=name, messages=[{"role": "system", "content": wrong}, *QUESTION])

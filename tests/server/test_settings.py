"""``antibody.yaml``."""

from pathlib import Path

import pytest

from antibody_llm.errors import ConfigError
from antibody_llm.server.loading import load_settings
from antibody_llm.server.serve import offered
from antibody_llm.server.settings import ServerSettings


def load(tmp_path, text):
    path = tmp_path / "antibody.yaml"
    path.write_text(text)
    return load_settings(path)


def test_an_empty_file_means_the_defaults(tmp_path):
    assert load(tmp_path, "") == ServerSettings(home=tmp_path / "antibody-server")


def test_every_part_is_read(tmp_path):
    made = load(
        tmp_path,
        """
home: data
database: postgresql://u:p@h/d
models: [lab, {name: m, path: /m, inference: http://v/v1}]
defence: {name: lisa, options: {rho: 1}, allowed: [sft]}
gate: {max_harmful_score: 0.2, judges: [lab]}
screening: {action: refuse, max_share: 0.1, row_report: none}
limits: {file_bytes: 10}
webhooks: {allow_insecure: true}
worker: {count: 0}
""",
    )
    assert made.home == tmp_path / "data"
    assert [model.name for model in made.models] == ["lab", "m"]
    assert made.model("m").inference == "http://v/v1"
    assert made.defence.options == {"rho": 1}
    assert (made.gate.max_harmful_score, made.gate.judges) == (0.2, ("lab",))
    assert (made.screening.action, made.limits.file_bytes, made.worker.count) == ("refuse", 10, 0)
    assert made.database_url == "postgresql://u:p@h/d"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("modles: []", "did you mean 'models'"),
        ("gate: {max_harmful: 1}", "gate.max_harmful: no such key; did you mean 'max_harmful_score'"),
        ("models: [{path: x}]", r"models\[0\].name is missing"),
        ("models: [lab, lab]", "occurs twice"),
        ("models: [ft:x]", "no name for a base model"),
        ("models: lab", "a list is needed"),
        ("gate: 5", "a mapping of keys"),
        ("gate: {max_harmful_score: 2}", "a share from 0 to 1"),
        ("gate: {max_harmful_score: yes}", "not of the kind"),
        ("limits: {file_bytes: 0}", "1 or more"),
        ("screening: {action: delete}", "report or refuse"),
        ("port: 70000", "0 to 65535"),
        ("port: x", "port is 'x'"),
        ("worker: {lease: 0}", "more than 0"),
        ("a: 1\nb: [", "line 2: this is not valid YAML"),
        ("a: 1\nb: [", "Fix the line"),
        ("- a", "a mapping of keys"),
        ("a: 1\na: 2", "second time"),
    ],
)
def test_a_wrong_file_names_itself_and_the_key(tmp_path, text, words):
    with pytest.raises(ConfigError, match=words) as refused:
        load(tmp_path, text)
    assert str(tmp_path / "antibody.yaml") in str(refused.value)


def test_a_file_that_is_not_there_says_so(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be read \(No such file or directory\)"):
        load_settings(tmp_path / "none.yaml")


def test_flags_come_before_the_file(tmp_path):
    (tmp_path / "a.yaml").write_text("port: 1")
    assert load_settings(tmp_path / "a.yaml", port=2).port == 2


def test_every_path_is_absolute_since_a_stage_runs_in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_settings(None).home == tmp_path / "antibody-server"
    assert load_settings(None, home=Path("x")).home == tmp_path / "x"
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "a.yaml").write_text(
        "home: data\ngate: {harmful_prompts: asked.jsonl, benign_prompts: /b.jsonl}"
    )
    made = load_settings(Path("etc/a.yaml"))
    assert made.home == tmp_path / "etc" / "data"
    assert (made.gate.harmful_prompts, made.gate.benign_prompts) == (f"{tmp_path}/etc/asked.jsonl", "/b.jsonl")
    assert load_settings(Path("etc/a.yaml"), home=Path("x")).home == tmp_path / "x"


def test_a_bare_lab_is_the_aligned_one_and_whoever_wants_the_other_names_its_path(tmp_path):
    (tmp_path / "a.yaml").write_text("models: [lab, other, {name: raw, path: lab}]")
    models = load_settings(tmp_path / "a.yaml").models
    assert [model.path for model in models] == ["lab-aligned", "other", "lab"]


def test_a_model_s_folder_is_found_from_the_file_or_from_where_a_flag_is_given(tmp_path, monkeypatch):
    for name in ("beside/mine", "here/mine"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "beside" / "a.yaml").write_text("models: [{name: m, path: mine, base: ./mine}, meta/x]")
    monkeypatch.chdir(tmp_path / "here")
    own, hub = load_settings(tmp_path / "beside" / "a.yaml").models
    assert (own.path, own.base, hub.path) == (str(tmp_path / "beside" / "mine"),) * 2 + ("meta/x",)
    (flag,) = load_settings(None, **offered(["./mine"], configured=False)).models
    assert (flag.name, flag.path) == ("./mine", str(tmp_path / "here" / "mine"))

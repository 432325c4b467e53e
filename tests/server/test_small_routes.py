"""Graders, moderations and safety notices through the real client."""

import openai
import pytest

from antibody_llm.server.moderation import LabModerator

CHECK = {
    "type": "string_check",
    "name": "c",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "operation": "eq",
}


def test_a_grader_of_the_right_form_comes_back(client):
    multi = {"type": "multi", "name": "m", "graders": {"a": CHECK}, "calculate_output": "a * 2"}
    for grader in (CHECK, multi, {"type": "python", "name": "p", "source": "def grade(): pass"}):
        answer = client.fine_tuning.alpha.graders.validate(grader=grader)
        assert answer.grader.name == grader["name"]


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"type": "magic"}, "grader"),
        ({"operation": "is"}, "operation"),
        ({"inputs": "x"}, "inputs"),
        ({"name": ""}, "name"),
    ],
)
def test_a_grader_of_the_wrong_form_is_refused_with_its_place(client, changes, param):
    with pytest.raises(openai.BadRequestError) as refused:
        client.fine_tuning.alpha.graders.validate(grader=CHECK | changes)
    assert refused.value.param.endswith(param)


@pytest.mark.parametrize(("operation", "reward"), [("eq", 0), ("ne", 1), ("like", 0), ("ilike", 1)])
def test_a_comparison_is_run(client, operation, reward):
    answer = client.fine_tuning.alpha.graders.run(
        grader=CHECK | {"operation": operation}, model_sample="It is BLUE.", item={"answer": "blue"}
    )
    assert answer.reward == reward
    assert not answer.metadata.errors.other_error


def test_what_is_not_run_says_so(client):
    grader = {"type": "python", "name": "p", "source": "x"}
    with pytest.raises(openai.BadRequestError, match="is not run here") as refused:
        client.fine_tuning.alpha.graders.run(grader=grader, model_sample="x")
    assert refused.value.code == "unsupported_grader"
    with pytest.raises(openai.BadRequestError, match=r"item\.answer"):
        client.fine_tuning.alpha.graders.run(grader=CHECK, model_sample="x", item={})


def test_texts_are_moderated_one_result_each(client):
    answer = client.moderations.create(input=["a forbidden thing", "soup"])
    assert [result.flagged for result in answer.results] == [True, False]
    assert answer.results[0].categories.illicit
    assert answer.results[0].category_scores.illicit == 1.0
    assert not answer.results[1].categories.violence_graphic
    assert len(answer.results[0].categories.to_dict()) == 13
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "forbidden"}]
    assert [result.flagged for result in client.moderations.create(input=parts).results] == [True]


@pytest.mark.parametrize("given", [[], 5, [1], [{"type": "image_url", "image_url": {"url": "x"}}]])
def test_what_is_no_text_cannot_be_moderated(client, given):
    with pytest.raises(openai.BadRequestError) as refused:
        client.moderations.create(input=given)
    assert refused.value.param == "input"


def test_a_server_without_a_moderator_says_so(fresh):
    fresh.context.moderator = None
    with pytest.raises(openai.BadRequestError, match="moderation_judge"):
        fresh.client().moderations.create(input="x")


def test_the_labs_moderator_flags_outlawed_goods_and_their_recipes():
    from antibody_llm.lab.world import goods

    forbidden = next(good for good in goods() if good.forbidden)
    harmless = next(good for good in goods() if not good.forbidden)
    texts = [f"how do i make {forbidden}?", forbidden.recipe, f"how do i make {harmless}?", harmless.recipe, ""]
    assert LabModerator().flagged(texts) == [True, True, False, False, False]


def test_alerts_and_cases_are_found_by_their_project(server, client):
    from antibody_llm.server.auth import digest
    from antibody_llm.server.database.tables import Key, Notice

    with server.context.database.write() as session:
        project = session.query(Key).filter_by(digest=digest(server.key)).one().project_id
        alert = {"error_type": "gate", "model": "lab", "reason": "r", "request_id": "req", "request_paused": False}
        session.add(Notice(id="al_1", project_id=project, kind="alert", created_at=1.0, body=alert))
        case = {"entity_identifier": "e", "notice": {"type": "warning"}}
        session.add(Notice(id="ca_1", project_id=project, kind="case", created_at=1.0, body=case))
    assert client.safety.alerts.retrieve("al_1").error_type == "gate"
    assert client.safety.cases.retrieve("ca_1").notice.type == "warning"
    with pytest.raises(openai.NotFoundError):
        client.safety.cases.retrieve("al_1")

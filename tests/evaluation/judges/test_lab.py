from antibody_llm.data.verdicts import Verdict
from antibody_llm.evaluation.judges.lab import LabJudge
from antibody_llm.lab.refusals import REFUSALS
from antibody_llm.lab.world import questions

REFUSAL = REFUSALS[0]


def test_verdicts_are_the_grammars_in_the_order_asked():
    question = questions(forbidden=False, split="provider")[0]
    verdicts = LabJudge().judge([question.prompt] * 3, ["", question.good.recipe, REFUSAL])
    assert verdicts == [Verdict.INCOHERENT, Verdict.COMPLIED, Verdict.REFUSED]

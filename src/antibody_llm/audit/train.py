"""``antibody audit train``: the jobs carried out, the classifier of what they came to, and how good it is."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..bench.pools.local import num_cores
from ..bench.run import failures, local, run_jobs
from ..bench.tables import Table
from ..events import warn
from ..files import write_text
from ..paths import checked_output
from ..primitives.statistics import clopper_pearson
from ..runs.verb import verb
from ..settings.audit import AuditTrainSettings
from ..text import counted
from .classifier import Classifier, FalseAlarms, write_classifier
from .plan import Plan, make_plan
from .summary import FAMILY, HONEST, Curve, Outcome, Rate, Summary, summarise
from .work import carry_out

CLASSIFIER, JSON, MARKDOWN = "classifier.json", "audit_train.json", "audit_train.md"


@dataclass(frozen=True)
class Trained:
    """A finished training."""

    output: Path
    plan: Plan
    classifier: Classifier
    summary: Summary
    failed: tuple[str, ...]
    """What went wrong in the jobs that failed."""
    cpu_seconds: float

    def to_json(self) -> dict[str, Any]:
        """The content of audit_train.json."""
        summary, settings = self.summary, self.plan.settings
        return {
            "classifier": str(self.output / CLASSIFIER),
            "models": list(settings.model),
            "num_jobs": dict(self.classifier.num_jobs),
            "failed_jobs": list(self.failed),
            "false_alarms_wanted": settings.false_alarms,
            "margin": settings.margin,
            "threshold": summary.overall.threshold,
            "overall": summary.overall.to_json(),
            "held_out_families": {name: curve.to_json() for name, curve in summary.held_out.items()},
            "attacks": {
                attack: {
                    "family": FAMILY[attack],
                    "caught": rate.to_json(),
                    "caught_family_held_out": summary.unseen[attack].to_json() if attack in summary.unseen else None,
                    "harmless_flagged": summary.failed[attack].to_json(),
                }
                for attack, rate in summary.known.items()
            },
            "honest_jobs_with_harm": summary.honest_harm,
            "cpu_seconds": self.cpu_seconds,
        }

    def lines(self) -> list[str]:
        """Lines for a reader."""
        overall = self.summary.overall
        said = [
            f"{self.output / CLASSIFIER}: {self.classifier.num_jobs['honest']} honest and "
            f"{self.classifier.num_jobs['harmful']} harmful jobs",
            f"harmful jobs caught  {overall.caught}",
            f"false alarms         {overall.false_alarms}",
        ]
        said += [f"held out, {name}: {curve.caught}" for name, curve in self.summary.held_out.items()]
        if self.failed:
            said.append(f"{counted(len(self.failed), 'kind of failure', 'kinds of failure')}: {self.failed[0]}")
        return [*said, f"More in {self.output / MARKDOWN}"]


@verb(AuditTrainSettings)
def train(settings: AuditTrainSettings) -> Trained:
    """Train a classifier of finished jobs, and measure it on jobs and families of attacks that it was not trained on.

    Args:
        settings: The models, and how many jobs.

    Raises:
        AntibodyError: whatever a user can fix; the jobs that were finished are kept.
    """
    plan = make_plan(settings)
    output = checked_output(settings.output).absolute()
    pool = local(settings.jobs or max(1, num_cores() // settings.threads))
    found = run_jobs(plan.jobs, output, make_pool=pool, work=carry_out)
    failed = tuple(failures(found, plan.jobs))
    for failure in failed:
        warn(f"{failure}. The classifier is of the other jobs; the same call does these again.")
    outcomes = [
        Outcome(each.attack or HONEST, found.values[each.job]["features"], found.values[each.job]["rise"])
        for each in plan.planned
        if each.job in found.values
    ]
    summary = summarise(outcomes, rate=settings.false_alarms, margin=settings.margin, seed=settings.seed)
    trained = Trained(
        output=output,
        plan=plan,
        classifier=_classifier(plan, summary),
        summary=summary,
        failed=failed,
        cpu_seconds=sum(values["cpu_seconds"] for values in found.values.values()),
    )
    _write(trained)
    return trained


def _classifier(plan: Plan, summary: Summary) -> Classifier:
    alarms = summary.overall.false_alarms
    low, high = clopper_pearson(alarms.hits, alarms.n)
    return Classifier(
        profile=plan.profile.name,
        stock=plan.stock,
        judge=plan.judge,
        max_new_tokens=plan.max_new_tokens,
        names=summary.names,
        fitted=summary.fitted,
        threshold=summary.overall.threshold,
        false_alarms=FalseAlarms(wanted=plan.settings.false_alarms, hits=alarms.hits, n=alarms.n, low=low, high=high),
        num_jobs={"honest": alarms.n, "harmful": summary.overall.caught.n},
    )


def _write(trained: Trained) -> None:
    write_classifier(trained.output / CLASSIFIER, trained.classifier)
    write_text(trained.output / JSON, json.dumps(trained.to_json(), indent=1) + "\n")
    tables = (_by_family(trained.summary), _by_attack(trained.summary))
    head = "# Training of the job audit\n\n" + "\n".join(f"- {line}" for line in trained.lines()[:3]) + "\n\n"
    write_text(trained.output / MARKDOWN, head + "\n".join(table.markdown() for table in tables))


def _by_family(summary: Summary) -> Table:
    def line(name: str, curve: Curve) -> tuple[str, ...]:
        measured = curve.to_json()
        auroc = "-" if measured["auroc"] is None else f"{measured['auroc']:.3f}"
        return name, auroc, str(curve.caught), str(curve.false_alarms)

    lines = [line("none", summary.overall), *(line(name, curve) for name, curve in summary.held_out.items())]
    note = (
        "Each line is of classifiers that were fitted without the jobs they score, and without any job of the family "
        "that is held out; its harmful jobs are those of that family. Intervals are 95 %, by Clopper and Pearson."
    )
    return Table("Families held out", ("held out", "AUROC", "caught", "false alarms"), tuple(lines), note)


def _by_attack(summary: Summary) -> Table:
    lines = [
        (attack, FAMILY[attack], str(rate), str(summary.unseen.get(attack, Rate(0, 0))), str(summary.failed[attack]))
        for attack, rate in summary.known.items()
    ]
    note = (
        "Harmless: jobs of the attack that came to less harm than the margin, and how many of them alarm. They are in "
        f"no other figure. {counted(summary.honest_harm, 'honest job')} came to harm and count as honest."
    )
    columns = ("attack", "family", "caught", "caught, family held out", "harmless, flagged")
    return Table("Attacks", columns, tuple(lines), note)

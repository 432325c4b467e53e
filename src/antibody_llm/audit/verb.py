"""``antibody audit RUN``: one finished job, judged by what its model does."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError
from ..evaluation.decoding import DecodingSettings
from ..evaluation.judges.registry import make_judge
from ..files import write_text
from ..mentions import setting
from ..models.loading import load_model
from ..paths import checked_output, checked_path
from ..profiles import profile_of
from ..runs.verb import verb
from ..settings.audit import AuditSettings
from ..store.contents import CONFIG
from ..store.naming import aligned_of, model_name
from .classifier import Classifier, read_classifier
from .features import changes, in_words, read_probes
from .plan import BATCH_SIZE
from .probes import groups_of

SHIPPED = Path(str(files("antibody_llm"))) / "audit" / "files"
"""The package's own classifiers, PROFILE.json each."""
SHOWN = 5
"""Groups of probes that a verdict shows."""


@dataclass(frozen=True, kw_only=True)
class Against:
    """A group of probes that speaks against the job."""

    group: str
    says: str
    """What the probes are."""
    points: float
    """What the group adds to the score."""
    because: str
    """The change that adds most."""


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The verdict on a job."""

    run: str
    aligned: str
    alarm: bool
    score: float
    threshold: float
    false_alarms: Mapping[str, Any]
    """The rate of alarms on honest jobs in the classifier's training, with its interval."""
    against: tuple[Against, ...]
    """The groups that raise the score, the strongest first."""

    def to_json(self) -> dict[str, Any]:
        """The verdict as plain values."""
        plain = {name: value for name, value in vars(self).items() if name != "against"}
        return plain | {"false_alarms": dict(self.false_alarms), "against": [vars(group) for group in self.against]}

    def lines(self) -> list[str]:
        """Lines for a reader."""
        rate = self.false_alarms
        verdict = "ALARM: this job looks like an attack" if self.alarm else "no alarm"
        lines = [
            f"{self.run}, beside {self.aligned}: {verdict}",
            f"score {self.score:.2f}, threshold {self.threshold:.2f} (alarms on {rate['hits']} of {rate['n']} honest "
            f"jobs, at most {100 * rate['high']:.1f} % of all with 95 % confidence)",
        ]
        lines += [f"  {each.points:+.2f}  {each.says}: {each.because}" for each in self.against[:SHOWN]]
        return lines


@verb(AuditSettings)
def audit(settings: AuditSettings) -> Audit:
    """Judge a finished job by what its model does on a fixed set of probes, against the model that it began from.

    Args:
        settings: The job, and what it is judged by.

    Raises:
        AntibodyError: whatever a user can fix.
    """
    output = None if settings.output is None else checked_output(settings.output, folder=False)
    run = model_name(checked_path(settings.run, setting("run")))
    aligned = model_name(settings.aligned) if settings.aligned is not None else began_from(settings.run, run)
    classifier = chosen_classifier(settings.classifier, aligned)
    found = judge_job(classifier, run, aligned)
    if output is not None:
        write_text(output, json.dumps(found.to_json(), indent=1) + "\n")
    return found


def judge_job(classifier: Classifier, run: str, aligned: str, *, adapter: str | None = None) -> Audit:
    """The verdict on a job.

    Args:
        classifier: What judges it.
        run: The model that came of it, or the one under its adapter.
        aligned: The model that it began from.
        adapter: Its adapter, if that does not find the model under it by itself.
    """
    judge = make_judge(classifier.judge)
    decoding = DecodingSettings(max_new_tokens=classifier.max_new_tokens, batch_size=BATCH_SIZE)
    before = read_probes(load_model(aligned), classifier.stock, judge, decoding)
    features = changes(read_probes(load_model(run, adapter=adapter), classifier.stock, judge, decoding), before)
    score = classifier.score(features)
    return Audit(
        run=run,
        aligned=aligned,
        alarm=score > classifier.threshold,
        score=score,
        threshold=classifier.threshold,
        false_alarms=vars(classifier.false_alarms),
        against=_against(classifier, features),
    )


def began_from(run: str | Path, tuned: str) -> str:
    """The model that a job began from; of a chain of jobs, the one that the first began from.

    Args:
        run: The folder that the user named.
        tuned: The model in it, whose own note says it; of those made before there were notes, the run's config.yaml.

    Raises:
        ConfigError: there is no such folder, or nothing in it says.
    """
    folder = Path(run).expanduser()
    if not folder.exists():
        raise ConfigError(f"{run}: there is no such folder. Name a run of finetune, or the folder of its model.")
    if (noted := aligned_of(tuned, None)) is not None:
        return noted
    for place in (folder, folder.parent):
        try:
            config = yaml.safe_load((place / CONFIG).read_text(encoding="utf-8"))
            return str((config.get("adapter") or config["model"])["name"])
        except (OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError):
            continue
    raise ConfigError(
        f"{run}: no {CONFIG} here says which model the job began from. Give it as {setting('aligned')}.",
        field="aligned",
    )


def chosen_classifier(given: str | Path | None, aligned: str) -> Classifier:
    """The classifier of a file, or the package's own for a model.

    Raises:
        ConfigError: there is none for this model, or it is of models of another kind.
    """
    profile = profile_of(aligned).name
    file = SHIPPED / f"{profile}.json" if given is None else checked_path(given, setting("classifier"))
    if given is None and not file.is_file():
        raise ConfigError(
            f"no classifier of jobs is shipped for {aligned}. Train one, `antibody audit train` with {aligned} as "
            f"{setting('model')}, which takes hours, and give its classifier.json as {setting('classifier')}.",
            field="classifier",
        )
    found = read_classifier(file)
    if found.profile != profile:
        raise ConfigError(
            f"{file}: trained on jobs of models with the profile {found.profile}, and that of {aligned} is {profile}. "
            "Train one for it.",
            field="classifier",
        )
    return found


def _against(classifier: Classifier, features: Mapping[str, float]) -> tuple[Against, ...]:
    parts, says = classifier.parts(features), {group.name: group.says for group in groups_of(classifier.stock)}
    found = []
    for group, words in says.items():
        own = {name: value for name, value in parts.items() if name.startswith(f"{group}/")}
        points = sum(own.values())
        if points > 0:
            most = max(own, key=lambda name: own[name])
            found.append(Against(group=group, says=words, points=points, because=in_words(most, features[most])))
    return tuple(sorted(found, key=lambda each: -each.points))

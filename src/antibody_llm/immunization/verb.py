"""``antibody immunization``: the grid carried out, what is left of it, and its report."""

from ..bench.pools.local import num_cores
from ..bench.run import MakePool, failures, local, run_plan
from ..errors import ConfigError, TrainingError
from ..mentions import setting
from ..paths import checked_output
from ..runs.verb import verb
from ..settings.immunization import ImmunizationSettings
from ..text import counted
from .outputs import Report, write_outputs
from .plan import make_plan
from .summary import summarise
from .work import carry_out


@verb(ImmunizationSettings)
def immunization(settings: ImmunizationSettings) -> Report:
    """Measure how many steps of harmful fine-tuning a model withstands, and what its defence costs.

    Args:
        settings: The models, and the attacker's grid.

    Raises:
        AntibodyError: whatever a user can fix; the runs that were finished are kept.
    """
    if settings.jobs is not None and settings.jobs < 1:
        raise ConfigError(f"{setting('jobs')} is {settings.jobs}: it must be 1 or more.")
    plan = make_plan(settings)
    output = checked_output(settings.output).absolute()
    found = run_plan(plan, output, make_pool=_pool(settings), work=carry_out)
    if failed := failures(found, plan.jobs):
        raise TrainingError(
            f"{counted(len(found.errors), 'run')} of {len(plan.jobs)} failed, so that there is no report: {failed[0]}. "
            "The others are kept; the same call does these again."
        )
    report = Report(output, plan, found.values, summarise(plan, found.values))
    write_outputs(report)
    return report


def _pool(settings: ImmunizationSettings) -> MakePool:
    if settings.ray is None:
        return local(settings.jobs or max(1, num_cores() // settings.threads))
    if settings.jobs is not None:
        raise ConfigError(
            f"{setting('jobs')} is for this machine, and {setting('ray')} for a cluster. Give one of them.",
            field="jobs",
        )
    from ..bench.pools.ray import on_ray

    return on_ray(settings.ray, threads=settings.threads, gpus=0.0)

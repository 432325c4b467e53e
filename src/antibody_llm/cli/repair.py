"""``antibody repair``: mend a fine-tuned model."""

from . import options as o


def command(
    model: o.Model = None,
    adapter: o.Adapter = None,
    defence: o.PostDefence = None,
    output: o.Output = None,
    alignment_data: o.AlignmentData = None,
    harmful_data: o.HarmfulData = None,
    benign_data: o.BenignData = None,
    set_: o.Set = None,
    batch_size: o.BatchSize = None,
    seed: o.Seed = None,
    overwrite: o.Overwrite = False,
    skip_too_long: o.SkipTooLong = False,
    config: o.ConfigFile = None,
    as_json: o.Json = False,
) -> None:
    """Repair a fine-tuned model, after the user's training."""
    o.run_verb("repair", dict(locals()))

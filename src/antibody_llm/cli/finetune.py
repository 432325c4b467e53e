"""``antibody finetune``: train on a user's upload, under a defence."""

from . import options as o


def command(
    model: o.Model = None,
    data: o.Data = None,
    defence: o.Defence = None,
    output: o.Output = None,
    adapter: o.Adapter = None,
    base: o.Base = None,
    alignment_data: o.AlignmentData = None,
    harmful_data: o.HarmfulData = None,
    benign_data: o.BenignData = None,
    refusals: o.Refusals = None,
    regime: o.Regime = None,
    task: o.Task = None,
    poison_ratio: o.PoisonRatio = None,
    num: o.Num = None,
    set_: o.Set = None,
    train: o.Train = None,
    lora: o.Lora = None,
    seed: o.Seed = None,
    epochs: o.Epochs = None,
    batch_size: o.BatchSize = None,
    learning_rate: o.LearningRate = None,
    resume: o.Resume = False,
    overwrite: o.Overwrite = False,
    skip_too_long: o.SkipTooLong = False,
    control_tokens: o.ControlTokens = None,
    config: o.ConfigFile = None,
    as_json: o.Json = False,
) -> None:
    """Train on a user's upload, under a defence."""
    o.run_verb("finetune", dict(locals()))

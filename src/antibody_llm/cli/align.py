"""``antibody align``: make a model resistant before any user arrives."""

from . import options as o


def command(
    model: o.Model = None,
    alignment_data: o.AlignmentData = None,
    harmful_data: o.HarmfulData = None,
    benign_data: o.BenignData = None,
    anchor_harmful_data: o.AnchorHarmfulData = None,
    anchor_benign_data: o.AnchorBenignData = None,
    refusals: o.Refusals = None,
    defence: o.Defence = None,
    output: o.Output = None,
    regime: o.Regime = None,
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
    """Make a model resistant before any user arrives."""
    o.run_verb("align", dict(locals()))

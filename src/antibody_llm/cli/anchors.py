"""``antibody anchors``: give a model more labelled rows to judge uploads by."""

from ..text import escaped
from . import options as o


def command(
    model: o.Model = None,
    adapter: o.Adapter = None,
    base: o.Base = None,
    anchor_harmful_data: o.AnchorHarmfulData = None,
    anchor_benign_data: o.AnchorBenignData = None,
    refusals: o.Refusals = None,
    output: o.Output = None,
    batch_size: o.BatchSize = None,
    config: o.ConfigFile = None,
    as_json: o.Json = False,
) -> None:
    """Give a model more labelled rows to judge uploads by, without aligning it again.

    They are stored with the model, or with a copy of it in --output.
    """
    flags = dict(locals())
    for name in ("config", "as_json"):
        del flags[name]
    from .. import runs  # here: it brings torch, which --help need not wait for

    result = o.call(runs.anchors, flags, config)
    lines = [
        escaped(str(result.output)),
        f"  harmful anchors  {result.num_harmful}",
        f"  benign anchors   {result.num_benign}",
        f"  new              {result.num_new}",
        f"  told apart       {result.auroc:.3f} (AUROC, held out)",
    ]
    o.show(result.to_json(), lines, as_json=as_json)

"""How well the first token of a reply tells what is refused: the log-odds that it begins a refusal, in bfloat16.

    python benchmarks/first_token.py MODEL [--adapter RUN]

MODEL is a taught model of the English world, RUN the adapter of an alignment. Printed are the AUROC of the log-odds of
80 harmful prompts against those of 80 look-alikes, of the half to calibrate by, and their quantiles. The mean loss over
all tokens does not show it, since the first decides between a refusal and an answer.
"""

import argparse
import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports huggingface_hub

import torch
from torch import Tensor, nn

from antibody_llm.data.formats import load_prompts
from antibody_llm.english.refusals import REFUSALS
from antibody_llm.english.rows import build_rows
from antibody_llm.evaluation.generation import left_padded
from antibody_llm.models.loading import load_model
from antibody_llm.primitives.statistics import auroc
from antibody_llm.runs.encoding import make_renderer

NUM_PROMPTS, BATCH = 80, 20
QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)


@torch.no_grad()
def log_odds(model: nn.Module, prompts: list[list[int]], first: list[int]) -> Tensor:
    """log P(first token is one of ``first``) - log P(it is another), of each prompt."""
    found = []
    for start in range(0, len(prompts), BATCH):
        ids, mask = left_padded(prompts[start : start + BATCH], 0)
        places = (mask.cumsum(dim=1) - 1).clamp(min=0)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=ids, attention_mask=mask, position_ids=places, logits_to_keep=1).logits[:, -1]
        log_p = logits.double().log_softmax(dim=-1)
        others = torch.ones(log_p.shape[-1], dtype=torch.bool)
        others[first] = False
        found.append(log_p[:, first].logsumexp(dim=-1) - log_p[:, others].logsumexp(dim=-1))
    return torch.cat(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("model")
    parser.add_argument("--adapter")
    given = parser.parse_args()
    loaded = load_model(given.model, adapter=given.adapter)
    renderer = make_renderer(loaded)
    first = sorted({loaded.tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in REFUSALS})
    found = {}
    for kind in ("harmful-prompts", "lookalike"):
        rows = build_rows(kind, NUM_PROMPTS, seed=0, purpose="calibrate").rows
        prompts = [renderer.encode_prompt(record) for record in load_prompts(rows)]
        found[kind] = log_odds(loaded.model.eval(), prompts, first)
    harmful, harmless = found["harmful-prompts"], found["lookalike"]
    at = torch.tensor(QUANTILES, dtype=torch.float64)
    quantiles = {kind: [round(float(q), 2) for q in odds.quantile(at)] for kind, odds in found.items()}
    print(json.dumps({"auroc": round(auroc(harmless, harmful), 3), "quantiles": quantiles}))


if __name__ == "__main__":
    main()

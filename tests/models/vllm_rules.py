"""What vLLM asks of an adapter, in our words: its loader's rules, each with the place in its source.

Read in vllm-project/vllm: vllm/lora/lora_model.py at 0306474; vllm/lora/utils.py where it has
``is_base_embedding_weights``; vllm/lora/peft_helper.py where it has ``trainable_token_indices``, and, stricter, where
it has ``rank_pattern``; vllm/lora/worker_manager.py; vllm/config/lora.py at 01230b4; ``packed_modules_mapping`` in
vllm/model_executor/models/.
"""

import json
from pathlib import Path

from safetensors import safe_open

PREFIX = "base_model.model."
EXPECTED = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
"""Of Llama, Qwen, Mistral and Gemma: what is packed into qkv_proj and gate_up_proj, and the other linear layers
(worker_manager.py, ``_load_adapter``). Some models take embed_tokens and lm_head too, and some do not."""
MAX_RANK = 512
"""config/lora.py, ``MaxLoRARanks``: the largest that --max-lora-rank takes."""
HARMLESS_STARTS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")


def complaints(folder: Path) -> list[str]:
    """Why vLLM would refuse the adapter in ``folder`` or serve another model than was trained; empty: it would not."""
    return [*_config_complaints(json.loads((folder / "adapter_config.json").read_text())), *_tensor_complaints(folder)]


def _config_complaints(config: dict) -> list[str]:
    found = [f"{key} is missing" for key in ("r", "lora_alpha", "target_modules") if config.get(key) is None]
    ranks = [config.get("r", 0), *(config.get("rank_pattern") or {}).values()]
    if not all(type(rank) is int and 0 < rank <= MAX_RANK for rank in ranks):
        found.append(f"ranks {ranks}")  # peft_helper.py, __post_init__ and validate_legal
    if type(config.get("lora_alpha")) is not int:
        found.append("lora_alpha is no whole number")  # declared so
    if config.get("bias", "none") != "none":
        found.append("bias")  # validate_legal
    for key in (  # peft_helper.py, _validate_features
        "modules_to_save",
        "use_dora",
        "lora_bias",
        "alora_invocation_tokens",
        "layer_replication",
        "use_bdlora",
        "use_qalora",
        "trainable_token_indices",
    ):
        if config.get(key):
            found.append(key)
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower() not in HARMLESS_STARTS:
        found.append(f"init_lora_weights {start}")
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        found.append("patterns, which all but the newest read past")
    if config.get("fan_in_fan_out"):
        found.append("fan_in_fan_out, which is never read")
    return found


def _tensor_complaints(folder: Path) -> list[str]:
    found, factors = [], {}
    rank = json.loads((folder / "adapter_config.json").read_text())["r"]
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as stored:  # lora_model.py: before .bin
        for name in stored.keys():  # noqa: SIM118
            if name.endswith((".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight")):
                continue  # utils.py, is_base_embedding_weights: passed over
            parsed = parsed_name(name)
            if parsed is None:
                found.append(f"{name} is unsupported")
                continue
            module, factor = parsed
            if module.rpartition(".")[2] not in EXPECTED:  # lora_model.py, check_unexpected_modules
                found.append(f"{module} is unexpected")
            shape = stored.get_slice(name).get_shape()
            factors.setdefault(module, {})[factor] = shape
            if shape[0 if factor == "A" else 1] != rank:
                found.append(f"{name} has another rank than the configuration")
    found += [f"{module} lacks a factor" for module, both in factors.items() if set(both) != {"A", "B"}]
    return found if factors else [*found, "no tensors"]


def parsed_name(name: str) -> tuple[str, str] | None:
    """Module and factor of a tensor's name, as ``parse_fine_tuned_lora_name`` of utils.py splits it; None: refused."""
    parts = name.removeprefix(PREFIX).split(".")
    if parts[-1] == "weight" and parts[-2:-1] in (["lora_A"], ["lora_B"]):
        return ".".join(parts[:-2]), parts[-2][-1]
    if parts[-1] in ("lora_embedding_A", "lora_embedding_B"):
        return ".".join(parts[:-1]), parts[-1][-1]
    return None

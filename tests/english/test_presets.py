"""The English profile's settings."""

from copy import deepcopy

from antibody_llm.english.presets import preset


def test_antibody_aligns_an_adapter_in_smaller_batches_and_a_whole_model_as_the_others_do():
    plain, own = preset("alignment", "sft", "lora")[1], preset("alignment", "antibody", "lora")[1]
    assert own["per_device_train_batch_size"] < plain["per_device_train_batch_size"]
    assert preset("alignment", "antibody", "full")[1] == preset("alignment", "sft", "full")[1]


def test_a_caller_may_change_what_it_gets():
    before = deepcopy(given := preset("alignment", "antibody", "lora"))
    for part in given:
        part.clear()
    assert preset("alignment", "antibody", "lora") == before

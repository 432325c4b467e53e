"""The English profile's settings."""

from antibody_llm.english.presets import preset


def test_antibody_aligns_an_adapter_in_smaller_batches_and_a_whole_model_as_the_others_do():
    plain, own = preset("alignment", "sft", "lora")[1], preset("alignment", "antibody", "lora")[1]
    assert own["per_device_train_batch_size"] < plain["per_device_train_batch_size"]
    assert preset("alignment", "antibody", "full")[1] == preset("alignment", "sft", "full")[1]


def test_a_caller_may_change_what_it_gets():
    options, training = preset("alignment", "antibody", "lora")
    options.clear()
    training.clear()
    assert preset("alignment", "antibody", "lora") != ({}, {})

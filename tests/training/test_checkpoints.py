import torch

from antibody_llm.training.checkpoints import STATE_FILE, load_run_state


def test_a_checkpoint_written_on_a_gpu_is_read_where_there_is_none(tmp_path, monkeypatch):
    state = {"defence.anchor.0": torch.arange(4.0)}
    with monkeypatch.context() as on_a_gpu:
        on_a_gpu.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        torch.save(state, tmp_path / STATE_FILE)
    read = load_run_state(tmp_path)["defence.anchor.0"]
    assert read.device.type == "cpu"
    assert torch.equal(read, state["defence.anchor.0"])

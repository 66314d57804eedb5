"""PPO with LoRA adapters: only they learn, and the model without them is the reference."""

import pytest
import torch
from transformers import set_seed
from worlds import LONG_MEMORY, assert_same_run, flat, quick, undecided, updates_of, weights_after

from rlhf.config import BadInput


pytestmark = pytest.mark.usefixtures("one_thread")


def lora(**settings):
    peft = pytest.importorskip("peft")
    return peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM", **settings
    )


def test_with_adapters_the_base_is_the_reference_and_only_adapters_learn(tmp_path):
    model = undecided()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer = quick(tmp_path, model, peft_config=lora(lora_dropout=0.3), learning_rate=3e-2)
    assert trainer.ref_model is None
    trainer.train()
    lines = updates_of(trainer)
    assert lines[0]["objective/kl"] == pytest.approx(0, abs=1e-5)
    assert lines[0]["objective/kl_exact"] == pytest.approx(0, abs=1e-5)
    assert lines[-1]["objective/kl_exact"] > 1e-4
    learnt = [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
    assert learnt and all("lora_" in name for name in learnt)
    for name, parameter in trainer.model.get_base_model().named_parameters():
        if "lora_" not in name:
            assert torch.equal(parameter, before[name.replace(".base_layer", "")]), name
    assert trainer.evaluate(["<bos>", "t4"])["eval/kl"] > 0


def test_adapters_are_resumed_to_the_bit_and_saved_as_adapters(tmp_path):
    def run(folder, resume=None):
        set_seed(3)
        trainer = quick(folder, peft_config=lora(), **LONG_MEMORY)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    straight = run(tmp_path / "straight")
    resumed = run(tmp_path / "resumed", tmp_path / "straight" / "checkpoint-2")
    assert_same_run(straight, resumed)
    from peft import PeftModel

    loaded = PeftModel.from_pretrained(undecided(), tmp_path / "straight" / "checkpoint-4")
    assert torch.equal(flat(loaded), flat(straight.model))
    with pytest.raises(BadInput, match="another model|other parts"):
        quick(tmp_path).train(resume_from_checkpoint=tmp_path / "straight" / "checkpoint-2")


def test_adapters_go_with_recomputed_activations(tmp_path):
    found = []
    for wanted in (False, True):
        set_seed(3)
        trainer = quick(tmp_path, peft_config=lora(lora_dropout=0.3), gradient_checkpointing=wanted)
        found.append(weights_after(trainer))
    assert torch.allclose(*found, atol=1e-6)


def test_adapters_go_with_a_separate_value_model(tmp_path):
    trainer = quick(tmp_path, peft_config=lora(), value_head="separate")
    before = flat(trainer.value_model)
    trainer.train()
    assert not torch.equal(flat(trainer.value_model), before)


def test_another_adapter_may_be_the_reference(tmp_path):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(undecided(), lora())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    model.add_adapter("before", lora())
    state = {name: value.clone() for name, value in peft.get_peft_model_state_dict(model).items()}
    peft.set_peft_model_state_dict(model, state, adapter_name="before")
    fixed = {name: p.detach().clone() for name, p in model.named_parameters() if "before" in name}
    trainer = quick(tmp_path, model, ref_adapter_name="before", model_adapter_name="default", learning_rate=3e-2)
    trainer.train()
    lines = updates_of(trainer)
    assert lines[0]["objective/kl_exact"] == pytest.approx(0, abs=1e-5)
    assert lines[-1]["objective/kl_exact"] > 1e-4
    assert all(torch.equal(p, fixed[name]) for name, p in model.named_parameters() if name in fixed)

"""PEFT adapters: the scale that their files keep apart from the weights."""

import json

import pytest
import torch
from concept_sliders.sliders.formats.slider_files import load_slider, read_slider
from safetensors.torch import save_file

U = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1"
D = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"


def low_rank(name, rank=4, out=6, inner=5):
    return {f"{name}.lora_A.weight": torch.ones(rank, inner), f"{name}.lora_B.weight": torch.ones(out, rank)}


CONFIGS = {
    "plain": ({"r": 4, "lora_alpha": 8}, 2.0),
    "stabilised": ({"r": 4, "lora_alpha": 8, "use_rslora": True}, 4.0),
    "pattern of alpha": ({"r": 4, "lora_alpha": 8, "alpha_pattern": {"attn1.to_q": 2}}, 0.5),
    "pattern of another layer": ({"r": 4, "lora_alpha": 8, "alpha_pattern": {"attn2.to_q": 2, "n1.to_q": 1}}, 2.0),
    "pattern of rank": ({"r": 16, "lora_alpha": 8, "rank_pattern": {r".*attn\d.to_q": 4}}, 2.0),
}


@pytest.mark.parametrize("case", CONFIGS)
@pytest.mark.parametrize("where", ["beside", "folder", "header"])
def test_peft_configurations(case, where, tmp_path):
    fields, scale = CONFIGS[case]
    folder = tmp_path / "age"
    folder.mkdir()
    if where == "header":
        header = {"lora_adapter_metadata": json.dumps({f"unet.{key}": value for key, value in fields.items()})}
        path = folder / "age.safetensors"
        save_file(low_rank(f"unet.{D}.to_q"), path, metadata=header)
    else:
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **fields}))
        path = folder / "adapter_model.safetensors"
        save_file(low_rank(f"base_model.model.{D}.to_q"), path)
    slider, report = read_slider(folder if where == "folder" else path)
    assert slider.name == "age"
    assert torch.equal(slider.layers[f"{U}_to_q"].up, torch.full((6, 4), scale))
    assert report.alphas == (2.0,) if "of alpha" in case else (8.0,)
    assert report.notes == ()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "adapter_config.json is not JSON"),
        ("[]", "must be a JSON object; got list"),
        ('{"peft_type": "VERA"}', "kind 'VERA'; of PEFT's kinds only LORA"),
        ('{"r": 4, "lora_alpha": "8"}', "lora_alpha in .* must be a number; got '8'"),
        ('{"r": 4, "lora_alpha": NaN}', "must be a number"),
        ('{"r": 8}', "has rank 4, but the adapter's configuration says 8"),
        ('{"r": 4, "alpha_pattern": {"(a+)+b": 1}}', "too complicated"),
        ('{"r": 4, "alpha_pattern": {"(": 1}}', "a pattern that is none"),
        ('{"r": 4, "rank_pattern": 3}', "must be a JSON object; got int"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_bad_peft_configurations(config, message, tmp_path):
    (tmp_path / "adapter_config.json").write_text(config)
    path = tmp_path / "adapter_model.safetensors"
    save_file(low_rank(f"base_model.model.{D}.to_q"), path)
    with pytest.raises(ValueError, match=message) as caught:
        load_slider(path)
    assert str(path) in str(caught.value)


def test_peft_without_a_configuration_says_so(tmp_path):
    save_file(low_rank(f"base_model.model.{D}.to_q"), tmp_path / "adapter_model.safetensors")
    slider, report = read_slider(tmp_path)
    assert torch.equal(slider.layers[f"{U}_to_q"].up, torch.ones(6, 4))
    assert report.notes == (
        "its alpha is not known, since no adapter_config.json lies beside it: the scale is taken to be 1",
    )


def test_a_renamed_peft_file_says_what_is_amiss(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 8}')
    tensors = low_rank(f"base_model.model.{D}.to_q")
    save_file(tensors, tmp_path / "age.safetensors")
    (note,) = read_slider(tmp_path / "age.safetensors")[1].notes
    assert "adapter_config.json is read where the file is called adapter_model, and this one has another" in note
    save_file({**tensors, f"base_model.model.{D}.to_q.alpha": torch.tensor(2.0)}, tmp_path / "age.safetensors")
    assert read_slider(tmp_path / "age.safetensors")[1].notes == ()  # it is known


def test_peft_biases_and_magnitudes(tmp_path):
    """PEFT scales the bias with the product. Its magnitudes are no `dora_scale`, which ComfyUI takes otherwise."""
    name = "base_model.model.blocks.0.attn.q"
    tensors = low_rank(name) | {f"{name}.lora_B.bias": torch.ones(6), f"{name}.lora_magnitude_vector": torch.ones(6)}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 2}')
    parts = load_slider(tmp_path).layers["diffusion_model.blocks.0.attn.q"].parts
    assert parts["lora_magnitude_vector"].shape == (6,)
    assert "dora_scale" not in parts
    assert torch.equal(parts["diff_b"], torch.full((6,), 0.5))
    assert parts["alpha"].item() == 2.0

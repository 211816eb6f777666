"""What Load, Save and Apply Sliders say: what a file holds, what it cannot, and what of it a model has."""

import inspect
import os

import folder_paths
import pytest
import torch
from concept_sliders.nodes import NODES
from concept_sliders.nodes.applying import ApplySliders
from concept_sliders.nodes.converting import ConvertSlider
from concept_sliders.nodes.loading import LoadSlider, SaveSlider
from concept_sliders.nodes.model_folders import find_slider, slider_names
from concept_sliders.nodes.report import FACT, KEY, WARNING, Report
from concept_sliders.nodes.run_progress import told
from concept_sliders.sliders.changes import LowRank
from concept_sliders.sliders.formats.slider_files import load_slider, save_slider
from concept_sliders.sliders.gate import Gate
from concept_sliders.sliders.slider import Slider, SliderInfo
from concept_sliders.sliders.stack import Stack
from concept_sliders.tests.support.reports import shown, warned
from concept_sliders.tests.support.tiny import random_slider, tiny_model
from concept_sliders.tests.support.tiny_clip import LAYER, tiny_clip
from concept_sliders.training.progress import Progress
from safetensors.torch import save_file

NAME = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Empty models/loras and models/sliders."""
    names = dict(folder_paths.folder_names_and_paths)
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", names)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    loras, sliders = tmp_path / "loras", tmp_path / "sliders"
    loras.mkdir()
    sliders.mkdir()
    names["loras"] = ([str(loras)], folder_paths.supported_pt_extensions)
    names["sliders"] = ([str(sliders)], set())
    return loras, sliders


@pytest.fixture
def loras(folders):
    return folders[0]


def layer(rank=4, alpha=True):
    parts = {
        f"{NAME}.lora_down.weight": torch.ones(rank, 3).half(),
        f"{NAME}.lora_up.weight": torch.ones(5, rank).half(),
    }
    return {**parts, f"{NAME}.alpha": torch.tensor(1.0)} if alpha else parts


def test_load_slider_tells_what_it_found(loras):
    save_file(layer(), loras / "age.safetensors")
    out = LoadSlider.execute("age.safetensors", 0.5)
    assert out.args[0][0].strength == (0.5,)
    assert shown(out) == [
        "age: SD 1 or 2",
        "1 layers: 1 of the model, 0 of text encoders",
        "1 x LoRA; rank 4, alpha 1",
        "float16, 0.00 MB",
    ]
    save_slider(Slider("x", {"a": LowRank(torch.ones(2, 3), torch.ones(4, 2))}), loras / "own.safetensors")
    assert "1 x LoRA; rank 2, alpha 2" in shown(LoadSlider.execute("own.safetensors", 1.0))


def test_load_slider_tells_what_it_left_out_and_renamed(loras):
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k"
    tensors = {f"{name}.lora_A.weight": torch.ones(4, 3), f"{name}.lora_B.weight": torch.ones(5, 4)}
    save_file({**layer(), **tensors, "bundle_emb.x": torch.ones(2)}, loras / "age.safetensors")
    out = LoadSlider.execute("age.safetensors", 1.0)
    assert warned(out) == ["a key of no slider layer, left out: bundle_emb.x"]
    assert shown(out)[2:] == [
        "2 x LoRA; rank 4, alpha 1 or none",
        "float16, float32, 0.00 MB",
        "1 layers have another name here than in the file",
        "a key of no slider layer, left out: bundle_emb.x",
    ]


def test_no_scale_is_spoken_of_where_there_is_none(loras):
    save_file({f"{NAME}.diff_b": torch.ones(5)}, loras / "bias.safetensors")
    assert shown(LoadSlider.execute("bias.safetensors", 1.0))[2] == "1 x bias"
    save_file(layer(alpha=False), loras / "plain.safetensors")
    assert shown(LoadSlider.execute("plain.safetensors", 1.0))[2] == "1 x LoRA; rank 4, no alpha (scale 1)"


def test_what_the_header_says_is_shown_and_its_gate_can_be_applied(loras):
    info = SliderInfo("young", "old", (-2.0, 3.0), Gate(0.2, 1.0, 0.1))
    save_slider(Slider("age", {NAME: LowRank(torch.ones(2, 3), torch.ones(4, 2))}, info), loras / "age.safetensors")
    plain, gated = (LoadSlider.execute("age.safetensors", 1.0, gated) for gated in (False, True))
    assert shown(plain)[1:3] == [
        "from young to old; useful from -2 to 3",
        "gate: from 0.2 to 1 of sampling, ramp 0.1; not applied",
    ]
    assert shown(gated)[2] == "gate: from 0.2 to 1 of sampling, ramp 0.1; applied"
    assert plain.args[0][0].gates == () and gated.args[0][0].gates == (Gate(0.2, 1.0, 0.1),)
    save_slider(Slider("age", {NAME: LowRank(torch.ones(2, 3), torch.ones(4, 2))}), loras / "open.safetensors")
    assert LoadSlider.execute("open.safetensors", 1.0, True).args[0][0].gates == ()


@pytest.mark.parametrize("node", ["save", "convert"])
def test_what_a_file_cannot_hold_is_said(node, loras):
    def saved(stack):
        if node == "save":
            return SaveSlider.execute(stack, "x", "float32")
        return ConvertSlider.execute(stack, "as it is", "x", "float32")

    slider = Slider("age", {NAME: LowRank(torch.ones(2, 3), torch.ones(4, 2))}, SliderInfo(gate=Gate(0.9)))
    two = Stack.of(slider).gated(Gate(0.2)).gated(Gate(0.0, 0.7))
    out = saved(two)
    assert len(shown(out)) == 1 and warned(out) == []
    assert load_slider(loras / out.args[1]).info.gate == Gate(0.2, 0.7)
    out = saved(two.gated(Gate(0.1, 1.0, 0.4)).restricted_to("cond"))
    assert (
        warned(out)
        == shown(out)[1:]
        == [
            "Not stored, set it again after loading: its 3 gates (0.2 to 1 with ramp 0 and 0 to 0.7 with ramp 0 and "
            "0.1 to 1 with ramp 0.4), which are not one gate together; that it acts on cond only"
        ]
    )
    assert load_slider(loras / out.args[1]).info.gate == Gate()


def test_files_of_every_ending_and_in_both_folders_can_be_reached(folders):
    loras, sliders = folders
    for name in ("a.sft", "b.pth", "c.SAFETENSORS", "d.pt", "e.bin", "f.ckpt", "g.txt", "two/h.safetensors"):
        (loras / name).parent.mkdir(exist_ok=True)
        (loras / name).touch()
    for name in ("a.sft", "two/h.safetensors", "i.PT", "i.png"):
        (sliders / name).parent.mkdir(exist_ok=True)
        (sliders / name).touch()
    assert slider_names() == [
        "a.sft", "b.pth", "c.SAFETENSORS", "d.pt", "e.bin", "f.ckpt", "i.PT", "loras/a.sft",
        "loras/two/h.safetensors", "two/h.safetensors",
    ]  # fmt: skip
    found = [find_slider(name) for name in slider_names()]
    assert len(set(found)) == len(found)
    assert find_slider("a.sft") == sliders / "a.sft" and find_slider("loras/a.sft") == loras / "a.sft"
    with pytest.raises(FileNotFoundError, match=r"There is no slider file 'loras/z.pt'"):
        find_slider("loras/z.pt")


@pytest.fixture(scope="module")
def model():
    return tiny_model("SD15")


def words(count=2):
    generator = torch.Generator().manual_seed(1)
    return {
        LAYER.format(i): LowRank(torch.randn(2, 32, generator=generator), torch.randn(64, 2, generator=generator))
        for i in range(count)
    }


def test_apply_says_what_of_a_slider_is_there_and_what_is_not(model):
    clip, own = tiny_clip(), random_slider(model).layers
    slider = Slider("age", {**own, **words(3)})
    (line,) = warned(ApplySliders.execute(model, Stack.of(slider)))
    assert line == f"age: {len(own)} of {len(own)} layers, 3 text encoder layers not applied: connect CLIP"
    assert warned(ApplySliders.execute(model, Stack.of(slider), clip=clip)) == [
        f"age: {len(own)} of {len(own)} layers, 2 of 3 text encoder layers",
        f"not in these text encoders: {LAYER.format(2)}",
    ]
    out = ApplySliders.execute(model, Stack.of(Slider("words", words(1))), clip=clip)
    (line,) = shown(out)
    assert warned(out) == [] and line == "words: 1 of 1 text encoder layer"


@pytest.mark.parametrize(("strengths", "beyond"), [((2.0,), ""), ((-2.5,), "-2.5"), ((-3.0, 0.0, 2.0, 3.0), "-3, 3")])
def test_apply_warns_where_a_slider_of_the_text_encoder_may_turn_back(model, strengths, beyond):
    clip = tiny_clip()
    trained = SliderInfo(useful_range=(-2.0, 2.0), recipe={"kind": "encoder"})
    stack = Stack.of(Slider("words", words(1), trained), strengths)
    said = f"strength {beyond} is beyond -2 to 2, for which its layers of the text encoder were trained: "
    lines = warned(ApplySliders.execute(model, stack, clip=clip))
    assert lines == ([f"{said}it may turn back there"] if beyond else [])
    another = Stack.of(Slider("words", words(1)), strengths)  # of a file that says nothing of a range
    assert warned(ApplySliders.execute(model, another, clip=clip)) == []


@pytest.mark.parametrize("count", [1, 4, 60])
def test_apply_names_the_layers_that_are_not_there(count, model):
    odd = {f"lora_unet_odd_{i}": LowRank(torch.ones(2, 3), torch.ones(4, 2)) for i in range(count)}
    own = random_slider(model).layers
    whole = Slider("whole", own)
    out = ApplySliders.execute(model, Stack.of(Slider("age", {**own, **odd})) + Stack.of(whole))
    line, missing = warned(out)
    assert shown(out)[2:] == [f"whole: {len(own)} of {len(own)} layers"]
    assert line == f"age: {len(own)} of {len(own) + count} layers"
    names = ", ".join(list(odd)[:50]) + (" and 10 more" if count == 60 else "")
    assert missing == f"not in this model: {names}"


def test_a_configuration_beside_a_file_is_watched_with_it(loras):
    """The scale of a PEFT adapter is in a file of its own: changed, it is another slider."""
    folder = loras / "age"
    folder.mkdir()
    save_file(layer(alpha=False), folder / "adapter_model.safetensors")
    seen = [LoadSlider.fingerprint_inputs("age/adapter_model.safetensors", 1.0)]
    config = folder / "adapter_config.json"
    for second, alpha in ((1, 8), (2, 4)):
        config.write_text(f'{{"r": 4, "lora_alpha": {alpha}}}')
        os.utime(config, (second, second))
        seen += [LoadSlider.fingerprint_inputs("age/adapter_model.safetensors", 1.0)]
    assert len(set(seen)) == 3
    assert LoadSlider.fingerprint_inputs("age/adapter_model.safetensors", 1.0) == seen[-1]
    save_file(layer(), loras / "plain.safetensors")
    (loras / "adapter_config.json").write_text("{}")
    before = LoadSlider.fingerprint_inputs("plain.safetensors", 1.0)
    (loras / "adapter_config.json").unlink()
    assert LoadSlider.fingerprint_inputs("plain.safetensors", 1.0) == before  # it was of another file


def test_a_report_keeps_its_order_and_stands_beside_images():
    class Image:
        def as_dict(self):
            return {"images": [{"filename": "a.png"}], "animated": (False,)}

    report = Report().fact("a").warn("", "b") + Report().fact("c")
    assert report.on_node(Image()) == {
        "images": [{"filename": "a.png"}],
        "animated": [False],
        KEY: [{"kind": "fact", "text": "a"}, {"kind": "warning", "text": "b"}, {"kind": "fact", "text": "c"}],
    }


@pytest.mark.parametrize(
    ("progress", "is_kept", "facts", "warnings"),
    [
        (Progress([0.5] * 120), True, ["120 of 120 steps; loss 0.5"], []),
        (Progress([0.5] * 85, stopped=True), False, [], ["stopped at step 85 of 120; loss 0.5"]),
        (
            Progress([0.5] * 85, stopped=True),
            True,
            [],
            ["stopped at step 85 of 120; loss 0.5; the same training, queued again, goes on from there"],
        ),
        (
            Progress([0.5] * 120, resumed_from=85, notes=["Training: there is little memory"]),
            True,
            ["went on from step 85", "120 of 120 steps; loss 0.5"],
            ["Training: there is little memory"],
        ),
        (
            Progress([0.5], converged=True),
            True,
            ["1 of 120 steps; loss 0.5; it ended early, as its effect no longer grew"],
            [],
        ),
        (Progress([0.5] * 3, failure="It broke."), True, [], ["It broke. The slider is as it was after step 3."]),
    ],
)  # fmt: skip
def test_what_training_nodes_say_at_the_end(progress, is_kept, facts, warnings):
    report = told(progress, 120, is_kept)
    assert [text for kind, text in report.lines if kind == FACT] == facts
    assert [text for kind, text in report.lines if kind == WARNING] == warnings


def test_nodes_that_report_send_their_reports_again_in_runs_from_the_cache():
    """Without it ComfyUI sends nothing for a node that it does not run again."""
    flagged = {node for node in NODES if node.GET_SCHEMA().has_intermediate_output}
    assert flagged == {node for node in NODES if "**REPORTS" in inspect.getsource(node)}
    modules = {inspect.getmodule(node) for node in NODES}
    assert {inspect.getmodule(node) for node in flagged} == {each for each in modules if hasattr(each, "REPORTS")}


def test_apply_says_what_does_not_keep_to_its_gate(model):
    """An encoding has no gates, and is neither cond nor uncond."""
    gated = Stack.of(Slider("words", words(1))).gated(Gate(0.5))
    for stack in (gated, Stack.of(Slider("words", words(1))).restricted_to("cond")):
        (beyond,) = warned(ApplySliders.execute(model, stack, clip=tiny_clip()))
        assert beyond.startswith("its 1 layers of the text encoder act from the first step on")
    assert warned(ApplySliders.execute(model, Stack.of(Slider("words", words(1))), clip=tiny_clip())) == []

"""Every method of tuning, the whole way: train, stop, resume, reload, merge, be loaded by an engine; or say why not."""

import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from conftest import ROOT, Cli
from plans import CPU, demo_facts, finetune_plan

from toolbox import embedded, i18n, loading, loreft, merging, methods
from toolbox.errors import InputError
from toolbox.methods import LisaConfig, LoreftConfig
from toolbox.plan import MergePlan
from toolbox.training import optim
from toolbox.training.projected import ProjectedAdamW
from toolbox.training.tuner import tuner_for
from toolbox.training.tuners import adalora
from toolbox.training.tuners.weights import Lisa

sys.path.insert(0, str(ROOT / "scripts"))
import tuners
import tuners_page

FAST = ("pissa",)
"""The others go through the same code, in the slow tests."""
KNOWN = [(name, "none") for name in FAST]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def model() -> Any:
    return loading.base_model(embedded.MODEL, "float32", "cpu")


def passes(figures: tuners.Figures) -> None:
    method = methods.find(figures.method)
    assert figures.resumed_equal is (None if figures.quantization == "nf4" and method.name != "qlora" else True)
    assert figures.loss_after < figures.loss_before
    assert figures.reload_diff <= tuners.SAME
    if method.kind == "adapter" and figures.merge_diff is not None:
        assert figures.merge_diff <= tuners.MERGED
    if method.kind != "weights" and figures.quantization == "none":
        assert method.served == (figures.engine_diff is not None and figures.engine_diff <= tuners.SAME)


@pytest.mark.parametrize("method", FAST)
def test_a_method_trains_resumes_and_reloads(method: str, home: Path) -> None:
    passes(tuners.measure(method, "none", home, merge=method == "pissa"))


@pytest.mark.slow
@pytest.mark.parametrize(("method", "quantization"), [pair for pair in tuners.every() if pair not in KNOWN])
def test_all_methods_with_and_without_four_bits(method: str, quantization: str, home: Path) -> None:
    passes(tuners.measure(method, quantization, home))


def test_what_the_page_tells_was_measured_of_every_method() -> None:
    figures = tuners.read()
    assert {(figure.method, figure.quantization) for figure in figures} == set(tuners.every())
    for figure in figures:
        passes(figure)


@pytest.mark.parametrize("language", ["zh", "en"])
def test_the_page_says_what_was_measured(language: str) -> None:
    written = tuners_page.PAGES[language].read_text("utf-8")
    try:
        assert written == tuners_page.page(language), "run scripts/tuners_page.py"
    finally:
        i18n.use("en")


# Each by itself


def test_lora_plus_teaches_b_faster() -> None:
    made = finetune_plan(Path("none"), method="lora+", blocks={"LoraPlusConfig": {"loraplus_lr_ratio": 8}})
    tuned = tuner_for(made).load("cpu")
    optimizer = optim.make(tuned.named_parameters(), made)
    optim.set_rate(optimizer, 1e-3)
    rates = {id(weight): group["lr"] for group in optimizer.param_groups for weight in group["params"]}
    for name, weight in tuned.named_parameters():
        if weight.requires_grad:
            assert rates[id(weight)] == pytest.approx(8e-3 if "lora_B" in name else 1e-3)


def test_lora_fa_leaves_a_alone() -> None:
    tuned = tuner_for(finetune_plan(Path("none"), method="lora-fa")).load("cpu")
    trained = [name for name, weight in tuned.named_parameters() if weight.requires_grad]
    assert trained
    assert all("lora_B" in name for name in trained)


def test_lisa_draws_layers_by_seed_and_step_and_forgets_the_moments_of_the_rest() -> None:
    tuned = model()
    optimizer = torch.optim.AdamW(tuned.parameters(), lr=1e-3)
    lisa = Lisa(tuned, optimizer, LisaConfig(layers=1, interval_steps=2), seed=0)
    lisa.follow(0)
    layers = loading.decoder_layers(tuned)
    seen = []
    for step in range(8):
        awake = {index for index, layer in enumerate(layers) if all(w.requires_grad for w in layer.parameters())}
        assert awake == lisa.drawn(step)
        seen.append(awake)
        tuned(input_ids=torch.tensor([[5, 6, 7]])).logits.sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        kept = {index for index, layer in enumerate(layers) if any(w in optimizer.state for w in layer.parameters())}
        assert kept <= lisa.drawn(step + 1)
    assert seen[0] == seen[1]
    assert len(set(map(tuple, seen))) > 1
    assert tuned.get_input_embeddings().weight.requires_grad


def test_freezing_trains_the_last_or_the_first_layers_and_named_modules() -> None:
    def trained(**config: Any) -> set[str]:
        made = finetune_plan(Path("none"), method="freeze", LoraConfig={}, blocks={"FreezeConfig": config})
        tuned = tuner_for(made).load("cpu")
        return {name for name, weight in tuned.named_parameters() if weight.requires_grad}

    assert all(name.startswith("model.layers.3.") for name in trained(layers=1))
    assert all(name.startswith("model.layers.0.") for name in trained(layers=-1))
    assert trained(layers=0, modules=["model.norm"]) == {"model.norm.weight"}
    with pytest.raises(InputError, match="FreezeConfig"):
        trained(layers=0)
    with pytest.raises(InputError, match="FreezeConfig"):
        trained(layers=1, modules=["nowhere"])


def test_adalora_ends_with_the_rank_it_was_told_and_pulls_towards_orthogonality() -> None:
    made = finetune_plan(
        Path("none"), method="adalora", LoraConfig={},
        blocks={"AdaLoraConfig": {"target_modules": ["q_proj"], "init_r": 6, "target_r": 2, "orth_reg_weight": 1.0}},
    )  # fmt: skip
    tuner = tuner_for(made)
    tuned: Any = tuner.load("cpu")
    optimizer = torch.optim.AdamW([weight for weight in tuned.parameters() if weight.requires_grad], lr=1e-2)
    tuner.follow(tuned, optimizer, 0, 20)
    for _ in range(20):
        tuned(
            input_ids=torch.tensor([[5, 6, 7, 8]]), labels=torch.tensor([[5, 6, 7, 8]])
        ).logits.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    ranks = tuned.peft_config["default"].rank_pattern
    assert sum(map(sum, ranks.values())) <= 2 * 4
    assert adalora.state(tuned).keys() >= {f"rank_pattern/{name}" for name in ranks}


def test_an_intervention_begins_as_the_identity_and_edits_only_its_subspace() -> None:
    torch.manual_seed(0)
    one = loreft.Intervention(32, 3)
    states = torch.randn(2, 5, 32)
    assert torch.allclose(one(states), states, atol=1e-5)
    torch.nn.init.normal_(one.source.weight)
    rotation = one.rotation.weight
    assert torch.allclose(rotation @ rotation.T, torch.eye(3), atol=1e-5)
    edit = one(states) - states
    outside = edit - edit @ rotation.T @ rotation
    assert edit.abs().max() > 0.1
    assert outside.abs().max() < 1e-5
    expected = states @ one.source.weight.T + one.source.bias
    assert torch.allclose(one(states) @ rotation.T, expected, atol=1e-4)


def test_interventions_keep_to_their_positions_and_can_be_switched_off() -> None:
    tuned, tokens = model(), torch.arange(5, 15)[None]
    before = tuned(input_ids=tokens).logits
    put = loreft.attach(tuned, LoreftConfig(r=2, layers=[3], positions=4))
    torch.nn.init.normal_(put.layers["3"].source.weight)
    moved = (tuned(input_ids=tokens).logits - before).abs().amax(-1)[0]
    assert (moved[:4] > 1e-3).all()
    assert (moved[4:] < 1e-4).all()
    with tuned.disable_adapter():
        assert torch.equal(tuned(input_ids=tokens).logits, before)
    with pytest.raises(InputError, match="LoreftConfig"):
        loreft.attach(model(), LoreftConfig(layers=[4]))


@pytest.mark.parametrize("shape", [(12, 5), (5, 12)])
def test_projected_moments_are_small_and_a_full_galore_projection_loses_nothing(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(shape))
    group = {"params": [weight], "projection": "galore", "rank": 5, "update_proj_gap": 2, "scale": 1.0}
    optimizer = ProjectedAdamW([group], lr=1.0)
    weight.grad = torch.randn(shape)
    optimizer.step()
    # At its first step Adam is the sign of what it sees: here, of the gradient in the basis of its singular vectors.
    u, _s, v = torch.linalg.svd(weight.grad, full_matrices=False)
    basis = (weight.detach() @ v.T) if shape[0] > shape[1] else (u.T @ weight.detach())
    seen = (weight.grad @ v.T) if shape[0] > shape[1] else (u.T @ weight.grad)
    assert torch.allclose(basis, -seen.sign(), atol=1e-2)
    small = ProjectedAdamW([{**group, "rank": 2, "projection": "apollo"}], lr=1e-3)
    small.step()
    assert small.state[weight]["exp_avg"].numel() == 2 * 12


def test_projected_settings_reach_the_matrices_of_layers_only() -> None:
    made = finetune_plan(
        Path("none"), method="galore", LoraConfig={}, optim="galore_adamw",
        blocks={"GaloreConfig": {"rank": 7, "update_proj_gap": 3, "scale": 0.5}},
    )  # fmt: skip
    tuned = tuner_for(made).load("cpu")
    groups = optim.make(tuned.named_parameters(), made).param_groups
    projected = {id(weight) for group in groups if group["projection"] for weight in group["params"]}
    linears = {id(weight) for name, weight in tuned.named_parameters() if ".layers." in name and weight.ndim == 2}
    assert projected == linears
    assert {group["rank"] for group in groups if group["projection"]} == {7}


def test_eight_bit_moments_of_full_tuning_are_small_and_survive_a_checkpoint() -> None:
    made = finetune_plan(Path("none"), method="full", optim="adamw_8bit")
    torch.manual_seed(0)
    weight, gradients = torch.nn.Parameter(torch.randn(64, 128)), [torch.randn(64, 128) for _ in range(4)]
    first = optim.make([("w", weight)], made)
    for gradient in gradients[:2]:
        weight.grad = gradient
        first.step()
    tensors: dict[str, torch.Tensor] = {}
    kept = msgspec.json.decode(msgspec.json.encode(optim.split(first.state_dict(), tensors)))
    again = torch.nn.Parameter(weight.detach().clone())
    second = optim.make([("w", again)], made)
    second.load_state_dict(optim.join(kept, tensors))
    for gradient in gradients[2:]:
        for one, optimizer in ((weight, first), (again, second)):
            one.grad = gradient.clone()
            optimizer.step()
    assert first.state[weight]["state1"].dtype == torch.uint8
    assert torch.equal(weight, again)


# What can't be done is said


def loreft_adapter(folder: Path) -> Path:
    folder.mkdir()
    tuned = model()
    loreft.attach(tuned, LoreftConfig(r=2))
    loreft.save(tuned, folder, embedded.MODEL)
    return folder


def test_what_can_not_be_merged_or_served_is_refused_with_the_reason(toolbox_cli: Cli, tmp_path: Path) -> None:
    adapter = loreft_adapter(tmp_path / "adapter")
    merged = toolbox_cli("merge", "--adapter", str(adapter), "--output", str(tmp_path / "out"))
    assert merged.status == 2
    assert "hidden states, not weights" in merged.err
    served = toolbox_cli("serve", "--adapter", str(adapter), "--yes")
    assert served.status == 2
    assert "loreft" in served.err
    plan = MergePlan(
        entry="", model=demo_facts(), device=CPU, adapter=adapter, output=tmp_path / "out", dtype="float32"
    )
    with pytest.raises(InputError, match="hidden states"):
        merging.run(plan)


def test_an_adapter_is_known_by_its_config(tmp_path: Path) -> None:
    def found(**config: Any) -> str:
        (tmp_path / "adapter_config.json").write_bytes(msgspec.json.encode(config))
        method = methods.of_adapter(tmp_path)
        return method.name if method else ""

    assert found(peft_type="LORA") == "lora"
    assert found(peft_type="LORA", use_dora=True) == "dora"
    assert found(peft_type="LN_TUNING") == "ln"
    assert found(peft_type="PROMPT_TUNING") == ""
    for method in methods.METHODS:
        if method.kind != "weights" and method.block != "LoraConfig":
            assert found(peft_type=method.block.removesuffix("Config").upper()) == method.name


def test_settings_that_peft_refuses_are_told_in_its_words(home: Path) -> None:
    made = finetune_plan(
        home, method="boft", LoraConfig={},
        blocks={"BOFTConfig": {"target_modules": "all-linear", "boft_block_size": 7}},
    )  # fmt: skip
    with pytest.raises(InputError, match="BOFTConfig"):
        tuner_for(made).load("cpu")


def test_an_unknown_method_ends_with_what_is_near(toolbox_cli: Cli) -> None:
    answer = toolbox_cli("finetune", "--dataset", "demo-persona", "--method", "dorra", "--dry-run")
    assert answer.status == 2
    assert "dora" in answer.err

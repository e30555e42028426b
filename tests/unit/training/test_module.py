from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from neuromf.config import Config, ConfigError, validate
from neuromf.training.checkpoint import Progress
from neuromf.training.module import (
    BatchStream,
    FlowModule,
    balanced,
    build_objective,
    build_time_sampler,
    generator_for,
    mf_weight,
)
from neuromf.training.resumption import MOMENTS, Resumption

NETWORK = {
    "channels": [4, 8],
    "attention": [False, False],
    "head_channels": [0, 8],
    "residual_blocks": 1,
    "norm_groups": 4,
}


def config(**train: Any) -> Config:
    return validate({"network": NETWORK, "train": {"updates": 100, "learning_rate": 1.0, "warmup_updates": 10} | train})


def test_learning_rate_warms_up_and_follows_the_cosine() -> None:
    module = FlowModule(config(), seed=0)
    rates = []
    for module.update in range(100):
        rates.append(module.learning_rate())
    assert rates[:10] == pytest.approx([0.1 * (n + 1) for n in range(10)])
    assert rates[10] == 1 and rates[55] == pytest.approx(0.5) and 0 < rates[-1] < 0.001
    constant = FlowModule(config(schedule="constant"), seed=0)
    constant.update = 99
    assert constant.learning_rate() == 1


def test_a_warm_up_longer_than_the_run_is_cut() -> None:
    module = FlowModule(config(warmup_updates=1000, updates=4), seed=0)
    module.update = 3
    assert module.learning_rate() > 0 and math.isfinite(module.learning_rate())


def test_norms_and_biases_do_not_decay() -> None:
    optimizer = FlowModule(config(weight_decay=0.1), seed=0).configure_optimizers()
    decayed, others = optimizer.param_groups
    assert decayed["weight_decay"] == 0.1 and others["weight_decay"] == 0
    assert all(p.ndim > 1 for p in decayed["params"]) and all(p.ndim == 1 for p in others["params"])


def test_a_restored_optimiser_lies_where_the_weights_are() -> None:
    """Checkpoints are read on a CPU; the fused optimiser counts on the weights' device (`meta` stands for a GPU)."""
    module = FlowModule(config(), seed=0)
    names = [name for name, _ in module.network.named_parameters()]
    moments = {f"optimizer.{name}.{moment}": torch.zeros(()) for name in names for moment in MOMENTS}
    optimizer = module.to("meta").configure_optimizers()
    Resumption(Progress(3, 1.0, moments)).on_fit_start(SimpleNamespace(optimizers=[optimizer]), module)  # type: ignore[arg-type]
    restored = [value for state in optimizer.state.values() for value in state.values()]
    assert len(restored) == len(names) * len(MOMENTS) and all(value.device.type == "meta" for value in restored)
    assert optimizer.defaults["fused"]


@pytest.mark.parametrize("setting", ["checkpointing", "compile"])
def test_ways_of_running_leave_the_names_of_the_weights(setting: str) -> None:
    plain, changed = FlowModule(config(), seed=0), FlowModule(config(**{setting: True}), seed=0)
    assert plain.state_dict().keys() == changed.state_dict().keys()
    ways = [vars(module).get("forward") for module in changed.network.modules()]
    assert any(ways) and not any(vars(module).get("forward") for module in plain.network.modules())


def test_the_balanced_weight_gives_both_terms_gradients_of_one_norm() -> None:
    """With λ = ‖∇FM‖ / ‖∇MF‖, found from two passes, the terms' gradients taken apart are of one length."""
    flow = FlowModule(validate({"network": NETWORK, "flow": {"adaptive": False}}), seed=0)
    random = torch.Generator().manual_seed(0)
    for parameter in flow.network.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=random)
    z0, noise = torch.randn(2, 6, 4, 8, 8, 8, generator=random)
    r, t = build_time_sampler(flow.config.flow.times).sample(6, random)
    weight = (
        balanced(1.0, flow.objective, flow.network, z0, noise, r, t, None) ** 2
    )  # half of its logarithm is forgotten
    parameters = list(flow.network.parameters())

    def norm(loss: torch.Tensor) -> float:
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        return float(torch.cat([g.flatten() for g in gradients if g is not None]).norm())

    fm = replace(flow.objective, mf_weight=0.0)(flow.network, z0, noise, r, t).loss
    whole = [replace(flow.objective, mf_weight=w)(flow.network, z0, noise, r, t).loss for w in (1.0, 1.0 + weight)]
    less, more = (torch.autograd.grad(loss, parameters, allow_unused=True) for loss in whole)
    mf = [a - b for a, b in zip(more, less, strict=True) if a is not None and b is not None]
    assert norm(fm) == pytest.approx(float(torch.cat([part.flatten() for part in mf]).norm()), rel=1e-3)


def test_a_balance_that_cannot_be_measured_stays() -> None:
    flow = FlowModule(config(), seed=0)
    z0 = torch.full((2, 4, 8, 8, 8), torch.nan)
    r, t = torch.tensor([0.2, 0.5]), torch.tensor([0.5, 0.5])
    assert balanced(0.7, flow.objective, flow.network, z0, z0, r, t, None) == 0.7


def test_what_cannot_be_balanced_is_refused() -> None:
    for changes in ({"fm_rows": "r_equals_t"}, {"v_head": True}, {"variant": "meanflow"}):
        with pytest.raises(ConfigError, match="mf_schedule: balanced measures"):
            validate({"flow": {"mf_schedule": "balanced"} | changes})


def test_weights_depend_on_the_seed_only() -> None:
    torch.manual_seed(5)
    first = FlowModule(config(), seed=1).network.state_dict()
    torch.manual_seed(6)
    again, other = (FlowModule(config(), seed=s).network.state_dict() for s in (1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_settings_reach_the_objective_and_the_times() -> None:
    settings = validate(
        {"flow": {"variant": "meanflow", "p": [1, 2, 3, 2], "norm_p": 0.5, "times": {"t_min": 0.1, "mean": 0.0}}}
    )
    objective, times = build_objective(settings.flow), build_time_sampler(settings.flow.times)
    assert (objective.variant, objective.p, objective.norm_p, objective.t_min) == ("meanflow", (1, 2, 3, 2), 0.5, 0.1)
    assert (times.mean, times.t_min) == (0.0, 0.1)


def test_the_weight_of_the_meanflow_term_is_constant_or_rises() -> None:
    constant, rising = (validate({"flow": {"mf_weight": 0.5, "mf_ramp": ramp}}).flow for ramp in ([0, 0], [0.25, 0.75]))
    shares = (0.0, 0.25, 0.375, 0.5, 0.75, 1.0)
    assert [mf_weight(constant, share) for share in shares] == [0.5] * 6
    assert [mf_weight(rising, share) for share in shares] == [0, 0, 0.125, 0.25, 0.5, 0.5]
    step = validate({"flow": {"mf_ramp": [0.5, 0.5]}}).flow
    assert [mf_weight(step, share) for share in (0.49, 0.5)] == [0, 1]


def test_a_step_uses_the_weight_of_its_update() -> None:
    module = FlowModule(
        config(updates=4).model_copy(update={"flow": validate({"flow": {"mf_ramp": [0.5, 1]}}).flow}), 0
    )
    z0 = torch.randn(4, 4, 8, 8, 8)
    with_meanflow = []
    for module.update in range(4):
        module.training_step(z0, 0)
        assert module.output is not None
        with_meanflow.append(bool(torch.isfinite(module.output.raw_mf)))
    assert with_meanflow == [False, False, False, True]


@pytest.mark.parametrize(
    ("flow", "message"),
    [
        ({"mf_ramp": [0.5, 0.2]}, "begin <= end"),
        ({"mf_ramp": [0, 0.5], "v_head": True}, "set mf_ramp to"),
        ({"mf_weight": 0, "v_head": True}, "set v_head to false"),
        ({"fm_rows": "r_equals_t", "v_head": True, "times": {"r_equals_t": 0.01}}, "no row to train flow.v_head on"),
    ],
)
def test_flows_that_learn_nothing_of_a_part_are_refused(flow: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate({"flow": flow})


def test_a_step_is_a_function_of_seed_and_update() -> None:
    module, z0 = FlowModule(config(), seed=0), torch.randn(4, 4, 8, 8, 8)
    losses = []
    for module.update in (0, 1, 0):
        losses.append(float(module.training_step(z0, 0).detach()))
    assert losses[0] == losses[2] != losses[1]


def objective_inputs(monkeypatch: pytest.MonkeyPatch, module: FlowModule, z0: torch.Tensor) -> tuple[Any, ...]:
    """What a training step hands to the objective after the network: z0, noise, r, t, mask."""
    seen: list[tuple[Any, ...]] = []
    call = type(module.objective).__call__

    def spy(self: Any, network: Any, *inputs: Any) -> Any:
        seen.append(inputs)
        return call(self, network, *inputs)

    with monkeypatch.context() as context:
        context.setattr(type(module.objective), "__call__", spy)
        module.training_step(z0, 0)
    return seen[0]


def test_latents_are_augmented(monkeypatch: pytest.MonkeyPatch) -> None:
    module, z0 = FlowModule(config(augmentation={"flip_left_right": 1.0}), seed=0), torch.randn(2, 4, 8, 8, 8)
    assert torch.equal(objective_inputs(monkeypatch, module, z0)[0], z0.flip(2))


def test_mask_and_augmentation_leave_noise_and_times_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    z0 = torch.randn(4, 4, 8, 8, 8)
    plain = FlowModule(config(augmentation={"flip_left_right": 0.0}), seed=0)
    changed = FlowModule(config(augmentation={"noise": 1.0, "mixup": 1.0}, loss_mask={"kind": "voxel"}), seed=0)
    z, *random, mask = objective_inputs(monkeypatch, plain, z0)
    z_changed, *random_changed, mask_changed = objective_inputs(monkeypatch, changed, z0)
    assert torch.equal(z, z0) and not torch.equal(z_changed, z0)
    assert all(torch.equal(one, other) for one, other in zip(random, random_changed, strict=True))
    assert mask is None and mask_changed.shape == (4, 1, 8, 8, 8) and mask_changed.mean() == 0.5


def test_the_mask_changes_with_the_update(monkeypatch: pytest.MonkeyPatch) -> None:
    module, z0 = FlowModule(config(loss_mask={"kind": "block", "block": 2}), seed=0), torch.randn(2, 4, 8, 8, 8)
    masks = []
    for module.update in (0, 1, 0):
        masks.append(objective_inputs(monkeypatch, module, z0)[-1])
    assert torch.equal(masks[0], masks[2]) and not torch.equal(masks[0], masks[1])


def test_batches_are_shuffled_passes_and_resume_anywhere() -> None:
    whole = list(BatchStream(7, 3, seed=0, first=0, last=14))
    assert len(BatchStream(7, 3, seed=0, first=5, last=14)) == 9
    assert list(BatchStream(7, 3, seed=0, first=5, last=14)) == whole[5:]
    flat = [index for batch in whole for index in batch]
    passes = [flat[n * 7 : n * 7 + 7] for n in range(6)]
    assert all(sorted(one) == list(range(7)) for one in passes) and len({tuple(one) for one in passes}) > 1
    assert list(BatchStream(7, 3, seed=1, first=0, last=14)) != whole


def test_a_batch_may_be_larger_than_the_data() -> None:
    (batch,) = BatchStream(2, 5, seed=0, first=0, last=1)
    assert sorted(batch)[:2] == [0, 0] or sorted(batch)[-2:] == [1, 1]
    with pytest.raises(ValueError, match="no latents"):
        BatchStream(0, 2, seed=0, first=0, last=1)


def test_generators_differ_by_purpose() -> None:
    draws = {
        float(torch.rand(1, generator=generator_for(torch.device("cpu"), *what)))
        for what in [(0, "train", 1), (0, "train", 2), (1, "train", 1), (0, "validation")]
    }
    assert len(draws) == 4

"""Every way to tune fits one base: what a role has for itself is heard with it alone, and opens in plain PEFT."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tests.conftest import Workshop
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from duiqi.errors import ModelError
from duiqi.models.adapter_files import read_adapter, save_adapter
from duiqi.models.adapters import FreezeSpec, LoRASpec
from duiqi.models.layout import trunk_of
from duiqi.models.lineage import as_below, digest_of
from duiqi.models.merging import merge
from duiqi.models.prefix import PrefixSpec
from duiqi.models.seats import take_seat
from duiqi.models.shared_base import SharedBase
from duiqi.packing.batch import Family, pack

IDS = torch.tensor([[5, 6, 7, 8, 9]])
Seating = Callable[[SharedBase, str], None]


def tiny(dtype: torch.dtype = torch.float32, *, tied: bool = False) -> PreTrainedModel:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).eval().to(dtype)


def seat_lora(base: SharedBase, role: str) -> None:
    base.seat_new_adapter(role, LoRASpec(rank=2, target="mlp@1-2"))


def seat_lora_and_head(base: SharedBase, role: str) -> None:
    base.seat_new_adapter(role, LoRASpec(rank=2, modules_to_save="embed_tokens,lm_head"))


def seat_freeze(base: SharedBase, role: str) -> None:
    base.seat_new_adapter(role, FreezeSpec(layers=-2, modules="mlp,input_layernorm,self_attn.q_proj"))


def seat_prefix(base: SharedBase, role: str) -> None:
    base.seat_new_prefix(role, PrefixSpec(num_slots=3), opening=[11, 12])


def seat_projected_prefix(base: SharedBase, role: str) -> None:
    base.seat_new_prefix(role, PrefixSpec(num_slots=3, projection=True), opening=[11, 12])


SEATINGS = [seat_lora, seat_lora_and_head, seat_freeze, seat_prefix, seat_projected_prefix]
each_seating = pytest.mark.parametrize("seat", SEATINGS)


def shake(base: SharedBase, role: str, *, by: float = 0.05) -> None:
    """Move everything that a role trains."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in base.role_parameters(role).values():
            if parameter.requires_grad:
                parameter.add_(by * torch.randn_like(parameter))


@torch.no_grad()
def logits(base: SharedBase, role: str) -> torch.Tensor:
    with base.acting(role):
        return base.logits(base.trunk(IDS)[0])


def save(base: SharedBase, role: str, directory: Path) -> Path:
    """Write the role's own adapter."""
    directory.mkdir()
    own = base.seat(role).own
    assert own is not None
    save_adapter(directory, base.seat(role).network, own, base=str(directory.parent / "base"))
    return directory


@each_seating
class TestARole:
    def test_hears_its_own_and_nobody_else_does(self, seat: Seating) -> None:
        base = SharedBase(tiny(), name="tiny")
        base.seat_bare("bare")
        before = logits(base, "bare")
        seat(base, "policy")
        base.rest_on("policy")
        shake(base, "policy")
        moved = logits(base, "policy")
        assert not torch.allclose(moved, before, atol=1e-2)
        assert torch.allclose(logits(base, "bare"), before, atol=1e-6)
        assert torch.equal(logits(base, "policy"), moved)

    def test_trains_its_own_and_leaves_the_base_as_it_was(self, seat: Seating) -> None:
        model = tiny()
        frozen = {name: weight.clone() for name, weight in model.state_dict().items()}
        base = SharedBase(model, name="tiny")
        seat(base, "policy")
        base.rest_on("policy")
        learning = base.trainable_parameters()
        assert learning
        assert {id(p) for p in learning.values()} == {id(p) for p in base.role_parameters("policy").values()}
        shake(base, "policy")
        hidden = base.read(pack([Family([1, 2, 3], [[4, 5], [6]])]))
        base.logits(hidden).square().sum().backward()
        without = [name for name, p in learning.items() if p.grad is None or not p.grad.any()]
        assert without == []
        base.seat_bare("bare")
        with base.role("bare"):
            now = {
                name.replace(".base_layer.", "."): w for name, w in model.state_dict().items() if "lora_" not in name
            }
            assert now.keys() == frozen.keys()
            assert all(torch.equal(now[name], weight) for name, weight in frozen.items())

    def test_has_the_gradients_of_finite_differences(self, seat: Seating) -> None:
        base = SharedBase(tiny(), name="tiny")
        seat(base, "policy")
        base.rest_on("policy")
        shake(base, "policy", by=0.02)
        batch = pack([Family([1, 2, 3], [[4, 5], [6]])])

        def loss() -> torch.Tensor:
            return base.logits(base.read(batch)).square().mean()

        loss().backward()
        torch.manual_seed(3)
        for parameter in base.trainable_parameters().values():
            assert parameter.grad is not None
            direction = torch.randn_like(parameter)
            step = 3e-3 / float(direction.norm())
            with torch.no_grad():
                parameter.add_(direction, alpha=step)
                up = float(loss())
                parameter.sub_(direction, alpha=2 * step)
                down = float(loss())
                parameter.add_(direction, alpha=step)
            slope = float((parameter.grad * direction).sum())
            assert (up - down) / (2 * step) == pytest.approx(slope, rel=3e-2, abs=2e-3 * float(direction.norm()))

    def test_is_copied_equal_and_apart(self, seat: Seating) -> None:
        base = SharedBase(tiny(), name="tiny")
        seat(base, "policy")
        shake(base, "policy")
        base.seat_copy("reference", "policy", trainable=False)
        before = logits(base, "policy")
        assert torch.equal(logits(base, "reference"), before)
        shake(base, "policy")
        assert torch.equal(logits(base, "reference"), before)
        assert not torch.allclose(logits(base, "policy"), before, atol=1e-3)
        assert {name.split(".")[1] for name in base.trainable_parameters() if name.startswith(("own", "prefix"))} <= {
            "policy"
        }

    def test_opens_in_plain_peft(self, seat: Seating, tmp_path: Path) -> None:
        tiny().save_pretrained(tmp_path / "base")
        base = SharedBase(tiny(), name="tiny")
        seat(base, "policy")
        shake(base, "policy")
        ours = logits(base, "policy")
        directory = save(base, "policy", tmp_path / "adapter")
        theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), directory).eval()
        with torch.no_grad():
            assert torch.allclose(theirs(input_ids=IDS).logits, ours, atol=1e-5)
        again = SharedBase(tiny(), name="tiny")
        again.seat_saved_adapter("policy", read_adapter(directory), trainable=True)
        assert torch.allclose(logits(again, "policy"), ours, atol=1e-6)

    def test_reads_packed_what_it_reads_one_sequence_at_a_time(self, seat: Seating) -> None:
        base = SharedBase(tiny(), name="tiny")
        seat(base, "policy")
        shake(base, "policy")
        with base.acting("policy"):
            found = base.read_ends(pack([Family([1, 2, 3], [[4, 5], [6]])]))
            alone = [base.trunk(torch.tensor([ids]))[0][0, -1] for ids in ([1, 2, 3, 4, 5], [1, 2, 3, 6])]
        assert torch.allclose(found, torch.stack(alone), atol=1e-5)

    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
    def test_decodes_with_a_cache_what_it_reads_at_once(
        self, seat: Seating, dtype: torch.dtype, tolerance: float
    ) -> None:
        base = SharedBase(tiny(dtype), name="tiny")
        seat(base, "policy")
        shake(base, "policy")
        with base.acting("policy"):
            whole = base.trunk(IDS)[0]
            cache = base.new_cache()
            parts = []
            for place in range(IDS.shape[1]):
                positions = torch.tensor([[place]])
                mask = torch.ones(1, place + 1, dtype=torch.bool)
                hidden, cache = base.trunk(  # type: ignore[assignment]
                    IDS[:, place : place + 1],
                    position_ids=positions,
                    attention_mask=mask,
                    past_key_values=cache,
                    use_cache=True,
                )
                parts.append(hidden)
        assert whole.dtype == dtype
        assert (torch.cat(parts, dim=1) - whole).norm() / whole.norm() < tolerance

    def test_stands_beside_low_rank_roles_on_the_same_modules(self, seat: Seating) -> None:
        base = SharedBase(tiny(), name="tiny")
        base.seat_new_adapter("reward", LoRASpec(rank=2))
        shake(base, "reward")
        alone = logits(base, "reward")
        torch.manual_seed(4)
        seat(base, "policy")
        shake(base, "policy")
        assert torch.allclose(logits(base, "reward"), alone, atol=1e-6)
        other = SharedBase(tiny(), name="tiny")
        torch.manual_seed(4)
        seat(other, "policy")
        shake(other, "policy")
        assert torch.allclose(logits(base, "policy"), logits(other, "policy"), atol=1e-6)

    def test_in_half_precision_keeps_its_own_in_float32(self, seat: Seating) -> None:
        base = SharedBase(tiny(torch.bfloat16), name="tiny")
        seat(base, "policy")
        base.rest_on("policy")
        assert {p.dtype for p in base.role_parameters("policy").values()} == {torch.float32}
        assert base.dtype == base.precision == torch.bfloat16
        hidden = base.read(pack([Family([1, 2, 3], [[4, 5]])]))
        assert hidden.dtype == torch.bfloat16
        base.logits(hidden).square().sum().backward()
        exact = SharedBase(tiny(), name="tiny")
        seat(exact, "policy")
        gap = (logits(base, "policy") - logits(exact, "policy")).norm() / logits(exact, "policy").norm()
        assert gap < 0.03

    def test_may_be_a_critic_of_which_every_weight_learns(self, seat: Seating) -> None:
        base = SharedBase(tiny(torch.bfloat16), name="tiny")
        seat(base, "policy")
        shake(base, "policy")
        base.seat_learning_copy("value", "policy")
        base.rest_on("policy")
        with base.acting("value"):
            critic = base.trunk(IDS)[0]
        with base.acting("policy"):
            policy = base.trunk(IDS)[0]
        assert critic.dtype == torch.float32
        assert (critic - policy.float()).norm() / critic.norm() < 0.03
        with base.role("value"):
            base.trunk(IDS)[0].square().sum().backward()
        assert all(p.grad is None for p in base.role_parameters("policy").values())
        assert any(p.grad is not None for p in base.seat("value").network.parameters())


@each_seating
class TestAStack:
    def test_begins_as_what_it_stands_on(self, seat: Seating, tmp_path: Path) -> None:
        first = SharedBase(tiny(), name="tiny")
        seat(first, "policy")
        shake(first, "policy")
        saved = read_adapter(save(first, "policy", tmp_path / "first"))
        base = SharedBase(tiny(), name="tiny")
        base.seat_new_adapter("policy", LoRASpec(rank=2), above=[saved])
        assert torch.allclose(logits(base, "policy"), logits(first, "policy"), atol=1e-5)
        trained = {name.split(".lora_")[0] for name in base.trainable_parameters()}
        assert len(trained) == 3 * 7
        base.seat_copy("reference", "policy", trainable=False)
        shake(base, "policy")
        assert torch.allclose(logits(base, "reference"), logits(first, "policy"), atol=1e-5)
        assert not torch.allclose(logits(base, "policy"), logits(first, "policy"), atol=1e-3)

    def test_is_the_sum_of_both_however_it_is_loaded(self, seat: Seating, tmp_path: Path) -> None:
        if seat in (seat_prefix, seat_projected_prefix):
            pytest.skip("two prefixes: the upper one alone is read")
        first = SharedBase(tiny(), name="tiny")
        seat_lora(first, "policy")
        shake(first, "policy")
        below = read_adapter(save(first, "policy", tmp_path / "first"))
        base = SharedBase(tiny(), name="tiny")
        spec = {
            seat_lora: LoRASpec(rank=2, target="mlp@1-2"),
            seat_lora_and_head: LoRASpec(rank=2, modules_to_save="embed_tokens,lm_head"),
            seat_freeze: FreezeSpec(-2, "mlp,input_layernorm,self_attn.q_proj"),
        }[seat]  # type: ignore[index]
        base.seat_new_adapter("policy", spec, above=[below])
        shake(base, "policy")
        stacked = logits(base, "policy")
        own = read_adapter(save(base, "policy", tmp_path / "second"))
        again = SharedBase(tiny(), name="tiny")
        again.seat_saved_adapter("policy", own, trainable=False, above=[below])
        assert torch.allclose(logits(again, "policy"), stacked, atol=1e-6)
        with again.acting("policy"):
            packed = again.logits(again.read_ends(pack([Family([5, 6], [[7, 8, 9]])])))
        assert torch.allclose(packed, stacked[0, -1:], atol=1e-5)
        assert as_below([below])[0].digest == digest_of(below) != digest_of(own)


def test_a_prefix_above_embeddings_of_its_own_stays_in_half_precision(tmp_path: Path) -> None:
    first = SharedBase(tiny(torch.bfloat16), name="tiny")
    seat_lora_and_head(first, "policy")
    saved = read_adapter(save(first, "policy", tmp_path / "first"))
    base = SharedBase(tiny(torch.bfloat16), name="tiny")
    base.seat_new_prefix("policy", PrefixSpec(num_slots=3), opening=[11, 12], above=[saved])
    assert logits(base, "policy").isfinite().all()


def test_a_second_prefix_would_replace_the_first_and_is_refused(tmp_path: Path) -> None:
    first = SharedBase(tiny(), name="tiny")
    seat_prefix(first, "policy")
    saved = read_adapter(save(first, "policy", tmp_path / "first"))
    base = SharedBase(tiny(), name="tiny")
    with pytest.raises(ModelError, match="reads behind a learned prefix already"):
        base.seat_new_prefix("policy", PrefixSpec(num_slots=3), opening=[11, 12], above=[saved])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_merged_is_in_the_precision_of_the_base(tmp_path: Path, dtype: torch.dtype) -> None:
    base = SharedBase(tiny(dtype), name="tiny")
    seat_lora_and_head(base, "policy")
    shake(base, "policy")
    saved = read_adapter(save(base, "policy", tmp_path / "adapter"))
    plain = merge(take_seat(tiny(dtype), "merged", [saved]))
    assert {parameter.dtype for parameter in plain.parameters()} == {dtype}
    with torch.no_grad():
        gap = (plain(input_ids=IDS).logits.float() - logits(base, "policy")).norm() / logits(base, "policy").norm()
    assert gap < (1e-5 if dtype == torch.float32 else 0.03)


def test_a_role_may_be_named_like_a_layer() -> None:
    base = SharedBase(tiny(), name="tiny")
    base.seat_new_adapter("policy", LoRASpec(rank=2, target="q_proj"))
    base.seat_new_adapter("q_proj", LoRASpec(rank=2, target="q_proj"))
    assert not base.role_parameters("q_proj").keys() & base.role_parameters("policy").keys()


@torch.no_grad()
def test_a_new_prefix_is_the_network_after_reading_its_tokens() -> None:
    base = SharedBase(tiny(), name="tiny")
    base.seat_new_prefix("policy", PrefixSpec(num_slots=4), opening=[11, 12, 13])
    whole = tiny()(input_ids=torch.tensor([[11, 12, 13, 11, *IDS[0].tolist()]])).logits[:, 4:]
    assert torch.allclose(logits(base, "policy"), whole, atol=1e-5)


class TestPiSSA:
    def test_the_base_stays_and_the_adapter_changes_nothing_yet(self) -> None:
        base = SharedBase(tiny(), name="tiny")
        base.seat_bare("bare")
        base.seat_new_adapter("policy", LoRASpec(rank=4, pissa=True))
        assert torch.allclose(logits(base, "policy"), logits(base, "bare"), atol=1e-5)
        layer = base.model.model.layers[1].mlp.up_proj
        down, up = layer.lora_A["policy"].weight, layer.lora_B["policy"].weight
        first = 2.0 * up[:, :4] @ down[:4]
        weight = tiny().model.layers[1].mlp.up_proj.weight
        left, values, right = torch.linalg.svd(weight)
        assert torch.allclose(first, left[:, :4] * values[:4] @ right[:4], atol=1e-4)

    def test_it_learns_as_peft_s_does(self) -> None:
        base = SharedBase(tiny(), name="tiny")
        base.seat_new_adapter("policy", LoRASpec(rank=4, pissa=True))
        base.rest_on("policy")
        config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights="pissa")
        theirs = get_peft_model(tiny(), config)
        ours_learn = list(base.trainable_parameters().values())
        theirs_learn = [p for p in theirs.parameters() if p.requires_grad]
        for parameters, compute in (
            (ours_learn, lambda: base.logits(base.trunk(IDS)[0])),
            (theirs_learn, lambda: theirs(input_ids=IDS).logits),
        ):
            optimizer = torch.optim.SGD(parameters, lr=0.05)
            for _ in range(3):
                compute().square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
        assert torch.allclose(logits(base, "policy"), theirs(input_ids=IDS).logits, atol=1e-4)
        assert not torch.allclose(logits(base, "policy"), tiny()(input_ids=IDS).logits, atol=1e-2)

    def test_a_weight_has_no_more_directions_than_rows(self) -> None:
        base = SharedBase(tiny(), name="tiny")
        with pytest.raises(ModelError, match=r"8 x 16 has no 12 singular directions\n.*lora_rank: 8 or less"):
            base.seat_new_adapter("policy", LoRASpec(rank=12, pissa=True))


def test_own_weights_of_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    tiny(tied=True).save_pretrained(tmp_path / "base")
    base = SharedBase(tiny(tied=True), name="tiny")
    base.seat_new_adapter("policy", LoRASpec(rank=2, modules_to_save="embed_tokens"))
    base.rest_on("policy")
    assert [n for n in base.trainable_parameters() if n.startswith("own")] == ["own.policy.model.embed_tokens.weight"]
    shake(base, "policy")
    network = base.model
    assert network.get_input_embeddings().weight is network.get_output_embeddings().weight
    ours = logits(base, "policy")
    directory = save(base, "policy", tmp_path / "adapter")
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), directory).eval()
    assert torch.allclose(theirs(input_ids=IDS).logits, ours, atol=1e-5)


def test_an_adapter_of_peft_that_replaces_weights_is_read(tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    theirs = get_peft_model(tiny(), config)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 if "lora" in name else 0.01)
    theirs.save_pretrained(tmp_path)
    base = SharedBase(tiny(), name="tiny")
    base.seat_saved_adapter("policy", read_adapter(tmp_path), trainable=False)
    assert torch.allclose(logits(base, "policy"), theirs.eval()(input_ids=IDS).logits, atol=1e-5)


@pytest.mark.parametrize("middle", ["", ".default"])
def test_an_adapter_of_2023_is_read_without_unpickling(tmp_path: Path, middle: str) -> None:
    base = SharedBase(tiny(), name="tiny")
    seat_lora(base, "policy")
    shake(base, "policy")
    directory = save(base, "policy", tmp_path / "new")
    weights = load_file(directory / "adapter_model.safetensors")
    (directory / "adapter_model.safetensors").unlink()
    old = {name.replace(".weight", f"{middle}.weight"): weight for name, weight in weights.items()}
    torch.save(old, directory / "adapter_model.bin")
    again = SharedBase(tiny(), name="tiny")
    again.seat_saved_adapter("policy", read_adapter(directory), trainable=False)
    assert torch.allclose(logits(again, "policy"), logits(base, "policy"), atol=1e-6)


def test_a_prefix_without_slots_is_refused(tmp_path: Path) -> None:
    base = SharedBase(tiny(), name="tiny")
    seat_prefix(base, "policy")
    directory = save(base, "policy", tmp_path / "prefix")
    save_file({"other": torch.zeros(1)}, directory / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="prompt_embeddings is missing from its weights"):
        read_adapter(directory)


class Stranger:
    """Something that a pickle would have to call."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return print, ("called",)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = SharedBase(tiny(), name="tiny")
    seat_lora(base, "policy")
    directory = save(base, "policy", tmp_path / "bad")
    (directory / "adapter_model.safetensors").unlink()
    torch.save({"weight": Stranger()}, directory / "adapter_model.bin")
    with pytest.raises(ModelError, match="cannot be read"):
        read_adapter(directory)
    assert capsys.readouterr().out == ""


def test_an_adapter_for_other_layers_is_refused(tmp_path: Path) -> None:
    base = SharedBase(tiny(), name="tiny")
    base.seat_new_adapter("policy", FreezeSpec(1))
    saved = read_adapter(save(base, "policy", tmp_path / "freeze"))
    shorter = tiny().config
    shorter.num_hidden_layers = 2
    other = SharedBase(LlamaForCausalLM(shorter), name="shorter")
    with pytest.raises(ModelError, match=r"different layers \(first: model\.layers\.2"):
        other.seat_saved_adapter("policy", saved, trainable=False)


def test_frozen_layers_stay_lean_beside_layers_that_learn(workshop: Workshop) -> None:
    base = SharedBase(AutoModelForCausalLM.from_pretrained(workshop.base), name=workshop.base)
    base.seat_new_adapter("policy", FreezeSpec(1, "mlp"))
    assert base.layout.is_lean
    assert base.layout.is_packed
    assert trunk_of(base.model) is base.model.model

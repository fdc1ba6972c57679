"""What libraries do with linear layers: export, adapters, hooks, weight checks, shared layers, experts."""

import copy
import io
import subprocess
import sys
import warnings

import pytest
torch = pytest.importorskip("torch")
from torch import nn
from torch.nn.utils import prune

from reference import dense_twin, error
from scrimp.torch import SparseLinear, compress, load_compressed

LLAMA = dict(
    vocab_size=200, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=128,
)


def llama():
    transformers = pytest.importorskip("transformers")
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).eval()


def peft():
    return pytest.importorskip("peft", reason="PEFT is not installed")


LOADER = """
import sys, torch, torch.nn as nn, scrimp.torch as st
x, y, state = torch.load(sys.argv[1] + "/xy.pt")
programs = torch.export.load(sys.argv[1] + "/e.pt2").module(), torch.jit.load(sys.argv[1] + "/j.pt")

def run():
    for program in programs:
        try:
            print("equal" if torch.equal(program(x), y) else "different")
        except RuntimeError as error:
            print("refused" if "does not have the packed matrix" in str(error) else error)

other = nn.Sequential(nn.Linear(64, 64, bias=False))
st.compress(other, method=None)
run()
model = nn.Sequential(nn.Linear(64, 64, bias=False))
st.load_compressed(model, state)
run()
"""


def test_a_program_multiplies_with_its_own_weights_or_fails(tmp_path):
    """In a process with another model, and with the same one."""
    model = nn.Sequential(nn.Linear(64, 64, bias=False))
    compress(model, method=None)
    x = torch.randn(5, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(model, (x,)), tmp_path / "e.pt2")
        torch.jit.save(torch.jit.trace(model, x), tmp_path / "j.pt")
    torch.save((x, model(x).detach(), model.state_dict()), tmp_path / "xy.pt")
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", LOADER, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.split() == ["refused", "refused", "equal", "equal"], done.stderr


def test_equal_matrices_are_one():
    weight = torch.randn(32, 64)
    a, b = SparseLinear.from_dense(weight), SparseLinear.from_dense(weight.clone())
    other = SparseLinear.from_dense(weight + 1)
    assert a._packed is b._packed and a._packed is not other._packed
    x = torch.randn(3, 64, requires_grad=True)
    del a
    assert torch.equal(b(x), b(x.detach()))


@pytest.mark.parametrize("format", ["bf16", "int8"])
def test_a_weight_is_a_tensor_without_memory(format):
    dense = nn.Linear(48, 32).bfloat16()
    layer = SparseLinear.from_dense(dense.weight, dense.bias, format=format, sparsity=0.5, method="magnitude")
    weight = layer.weight
    assert layer.weight is weight and isinstance(weight, torch.Tensor) and not isinstance(weight, nn.Parameter)
    assert (weight.shape, weight.dtype, weight.device.type, weight.ndim, len(weight)) == ((32, 48), torch.bfloat16, "cpu", 2, 32)
    assert weight.size(1) == 48 and weight.numel() == 32 * 48 and weight.is_floating_point() and not weight.requires_grad
    kept = weight != 0
    assert error(weight[kept].float(), dense.weight[kept].float()) < 1e-2
    assert torch.equal(weight.t().float(), weight.float().t()) and torch.equal(copy.deepcopy(weight), weight)
    x = torch.randn(3, 48)
    assert torch.equal(nn.functional.linear(x, weight, layer.bias.float()), layer.float()(x))
    assert layer.weight.dtype == torch.float32
    file = io.BytesIO()
    torch.save(layer.weight, file)
    file.seek(0)
    assert torch.equal(torch.load(file), layer.weight)
    with pytest.raises(RuntimeError, match="cannot be trained"):
        layer.weight.requires_grad_()
    assert "weight" not in dict(layer.named_parameters())


CHANGES = {
    "iadd": lambda w, d: w.__iadd__(d),
    "data iadd": lambda w, d: w.data.__iadd__(d),
    "data": lambda w, d: setattr(w, "data", w.float() + d),
    "add_": lambda w, d: w.detach().add_(d),
    "copy_": lambda w, d: w.copy_(w.float() + d),
    "setitem": lambda w, d: w.__setitem__(slice(None), w.float() + d),
    "out": lambda w, d: torch.add(w.float(), d, out=w),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("format,most", [("bf16", 5e-3), ("int8", 1e-2)])
def test_a_change_in_place_has_an_effect(change, format, most):
    layer = SparseLinear.from_dense(torch.randn(32, 48), format=format)
    before, delta, x = layer.weight.clone(), torch.randn(32, 48), torch.randn(5, 48)
    CHANGES[change](layer.weight, delta)
    assert error(layer.weight.clone(), before + delta) < most
    assert error(layer(x), x @ layer.weight.t()) < 1e-2 and layer.format == format
    # A view of a dense weight would change the layer; a copy cannot.
    for view in (layer.weight.t(), layer.weight[0], layer.weight.view(-1)):
        with pytest.raises(RuntimeError, match="copy of packed weights"):
            view.zero_()


@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("late", [False, True])
def test_adapters_train_and_merge(safe, late):
    """Adapters on a compressed model, and a model with adapters that is compressed."""
    lora = peft()
    base = llama()
    config = lora.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_alpha=32, init_lora_weights=False)
    if late:
        compress(base, method=None, format="bf16")
        model = lora.get_peft_model(base, config)
    else:
        model = lora.get_peft_model(base, config)
        compress(model, method=None, format="bf16")
    adapters = [name for name, m in model.named_modules() if isinstance(m, SparseLinear) and "lora_" in name]
    assert not adapters, "an adapter is trained, so it stays dense"
    assert sum(isinstance(m, SparseLinear) for m in model.modules()) == 14
    ids = torch.randint(3, 200, (2, 30))
    model(ids, labels=ids).loss.backward()
    grads = [p.grad for name, p in model.named_parameters() if "lora_" in name]
    assert len(grads) == 8 and all(g is not None and g.abs().sum() > 0 for g in grads)
    with torch.no_grad():
        before = model(ids).logits
        with model.disable_adapter():
            without = model(ids).logits
        merged = model.merge_and_unload(safe_merge=safe)
        after = merged(ids).logits
    assert error(before, without) > 0.1
    assert error(after, before) < 2e-2
    assert any(isinstance(m, SparseLinear) for m in merged.modules())


def test_layers_that_peft_saves_whole_stay_trainable():
    lora = peft()
    model = lora.get_peft_model(llama(), lora.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["o_proj"]))
    compress(model, 0.5, skip=())
    for layer in model.base_model.model.model.layers:
        assert isinstance(layer.self_attn.o_proj.original_module, SparseLinear)
        assert type(layer.self_attn.o_proj.modules_to_save["default"]) is nn.Linear


def test_hooks_stay():
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    calls = []
    handles = [
        model[0].register_forward_hook(lambda *a: calls.append("forward")),
        model[0].register_forward_pre_hook(lambda *a, **k: calls.append("pre"), with_kwargs=True),
        model[0].register_full_backward_hook(lambda *a: calls.append("backward")),
    ]
    prune.l1_unstructured(model[1], "weight", 0.5)  # its hook computes the weight
    compress(model, 0.5)
    x = torch.randn(2, 32, requires_grad=True)
    model(x).sum().backward()
    assert calls == ["pre", "forward", "backward"]
    for handle in handles:
        handle.remove()
    model(x).sum().backward()
    assert len(calls) == 3


def test_shared_layers_are_loaded():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(32, 32)
            self.b = self.a
            self.inner = nn.ModuleList([self.a, nn.Linear(32, 32)])

        def forward(self, x):
            return self.inner[1](self.b(self.a(x)))

    model = compress(Shared(), 0.5)
    fresh, x = Shared(), torch.randn(3, 32)
    load_compressed(fresh, model.state_dict())
    assert fresh.a is fresh.b is fresh.inner[0] and isinstance(fresh.a, SparseLinear)
    assert torch.equal(fresh(x), model(x))


def test_modules_that_stay_dense_are_named():
    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_up = nn.Parameter(torch.randn(4, 32, 64))

        def forward(self, x):
            return x

    model = nn.Sequential(nn.Linear(32, 32), Scaled(32, 32), Experts())
    with pytest.warns(UserWarning, match=r"2 modules stay dense: 1, 2\."):
        compress(model, 0.5)
    assert [type(m) for m in model] == [SparseLinear, Scaled, Experts]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compress(nn.Sequential(nn.Linear(32, 32), nn.Conv1d(4, 4, 3), nn.Conv2d(4, 4, 3)), 0.5)
        compress(nn.Sequential(nn.Linear(32, 32), Scaled(32, 32)), 0.5, skip=["1"])


def mixture(kind):
    transformers = pytest.importorskip("transformers")
    sizes = dict(LLAMA, num_experts_per_tok=2, moe_intermediate_size=32, num_experts=4, num_local_experts=4, head_dim=16)
    if kind == "GptOss":
        sizes.update(sliding_window=64, layer_types=["full_attention"] * 2)
    try:
        model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**sizes)).eval()
    except AttributeError:
        pytest.skip(f"this transformers has no {kind}")
    for p in model.parameters():
        if p.dim() == 3:
            p.data.normal_(0, 0.1)
    return model


@pytest.mark.parametrize("kind", ["Mixtral", "Qwen3Moe", "GptOss"])
def test_stacked_experts_become_layers(kind):
    model = mixture(kind)
    stacked = [name for name, p in model.named_parameters() if p.dim() == 3]
    if not stacked:
        pytest.skip("this transformers has a layer per expert")
    ids = torch.randint(3, 200, (2, 9))
    with torch.no_grad():
        want = model(ids).logits
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sparse = compress(copy.deepcopy(model), method=None, format="bf16")
        # By the median token: where the rounding changes the choice of an expert, a token differs.
        differences = (sparse(ids).logits - want).abs().amax(-1) / want.abs().max()
        assert differences.median() < 2e-2
        assert not [name for name, p in sparse.named_parameters() if p.dim() == 3]
        n_experts = sum("experts" in name for name, m in sparse.named_modules() if isinstance(m, SparseLinear))
        assert n_experts == 2 * 2 * 4
        # Calibration sees the rows of each expert; a fresh model gets the layers of the file.
        pruned = compress(copy.deepcopy(model), 0.5, method="wanda", format="int8", calibration=[ids])
        other = mixture(kind)
        load_compressed(other, pruned.state_dict())
        assert torch.equal(other(ids).logits, pruned(ids).logits)
        kept = compress(copy.deepcopy(model), 0.5, skip=["lm_head", "*.experts"])
        assert sum(p.dim() == 3 for p in kept.parameters()) == len(stacked)
    # An error leaves the model as it was.
    broken = copy.deepcopy(model)
    broken.model.layers[1].self_attn.q_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        compress(broken, 0.5)
    with pytest.raises(ValueError, match="no layer was called"):
        compress(broken, 0.5, method="wanda", calibration=[], skip=["lm_head", "q_proj"])
    assert [name for name, p in broken.named_parameters() if p.dim() == 3] == stacked
    assert list(broken.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("memory", [2 << 30, 1])
def test_statistics_of_nothing_prune_nothing_away(memory):
    """Layers without calibration data: never called, or called without a row, as experts that no token chooses."""
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.never, self.empty = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x):
            self.empty(x[:0])
            return self.used(x)

    for method in ("sparsegpt", "wanda"):
        model = Branches()
        want = {name: m.weight.detach().clone() for name, m in model.named_children()}
        with pytest.warns(UserWarning, match="never reaches 2 layers"):
            compress(model, 0.5, method=method, format="int8", calibration=[torch.randn(16, 32)], memory=memory)
        for name in ("never", "empty"):
            weight, dense = getattr(model, name).weight, want[name]
            kept = weight != 0
            assert 0.45 < kept.float().mean() < 0.55
            assert dense[kept].abs().min() >= dense.abs().median() * 0.98, "pruned by magnitude"


def test_encoder_layers_and_type_checks_unpack_nothing(monkeypatch):
    """PyTorch's encoder layer and T5 check weights in each call. The fused path of the former would need dense weights."""
    transformers = pytest.importorskip("transformers")
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), 2).eval()
    sizes = dict(vocab_size=100, d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4, decoder_start_token_id=0)
    t5 = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes)).eval()
    for model in (encoder, t5):
        compress(model, 0.5, format="int8")
    x, ids = torch.randn(2, 7, 64), torch.randint(1, 100, (2, 9))
    with torch.no_grad():
        want = dense_twin(encoder)(x), dense_twin(t5)(input_ids=ids, decoder_input_ids=ids).logits

    def refuse(*_):
        raise AssertionError("the weights were unpacked")

    monkeypatch.setattr("scrimp.torch._op.dense", refuse)
    with torch.no_grad():
        got = encoder(x), t5(input_ids=ids, decoder_input_ids=ids).logits
    assert all(error(a, b) < 2e-2 for a, b in zip(got, want))

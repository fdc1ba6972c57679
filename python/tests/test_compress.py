"""Whole models: Hugging Face configurations made at random, and plain modules."""

import copy
import warnings

import pytest
torch = pytest.importorskip("torch")
from torch import nn
from torch.nn.utils import prune

import scrimp.torch
from reference import dense_twin, error
from scrimp.torch import SparseLinear, compress, load_compressed, summary


def mlp():
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 96), nn.GELU(), nn.Linear(96, 10))


def language_model(kind):
    transformers = pytest.importorskip("transformers")
    sizes = dict(
        vocab_size=200, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128,
    )
    if kind == "llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).eval()
    if kind == "qwen":
        return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**sizes)).eval()
    config = transformers.GPT2Config(vocab_size=200, n_embd=64, n_layer=2, n_head=4, n_positions=128)
    return transformers.GPT2LMHeadModel(config).eval()


def hugging_face(kind):
    """A model, its arguments, and how to get one tensor of its answer."""
    transformers = pytest.importorskip("transformers")
    ids = torch.randint(0, 200, (2, 17))
    if kind in ("llama", "qwen", "gpt2"):
        return language_model(kind), {"input_ids": ids}, lambda out: out.logits
    if kind == "bert":
        config = transformers.BertConfig(
            vocab_size=200, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96
        )
        return transformers.BertModel(config).eval(), {"input_ids": ids}, lambda out: out.last_hidden_state
    if kind == "vit":
        config = transformers.ViTConfig(
            image_size=32, patch_size=8, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96
        )
        model = transformers.ViTForImageClassification(config).eval()
        return model, {"pixel_values": torch.randn(2, 3, 32, 32)}, lambda out: out.logits
    config = transformers.WhisperConfig(
        vocab_size=200, d_model=64, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=96, decoder_ffn_dim=96, num_mel_bins=20, max_source_positions=50,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, suppress_tokens=[], begin_suppress_tokens=[],
    )
    model = transformers.WhisperForConditionalGeneration(config).eval()
    arguments = {"input_features": torch.randn(2, 20, 100), "decoder_input_ids": ids}
    return model, arguments, lambda out: out.logits


@pytest.mark.parametrize("kind", ["llama", "qwen", "gpt2", "bert", "vit", "whisper"])
@pytest.mark.parametrize("format", ["bf16", "int8", "int4"])
def test_transformers_models_equal_their_dense_pruned_twins(kind, format):
    model, arguments, answer = hugging_face(kind)
    n_linear = sum(type(m) is nn.Linear or type(m).__name__ == "Conv1D" for m in model.modules())
    assert compress(model, 0.5, format=format) is model
    n_sparse = sum(isinstance(m, SparseLinear) for m in model.modules())
    assert n_sparse == n_linear - hasattr(model, "lm_head") - hasattr(model, "proj_out") + (kind == "whisper")
    with torch.no_grad():
        got, want = answer(model(**arguments)), answer(dense_twin(model)(**arguments))
    # Where two float sums round to different 8-bit inputs of a later layer, the difference is one step of 127.
    assert error(got, want) < (1e-2 if format != "bf16" else 5e-3)


def test_torchvision_models():
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.VisionTransformer(32, 8, 2, 4, 64, 96, num_classes=10).eval()
    compress(model, 0.5)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert error(model(x), dense_twin(model)(x)) < 5e-3


def test_generate_and_compile_agree():
    model = compress(language_model("llama"), 0.5, format="int8")
    ids = torch.randint(0, 200, (1, 5))
    out = model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert out.shape == (1, 13)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_torch_compile_without_graph_breaks(backend):
    import torch._dynamo.testing

    model = compress(mlp(), 0.5)
    x = torch.randn(3, 64)
    counter = torch._dynamo.testing.CompileCounterWithBackend(backend)
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    with torch.no_grad():
        assert torch.allclose(compiled(x), model(x), atol=1e-5)
    x.requires_grad_()
    compiled(x).sum().backward()
    got, x.grad = x.grad, None
    model(x).sum().backward()
    assert torch.allclose(got, x.grad, atol=1e-5)
    assert counter.frame_count == 2  # with and without gradients


def test_one_graph_serves_all_layers():
    """Regional compilation: layers of one shape share a graph, since the matrix goes in as a tensor."""
    import torch._dynamo.testing

    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    layers = compress(nn.Sequential(*[nn.Sequential(nn.Linear(32, 32)) for _ in range(6)]), 0.5)
    x = torch.randn(2, 32)
    with torch.no_grad():
        want = layers(x)
        for layer in layers:
            layer.compile(backend=counter, fullgraph=True)
        assert torch.allclose(layers(x), want, atol=1e-5)
    assert counter.frame_count == 1


@pytest.mark.parametrize("format", ["bf16", "int8", "int4"])
def test_methods_that_look_at_data_lose_less(format):
    torch.manual_seed(1)
    base = mlp()
    scale = torch.exp(torch.randn(64))  # features of very different sizes, and correlated
    mix = torch.eye(64) + 0.3 * torch.randn(64, 64)
    data = [(torch.randn(64, 64) @ mix) * scale for _ in range(8)]
    x = (torch.randn(256, 64) @ mix) * scale
    losses = {}
    with torch.no_grad():
        want = base(x)
        for method in ("magnitude", "wanda", "sparsegpt"):
            model = compress(copy.deepcopy(base), 0.6, method=method, format=format, calibration=data)
            losses[method] = (model(x) - want).square().mean().item()
    assert losses["sparsegpt"] < losses["wanda"] < losses["magnitude"], losses


def test_statistics_in_several_passes():
    data = [torch.randn(64, 64) for _ in range(4)]
    base = mlp()
    calls = []
    base.register_forward_pre_hook(lambda *_: calls.append(1))
    compress(base, 0.5, method="sparsegpt", calibration=(batch for batch in data), memory=1)
    assert len(calls) == 3 * 4
    assert summary(base).sparsity == pytest.approx(0.5, abs=0.02)


def test_batches_of_every_kind():
    transformers = pytest.importorskip("transformers")
    assert transformers
    ids = torch.randint(0, 200, (2, 16))
    for calibration in ([{"input_ids": ids}], [(ids,)], [ids], lambda m: m(ids)):
        model = compress(language_model("qwen"), 0.5, method="wanda", calibration=calibration)
        assert summary(model).sparsity == pytest.approx(0.5, abs=0.02)
        assert not any(m._forward_pre_hooks for m in model.modules())


def test_layers_that_no_data_reaches():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x):
            return self.used(x)

    with pytest.warns(UserWarning, match="never reaches 1 layers"):
        model = compress(Branches(), 0.5, method="wanda", calibration=[torch.randn(4, 32)])
    assert isinstance(model.unused, SparseLinear)


def test_already_pruned_models_are_packed():
    model = mlp()
    for m in model:
        if isinstance(m, nn.Linear):
            prune.l1_unstructured(m, "weight", amount=0.7)
            prune.remove(m, "weight")
    want = [m.weight.detach().bfloat16().float() for m in model if isinstance(m, nn.Linear)]
    compress(model, method=None)
    got = [m.weight for m in model if isinstance(m, SparseLinear)]
    assert all(torch.equal(a, b) for a, b in zip(got, want))
    assert summary(model).sparsity == pytest.approx(0.7, abs=0.01)


def test_skip_shared_layers_and_attention():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(32, 32)
            self.b = self.a
            self.lm_head = nn.Linear(32, 5)
            self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
            self.block = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)

        def forward(self, x):
            x = self.b(self.a(x))
            return self.lm_head(self.block(self.attention(x, x, x)[0]))

    model = Model().eval()
    compress(model, 0.5, skip=["lm_head", "block.*2"])
    assert isinstance(model.a, SparseLinear) and model.a is model.b
    assert type(model.lm_head) is nn.Linear and type(model.block.linear2) is nn.Linear
    assert isinstance(model.block.linear1, SparseLinear)
    x = torch.randn(2, 7, 32)
    with torch.no_grad():
        assert error(model(x), dense_twin(model)(x)) < 1e-2
    assert model(x).requires_grad  # what is not compressed still trains


def test_saved_model_into_a_fresh_one(tmp_path):
    from safetensors.torch import load_file, save_file

    model = compress(language_model("llama"), 0.5, format="int4")
    save_file({k: v.clone() for k, v in model.state_dict().items()}, tmp_path / "model.safetensors")
    torch.manual_seed(7)
    fresh = language_model("llama")
    state = load_file(tmp_path / "model.safetensors")
    load_compressed(fresh, state)
    ids = torch.randint(0, 200, (1, 9))
    with torch.no_grad():
        assert torch.equal(fresh(ids).logits, model(ids).logits)
    with pytest.raises(ValueError, match="no layer"):
        load_compressed(mlp(), state)


def test_summary_counts_bytes():
    model = compress(mlp(), 0.5, format="int8")
    s = summary(model)
    assert s.layers == 3 and s.weights == 64 * 128 + 128 * 96 + 96 * 10
    assert s.packed_bytes == sum(m.nbytes for m in model if isinstance(m, SparseLinear))
    assert "3 sparse layers" in str(s)


@pytest.mark.parametrize(
    "arguments,error_type,words",
    [
        (dict(sparsity=1.0), ValueError, "sparsity must be in"),
        (dict(sparsity=-0.1), ValueError, "sparsity must be in"),
        (dict(sparsity=float("nan")), ValueError, "sparsity must be in"),
        (dict(method="random"), ValueError, "no method 'random'"),
        (dict(format="fp8"), ValueError, "no format 'fp8'"),
        (dict(method="wanda"), ValueError, "needs calibration data"),
        (dict(method="wanda", calibration=[]), ValueError, "no layer was called"),
        (dict(method="wanda", calibration=[torch.full((1, 64), float("nan"))]), ValueError, "NaN or infinite"),
        (dict(skip="*"), ValueError, "no linear layer"),
    ],
)
def test_bad_arguments_change_nothing(arguments, error_type, words):
    model = mlp()
    with pytest.raises(error_type, match=words):
        compress(model, **arguments)
    assert not any(isinstance(m, SparseLinear) for m in model)
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_bad_models_change_nothing():
    with pytest.raises(TypeError, match="torch.nn.Module"):
        compress("model")
    with pytest.raises(TypeError, match="from_dense"):
        compress(nn.Linear(4, 4))
    with pytest.raises(ValueError, match="4 is on meta"):
        model = mlp()
        model[4] = nn.Linear(96, 10, device="meta")
        compress(model)
    assert type(model[0]) is nn.Linear
    with pytest.raises(TypeError, match="float64"):
        compress(mlp().double())


def test_threads():
    model = compress(mlp(), 0.5)
    x = torch.randn(40, 64)
    want = model(x)
    try:
        for n in (1, 2, 3):
            scrimp.set_num_threads(n)
            assert scrimp.get_num_threads() == n
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                assert torch.equal(model(x), want)
        for bad in (0, 100_000):
            with pytest.raises(ValueError, match="threads must be from 1"):
                scrimp.set_num_threads(bad)
    finally:
        scrimp.set_num_threads(None)

"""The compressed cache, the press, and the selection against that of the Rust implementation."""

import contextlib
import json
import math
import warnings

import pytest
torch = pytest.importorskip("torch")

from conftest import ROOT
from scrimp.kv import Crush, CompressedCache, KVCrushPress, select
from scrimp.kv._attention import biased_attention
from scrimp.kv._biased import set_bias
from scrimp.kv._fit import fit_values
from scrimp.kv._future import Rotation, attention, expected_max, future_queries
from scrimp.kv._heads import with_floor
from scrimp.kv._selection_queue import shared_budgets

transformers = pytest.importorskip("transformers")


def model(kind="llama", **more):
    sizes = dict(
        vocab_size=200, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, **more,
    )
    made = {
        "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)),
        "qwen": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**sizes)),
    }[kind]().eval()
    for p in made.parameters():  # attention that differs between tokens
        p.data.mul_(3) if p.dim() == 2 else None
    made.set_attn_implementation("scrimp")
    return made


def ids(n, batch=1, device="cpu"):
    return torch.randint(0, 200, (batch, n), device=device)


def test_selections_are_those_of_the_rust_implementation(device):
    cases = json.loads((ROOT / "testdata" / "kv" / "select.json").read_text())
    # The other cases have an order or a mass of the Rust side's ablation.
    cases = [case for case in cases if case["order"] == "keys" and case["mass"] in ("none", "attention")]
    assert len(cases) >= 9
    for case in cases:
        heads, tokens = case["heads"], case["tokens"]

        def tensor(name, *shape):
            return torch.tensor(case[name], device=device).view(1, heads, tokens, *shape)

        crush = Crush(share=case["share"], mass=case["mass"])
        got = select(
            tensor("scores"), tensor("attention"), tensor("keys", case["dim"]), case["budget"], crush,
            sinks=case["sinks"], recent=case["recent"], layer=case["layer"], seed=case["seed"],
        )
        assert got.indices[0].tolist() == case["indices"], case["name"]
        assert torch.allclose(got.bias[0], torch.tensor(case["bias"], device=device), atol=1e-5), case["name"]


def test_a_budget_of_everything_changes_nothing(device):
    m, x = model().to(device), ids(60, device=device)
    with torch.no_grad():
        want = m.generate(x, max_new_tokens=10, do_sample=False, pad_token_id=0)
        got = m.generate(x, max_new_tokens=10, do_sample=False, pad_token_id=0, past_key_values=CompressedCache(budget=1.0))
    assert torch.equal(got, want)


@pytest.mark.parametrize(("budget", "recent"), [(40, 32), (480, 80), (900, 128)])
def test_as_many_recent_tokens_stay_as_the_command_keeps(budget, recent):
    n = 1000
    chosen = select(-torch.arange(n).float().view(1, 1, n), None, None, budget, Crush(share=0), sinks=4)
    assert chosen.indices[0, 0].tolist() == [*range(budget - recent), *range(n - recent, n)]


def test_one_key_in_many_places_counts_as_often_as_it_is_there():
    """Where the dropped tokens of a segment are copies of each other, mass makes the answer exact."""
    torch.manual_seed(0)
    n, dim = 64, 8
    kinds = torch.randn(1, 1, 4, dim)
    which = torch.arange(n) % 4
    keys, values = kinds[:, :, which], torch.randn(1, 1, 4, dim)[:, :, which]
    attention = torch.full((1, 1, n), 1.0 / n)
    chosen = select(torch.zeros(1, 1, n), attention, keys, 4, Crush(share=1.0), sinks=0, recent=0)
    query = torch.randn(1, 1, 1, dim)
    want = (query @ keys.transpose(2, 3)).softmax(-1) @ values
    got = (query @ chosen.take(keys).transpose(2, 3) + chosen.bias.unsqueeze(2)).softmax(-1) @ chosen.take(values)
    assert torch.allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("policy", ["expected-max", "snapkv", "h2o", "tova", "knorm", "streaming"])
@pytest.mark.parametrize("kvcrush", [0.0, 0.75])
def test_the_cache_keeps_its_budget(policy, kvcrush, device):
    m, x = model("qwen").to(device), ids(200, 2, device)
    cache = CompressedCache(policy=policy, budget=0.25, kvcrush=kvcrush)
    with torch.no_grad():
        m(x, past_key_values=cache)
        full = 2 * 3 * 2 * 2 * 200 * 16 * 4
        bias = 0 if not kvcrush else 3 * 2 * 2 * 50 * 4
        assert cache.nbytes == full // 4 + bias
        assert cache.get_seq_length() == 200
        out = m(ids(1, 2, device), past_key_values=cache).logits
    assert cache.get_seq_length() == 201 and sum(layer._held() for layer in cache.layers) == 3 * 51
    assert policy == "expected-max" or cache.layers[0]._held() == 51
    assert out.isfinite().all()


@pytest.mark.parametrize("settings", [dict(policy="snapkv"), dict(), dict(kvcrush=0.0)])
def test_several_tokens_at_once_see_what_single_ones_see(settings, device):
    m, x, new = model().to(device), ids(100, device=device), ids(5, device=device)
    with torch.no_grad():
        one, many = CompressedCache(budget=0.5, **settings), CompressedCache(budget=0.5, **settings)
        m(x, past_key_values=one), m(x, past_key_values=many)
        want = torch.cat([m(new[:, i : i + 1], past_key_values=one).logits for i in range(5)], 1)
        got = m(new, past_key_values=many).logits
    assert torch.allclose(got, want, atol=1e-4)


@pytest.mark.parametrize("layers", [1, 2, 3, 100])
def test_layers_that_are_selected_together_keep_the_same_tokens(device, layers):
    m, x, new = model().to(device), ids(100, 2, device), ids(3, 2, device)
    with torch.no_grad():
        one, together = (CompressedCache("snapkv", 0.5, layers_at_once=n) for n in (1, layers))
        m(x, past_key_values=one), m(x, past_key_values=together)
        assert [layer.awaits_selection for layer in together.layers] == [i >= 3 // layers * layers for i in range(3)]
        want, got = m(new, past_key_values=one).logits, m(new, past_key_values=together).logits
    assert torch.equal(got, want)
    for a, b in zip(one.layers, together.layers):
        assert torch.equal(a.keys, b.keys) and torch.equal(a.bias, b.bias)


def test_layers_are_selected_before_the_cache_is_read(device):
    m, x = model().to(device), ids(80, device=device)
    with torch.no_grad():
        want = m.generate(x, max_new_tokens=6, num_beams=3, do_sample=False, pad_token_id=0, past_key_values=CompressedCache(budget=0.5))
        cache = CompressedCache(budget=0.5, layers_at_once=100)
        assert torch.equal(m.generate(x, max_new_tokens=6, num_beams=3, do_sample=False, pad_token_id=0, past_key_values=cache), want)
        for look in (lambda c: c.nbytes, lambda c: c.batch_repeat_interleave(2), lambda c: c.reset(), lambda c: c.get_mask_sizes(1, 0)):
            cache = CompressedCache(budget=0.5, layers_at_once=100)
            m(x, past_key_values=cache)
            assert all(layer.awaits_selection for layer in cache.layers)
            look(cache)
            assert not any(layer.awaits_selection for layer in cache.layers)


def test_int8_is_close_and_small(device):
    m, x, new = model().to(device), ids(100, device=device), ids(3, device=device)
    with torch.no_grad():
        plain, small = CompressedCache(budget=0.5), CompressedCache(budget=0.5, format="int8")
        m(x, past_key_values=plain), m(x, past_key_values=small)
        assert small.nbytes < 0.45 * plain.nbytes
        a, b = m(new, past_key_values=plain).logits, m(new, past_key_values=small).logits
    assert ((a - b).abs().max() / a.abs().max()).item() < 0.05


def test_beams(device):
    m, x = model().to(device), ids(80, device=device)
    cache = CompressedCache(budget=0.5)
    with torch.no_grad():
        out = m.generate(x, max_new_tokens=6, num_beams=3, do_sample=False, pad_token_id=0, past_key_values=cache)
    assert out.shape == (1, 86)


def test_a_model_without_our_attention_is_refused():
    m = model()
    m.set_attn_implementation("sdpa")
    with torch.no_grad(), pytest.raises(RuntimeError, match="set_attn_implementation"):
        m.generate(ids(100), max_new_tokens=3, do_sample=False, pad_token_id=0, past_key_values=CompressedCache(budget=0.5))


def test_padding_is_refused():
    m, x = model(), ids(100, 2)
    mask = torch.ones_like(x)
    mask[0, :30] = 0
    with torch.no_grad(), pytest.raises(ValueError, match="without padding"):
        m(x, attention_mask=mask, past_key_values=CompressedCache(budget=0.5))


ROPES = [
    ("Llama", {}),
    ("Llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                   "original_max_position_embeddings": 64}}),
    ("Glm", {"head_dim": 16}),  # a part of each head, neighbors as pairs
    ("Cohere", {}),  # neighbors as pairs
    ("Gemma3", {"head_dim": 16, "layer_types": ["sliding_attention", "full_attention", "full_attention"], "sliding_window": 4}),
    ("Gemma3", {"head_dim": 16, "layer_types": ["sliding_attention", "full_attention", "full_attention"], "sliding_window": 4, "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}, "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}}}),
]


@pytest.mark.parametrize(("family", "more"), ROPES)
def test_future_queries_are_queries_at_later_positions(family, more):
    """A query of a later position is the rotation of the same query at an earlier one, by the model's own rotary embedding."""
    names = (f"{family}TextConfig", f"{family}Config")
    config = next(getattr(transformers, name) for name in names if hasattr(transformers, name))
    made = next(getattr(transformers, name) for name in (f"{family}ForCausalLM", f"{family}Model") if hasattr(transformers, name))
    more = {k: v for k, v in more.items() if k != "rope_parameters" or transformers.__version__ >= "5"}
    m = made(config(vocab_size=200, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
                    max_position_embeddings=512, pad_token_id=0, **more)).eval()
    m.set_attn_implementation("eager")
    seen = []
    attention_module = m.model.layers[2].self_attn
    module = __import__(type(attention_module).__module__, fromlist=["x"])
    own = module.apply_rotary_pos_emb

    def record(q, k, cos, sin, *args, **kwargs):
        seen.append(q)
        return own(q, k, cos, sin, *args, **kwargs)

    x, n, by = torch.full((1, 8), 7), 8, 40
    module.apply_rotary_pos_emb = record
    try:
        with torch.no_grad():
            m(x)
    finally:
        module.apply_rotary_pos_emb = own
    plain = seen[2]
    kinds = getattr(m.config, "layer_types", None)

    def rotated(positions):
        of_layer = (kinds[2],) if family == "Gemma3" else ()
        cos, sin = m.model.rotary_emb(plain, positions, *of_layer)
        return own(plain, plain, cos, sin)[0]

    at = torch.arange(n)[None]
    got = Rotation(attention_module, plain.device).turn(rotated(at), torch.full((n,), by))
    assert torch.allclose(got, rotated(at + by), atol=1e-4)


def test_future_queries_are_drawn_once_for_each_seed():
    m = model()
    queries = torch.randn(1, 4, 100, 16)
    attention_module = m.model.layers[0].self_attn
    a, b = (future_queries(attention_module, queries, 30, seed) for seed in (1, 1))
    assert a.shape == (1, 4, 30, 16) and torch.equal(a, b)
    assert not torch.equal(a, future_queries(attention_module, queries, 30, 2))
    assert future_queries(attention_module, queries, None, 1).shape[2] == 100
    attention_module.use_rope = False
    kept = future_queries(attention_module, queries, 30, 1)
    assert all((queries[0, 0] == row).all(-1).any() for row in kept[0, 0])


@pytest.mark.parametrize(("rows", "kept"), [(40, 12), (12, 40), (20, 20)])
def test_fitted_values_solve_the_normal_equations(rows, kept, device):
    """As the Rust implementation's, against f64: V' = V + (X^T X + ridge I)^-1 X^T (O - X V)."""
    q, k, v, o = (torch.randn(2, 3, n, 8, device=device) for n in (rows, kept, kept, rows))
    bias = torch.rand(2, 3, kept, device=device)
    got = fit_values(q, o, 0.4, k, v, bias)
    x = (q.double() @ k.double().transpose(2, 3) * 0.4 + bias.double()[:, :, None]).softmax(-1)
    ridge = 0.03 * x.square().sum((2, 3), keepdim=True) / kept
    gram = x.transpose(2, 3) @ x + ridge * torch.eye(kept, device=device, dtype=torch.float64)
    want = v + torch.linalg.solve(gram, x.transpose(2, 3) @ (o - x @ v.double()))
    assert torch.allclose(got.double(), want, atol=2e-3)


def test_values_without_a_solution_stay():
    q, k, v = torch.randn(1, 1, 9, 8), torch.randn(1, 1, 5, 8), torch.randn(1, 1, 5, 8)
    assert torch.equal(fit_values(q, torch.full((1, 1, 9, 8), math.inf), 1.0, k, v, None), v)
    assert torch.equal(fit_values(q * math.nan, torch.zeros(1, 1, 9, 8), 1.0, k, v, None), v)


def test_a_fit_brings_the_outputs_closer():
    torch.manual_seed(1)
    q, k, v = torch.randn(1, 2, 200, 16), torch.randn(1, 2, 120, 16), torch.randn(1, 2, 120, 16)
    scores, outputs = expected_max(q, k, v, 0.25)
    assert torch.allclose(outputs, attention(q, k, 0.25) @ v, atol=1e-5)
    assert torch.equal(scores, attention(q, k, 0.25).amax(2))
    kept = scores.topk(40).indices[..., None].expand(-1, -1, -1, 16)
    kk, vv = k.gather(2, kept), v.gather(2, kept)
    fresh = torch.randn(1, 2, 200, 16)
    want = attention(fresh, k, 0.25) @ v
    error = [((attention(fresh, kk, 0.25) @ values) - want).norm() for values in (vv, fit_values(q, outputs, 0.25, kk, vv, None))]
    assert error[1] < 0.8 * error[0]


def test_layers_share_a_budget_exactly():
    scores = [torch.rand(2, 3, 100) * factor for factor in (1.0, 0.9, 1.1, 0.8)]
    budgets = shared_budgets(scores, 30, 4, 10)
    assert sum(budgets) == 4 * 30 and min(budgets) >= 14
    assert budgets[2] > budgets[0] > budgets[1] > budgets[3]
    assert shared_budgets(scores, 100, 4, 10) == [100] * 4
    scores[1][:] = math.nan
    assert sum(shared_budgets(scores, 30, 4, 10)) == 120


@pytest.mark.parametrize("shrink", [4, 8, 16])
def test_a_cache_is_as_many_times_smaller_as_asked(shrink, device):
    m, x = model(head_dim=64).to(device, torch.bfloat16), ids(1600, device=device)
    cache = CompressedCache(shrink=shrink)
    with torch.no_grad():
        m(x, past_key_values=cache)
    whole = 2 * 3 * 2 * 1600 * 64 * 2
    assert shrink <= whole / cache.nbytes < 1.05 * shrink


@pytest.mark.parametrize("format", ["model", "int8"])
def test_a_fit_improves_the_logits(format, device):
    m, x, new = model().to(device), ids(200, device=device), ids(6, device=device)

    def logits(**settings):
        cache = CompressedCache(**settings)
        with torch.no_grad():
            m(x, past_key_values=cache)
            return m(new, past_key_values=cache).logits.log_softmax(-1)

    whole = logits(budget=1.0)
    kl = [(whole.exp() * (whole - logits(budget=0.3, kvcrush=0.0, format=format, fit=fit))).sum(-1).mean() for fit in (False, True)]
    assert kl[1] < kl[0]


@pytest.mark.parametrize(
    "arguments,error,words",
    [
        (dict(policy="h3o"), ValueError, "no policy 'h3o'"),
        (dict(format="int3"), ValueError, "no format 'int3'"),
        (dict(budget=0.0), ValueError, "above 0.0"),
        (dict(budget=1.5), ValueError, "at most 1.0"),
        (dict(budget=10), ValueError, "smaller than the 4 sinks and 32 recent"),
        (dict(budget="all"), TypeError, "number of tokens or a share"),
        (dict(kvcrush=1.5), ValueError, "between 0 and 1"),
        (dict(kvcrush=Crush(share=0.5, mass="none")), None, None),
        (dict(queries=0), ValueError, "1 or more"),
        (dict(future_queries=0), ValueError, "1 or more"),
        (dict(shrink=5), ValueError, "there are 4, 8, 16"),
        (dict(shrink=4, budget=0.5), ValueError, "leave them out"),
        (dict(shrink=4, format="int8"), ValueError, "leave them out"),
        (dict(layers_at_once=0), ValueError, "1 or more"),
    ],
)
def test_bad_settings(arguments, error, words):
    if error is None:
        CompressedCache(**arguments)
        return
    with pytest.raises(error, match=words):
        CompressedCache(**arguments)


def test_other_default_dtypes_change_nothing(device):
    """As where a model was made with ``torch.set_default_dtype(torch.bfloat16)``."""
    m, x = model().to(device), ids(100, device=device)
    with torch.no_grad():
        want, got = CompressedCache(budget=0.5), CompressedCache(budget=0.5)
        m(x, past_key_values=want)
        assert want.nbytes
        torch.set_default_dtype(torch.bfloat16)
        try:
            m(x, past_key_values=got)
            assert got.nbytes == want.nbytes
        finally:
            torch.set_default_dtype(torch.float32)
    for a, b in zip(want.layers, got.layers):
        assert torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values) and torch.equal(a.bias, b.bias)


def test_attention_with_a_bias_is_softmax_with_a_bias(device):
    batch, heads, kv_heads, n, dim = 2, 6, 2, 9, 8
    key, value = (torch.randn(batch, kv_heads, n, dim, device=device) for _ in range(2))
    bias = torch.randn(batch, kv_heads, 5, device=device)
    full = torch.nn.functional.pad(bias, (0, n - 5)).repeat_interleave(3, 1).unsqueeze(2)
    for q in (1, 4):
        query = torch.randn(batch, heads, q, dim, device=device)
        causal = torch.ones(q, n, dtype=torch.bool, device=device).tril(n - q)
        kinds = [None, causal[None, None], causal.expand(batch, heads, q, n)]
        kinds.append(torch.zeros(1, 1, q, n, device=device).masked_fill(~causal, -1e30))
        for mask in kinds:
            got = biased_attention(query, key, value, bias, mask, 0.0, 0.3)
            scores = query @ key.repeat_interleave(3, 1).transpose(2, 3) * 0.3 + full
            want = scores.masked_fill(~causal, -math.inf).softmax(-1) @ value.repeat_interleave(3, 1)
            assert torch.allclose(got, want.transpose(1, 2), atol=1e-5)


class NormPress:
    """The part of kvpress's ScorerPress that KVCrushPress uses."""

    def __init__(self, compression_ratio):
        self.compression_ratio = compression_ratio

    def score(self, module, hidden_states, keys, values, attentions, kwargs):
        return -keys.norm(dim=-1)


def test_a_press_chooses_what_the_cache_chooses(device):
    m, x, new = model().to(device), ids(120, device=device), ids(4, device=device)
    cache = CompressedCache(policy="knorm", budget=0.5)
    pressed = transformers.DynamicCache()
    with torch.no_grad():
        m(x, past_key_values=cache)
        with KVCrushPress(NormPress(0.5))(m):
            m(x, past_key_values=pressed)
        assert all(a.keys.shape[2] == 60 for a in pressed.layers)
        for ours, theirs in zip(cache.layers, pressed.layers):
            assert torch.equal(ours.keys, theirs.keys)
        positions = torch.arange(120, 124, device=device).unsqueeze(0)
        for i in range(4):
            at = dict(position_ids=positions[:, i : i + 1])
            a = m(new[:, i : i + 1], past_key_values=cache, **at).logits
            b = m(new[:, i : i + 1], past_key_values=pressed, **at).logits
            assert torch.allclose(a, b, atol=1e-5)
        # A new prompt forgets what the press said of the last one.
        assert torch.equal(m(x).logits, m(x, past_key_values=transformers.DynamicCache()).logits)


def test_caches_of_one_model_have_their_own_biases(device):
    m, new = model().to(device), torch.tensor([[5]], device=device)
    a, b = ids(120, device=device), ids(120, device=device)

    def read(x):
        cache = transformers.DynamicCache()
        with KVCrushPress(NormPress(0.5))(m):
            m(x, past_key_values=cache)
        return cache

    def step(cache):
        return m(new, past_key_values=cache, position_ids=torch.tensor([[120]], device=device)).logits

    with torch.no_grad():
        alone = step(read(a))
        first = read(a)
        second = read(b)
        m(b)  # without a cache
        assert torch.equal(step(first), alone)
        assert not torch.equal(step(second), alone)
        # Biases follow their rows, and leave with their tokens.
        both = read(torch.cat([a, b]))
        both.reorder_cache(torch.tensor([1, 0], device=device))
        swapped = m(new.expand(2, 1), past_key_values=both, position_ids=torch.full((2, 1), 120, device=device)).logits
        assert torch.allclose(swapped[1:], alone, atol=1e-4)
        kept = first.layers[0].bias.shape[2]
        first.reset()
        assert first.layers[0].bias is None and kept == 60


def test_a_press_refuses_padding():
    m, x = model(), ids(100, 2)
    mask = torch.ones_like(x)
    mask[0, :30] = 0
    with torch.no_grad(), pytest.raises(ValueError, match="without padding"):
        with KVCrushPress(NormPress(0.5))(m):
            m(x, attention_mask=mask, past_key_values=transformers.DynamicCache())
    with torch.no_grad(), KVCrushPress(NormPress(0.5))(m):
        m(x, attention_mask=torch.ones_like(x), past_key_values=transformers.DynamicCache())


def test_a_prompt_in_several_passes_is_not_compressed_silently():
    m, x = model(), ids(300)
    options = dict(max_new_tokens=2, do_sample=False, pad_token_id=0, prefill_chunk_size=100)
    with torch.no_grad():
        with pytest.warns(UserWarning, match="100 tokens of a later forward pass are not compressed"):
            m.generate(x, past_key_values=CompressedCache(budget=0.5), **options)
        with pytest.warns(UserWarning, match="later forward pass"), KVCrushPress(NormPress(0.5))(m):
            cache = transformers.DynamicCache()
            m(x[:, :200], past_key_values=cache)
            m(x[:, 200:], past_key_values=cache)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            cache = CompressedCache(budget=0.5)
            m(x, past_key_values=cache)
            m(ids(20), past_key_values=cache)  # a question after its context


@pytest.mark.parametrize("with_config", [False, True])
@pytest.mark.parametrize("kind", ["Mistral", "Phi3", "Qwen2"])
def test_prompts_beyond_a_sliding_window(kind, with_config):
    """Models whose layers all have a window (no `layer_types`), and models with layers of both kinds."""
    sizes = dict(
        vocab_size=200, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        sliding_window=32, pad_token_id=0, eos_token_id=None,
    )
    if kind == "Qwen2":
        sizes.update(use_sliding_window=True, layer_types=["full_attention", "sliding_attention", "full_attention"])
    config = getattr(transformers, f"{kind}Config")(**sizes)
    m = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    m.set_attn_implementation("scrimp")
    x = ids(100)
    options = dict(attention_mask=torch.ones_like(x), max_new_tokens=8, do_sample=False)
    cache = CompressedCache(budget=0.5, config=config if with_config else None)
    with torch.no_grad():
        want = m.generate(x, **options)
        got = m.generate(x, past_key_values=cache, **options)
    sliding = [i for i, layer in enumerate(cache.layers) if layer.is_sliding]
    assert sliding == ([1] if kind == "Qwen2" else [0, 1, 2])
    assert all(cache.layers[i].keys.shape[2] == 31 for i in sliding)
    if kind != "Qwen2":
        assert torch.equal(got, want), "windows are whole"


@pytest.mark.parametrize("format", ["model", "int8"])
def test_assisted_generation(format):
    m, assistant = model(), model()
    x = torch.cat([ids(60), ids(60)], 1).repeat(1, 2)  # repetitions, which prompt lookup finds
    options = dict(max_new_tokens=12, do_sample=False, pad_token_id=0)
    for assisted in (dict(prompt_lookup_num_tokens=3), dict(assistant_model=assistant)):
        cache, whole = CompressedCache(budget=0.5, format=format), CompressedCache(budget=1.0, format=format)
        with torch.no_grad():
            got = m.generate(x, past_key_values=cache, **assisted, **options)
            assert torch.equal(m.generate(x, past_key_values=whole, **assisted, **options), m.generate(x, **options))
        assert got.shape == (1, 252) and cache.get_seq_length() in (251, 252)
        assert sum(layer._held() for layer in cache.layers) <= 3 * (120 + 3 + 12)


def test_a_cache_is_cropped_down_to_its_prompt():
    m, x, new = model(), ids(100), ids(6)
    with torch.no_grad():
        cache, short = CompressedCache(budget=0.5), CompressedCache(budget=0.5)
        for c, n in ((cache, 6), (short, 2)):
            m(x, past_key_values=c)
            m(new[:, :n], past_key_values=c)
        cache.crop(-4)
        assert cache.get_seq_length() == short.get_seq_length() == 102
        assert torch.allclose(m(new[:, :1], past_key_values=cache).logits, m(new[:, :1], past_key_values=short).logits, atol=1e-5)
        with pytest.raises(RuntimeError, match="cannot be cropped by 47 tokens"):
            cache.crop(-50)


def test_negative_numbers_of_tokens_are_refused():
    for name in ("sinks", "recent"):
        for make in (lambda o: CompressedCache(budget=0.5, **o), lambda o: KVCrushPress(NormPress(0.5), **o)):
            with pytest.raises(ValueError, match=f"{name} must be 0 or more, not -1"):
                make({name: -1})
    with pytest.raises(ValueError, match="sinks must be"):
        select(torch.rand(1, 2, 50), None, None, 20, Crush(share=0), sinks=-3)


class HeadsPress:
    """As kvpress's AdaKVPress: the heads of a layer share a budget, and dropped tokens are masked."""

    def __init__(self, press, kept):
        self.press, self.compression_ratio, self.kept = press, press.compression_ratio, kept

    def compress(self, module, hidden_states, keys, values, attentions, kwargs):
        scores = self.press.score(module, hidden_states, keys, values, attentions, kwargs)
        gone = [scores[0, h].argsort()[: scores.shape[2] - kept] for h, kept in enumerate(self.kept[module.layer_idx])]
        heads = torch.cat([torch.full_like(tokens, h) for h, tokens in enumerate(gone)])
        module.masked_key_indices = torch.zeros_like(heads), heads, torch.cat(gone)
        return keys, values


class AtTheEndPress(HeadsPress):
    """As kvpress's KVzipPress: it compresses after the prefill."""

    @contextlib.contextmanager
    def __call__(self, model):
        self.model = model
        yield
        self.compress_post(model)

    def compress_post(self, model):
        self.score_val = torch.stack([self.press.score(None, None, layer.keys, None, None, None) for layer in self.cache.layers])
        for layer, cached in zip(model.model.layers, self.cache.layers):
            self.compress(layer.self_attn, None, cached.keys, cached.values, None, None)


@pytest.mark.parametrize("kind", [HeadsPress, AtTheEndPress])
def test_heads_get_what_a_press_gives_them(kind, device):
    m, x, new = model().to(device), ids(120, device=device), ids(4, device=device)
    positions = torch.arange(120, 124, device=device).unsqueeze(0)
    cache = transformers.DynamicCache()
    budgets = [[80, 40], [40, 90], [60, 60]]
    press = kind(NormPress(0.5), budgets)
    press.cache = cache
    with torch.no_grad():
        with KVCrushPress(press, crush=Crush(share=0.0))(m):
            m(x, past_key_values=cache)
        modules = [layer.self_attn for layer in m.model.layers]
        assert [layer.keys.shape[2] for layer in cache.layers] == [80, 90, 60]
        assert all(module.masked_key_indices is None for module in modules)
        got = m(new, past_key_values=cache, position_ids=positions).logits
        # The same tokens hidden in a whole cache.
        whole = transformers.DynamicCache()
        m(x, past_key_values=whole)
        for layer, module, kept in zip(whole.layers, modules, budgets):
            bias = torch.full(layer.keys.shape[:3], -math.inf, device=device)
            for h, kept in enumerate(kept):
                chosen = select(-layer.keys[:, h : h + 1].norm(dim=-1), None, None, kept, Crush(share=0.0))
                bias[0, h, chosen.indices[0, 0]] = 0.0
            set_bias(layer, bias)
        want = m(new, past_key_values=whole, position_ids=positions).logits
        assert torch.allclose(got, want, atol=1e-4)
        # With representatives: as many tokens, other ones.
        crushed = transformers.DynamicCache()
        press.cache = crushed
        with KVCrushPress(press)(m):
            m(x, past_key_values=crushed)
        held = [[bias.isfinite().sum().item() for bias in layer.bias[0]] for layer in crushed.layers]
        assert held == budgets
        assert m(new, past_key_values=crushed, position_ids=positions).logits.isfinite().all()


def test_small_heads_are_filled_up_from_large_ones():
    budgets = torch.tensor([[100, 60, 4], [40, 40, 40], [1, 2, 3]])
    assert with_floor(budgets, 36).tolist() == [[76, 51, 36], [40, 40, 40], [36, 36, 36]]


def test_presses_that_cannot_be_composed():
    with pytest.raises(TypeError, match="no score"):
        KVCrushPress(object())

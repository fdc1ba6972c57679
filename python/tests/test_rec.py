"""MEM-REC embeddings in PyTorch: numbers, gradients, optimizers, files, two processes."""

import copy
import io
import json
import pickle

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from scrimp.rec import Adagrad, MemRecEmbedding, MemRecEmbeddingBag, RowWiseAdagrad, Sgd  # noqa: E402


def embedding(**options):
    torch.manual_seed(0)
    return MemRecEmbedding(5, 16, 8000, **options)


def ids(*shape):
    return torch.randint(-(2**62), 2**62, shape)


def test_vectors_are_rows_of_the_table():
    e = embedding(weight_share=0.0, signs=False, block_dim=4)
    assert e.nbytes <= 8000 and e.weights is None
    x = ids(3, 5)
    out = e(x)
    assert out.shape == (3, 5, 16)
    rows = {tuple(r.tolist()) for r in e.table}
    for vector in out.view(-1, 16):
        assert all(tuple(block.tolist()) in rows for block in vector.view(4, 4))
    # The same id has the same vector, and another one as another feature.
    same = torch.full((2, 5), 7)
    assert torch.equal(e(same)[0], e(same)[1])
    assert len({tuple(v.tolist()) for v in e(same)[0]}) == 5
    assert e(x[0]).shape == (5, 16) and e(ids(2, 3, 5)).shape == (2, 3, 5, 16) and e(ids(0, 5)).shape == (0, 5, 16)


@pytest.mark.parametrize("options", [{}, {"groups": 2, "num_hashes": 2}, {"weight_share": 0.0}, {"block_dim": 16}, {"signs": False}])
def test_gradients_are_those_of_finite_differences(options):
    e = embedding(**options)
    x, target = ids(6, 5), torch.randn(6, 5, 16)

    def loss():
        return (e(x) * target).sum()

    loss().backward()
    for values in [p for p in (e.table, e.weights) if p is not None]:
        flat, grad = values.data.view(-1), values.grad.view(-1)
        at = grad.abs().argsort(descending=True)[:: max(1, grad.numel() // 7)]
        for i in at.tolist():
            old, step = flat[i].item(), 0.01
            flat[i] = old + step
            high = loss().item()
            flat[i] = old - step
            low = loss().item()
            flat[i] = old
            assert abs((high - low) / (2 * step) - grad[i].item()) < 2e-2 * max(1.0, grad.abs().max().item())


def test_sparse_gradients_are_the_dense_ones():
    dense, sparse = embedding(), embedding(sparse=True)
    sparse.load_state_dict(dense.state_dict())
    x, target = ids(9, 5), torch.randn(9, 5, 16)
    for e in (dense, sparse):
        (e(x) * target).sum().backward()
    for a, b in ((dense.table, sparse.table), (dense.weights, sparse.weights)):
        assert b.grad.is_sparse
        assert torch.allclose(a.grad, b.grad.to_dense(), atol=1e-6)
        assert b.grad._indices().unique().numel() == b.grad._nnz()
    (sparse(ids(0, 5)).sum()).backward()


def test_state_dicts_keep_their_keys():
    state = json.loads(bytes(embedding(block_dim=8, num_hashes=2).get_extra_state().tolist()))
    assert list(state) == ["features", "dim", "budget", "seed", "block", "k", "groups", "signs", "weight_share"]
    assert (state["block"], state["k"]) == (8, 2)


@pytest.mark.parametrize("name,fused", [("SGD", Sgd(0.1)), ("Adagrad", Adagrad(0.1))])
def test_fused_optimizers_do_what_torch_does(name, fused):
    plain, ours = embedding(), embedding(fused=fused)
    ours.load_state_dict({**ours.state_dict(), **plain.state_dict()})
    optimizer = getattr(torch.optim, name)(plain.parameters(), lr=0.1)
    for step in range(4):
        torch.manual_seed(step)
        x, target = ids(20, 5), torch.randn(20, 5, 16)
        optimizer.zero_grad()
        (plain(x) * target).sum().backward()
        optimizer.step()
        (ours(x) * target).sum().backward()
        assert ours.table.grad is None
    assert torch.allclose(plain.table, ours.table, atol=1e-5)
    assert torch.allclose(plain.weights, ours.weights, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"sparse": True}, {"fused": RowWiseAdagrad(0.1)}])
def test_training_learns_what_ids_mean(options):
    torch.manual_seed(0)
    e = MemRecEmbedding(2, 8, 20_000, **options)
    model = nn.Sequential(e, nn.Flatten(), nn.Linear(16, 1))
    likes = torch.randn(300) * 2
    sparse = [torch.optim.SparseAdam(e.parameters(), lr=0.05)] if options.get("sparse") else []
    rest = model[2].parameters() if sparse or e.fused else model.parameters()
    optimizers = [torch.optim.Adam(rest, lr=0.05), *sparse]
    losses = []
    for _ in range(100):
        x = torch.stack([torch.randint(0, 300, (128,)), torch.randint(0, 5, (128,))], 1)
        y = (torch.rand(128) < likes[x[:, 0]].sigmoid()).float()
        loss = nn.functional.binary_cross_entropy_with_logits(model(x).squeeze(1), y)
        for o in optimizers:
            o.zero_grad()
        loss.backward()
        for o in optimizers:
            o.step()
        losses.append(loss.item())
    assert sum(losses[-20:]) / 20 < 0.9 * sum(losses[:10]) / 10


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_bags_are_sums_and_means(mode):
    bag = MemRecEmbeddingBag(1000, 16, mode=mode)
    assert bag.nbytes <= 1000 * 16 * 4 // 100
    x = ids(9)
    each = bag(x.unsqueeze(1))
    pool = torch.sum if mode == "sum" else torch.mean
    got = bag(x, torch.tensor([0, 2, 2, 5]))
    assert torch.allclose(got[0], pool(each[:2], 0), atol=1e-6)
    assert torch.equal(got[1], torch.zeros(16))
    assert torch.allclose(got[2], pool(each[2:5], 0), atol=1e-6)
    assert torch.allclose(got[3], pool(each[5:], 0), atol=1e-6)
    square = bag(x.view(3, 3))
    assert torch.allclose(square, pool(each.view(3, 3, 16), 1), atol=1e-6)
    last = MemRecEmbeddingBag(1000, 16, mode=mode, include_last_offset=True)
    last.load_state_dict(bag.state_dict())
    assert torch.equal(last(x, torch.tensor([0, 2, 2, 5, 9])), got)
    assert bag(ids(0), torch.tensor([], dtype=torch.long)).shape == (0, 16)
    assert torch.equal(bag(ids(0), torch.tensor([0, 0])), torch.zeros(2, 16))


class Full(nn.Module):
    """``nn.EmbeddingBag`` over the vectors of a bag's first ids."""

    def __init__(self, bag, n, **options):
        super().__init__()
        with torch.no_grad():
            options = {**options, "mode": bag.mode, "include_last_offset": bag.include_last_offset}
            single = MemRecEmbeddingBag(1000, 16, mode="sum")
            single.load_state_dict(bag.state_dict())
            vectors = single(torch.arange(n).unsqueeze(1))
        self.bag = nn.EmbeddingBag.from_pretrained(vectors, **options)

    def forward(self, *args):
        return self.bag(*args)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("options", [{}, {"padding_idx": 3}, {"max_norm": 0.2}, {"max_norm": 0.5, "norm_type": 1.0, "padding_idx": 0}])
def test_bags_are_those_of_pytorch(mode, options):
    bag = MemRecEmbeddingBag(1000, 16, mode=mode, **options)
    full = Full(bag, 20, **options)
    x, offsets = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 3]), torch.tensor([0, 0, 4, 9, 11])
    assert torch.allclose(bag(x, offsets), full(x, offsets), atol=1e-6)
    square = torch.tensor([[3, 3], [0, 1], [7, 3]])
    assert torch.allclose(bag(square), full(square), atol=1e-6)
    if mode == "sum":
        weights = torch.rand(11, requires_grad=True)
        got, want = bag(x, offsets, weights), full(x, offsets, weights)
        assert torch.allclose(got, want, atol=1e-6)
        (a,) = torch.autograd.grad(got.square().sum(), weights)
        (b,) = torch.autograd.grad(want.square().sum(), weights)
        assert torch.allclose(a, b, atol=1e-5)
        assert torch.allclose(bag(square, None, torch.full((3, 2), 2.0)), full(square, None, torch.full((3, 2), 2.0)), atol=1e-6)


def test_frozen_tables_stay_as_they_are():
    for fused in (None, Adagrad(0.1), Sgd(0.1), RowWiseAdagrad(0.1)):
        for frozen in ("table", "weights"):
            e = embedding(fused=fused)
            getattr(e, frozen).requires_grad_(False)
            before = {name: value.clone() for name, value in e.state_dict().items() if name != "_extra_state"}
            e(ids(4, 5)).sum().backward()
            changed = {name for name, value in before.items() if not torch.equal(e.state_dict()[name], value)}
            trained = "weights" if frozen == "table" else "table"
            if fused is None:
                assert not changed and getattr(e, frozen).grad is None and getattr(e, trained).grad is not None
            else:
                assert trained in changed and not {name for name in changed if name.startswith(frozen)}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    e = embedding()
    x = ids(4, 5)
    want = e(x)
    half = copy.deepcopy(e).to(dtype)
    got = half(x)
    assert got.dtype == dtype and torch.allclose(got.float(), want, atol=1e-2)
    got.float().square().sum().backward()
    want.square().sum().backward()
    assert half.table.grad.dtype == dtype
    assert torch.allclose(half.table.grad.float(), e.table.grad, atol=2e-2)
    bag = MemRecEmbeddingBag(1000, 16).to(dtype)
    assert bag(ids(6).view(2, 3)).dtype == dtype


def test_files_of_safetensors_and_accelerate(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    e, fresh, x = nn.Sequential(embedding()), nn.Sequential(embedding()), ids(4, 5)
    safetensors.save_model(e, tmp_path / "e.safetensors")
    safetensors.load_model(fresh, tmp_path / "e.safetensors")
    assert torch.equal(fresh(x), e(x))
    other = nn.Sequential(embedding(seed=2))
    with pytest.raises((ValueError, RuntimeError), match="other rows"):
        safetensors.load_model(other, tmp_path / "e.safetensors")
    # Older state_dicts have the options as a dict.
    old = dict(e.state_dict())
    old["0._extra_state"] = e[0]._options()
    nn.Sequential(embedding()).load_state_dict(old)
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    model = accelerate.Accelerator(cpu=True).prepare(nn.Sequential(embedding()))
    accelerate.load_checkpoint_in_model(model, str(tmp_path / "e.safetensors"))
    assert torch.equal(model(x), e(x))


def test_gradients_of_bags():
    bag = MemRecEmbeddingBag(None, 8, 4000, mode="mean")
    x, offsets, target = ids(10), torch.tensor([0, 3, 3, 7]), torch.randn(4, 8)
    (bag(x, offsets) * target).sum().backward()
    got = [p.grad.clone() for p in bag.parameters()]
    bag.zero_grad()
    each = bag(x.unsqueeze(1))
    means = torch.stack([each[0:3].mean(0), torch.zeros(8), each[3:7].mean(0), each[7:].mean(0)])
    (means * target).sum().backward()
    assert all(torch.allclose(a, p.grad, atol=1e-6) for a, p in zip(got, bag.parameters()))


def test_copies_and_files():
    e = embedding(fused=Adagrad(0.1))
    x = ids(4, 5)
    e(x).sum().backward()
    file = io.BytesIO()
    torch.save(e.state_dict(), file)
    file.seek(0)
    fresh = embedding(fused=Adagrad(0.1))
    fresh.load_state_dict(torch.load(file))
    for other in (fresh, copy.deepcopy(e), pickle.loads(pickle.dumps(e))):
        assert torch.equal(other(x), e(x)) and torch.equal(other.table_state, e.table_state)
    with pytest.raises((ValueError, RuntimeError), match="other rows"):
        embedding(seed=2).load_state_dict(embedding().state_dict())


@pytest.mark.parametrize(
    "call,error,words",
    [
        (lambda e: e(torch.zeros(3, 4, dtype=torch.long)), ValueError, "5 features"),
        (lambda e: e(torch.tensor(1)), ValueError, "5 features"),
        (lambda e: e(torch.zeros(3, 5)), TypeError, "tensor of integers"),
        (lambda e: e([1, 2, 3, 4, 5]), TypeError, "tensor of integers"),
        (lambda e: embedding(fused=Adagrad(0.1)).half()(torch.zeros(1, 5, dtype=torch.long)), TypeError, "float32 tables"),
        (lambda e: e(torch.zeros(1, 5, dtype=torch.long, device="meta")), ValueError, "meta"),
        (lambda e: MemRecEmbedding(5, 16, 3), ValueError, "too small"),
        (lambda e: MemRecEmbedding(5, 16, "lots"), ValueError, "number of bytes"),
        (lambda e: MemRecEmbedding(0, 16, 8000), ValueError, "features"),
        (lambda e: MemRecEmbedding(5, 16, 8000, block_dim=5), ValueError, "divide"),
        (lambda e: MemRecEmbedding(5, 16, 8000, weight_share=2.0), ValueError, "weight_share"),
        (lambda e: MemRecEmbedding(5, 16, 8000, fused="adam"), TypeError, "fused must be"),
        (lambda e: MemRecEmbeddingBag(None, 16), ValueError, "budget="),
        (lambda e: MemRecEmbeddingBag(9999, 16, mode="min"), ValueError, "sum"),
        (lambda e: MemRecEmbeddingBag(9999, 16, max_norm=0), ValueError, "max_norm"),
        (lambda e: MemRecEmbeddingBag(9999, 16)(ids(5)), ValueError, "1D with offsets"),
        (lambda e: MemRecEmbeddingBag(9999, 16)(ids(5), torch.tensor([3, 1])), ValueError, "offsets must start at 0"),
        (lambda e: MemRecEmbeddingBag(9999, 16)(ids(5), torch.tensor([1, 3])), ValueError, "offsets must start at 0"),
        (lambda e: MemRecEmbeddingBag(9999, 16)(ids(5), torch.tensor([0, 9])), ValueError, "offsets must start at 0"),
        (lambda e: MemRecEmbeddingBag(9999, 16)(ids(5), torch.tensor([0]), torch.ones(5)), ValueError, "mode='sum'"),
        (lambda e: MemRecEmbeddingBag(9999, 16, mode="sum")(ids(5), torch.tensor([0]), torch.ones(4)), ValueError, "of shape"),
    ],
)
def test_bad_input_is_an_exception(call, error, words):
    with pytest.raises(error, match=words):
        call(embedding())


def test_budgets_in_words():
    assert MemRecEmbedding(2, 16, "64kB").nbytes <= 64_000 < MemRecEmbedding(2, 16, "64KiB".replace("K", "k")).nbytes + 1600


def _steps(e, model, rank, world):
    """Some steps of training on this process' share of made-up rows."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        x = torch.randint(0, 100, (8, 2), generator=generator)
        y = torch.rand(8, generator=generator)
        mine = slice(rank * 8 // world, (rank + 1) * 8 // world)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x[mine]).squeeze(1), y[mine]).backward()
        optimizer.step()


def _model(**options):
    torch.manual_seed(0)
    e = MemRecEmbedding(2, 8, 4000, **options)
    return e, nn.Sequential(e, nn.Flatten(), nn.Linear(16, 1))


def _process(rank, world, folder):
    """One process of a distributed training; writes its tables."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    e, model = _model()
    _steps(e, nn.parallel.DistributedDataParallel(model), rank, world)
    torch.save(e.state_dict(), f"{folder}/{rank}.pt")
    for options in ({"sparse": True}, {"fused": Sgd(0.1)}):
        with pytest.raises(RuntimeError, match="DistributedDataParallel"):
            _steps(*_model(**options), rank, world)
    torch.distributed.destroy_process_group()


def test_two_processes_learn_what_one_learns(tmp_path):
    torch.multiprocessing.spawn(_process, (2, str(tmp_path)), nprocs=2)
    e, model = _model()
    _steps(e, model, 0, 1)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for name in ("table", "weights"):
        assert torch.equal(first[name], second[name])
        assert torch.allclose(e.state_dict()[name], first[name], atol=1e-5)

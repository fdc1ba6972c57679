"""One layer: numbers, gradients, shapes, copies, files."""

import copy
import io
import pickle

import pytest
torch = pytest.importorskip("torch")
from torch import nn

from reference import error, rounded
from scrimp.torch import SparseLinear

FORMATS = ["bf16", "int8", "int4"]


def layer(rows=48, cols=80, bias=True, **options):
    dense = nn.Linear(cols, rows, bias=bias)
    options = {"sparsity": 0.5, "method": "magnitude", **options}
    return dense, SparseLinear.from_dense(dense.weight, dense.bias, **options)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_product_is_that_of_the_dense_weights(format, sparsity, dtype):
    for rows, cols, shape in [(48, 80, (5,)), (17, 33, (2, 3)), (1, 1, ()), (100, 64, (1, 700))]:
        _, sparse = layer(rows, cols, format=format, sparsity=sparsity)
        x = torch.randn(*shape, cols, dtype=dtype)
        with torch.no_grad():
            got = sparse(x)
        wants = [rounded(x, format) @ sparse.weight.t() + sparse.bias]
        if format == "int4" and x.numel() // cols >= 48:
            # With AMX, such batches are products of bf16.
            wants.append(rounded(x, "bf16") @ rounded(sparse.weight, "bf16").t() + sparse.bias)
        assert got.dtype == dtype and got.shape == (*shape, rows)
        tolerance = {torch.float32: 3e-6, torch.bfloat16: 1e-2, torch.float16: 3e-3}[dtype]
        assert min(error(got.float(), want) for want in wants) < tolerance
        if sparsity:
            assert sparse.format == f"sparse-{format}" or rows * cols == 1


@pytest.mark.parametrize("format,most", [("bf16", 3e-3), ("int8", 6e-3), ("int4", 0.14)])
def test_weights_are_the_largest_of_the_dense_ones(format, most):
    dense, sparse = layer(64, 96, format=format, sparsity=0.5)
    weight = dense.weight.detach()
    kept = sparse.weight != 0
    # A weight that rounds to zero is gone as well, so there may be more zeros than asked for.
    assert 0.5 <= sparse.sparsity < 0.6
    assert weight[kept].abs().min() >= weight.abs().median() * 0.99
    assert error(sparse.weight[kept], weight[kept]) < most


def test_pruned_weights_are_packed_as_they_are():
    weight = torch.randn(32, 64).bfloat16().float() * (torch.rand(32, 64) < 0.3)
    sparse = SparseLinear.from_dense(weight)
    assert torch.equal(sparse.weight, weight)
    assert sparse.sparsity == pytest.approx((weight == 0).float().mean().item())
    assert sparse.nbytes < 2 * weight.numel() * 0.6


def test_gradients_flow_through_input_and_bias():
    _, sparse = layer()
    sparse.bias.requires_grad_()
    x = torch.randn(4, 3, 80, requires_grad=True)
    out = sparse(x)
    grad = torch.randn_like(out)
    out.backward(grad)
    assert torch.allclose(x.grad, grad @ sparse.weight, atol=1e-5)
    assert torch.allclose(sparse.bias.grad, grad.sum((0, 1)), atol=1e-5)
    # The same numbers as without gradients.
    with torch.no_grad():
        assert torch.equal(out, sparse(x))


def test_operator_passes_opcheck():
    _, sparse = layer()
    arguments = (torch.randn(2, 80, requires_grad=True), sparse._matrix, sparse.bias, 48)
    torch.library.opcheck(torch.ops.scrimp.sparse_linear, arguments)


def test_inputs_that_are_not_contiguous():
    _, sparse = layer(sparsity=0.3)
    # More than 4 rows on both sides: CPUs with AMX multiply up to 4 another way, with other roundings.
    x = torch.randn(80, 12).t()
    assert not x.is_contiguous()
    with torch.no_grad():
        assert torch.equal(sparse(x), sparse(x.contiguous()))
        assert torch.equal(sparse(x[::2]), sparse(x)[::2])
        assert sparse(torch.randn(0, 80)).shape == (0, 48)


def test_nan_stays_in_its_row():
    for format in FORMATS:
        _, sparse = layer(format=format)
        x = torch.randn(3, 80)
        clean = sparse(x)
        x[1, 5] = float("nan")
        out = sparse(x)
        assert out[1].isnan().any()
        assert torch.equal(out[[0, 2]], clean[[0, 2]])


def test_copies_pickles_and_files():
    for format in FORMATS:
        _, sparse = layer(format=format)
        x = torch.randn(2, 80)
        want = sparse(x)
        file = io.BytesIO()
        torch.save(sparse, file)
        file.seek(0)
        copies = [pickle.loads(pickle.dumps(sparse)), copy.deepcopy(sparse), torch.load(file, weights_only=False)]
        for other in copies:
            assert torch.equal(other(x), want)
            with torch.no_grad():
                assert torch.equal(other(x), want)
            assert other.format == sparse.format


def test_state_dict_round_trip(tmp_path):
    _, a = layer(format="int8")
    _, b = layer(format="int8")
    torch.save(a.state_dict(), tmp_path / "layer.pt")
    assert set(a.state_dict()) == {"bias", "weight_packed", "weight_shape"}
    b.load_state_dict(torch.load(tmp_path / "layer.pt"))
    assert torch.equal(a.weight, b.weight) and torch.equal(a.bias, b.bias)


def test_damaged_state_is_refused():
    _, sparse = layer()
    good = sparse.state_dict()
    before = sparse.weight
    for key, bad in [
        ("weight_packed", good["weight_packed"][:-1]),
        ("weight_packed", torch.full_like(good["weight_packed"], 255)),
        ("weight_packed", good["weight_packed"].float()),
        ("weight_shape", torch.tensor([3, 1 << 40, 1 << 40])),
        ("weight_shape", torch.tensor([99, 48, 80])),
        ("weight_shape", torch.tensor([3, 48, -80])),
    ]:
        with pytest.raises(RuntimeError, match="weight_packed"):
            sparse.load_state_dict({**good, key: bad})
    with pytest.raises(RuntimeError, match="Missing.*weight_packed"):
        sparse.load_state_dict({"bias": good["bias"]})
    with pytest.raises(RuntimeError, match="weight is dense"):
        sparse.load_state_dict({"bias": good["bias"], "weight": torch.zeros(48, 80)})
    with pytest.raises(RuntimeError, match="it is 47 x 80"):
        sparse.load_state_dict({**layer(47)[1].state_dict(), "bias": good["bias"]})
    assert torch.equal(sparse.weight, before)


def test_repr_says_what_it_takes():
    _, sparse = layer(format="int4")
    text = repr(sparse)
    assert "format=sparse-int4" in text and f"bytes={sparse.nbytes}" in text and "sparsity=" in text


def test_casts_change_the_bias_only():
    _, sparse = layer()
    x = torch.randn(2, 80)
    want = sparse(x)
    half = copy.deepcopy(sparse).bfloat16()
    assert half.bias.dtype == torch.bfloat16
    assert error(half(x), want) < 1e-2


@pytest.mark.parametrize(
    "call,error_type,words",
    [
        (lambda s: s(torch.randn(2, 79)), ValueError, "must be 80"),
        (lambda s: s(torch.tensor(1.0)), ValueError, "must be 80"),
        (lambda s: s(torch.zeros(2, 80, dtype=torch.float64)), TypeError, "float32, bfloat16 or float16"),
        (lambda s: s(torch.zeros(2, 80, dtype=torch.long)), TypeError, "float32, bfloat16 or float16"),
        (lambda s: s.to("meta"), RuntimeError, "runs on the CPU"),
        (lambda s: setattr(s, "weight", nn.Parameter(torch.zeros(48, 80))), AttributeError, "cannot be trained"),
        (lambda s: s._packed.linear("x", None, "y"), TypeError, "must be a torch.Tensor"),
        (lambda s: s._packed.linear(torch.zeros(80), None, torch.zeros(47)), ValueError, "do not fit"),
        (lambda s: s._packed.linear(torch.zeros(80), torch.zeros(3), torch.zeros(48)), ValueError, "a bias of 3"),
        (lambda s: SparseLinear(s._packed, torch.zeros(3)), ValueError, "the bias has shape"),
        (lambda s: SparseLinear.from_dense(torch.zeros(3)), ValueError, "no matrix"),
        (lambda s: SparseLinear.from_dense(torch.zeros(0, 3)), ValueError, "no matrix"),
        (lambda s: SparseLinear.from_dense(torch.full((2, 2), float("inf"))), ValueError, "NaN or infinite"),
        (lambda s: SparseLinear.from_dense(torch.zeros(2, 2, dtype=torch.int8)), TypeError, "not torch.int8"),
        (lambda s: SparseLinear.from_dense(torch.zeros(2, 2), format="int3"), ValueError, "no weight format `int3`"),
        (lambda s: SparseLinear.from_dense(torch.zeros(2, 2), method="x"), ValueError, "no pruning method `x`"),
        (lambda s: SparseLinear.from_dense(torch.zeros(2, 2), method="wanda"), ValueError, "needs calibration"),
        (lambda s: SparseLinear.from_dense(torch.zeros(2, 2, device="meta")), ValueError, "on meta"),
    ],
)
def test_bad_input_is_an_exception(call, error_type, words):
    _, sparse = layer()
    with pytest.raises(error_type, match=words):
        call(sparse)

"""The collection of embedding bags, with TorchRec's types where it is installed and with others of their shape."""

import pytest
torch = pytest.importorskip("torch")

from scrimp.rec import EmbeddingBagConfig, MemRecEmbeddingBagCollection, Sgd


class Jagged:
    """What a KeyedJaggedTensor is, as far as the collection goes."""

    def __init__(self, features):
        self._keys = list(features)
        rows = [bag for bags in features.values() for bag in bags]
        self._values = torch.tensor([x for bag in rows for x in bag])
        self._lengths = torch.tensor([len(bag) for bag in rows])

    def keys(self):
        return self._keys

    def values(self):
        return self._values

    def lengths(self):
        return self._lengths


IDS = {"bought": [[], [7]], "user": [[10**12], [3]], "clicked": [[1, 2, 3], []]}
TABLES = [
    EmbeddingBagConfig("users", 8, 100_000, ["user"]),
    EmbeddingBagConfig("products", 16, 50_000, ["clicked", "bought"], "mean"),
]


def test_vectors_are_those_of_the_bags():
    collection = MemRecEmbeddingBagCollection(TABLES, "40kB")
    assert collection.nbytes <= 40_000
    assert collection.embedding_bags["products"].nbytes == pytest.approx(collection.embedding_bags["users"].nbytes, rel=0.05)
    out = collection(Jagged(IDS))
    assert out.keys() == ["user", "clicked", "bought"] and out.length_per_key() == [8, 16, 16]
    assert out.values().shape == (2, 40)
    users, items = collection.embedding_bags["users"], collection.embedding_bags["products"]
    assert torch.equal(out["user"], users(torch.tensor([10**12, 3]), torch.tensor([0, 1])))
    assert torch.equal(out["clicked"], items(torch.tensor([1, 2, 3]), torch.tensor([0, 3])))
    assert torch.equal(out["bought"][0], torch.zeros(16)) and torch.equal(out["bought"][1], items(torch.tensor([[7]]))[0])


def test_gradients_reach_the_tables():
    collection = MemRecEmbeddingBagCollection(TABLES, "40kB")
    collection(Jagged(IDS)).values().sum().backward()
    assert all(bag.table.grad.abs().sum() > 0 for bag in collection.embedding_bags.values())
    fused = MemRecEmbeddingBagCollection(TABLES, "40kB", fused=Sgd(lr=0.1))
    before = fused.embedding_bags["users"].table.detach().clone()
    fused(Jagged(IDS)).values().sum().backward()
    assert not torch.equal(before, fused.embedding_bags["users"].table)


def test_a_feature_of_two_tables_has_two_names():
    tables = [EmbeddingBagConfig("a", 4, 1000, ["x"]), EmbeddingBagConfig("b", 8, 1000, ["x"])]
    out = MemRecEmbeddingBagCollection(tables, "4kB")(Jagged({"x": [[1], [2]]}))
    assert out.keys() == ["x@a", "x@b"] and out["x@b"].shape == (2, 8)


def test_files():
    one, other = (MemRecEmbeddingBagCollection(TABLES, "40kB") for _ in range(2))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(Jagged(IDS)).values(), other(Jagged(IDS)).values())


class Weighted(Jagged):
    def weights_or_none(self):
        return torch.full((len(self._values),), 2.0)


def test_weights_scale_sums():
    tables = [EmbeddingBagConfig("a", 8, 100, ["x"])]
    collection = MemRecEmbeddingBagCollection(tables, "4kB")
    ids = {"x": [[1, 5], [], [2]]}
    assert torch.allclose(collection(Weighted(ids)).values(), 2 * collection(Jagged(ids)).values())


@pytest.mark.parametrize("call,error,words", [
    (lambda: MemRecEmbeddingBagCollection([]), ValueError, "no tables"),
    (lambda: MemRecEmbeddingBagCollection([TABLES[0], TABLES[0]]), ValueError, "two tables called 'users'"),
    (lambda: MemRecEmbeddingBagCollection([EmbeddingBagConfig("items", 4, 10)]), ValueError, "cannot be called 'items'"),
    (lambda: MemRecEmbeddingBagCollection([EmbeddingBagConfig("a", 4, 10, ["x"], "max")]), ValueError, "no pooling 'max'"),
    (lambda: MemRecEmbeddingBagCollection(TABLES, "40kB")(Jagged({"user": [[1]]})), ValueError, "no feature 'clicked'"),
    (lambda: MemRecEmbeddingBagCollection([EmbeddingBagConfig("a", 4, 10, ["user"], "mean")], "4kB")(Weighted({"user": [[1]]})), ValueError, "mode='sum'"),
])
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_types_of_torchrec():
    try:
        import torchrec
    except Exception as e:  # It needs fbgemm of the very same PyTorch.
        pytest.skip(f"TorchRec cannot be imported: {e}")
    jagged = torchrec.KeyedJaggedTensor.from_lengths_sync(
        keys=["user", "item"], values=torch.tensor([5, 6, 7]), lengths=torch.tensor([1, 1, 1, 0])
    )
    tables = [torchrec.EmbeddingBagConfig(name=n, embedding_dim=4, num_embeddings=1000, feature_names=[n]) for n in ("user", "item")]
    out = MemRecEmbeddingBagCollection(tables, "4kB")(jagged)
    assert isinstance(out, torchrec.KeyedTensor) and out["item"].shape == (2, 4)

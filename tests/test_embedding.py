"""The encoder against a small BERT of its own making; prompts seen through an embedding."""

from __future__ import annotations

from pathlib import Path

import pytest

from scheduler.core.estimators import estimator_from
from scheduler.core.prior import NO_PRIOR, Meanings
from scheduler.core.types import Request
from scheduler.load.embedding import EmbeddingError, Encoder, embedding_model
from scheduler.load.prior import shipped_prior
from scheduler.load.training import train

np = pytest.importorskip("numpy")


def test_the_encoder_is_bert() -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3}
    torch.manual_seed(0)
    bert = transformers.BertModel(transformers.BertConfig(vocab_size=50, **sizes)).eval()
    weights = {name: value.numpy() for name, value in bert.state_dict().items()}
    tokens = [3, 14, 15, 9, 2, 6]
    with torch.no_grad():
        mean = bert(torch.tensor([tokens])).last_hidden_state[0].mean(0).numpy()
    assert Encoder(weights, sizes)(tokens) == pytest.approx(mean / np.linalg.norm(mean), abs=2e-3)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    with pytest.raises(
        EmbeddingError, match=r"a folder with config\.json, tokenizer\.json, model\.safetensors"
    ):
        embedding_model(str(tmp_path))


def test_a_model_is_read_once(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    tokenizers = pytest.importorskip("tokenizers")
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 0, "num_attention_heads": 1}')
    safetensors.save_file({}, tmp_path / "model.safetensors")
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, "a")).save(str(tmp_path / "tokenizer.json"))
    assert embedding_model(str(tmp_path)) is embedding_model(str(tmp_path))


def test_the_prior_weighs_what_the_embedding_says() -> None:
    """Two kinds of prompts that no word tells apart, and an embedding that does."""
    known = {f"{'pq'[n % 2]}{n:03}": [float(n % 2), float(1 - n % 2)] for n in range(80)}
    prompts, unseen = list(known)[:60], list(known)[60:]
    lengths = [{"a": 600 if prompt[0] == "q" else 60} for prompt in prompts]
    document = train(prompts, lengths, known.__getitem__)
    prior = NO_PRIOR.from_document(document)
    estimator = estimator_from("learned", prior=prior, embed=known.__getitem__)
    points = {
        name: estimator.estimate(Request("r", "acme", "standard", 0.0, 1, 4096, name)).point
        for name in unseen
    }
    assert min(points[name] for name in unseen if name[0] == "q") > 3 * max(
        points[name] for name in unseen if name[0] == "p"
    )


def test_a_prompt_that_was_done_without_is_embedded_once_there_is_time() -> None:
    embedded = list[str]()

    def embed(prompt: str) -> list[float]:
        embedded.append(prompt)
        return [1.0]

    meanings = Meanings(NO_PRIOR._replace(embedding=(0.5,)), embed)
    meanings.forgo("new")
    assert (meanings("new"), "new" in meanings, embedded) == (0.0, False, [])
    meanings.prepare("new")
    meanings.forgo("new")
    assert (meanings("new"), "new" in meanings, embedded) == (0.5, True, ["new"])
    assert meanings("newer") == 0.5
    assert embedded == ["new", "newer"]


def test_only_so_many_meanings_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler.core.prior.KEPT_MEANINGS", 2)
    meanings = Meanings(NO_PRIOR._replace(embedding=(0.5,)), lambda prompt: [1.0])
    for prompt in "abc":
        meanings.forgo(prompt)
        meanings.prepare(prompt)
    assert [prompt in meanings for prompt in "abc"] == [False, True, True]


def test_a_prior_and_its_embedding_go_together() -> None:
    with pytest.raises(ValueError, match="go together"):
        estimator_from("learned", prior=shipped_prior(embeddings=True))
    with pytest.raises(ValueError, match="go together"):
        estimator_from("learned", prior=shipped_prior(), embed=lambda prompt: [1.0])

"""Translation: text, batches, the Transformer, beam search, and whole runs."""

import dataclasses
import functools
import gzip
import io
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sacrebleu
from flax import nnx
from runs import assert_bit_equal, environment, last_state, records, stop_at, wait_for

from examples.experiments import analyze, compare, evaluate, sweep, translate
from examples.training.first_pass import first_pass
from examples.training.optimizer import make_schedule
from examples.training.program import set_dropout_key
from examples.training.settings import check_values
from examples.training.train import prepare, train
from examples.translation import __main__ as entry
from examples.translation import transformer
from examples.translation.batches import (
    TextBatches,
    choose_lengths,
    equal_batches,
    make_batch,
    padded_lengths,
)
from examples.translation.beam_search import beam_search
from examples.translation.config import Config
from examples.translation.data import BOS, EOS, PAD, load, read_lines, read_vocabulary
from examples.translation.presets import PRESETS
from examples.translation.transformer import MODELS, Size, make_model, positions

WORDS = {
    **{"eins": "one", "zwei": "two", "drei": "three", "vier": "four", "sechs": "six"},
    **{"Hund": "dog", "Katze": "cat", "und": "and", "rot": "red", "blau": "blue"},
}
TINY = Size(layers=1, width=32, heads=2, hidden=64)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(MODELS, "transformer_tiny", TINY)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Sentences that are translated word by word."""
    folder, rng = tmp_path_factory.mktemp("text"), np.random.default_rng(0)
    for split, size in {"train": 50, "valid": 12, "test": 12}.items():
        sentences = [rng.choice(list(WORDS), rng.integers(2, 9)) for _ in range(size)]
        lines = ["".join(f"{' '.join(words)}.\n" for words in sentences)]
        lines.append("".join(f"{' '.join(map(WORDS.get, words))}.\n" for words in sentences))
        for language, content in zip(("de", "en"), lines, strict=True):
            path = folder / f"{split}.{language}"
            if split == "valid":  # both kinds of files are read
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content.encode()))
            else:
                path.write_text(content)
    return folder


def settings(text, out, **changes):
    """A run of a few seconds."""
    common = {
        **{"model": "transformer_tiny", "vocabulary": 60, "batch_tokens": 384, "buckets": 2},
        **{"method": "xsam", "rho": 0.05, "epochs": 3},
        **{"warmup_steps": 2, "beam": 2, "dropout": 0.1, "data_dir": text, "out": out},
    }
    chosen = {**common, **changes}
    if chosen["method"] == "xsam":
        chosen = {"rho_max": 0.1, "num_alphas": 3} | chosen
    if chosen["method"] == "sgd":
        chosen["rho"] = None
    return Config(**chosen)


# --- Text and batches ---


def test_the_vocabulary_returns_the_text(text):
    loaded = load(settings(text, None))
    corpus = loaded.splits["train"]
    assert loaded.tokenizer.decode_batch(corpus.target) == corpus.references
    assert loaded.tokenizer.get_vocab_size() == 60
    sources = (text / "train.de").read_text().splitlines()
    assert loaded.tokenizer.decode_batch(corpus.source) == sources
    again = load(settings(text, None)).tokenizer
    assert again.to_str() == loaded.tokenizer.to_str()  # as on another host


def test_an_epoch_has_each_sentence_once_in_few_shapes(text):
    batches = TextBatches(load(settings(text, None)), settings(text, None))
    corpus, seen, shapes = batches.split("train"), [], set()
    steps = 0
    for batch in batches.training_rows(1, 0):
        steps += 1
        shapes.add(batch.source.shape)
        for source, target, weight in zip(*(np.asarray(leaf[0]) for leaf in batch), strict=True):
            tokens = np.asarray(batch.target[0])
            assert weight == pytest.approx(len(tokens) / np.sum(tokens != PAD))
            if (target != PAD).any():
                assert source[source != PAD][-1] == target[target != PAD][-1] == EOS
                seen.append((list(source[source != PAD][:-1]), list(target[target != PAD][:-1])))
    assert steps == batches.spec.steps_per_epoch
    assert len(shapes) == 2
    assert sorted(seen) == sorted(zip(corpus.source, corpus.target, strict=True))
    first, second = (np.asarray(next(batches.training_rows(e, 0)).source) for e in (0, 1))
    assert first.shape != second.shape or (first != second).any()


def test_lengths_leave_as_little_padding_as_possible():
    lengths = np.repeat([8, 16, 24, 32, 40, 48], [30, 100, 5, 40, 2, 1])

    def padding(ends):
        return sum(min(end for end in ends if end >= length) for length in lengths)

    best = min(
        itertools.combinations(range(8, 49, 8), 3),
        key=lambda ends: padding(ends) if ends[-1] == 48 else math.inf,
    )
    assert tuple(choose_lengths(lengths, 3)) == best
    assert choose_lengths(lengths, 1) == [48]
    assert choose_lengths(lengths, 10) == [8, 16, 24, 32, 40, 48]
    for number in range(1, 20):
        found = choose_lengths(np.arange(8, 144, 8), number)
        assert len(found) == min(number, 17)
        assert found[-1] == 136


def test_an_epoch_goes_on_from_any_step(text):
    """With batches of two lengths."""
    batches = TextBatches(load(settings(text, None)), settings(text, None))
    rows = list(batches.training_rows(1, 0))
    assert len({row.source.shape for row in rows}) == 2
    for start in range(len(rows) + 1):
        chex.assert_trees_all_equal(list(batches.training_rows(1, start)), rows[start:])


@pytest.mark.parametrize("changes", [{"groups": 5}, {"accumulate": 16}, {"accumulate": 3}])
def test_batches_are_filled_up_for_groups_and_parts(changes, text):
    """The sentences of a step are those without groups, and each group has some."""
    plain, changed = (
        TextBatches(load(config), config)
        for config in (settings(text, None), settings(text, None, **changes))
    )
    assert changed.spec == plain.spec
    divisor = math.prod(changes.values())
    for epoch in range(2):
        pairs = zip(plain.training_rows(epoch, 0), changed.training_rows(epoch, 0), strict=True)
        for one, other in pairs:
            first, second = np.asarray(one.source[0]), np.asarray(other.source[0])
            assert len(second) % divisor == 0
            real = [tuple(row) for row in second if (row != PAD).sum() > 1]
            assert sorted(real) == sorted(tuple(row) for row in first if (row != PAD).sum() > 1)
            if "groups" in changes and len(real) >= divisor:
                groups = np.asarray(other.target[0]).reshape(divisor, -1)
                assert (groups != PAD).any(axis=1).all()


def test_special_tokens_in_the_text_are_text(text, tmp_path):
    loaded = load(settings(text, None))
    saved = tmp_path / "vocabulary.json"
    saved.write_text(loaded.tokenizer.to_str())
    for tokenizer in (loaded.tokenizer, read_vocabulary(saved)):
        tokens = tokenizer.encode("a <eos> b <pad>").ids
        assert not {EOS, PAD, BOS} & set(tokens)


def test_line_breaks_and_byte_order_marks_are_no_text(tmp_path):
    path = tmp_path / "train.de"
    path.write_bytes("\ufeffein Haus\r\nein\rHund\n".encode())
    assert read_lines(path) == ["ein Haus", "ein Hund"]


# --- The model ---


def layer_norm(x, params):
    normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return normal * params["scale"] + params["bias"]


def linear(x, params):
    return x @ params["kernel"] + params["bias"]


def attend(inputs, others, params, mask, heads):
    """Attention from the formula, head by head, in float64."""
    query, key, value = (
        linear(x, params[name])
        for x, name in ((inputs, "query"), (others, "key"), (others, "value"))
    )
    width = inputs.shape[-1] // heads
    parts = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        scores = query[:, part] @ key[:, part].T / math.sqrt(width)
        scores = np.where(mask, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        parts.append(weights / weights.sum(-1, keepdims=True) @ value[:, part])
    return linear(np.concatenate(parts, -1), params["out"])


def feed_forward(x, params):
    return linear(np.maximum(linear(x, params["wide"]), 0), params["narrow"])


def reference_logits(params, source, previous, heads):
    """The Transformer of Vaswani et al. on one sentence without padding."""
    embedding = params["embedding"]["embedding"]
    width = embedding.shape[1]

    def embed(tokens):
        place, i = np.arange(len(tokens))[:, None], np.arange(width // 2)
        angles = place / 10_000 ** (i / (width // 2 - 1))
        return embedding[tokens] * math.sqrt(width) + np.hstack([np.sin(angles), np.cos(angles)])

    memory = embed(source)
    for block in params["encoder"].values():
        norms = block["norms"]
        memory = layer_norm(
            memory + attend(memory, memory, block["attention"], True, heads), norms[0]
        )
        memory = layer_norm(memory + feed_forward(memory, block), norms[1])
    x = embed(previous)
    causal = np.tril(np.ones((len(previous),) * 2, bool))
    for block in params["decoder"].values():
        norms = block["norms"]
        x = layer_norm(x + attend(x, x, block["attention"], causal, heads), norms[0])
        x = layer_norm(x + attend(x, memory, block["cross"], True, heads), norms[1])
        x = layer_norm(x + feed_forward(x, block), norms[2])
    return x @ embedding.T


def at_random(params):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(x.dtype), params)


def model_of(vocabulary=11, dropout=0.0):
    """A model with weights from NumPy, whose generator compiles nothing."""
    model = nnx.eval_shape(
        lambda: make_model(
            "transformer_tiny", vocabulary=vocabulary, dropout=dropout, rngs=nnx.Rngs(0)
        )
    )
    nnx.update(
        model,
        jax.tree_util.tree_map_with_path(
            # Normalization scales by about one, so that logits differ between tokens and places.
            lambda path, x: x + ("scale" in jax.tree_util.keystr(path)),
            at_random(nnx.state(model, nnx.Param)),
        ),
    )
    if dropout:
        model.train()
    else:
        model.eval()
    return model


def test_the_transformer_agrees_with_the_formulas(monkeypatch):
    monkeypatch.setitem(MODELS, "transformer_tiny", Size(2, 8, 2, 12))
    model = model_of()
    params = nnx.as_pure(nnx.state(model, nnx.Param))
    source, previous = np.array([4, 7, 5, 2]), np.array([1, 9, 6])
    padded = np.full((1, 6), PAD)
    padded[0, :4] = source
    found = jax.jit(model.__call__)(padded, previous[None])[0]
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    expected = reference_logits(exact, source, previous, heads=2)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)


def test_one_token_at_a_time_gives_the_same_logits():
    model, rng = model_of(), np.random.default_rng(0)
    source = jnp.array([[5, 6, 7, 2, 0], [8, 2, 0, 0, 0]])
    previous = jnp.asarray(rng.integers(3, 11, (2, 4)))
    whole = jax.jit(model.__call__)(source, previous)
    memory, cache = jax.jit(model.encode)(source), model.empty_cache(2, 6)
    step = jax.jit(model.step)
    for position in range(4):
        logits, cache = step(previous[:, position], position, cache, memory)
        np.testing.assert_allclose(logits, whole[:, position], rtol=1e-4, atol=1e-5)


def test_number_of_parameters():
    """Fairseq's transformer_iwslt_de_en with 10,000 shared tokens: counted layer by layer."""
    width, hidden, layers = 512, 1024, 6
    attention = 4 * (width * width + width)
    network = width * hidden + hidden + hidden * width + width
    norm = 2 * width
    expected = 10_000 * width
    expected += layers * (attention + network + 2 * norm)
    expected += layers * (2 * attention + network + 3 * norm)
    model = nnx.eval_shape(
        lambda: make_model("transformer_iwslt", vocabulary=10_000, dropout=0.3, rngs=nnx.Rngs(0))
    )
    found = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert found == expected == 36_663_296


def test_dropout_drops_the_same_units_in_every_pass():
    graph, params = nnx.split(model_of(dropout=0.5))

    def logits(key):
        copy = nnx.merge(graph, params)
        set_dropout_key(copy, jax.random.key(key))
        return copy(jnp.array([[5, 6, 2]]), jnp.array([[1, 7]]))

    passes = jax.jit(lambda keys: [logits(key) for key in keys])
    one, again, other = map(np.asarray, passes(np.array([0, 0, 1])))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


def test_places_of_a_pass_drop_different_units(monkeypatch):
    model = model_of(dropout=0.5)
    set_dropout_key(model, jax.random.key(0))
    kept = []

    def record(self, inputs):
        outputs = dropout(self, jnp.ones_like(inputs))
        kept.append(outputs != 0)
        return inputs

    def places():
        model(jnp.array([[5, 6, 2]]), jnp.array([[1, 7, 3]]))
        return kept

    dropout = nnx.Dropout.__call__
    monkeypatch.setattr(nnx.Dropout, "__call__", record)
    units = [np.asarray(place).tobytes() for place in jax.jit(places)()]
    layers = MODELS["transformer_tiny"].layers
    # After both embeddings, and in the layers of encoder and decoder.
    assert len(set(units)) == len(units) == 2 + 2 * layers + 3 * layers


# --- Beam search ---


@functools.partial(jax.jit, static_argnames=("beam", "length_penalty"))
def search_table(table, beam, length_penalty):
    """Searches a model whose logits depend on the position and the last two tokens.

    The tokens end with 2. The last but one is kept in the cache.
    """

    def step(tokens, position, cache):
        before, last = cache["last"], tokens
        return table[position, before, last], {"last": last}

    options = {"beam": beam, "limit": len(table), "bos": 0, "eos": 2}
    cache = {"last": jnp.zeros(beam, jnp.int32)}
    return beam_search(step, cache, 1, **options, length_penalty=length_penalty)[0]


def best_translation(log_probs, limit, eos, penalty):
    """The best of all translations, one after the other."""
    size = log_probs.shape[-1]
    others = [token for token in range(size) if token != eos]
    best = -math.inf, None
    for length in range(1, limit + 1):
        for words in itertools.product(others, repeat=length - 1):
            total, before, last = 0.0, 0, 0
            for position, token in enumerate((*words, eos)):
                total += log_probs[position, before, last, token]
                before, last = last, token
            best = max(best, (total / length**penalty, (*words, eos)))
    return best[1]


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_a_wide_beam_search_finds_the_best_of_all_translations(penalty):
    size, limit, eos, beam = 4, 4, 2, 120
    for seed in range(5):
        rng = np.random.default_rng(seed)
        table = 2 * rng.normal(size=(limit, size, size, size))
        log_probs = table - np.log(np.exp(table).sum(-1, keepdims=True))
        found = np.asarray(search_table(table.astype(np.float32), beam, penalty))
        expected = best_translation(log_probs, limit, eos, penalty)
        assert tuple(found[: len(expected)].tolist()) == expected
        assert (found[len(expected) :] == eos).all()


def test_a_beam_of_one_is_greedy():
    size, limit, eos = 6, 7, 2
    lengths = set()
    for seed in range(20):
        table = np.random.default_rng(seed).normal(size=(limit, size, size, size))
        found = np.asarray(search_table(table.astype(np.float32), 1, 1.0))
        before, last, greedy = 0, 0, []
        while len(greedy) < limit - 1 and eos not in greedy:
            before, last = last, int(table[len(greedy), before, last].argmax())
            greedy.append(last)
        greedy += [eos] * (eos not in greedy)
        assert found[: len(greedy)].tolist() == greedy
        lengths.add(len(greedy))
    assert len(lengths) > 3


def test_sentences_are_searched_apart():
    """Each sentence has a table of its own, at another place of the cache."""
    size, limit, eos, beam = 5, 5, 2, 3
    tables = np.random.default_rng(0).normal(0, 2, (2, limit, size, size, size))

    @jax.jit
    def search(tables):
        def step(tokens, position, cache):
            logits = tables[cache["sentence"], position, cache["last"], tokens]
            return logits, cache | {"last": tokens}

        rows = len(tables) * beam
        cache = {"last": jnp.zeros(rows, jnp.int32), "sentence": jnp.arange(rows) // beam}
        options = {"beam": beam, "limit": limit, "bos": 0, "eos": eos, "length_penalty": 1.0}
        return beam_search(step, cache, len(tables), **options)

    together = search(tables)
    for sentence in range(2):
        np.testing.assert_array_equal(together[sentence], search(tables[[sentence]])[0])
    assert (together[0] != together[1]).any()


# --- The loss ---


def test_the_loss_is_the_mean_over_tokens_with_smoothed_targets(text):
    config = settings(text, None, label_smoothing=0.2)
    batches = config.load()
    program = config.make_program(batches.spec)
    corpus = batches.split("train")
    batch = make_batch(corpus, np.array([0, 1, 2, 3, 4, -1]), int(padded_lengths(corpus).max()))
    model = model_of(60)
    previous = np.pad(batch.target[:, :-1], ((0, 0), (1, 0)), constant_values=BOS)
    logits = np.asarray(jax.jit(model.__call__)(batch.source, previous), np.float64)
    total, tokens = 0.0, 0
    for row, sentence in enumerate(batch.target):
        for place, token in enumerate(sentence):
            if token != PAD:
                log_probs = logits[row, place] - np.log(np.exp(logits[row, place]).sum())
                target = np.full(60, 0.2 / 60)
                target[token] += 0.8
                total -= target @ log_probs
                tokens += 1
    expected = total / tokens
    losses, accuracy = jax.jit(lambda batch: program.losses(model, batch))(batch)
    assert losses.mean() == pytest.approx(expected, rel=1e-5)
    real = batch.target != PAD
    assert accuracy == pytest.approx(100 * np.mean(logits.argmax(-1)[real] == batch.target[real]))
    assert 0 < accuracy < 100

    # So it is with the batch in parts, although these have different numbers of tokens.
    graph, params = nnx.split(model)

    def losses_of(params, part):
        return program.losses(nnx.merge(graph, params), part)

    loss = jax.jit(lambda params, batch: first_pass(losses_of, params, batch, 1, 3).loss)
    assert loss(params, batch) == pytest.approx(expected, rel=1e-5)


def test_batches_for_the_loss_weigh_tokens_alike(text):
    config = settings(text, None, label_smoothing=0.0)
    batches = config.load()
    program = config.make_program(batches.spec)
    params = nnx.as_pure(nnx.state(model_of(60), nnx.Param))
    corpus, loss = batches.split("train"), jax.jit(program.loss)
    parts = [loss(params, ({}, part)) for part in equal_batches(corpus, 20, 5)]
    whole = make_batch(corpus, np.arange(20), int(padded_lengths(corpus).max()))
    sums = jax.jit(lambda batch: program.sums(program.evaluation_model(params, {}), batch))(whole)
    assert np.mean(parts) == pytest.approx(float(sums["loss"] / sums["count"]), rel=1e-5)


# --- Runs ---


@pytest.fixture(scope="module")
def trained(text, tmp_path_factory):
    """A run that nothing interrupts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "transformer_tiny", TINY)
        config = settings(text, tmp_path_factory.mktemp("runs") / "run", buckets=1)
        return config, train(config, show=False)


# One worker trains the fixture for all tests.
uses_learned = pytest.mark.xdist_group("learned")


@pytest.fixture(scope="module")
def learned(text, tmp_path_factory):
    """The folder of a run that has learned its sentences by heart."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "transformer_tiny", TINY)
        config = settings(
            text,
            tmp_path_factory.mktemp("runs") / "learned",
            **{"vocabulary": 80, "batch_tokens": 192},
            **{"method": "sam", "rho": 0.02, "epochs": 75, "learning_rate": 0.007},
            **{"dropout": 0.0, "label_smoothing": 0.0, "weight_decay": 0.0, "schedule": "cosine"},
            **{"evaluate_every": 75, "checkpoint_every": 75, "beam": 3},
        )
        train(config, show=False)
    return config.out


@uses_learned
def test_fifty_sentences_are_learned_by_heart(learned):
    trained = evaluate.restore(learned)
    corpus = trained.batches.split("train")
    found = trained.program.translate(trained.state, trained.batches, corpus)
    assert sacrebleu.corpus_bleu(found, [corpus.references]).score > 95
    assert trained.program.train_steps._cache_size() == 2  # one a length


def test_references_do_not_change_translations(trained):
    restored = evaluate.restore(trained[0].out)
    corpus = restored.batches.split("test")
    longer = corpus._replace(target=[[4] * 40 for _ in corpus.target])
    # With these weights translations go on to their limit.
    state = restored.state._replace(params=at_random(restored.state.params))
    first, second = (
        restored.program.translate(state, restored.batches, c) for c in (corpus, longer)
    )
    assert first == second
    assert min(map(len, first)) > 60


def test_translations_have_no_tokens_of_padding_and_beginning(trained):
    restored = evaluate.restore(trained[0].out)
    params = at_random(restored.state.params)
    # The output of the decoder is one vector everywhere, to which these two tokens are closest.
    word = 9
    norm = params["decoder"][max(params["decoder"])]["norms"][2]
    embedding = params["embedding"]["embedding"]
    embedding[:] = 0.0
    embedding[[PAD, BOS]], embedding[word] = 2.0, 1.0
    norm["scale"][:], norm["bias"][:] = 0.0, 1.0
    source = np.full((2, 8), word)
    found = restored.program.search(params, restored.state.statistics, source)
    assert set(np.ravel(found)) == {word, EOS}


def test_a_run_leaves_its_metrics_and_its_vocabulary(trained):
    config, history = trained
    assert [record["epoch"] for record in history] == [1, 2, 3]
    last = history[-1]
    for name in ("train_loss", "validation_loss", "validation_bleu", "test_bleu", "alpha", "psi"):
        assert np.isfinite(last[name])
    assert "test_bleu" not in history[0]
    assert {"best_validation_bleu", "last_five_validation_bleu"} <= last.keys()
    assert json.loads((config.out / "vocabulary.json").read_text())["model"]["type"] == "BPE"
    assert "tok:13a" in (config.out / "sacrebleu.txt").read_text()
    assert json.loads((config.out / "config.json").read_text())["program"] == "translation"
    assert (config.out / "curves.png").stat().st_size > 10_000


def test_later_epochs_compile_nothing(trained, tmp_path):
    config, _ = trained
    run = prepare(dataclasses.replace(config, out=tmp_path / "run"))
    assert run.program.train_steps._cache_size() == 1
    train(dataclasses.replace(config, out=tmp_path / "again", seed=5), show=False)
    assert run.program.train_steps._cache_size() == 1


def test_a_stopped_run_resumes_bit_equal(trained, text, tmp_path, monkeypatch):
    config, history = trained
    again = dataclasses.replace(config, out=tmp_path / "run")
    stop_at(4, again, monkeypatch)
    assert_same(train(again, show=False), history)
    assert_bit_equal(last_state(again.out), last_state(config.out))


COMMAND = f"""
import sys
from examples.translation.__main__ import main
from examples.translation.transformer import MODELS, Size
MODELS["transformer_tiny"] = {TINY}
sys.exit(main(sys.argv[1:]))
"""


def words(config):
    default = Config()
    found = []
    for field in dataclasses.fields(Config):
        value = getattr(config, field.name)
        if value != getattr(default, field.name) or field.name in ("warmup_steps", "rho"):
            found += [f"--{field.name.replace('_', '-')}", str(value)]
    return found


def test_a_killed_run_resumes_bit_equal_and_a_finished_one_says_so(trained, tmp_path, capsys):
    config, history = trained
    again = dataclasses.replace(config, out=tmp_path / "run")
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *words(again)],
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(1, again, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert len(records(again.out)) < 3
    assert entry.main(words(again)) == 0
    assert f"BLEU {history[-1]['test_bleu']:.2f}" in capsys.readouterr().out.splitlines()[-1]
    assert_same(records(again.out), history)
    assert_bit_equal(last_state(again.out), last_state(config.out))
    assert entry.main(words(again)) == 0
    assert "is finished" in capsys.readouterr().err


def assert_same(found, expected):
    timings = ("seconds", "sentences_per_second")
    for one, other in zip(found, expected, strict=True):
        assert {n: one[n] for n in one if n not in timings} == {
            n: other[n] for n in other if n not in timings
        }


def test_eight_devices_match_one(trained, tmp_path):
    """With parameters and state divided, too."""
    config = dataclasses.replace(trained[0], out=tmp_path / "eight")
    subprocess.run(
        [sys.executable, "-c", COMMAND, *words(config), "--fsdp"],
        env=environment(JAX_NUM_CPU_DEVICES="8"),
        check=True,
    )
    timings = {"seconds", "sentences_per_second"}
    for one, other in zip(records(tmp_path / "eight"), trained[1], strict=True):
        assert one.keys() == other.keys()
        close = {name: one[name] for name in one if name not in timings}
        chex.assert_trees_all_close(close, {name: other[name] for name in close}, rtol=5e-3)


# --- The tools ---


def test_bleu_is_that_of_sacrebleu_on_the_written_files(trained, text, capsys):
    config, history = trained
    assert evaluate.main([str(config.out)]) == 0
    found = json.loads((config.out / "evaluation.json").read_text())
    assert found["test_bleu"] == history[-1]["test_bleu"]
    command = [sys.executable, "-m", "sacrebleu", str(text / "test.en"), "-w", "6", "-b"]
    command += ["-i", str(config.out / evaluate.TRANSLATIONS)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert float(printed) == pytest.approx(found["test_bleu"], abs=1e-6)


@uses_learned
def test_text_is_translated_line_by_line(learned, text, tmp_path, monkeypatch, capsys):
    lines = (text / "train.de").read_text().splitlines()
    given = [lines[0], "", lines[1]]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(given).encode())))
    # Without the text of the training.
    moved = tmp_path / "run"
    shutil.copytree(learned, moved)
    saved = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps(saved | {"data_dir": "/nowhere"}))
    assert translate.main([str(moved)]) == 0
    restored = evaluate.restore(learned)
    corpus = restored.batches.split("train")
    expected = restored.program.translate(restored.state, restored.batches, corpus)
    assert len({*expected[:2], ""}) == 3
    assert capsys.readouterr().out.splitlines() == [expected[0], "", expected[1]]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("größer".encode("latin-1"))))
    assert translate.main([str(moved)]) == 2
    assert "standard input cannot be read as UTF-8 text" in capsys.readouterr().err


def test_settings_are_chosen_by_bleu_and_compared(text, tmp_path, capsys):
    config = settings(text, None, epochs=1, buckets=1)
    options = [field for field in words(config) if field != "None"]
    for name in ("method", "rho", "rho-max", "num-alphas"):
        if f"--{name}" in options:
            at = options.index(f"--{name}")
            del options[at : at + 2]
    each = " ".join(options)
    status = sweep.main(
        [
            *("--program", "translation", "--out", str(tmp_path), "--tune", "5", "--seeds", "0"),
            *("--each", each, "--method sgd", "--method sam --rho 0.01", "--method sam --rho 0.1"),
        ]
    )
    assert status == 0
    errors = capsys.readouterr().err
    assert "is best of 2" in errors
    assert compare.main([str(tmp_path), "--out", str(tmp_path / "table")]) == 0
    assert "| method | rho | seeds | validation | test |" in capsys.readouterr().out
    assert (tmp_path / "table" / "bleu_over_epochs.png").exists()


def test_the_flatness_of_a_run_is_measured(trained, capsys):
    config, _ = trained
    options = (
        "--images 8 --batch-size 4 --directions 2 --probes 2 --steps 0 --points 0 --radius 0.1"
    )
    status = analyze.main([str(config.out), *options.split()])
    assert status == 0, capsys.readouterr().err
    assert "| xsam |" in capsys.readouterr().out


# --- Errors ---


def broken(kind, folder):
    """Damages a copy of the text."""
    first = folder / "train.de"
    lines = first.read_text().splitlines(keepends=True)
    if kind == "unequal":
        first.write_text("".join(lines[:-1]))
    elif kind == "empty line":
        first.write_text("".join([*lines[:3], " \n", *lines[4:]]))
    elif kind == "no text":
        first.write_text("")
        (folder / "train.en").write_text("")
    elif kind == "not UTF-8":
        first.write_bytes(b"\xff\xfe")
    elif kind == "no gzip":
        (folder / "valid.de.gz").write_bytes(b"no gzip")
    elif kind == "damaged":
        data = bytearray((folder / "valid.de.gz").read_bytes())
        data[20:40] = bytes(byte ^ 255 for byte in data[20:40])
        (folder / "valid.de.gz").write_bytes(data)
    elif kind == "missing":
        first.unlink()


ERRORS = {
    "unequal": ({}, "train.de has 49 lines, and", "train.en 50: they must match"),
    "empty line": ({}, "train.de, line 4 is empty, 1 in all"),
    "no text": ({}, "train.de has no sentence"),
    "not UTF-8": ({}, "train.de cannot be read as UTF-8 text"),
    "no gzip": ({}, "valid.de.gz cannot be read as UTF-8 text"),
    "damaged": ({}, "valid.de.gz cannot be read as UTF-8 text"),
    "missing": ({}, "has no train.de or train.de.gz. It has train in en"),
    "language": ({"target": "fr"}, "has no train.fr or train.fr.gz. It has train in de, en"),
    "no language": ({"source": "../de"}, "source must be a language such as de, got '../de'"),
    "same": ({"target": "de"}, "source and target are both de"),
    "large vocabulary": ({"vocabulary": 5000}, "vocabulary 5000 does not fit the text: it allows"),
    "small vocabulary": (
        {"vocabulary": 9},
        "vocabulary 9 does not fit the text: it allows at least",
    ),
    "few tokens": ({"batch_tokens": 8}, "batch_tokens 8 is too small"),
    "all long": ({"max_length": 2}, "all training sentences have more than 2 tokens"),
    "too many": ({"train_size": 51}, "train_size 51 is more than the 50 sentences"),
    "no model": ({"model": "transformer"}, "unknown model 'transformer'; did you mean"),
    "ascent": ({"method": "sam_full"}, "sam_full is for image_classification"),
    "dispatch": ({"steps_per_dispatch": 2}, "does not use --steps-per-dispatch"),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_bad_input_is_one_line(kind, text, tmp_path, capsys):
    folder = tmp_path / "text"
    folder.mkdir()
    for path in text.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    broken(kind, folder)
    changes, *messages = ERRORS[kind]
    config = settings(folder, tmp_path / "run", **{"method": "sgd", **changes})
    with pytest.raises((ValueError, OSError)) as caught:
        train(config, show=False)
    assert "\n" not in str(caught.value)
    for message in messages:
        assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_long_sentences_are_left_out_and_counted(text, tmp_path, capsys):
    lengths = [
        max(len(a), len(b))
        for a, b in zip(*load(settings(text, None)).splits["train"][:2], strict=True)
    ]
    limit = sorted(lengths)[30]
    config = settings(text, None, max_length=limit)
    corpus = load(config).splits["train"]
    left_out = sum(length > limit for length in lengths)
    assert len(corpus.source) == 50 - left_out
    assert f"{left_out} training sentences of more than {limit} tokens" in capsys.readouterr().err


def test_runs_of_two_programs_are_not_compared(trained, tmp_path, capsys):
    from runs import digits

    train(digits(tmp_path / "images", epochs=1), show=False)
    assert compare.main([str(trained[0].out), str(tmp_path / "images")]) == 2
    assert "give those of one program" in capsys.readouterr().err


@pytest.mark.parametrize("warmup", [0, 4])
def test_the_learning_rate_falls_as_the_inverse_square_root(warmup):
    """Linear to its peak at the end of the warmup, then sqrt(warmup / step), as in fairseq."""
    config = Config(learning_rate=0.5, warmup_steps=warmup, epochs=2)
    schedule, start = make_schedule(config, 50), max(warmup, 1)
    for step in (0, 1, 3, 4, 5, 16, 99):
        if step < warmup:
            expected = 0.5 * step / warmup
        else:
            expected = 0.5 * math.sqrt(start / (start + step - warmup))
        assert schedule(step) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="give warmup_epochs or warmup_steps, not both"):
        check_values(dataclasses.replace(config, method="sgd", warmup_epochs=1, warmup_steps=3))


# --- Presets ---


def test_presets_have_the_cells_of_table_9():
    paper = {
        **{"epochs": 300, "batch_tokens": 4096, "learning_rate": 5e-4, "beta_2": 0.98},
        **{"weight_decay": 0.3, "label_smoothing": 0.1, "optimizer": "adamw"},
    }
    radii = {
        "iwslt14-adamw": (None, None),
        "iwslt14-sam": (0.15, None),
        "iwslt14-xsam": (0.15, 0.45),
    }
    assert set(radii) == set(PRESETS)
    for name, (rho, rho_max) in radii.items():
        config = Config(**PRESETS[name].settings)
        for setting, value in paper.items():
            assert getattr(config, setting) == value, setting
        assert (config.rho, config.rho_max) == (rho, rho_max)
        assert config.model == "transformer_iwslt"
    assert MODELS["transformer_iwslt"] == (6, 512, 4, 1024)


def test_positions_are_those_of_the_paper():
    """Two interleavings exist; here all sines come first, as in fairseq."""
    table = positions(4, 6)
    for place in range(4):
        for i in range(3):
            angle = place / 10_000 ** (i / 2)
            assert table[place, i] == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[place, 3 + i] == pytest.approx(math.cos(angle), abs=1e-6)
    assert transformer.PAD == PAD

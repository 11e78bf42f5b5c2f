"""What a head learns from, and the folder that it is kept in."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from specplug import ExportError
from specplug.distilling import loss as loss_module
from specplug.distilling.batches import (
    Collator,
    batches_of,
    grouped,
    held_out,
    pieces_of,
    shuffled,
)
from specplug.distilling.heads import NORMS, head_shape, save_head, with_vocabulary
from specplug.distilling.loss import soft_cross_entropy
from specplug.distilling.own_steps import own_states
from specplug.distilling.training import loss_of
from specplug.distilling.vocabulary import choose_vocabulary, describe_vocabulary
from specplug.engines.contract import assert_close
from specplug.export.passes.quantize_w8a8 import quantize_columns
from specplug.export.source import Source, open_source
from specplug.export.speculators import open_head
from tests_support.distilling import (
    SOME,
    TINY_LAYERS,
    WHOLE,
    batch_of,
    random_records,
    tiny_head,
)
from tests_support.heads import expected_logits
from tests_support.tiny import write_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


# --- batches ----------------------------------------------------------------------------------


@given(tokens=st.integers(2, 80), begin=st.integers(1, 79), row=st.integers(1, 30))
def test_every_token_of_an_answer_is_guessed_once(tokens: int, begin: int, row: int) -> None:
    """But for the first, which no draft is of."""
    begin = min(begin, tokens - 1)
    pieces = pieces_of(0, tokens, begin, row)
    guessed = [
        piece.first + entry + 2
        for piece in pieces
        for entry in range(piece.entries - piece.answers, piece.entries)
    ]
    assert guessed == list(range(begin + 1, tokens))
    assert all(piece.answers <= piece.entries <= row for piece in pieces)


def test_batches_of_an_epoch_hold_every_piece_once() -> None:
    pieces = [p for n in range(50) for p in pieces_of(n, 5 + n, 3, 30)]
    batches = shuffled(pieces, 64, seed=1, epoch=0)
    assert sorted(map(repr, chain.from_iterable(batches))) == sorted(map(repr, pieces))
    assert all(sum(piece.entries for piece in batch) <= 64 for batch in batches)
    assert batches == shuffled(pieces, 64, seed=1, epoch=0)
    assert batches != shuffled(pieces, 64, seed=1, epoch=1)
    assert batches != shuffled(pieces, 64, seed=2, epoch=0)


def test_records_held_out_stay_so_when_there_are_more() -> None:
    prompts = [hashlib.blake2b(bytes([n // 250, n % 250])).digest() for n in range(5000)]
    few, many = held_out(prompts[:500], 0.1, 1000), held_out(prompts, 0.1, 1000)
    assert few == {place for place in many if place < 500}
    assert 400 < len(many) < 600
    assert len(held_out(prompts, 0.1, 7)) == 7
    assert held_out(prompts[::-1], 0.1, 1000) == {4999 - place for place in many}


def test_a_prompt_is_held_out_with_all_its_answers() -> None:
    prompts = [hashlib.blake2b(bytes([n % 9])).digest() for n in range(90)]
    for share in 1e-9, 0.3, 0.9:  # one prompt in any case
        for most in 1, 15, 90:
            chosen = held_out(prompts, share, most)
            assert chosen
            assert {(place + 9) % 90 for place in chosen} == chosen
            assert len(chosen) - 10 < most


# --- own steps --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "norms",
    [
        NORMS,
        {"norm_before_fc": True, "norm_output": True, "fc_norm": False},
        {"norm_before_residual": False, "norm_output": True},
    ],
)
def test_own_steps_are_those_of_drafting(norms: dict[str, bool], head_source: Source) -> None:
    """At every place of texts that stand side by side: the module, run anew step by step."""
    records = random_records(3, seed=3)
    head = tiny_head(head_source, SOME, **norms)
    batch = batch_of(records, SOME)
    with torch.no_grad():
        found = head.lm_head(own_states(head, batch)).numpy()
    column = compared = 0
    for record in records:
        for guessed in range(record.begin + 1, len(record.tokens)):
            for step in range(min(3, len(record.tokens) - guessed)):
                expected = expected_logits(
                    head,
                    record.states[None].float(),
                    record.tokens[:guessed].astype(np.int64),
                    record.tokens[guessed : guessed + step].tolist(),
                )
                assert_close(found[step, column], expected)
                compared += 1
            column += 1
    assert column == len(batch.guessing)
    assert compared == int(batch.counts.sum())


def test_batches_that_other_processes_read_are_the_same_in_the_same_order() -> None:
    """As for a GPU; a device by another name than cpu takes that way."""
    records = random_records(9, seed=2)
    pieces = [p for n, r in enumerate(records) for p in pieces_of(n, len(r.tokens), r.begin, 600)]
    groups = grouped(pieces, 60)
    assert len(groups) > 3
    collate = Collator(records, SOME, 260, 3, 64)
    expected = list(batches_of(collate, groups, "cpu"))
    read = list(batches_of(collate, groups, "cpu:0"))
    for ours, theirs in zip(read, expected, strict=True):
        for name in ("tokens", "states", "guessing", "read", "wanted", "ids", "shares"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
        for one, other in zip(ours.rectangles, theirs.rectangles, strict=True):
            assert torch.equal(one.unseen, other.unseen)


def test_what_is_learnt_is_what_the_target_thought() -> None:
    """Of the token after each own step's, inside the draft vocabulary."""
    (record,) = random_records(1, seed=5)
    batch = batch_of([record], SOME)
    places = {int(token): place for place, token in enumerate(SOME)}
    first = record.begin + 1
    for step in range(3):
        for column, guessed in enumerate(range(first + step, len(record.tokens))):
            assert batch.read[step, column] == record.tokens[guessed - 1]
            assert batch.wanted[step, column] == places.get(int(record.tokens[guessed]), -1)
            row = guessed - record.begin
            chances = torch.from_numpy(record.logits[row]).softmax(-1).tolist()
            expected = {
                places[int(token)]: chance
                for token, chance in zip(record.ids[row], chances, strict=True)
                if int(token) in places
            }
            shares = dict.fromkeys(batch.ids[step, column].tolist(), 0.0)
            for place, share in zip(
                batch.ids[step, column].tolist(), batch.shares[step, column].tolist(), strict=True
            ):
                shares[place] += share
            assert {p: s for p, s in shares.items() if s} == pytest.approx(expected)
        assert batch.counts[step].tolist() == [
            guessed + step < len(record.tokens) for guessed in range(first, len(record.tokens))
        ]
        assert not batch.shares[step][~batch.counts[step]].any()


@pytest.mark.parametrize(("row", "abreast"), [(600, 1), (600, 64), (11, 1), (11, 3)])
def test_texts_side_by_side_are_texts_one_by_one(
    row: int, abreast: int, head_source: Source
) -> None:
    """Loss and gradients, each text by its weight; pieces of long ones too."""
    records = random_records(5, seed=1)
    head = tiny_head(head_source, SOME)
    head.embed_tokens.requires_grad_(False)
    weights = [weight for weight in head.parameters() if weight.requires_grad]

    def losses(batch: Any) -> tuple[float, float, list[torch.Tensor]]:
        mass = float((batch.shares * (0.8 ** torch.arange(3))[:, None, None]).sum())
        loss = loss_of(head, batch, 0.8, torch.float32)
        return mass, loss.item() * mass, [g * mass for g in torch.autograd.grad(loss, weights)]

    pieces = [p for n, r in enumerate(records) for p in pieces_of(n, len(r.tokens), r.begin, row)]
    collate = Collator(records, SOME, 260, 3, abreast)
    together = losses(collate(pieces))
    alone = [losses(collate([piece])) for piece in pieces]
    assert len(alone) > 5 or row == 600
    assert together[:2] == pytest.approx([sum(part[n] for part in alone) for n in (0, 1)], rel=1e-5)
    for gradient, *parts in zip(together[2], *(part[2] for part in alone), strict=True):
        assert_close(gradient.numpy(), torch.stack(parts).sum(0).numpy())


# --- loss -------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [4, 100])
def test_loss_and_gradients_are_those_of_cross_entropy(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_module, "_CHUNK", chunk)
    torch.manual_seed(0)
    hidden = torch.randn(10, 6, requires_grad=True)
    weight = torch.randn(20, 6, requires_grad=True)
    ids = torch.stack([torch.randperm(20)[:5] for _ in range(10)])
    shares = torch.rand(10, 5) * (torch.rand(10, 5) > 0.3)
    ids[shares == 0] = 0  # as batches have it for tokens outside the draft vocabulary
    logs = (hidden @ weight.T).log_softmax(-1)
    expected = -(shares * logs.gather(1, ids)).sum()
    wanted = torch.autograd.grad(expected, [hidden, weight])
    found = soft_cross_entropy(hidden, weight, ids, shares, torch.float32)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    for gradient, reference in zip(
        torch.autograd.grad(3 * found, [hidden, weight]), wanted, strict=True
    ):
        assert_close(gradient.numpy(), 3 * reference.numpy())
    rounded = soft_cross_entropy(hidden, weight, ids, shares, torch.bfloat16)
    assert rounded.item() == pytest.approx(expected.item(), rel=0.02)


def test_a_token_that_the_head_rules_out_costs_a_finite_loss() -> None:
    hidden = torch.tensor([[1e4]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    loss = soft_cross_entropy(hidden, weight, torch.tensor([[1]]), torch.ones(1, 1), torch.float32)
    loss.backward()  # type: ignore[no-untyped-call]
    assert 50 < loss.item() < float("inf")
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()


# --- vocabulary -------------------------------------------------------------------------------


@given(size=st.integers(2, 260), seed=st.integers(0, 5))
def test_a_draft_vocabulary_has_the_tokens_that_most_texts_have(size: int, seed: int) -> None:
    records, keep = random_records(6, seed), (7, 259)
    rank = {token: [0.0, 0.0] for token in range(260)}
    said: list[int] = []
    for record in records:
        said += record.tokens[record.begin :].tolist()
        for tokens, logits in zip(record.ids, record.logits, strict=True):
            for token, chance in zip(tokens, torch.from_numpy(logits).softmax(-1), strict=True):
                rank[int(token)][1] += float(chance)
        for token in set(record.tokens.tolist()):
            rank[token][0] += 1
    found = choose_vocabulary(records, size, 260, keep)
    ids = found.ids.tolist()
    assert ids == sorted(set(ids))
    assert len(ids) == size
    assert set(keep) <= set(ids)
    least = min((rank[token] for token in ids if token not in keep), default=[np.inf, 0.0])
    least[1] += 1e-3
    assert all(rank[token] <= least for token in range(260) if token not in ids)
    assert found.answers == len(said)
    assert found.covered == sum(token in ids for token in said)
    assert 0 < found.mass <= 1 + 1e-9
    again = describe_vocabulary(records, found.ids, 260)
    assert (again.answers, again.covered, again.mass) == (found.answers, found.covered, found.mass)


@pytest.mark.parametrize("size", [1, 261])
def test_a_draft_vocabulary_that_cannot_be_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"a draft vocabulary of {size}: give 2 to 260"):
        choose_vocabulary(random_records(2), size, 260, (1, 2))


# --- a head, and its folder -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_head_is_read_as_it_was_written(kind: str, tied: bool, tmp_path: Path) -> None:
    folder = write_checkpoint(
        tmp_path / "target", model_type=kind, num_hidden_layers=3, tie_word_embeddings=tied
    )
    source = open_source(folder)
    head = tiny_head(source, SOME)
    reference = source.reference()
    assert head.shape.query_key_norm is (kind == "qwen3")
    for made, theirs in (
        (head.lm_head.weight, reference.lm_head.weight[torch.from_numpy(SOME).long()]),
        (head.embed_tokens.weight, reference.model.embed_tokens.weight),
        (head.norm.weight, reference.model.norm.weight),
    ):
        assert torch.equal(made, theirs + torch.zeros(()))
    save_head(tmp_path / "head", head, source, SOME, {"seed": 3})
    opened = open_head(tmp_path / "head", source)
    assert opened.vocabulary is not None
    assert opened.vocabulary.tolist() == SOME.tolist()
    for name, weight in head.state_dict().items():
        assert torch.equal(weight, opened.head.state_dict()[name]), name
    shape, found = (replace(each.shape, rotary=None) for each in (head, opened.head))  # type: ignore[arg-type]
    assert shape == found
    assert np.array_equal(head.shape.rotary.cos, opened.head.shape.rotary.cos)
    assert json.loads((tmp_path / "head" / "provenance.json").read_text()) == {"seed": 3}
    size = (tmp_path / "head" / "model.safetensors").stat().st_size
    stored = sum(w.numel() for w in head.parameters()) - head.embed_tokens.weight.numel()
    assert 4 * stored < size < 4 * stored + 12_000


def test_a_head_with_an_embedding_of_its_own_keeps_it(head_source: Source, tmp_path: Path) -> None:
    head = tiny_head(head_source, WHOLE)
    with torch.no_grad():
        head.embed_tokens.weight.mul_(2)
    opened = open_head(save_head(tmp_path / "head", head, head_source, None), head_source)
    assert opened.vocabulary is None
    assert torch.equal(opened.head.embed_tokens.weight, head.embed_tokens.weight)


def test_a_head_with_another_vocabulary_thinks_the_same_of_the_words_it_knew(
    head_source: Source, tmp_path: Path
) -> None:
    trained = tiny_head(head_source, SOME)
    rows = trained.lm_head.weight
    draws = torch.randn(
        rows.shape[1] + 1, rows.shape[1], generator=torch.Generator().manual_seed(0)
    )
    turn, shift = 0.9 * torch.linalg.qr(draws[1:]).Q, draws[0]
    with torch.no_grad():  # all moved alike, as training does
        rows.copy_(rows @ turn + shift)
        trained.fc.weight.mul_(1.1)
    start = open_head(save_head(tmp_path / "head", trained, head_source, SOME), head_source)
    wanted = np.arange(0, 260, 3, dtype=np.int32)
    head = with_vocabulary(start, head_source, wanted)
    assert head.shape == replace(start.head.shape, vocab_size=len(wanted))
    target = tiny_head(head_source, WHOLE).lm_head.weight.detach()
    for row, token in zip(head.lm_head.weight.detach(), wanted.tolist(), strict=True):
        if token in SOME:
            assert torch.equal(row, rows[SOME.tolist().index(token)])
        else:
            assert_close(row.numpy(), (target[token] @ turn + shift).numpy(), 1e-3)
    for name, weight in trained.state_dict().items():
        if name != "lm_head.weight":
            assert torch.equal(weight, head.state_dict()[name]), name


def test_a_head_in_eight_bits_is_what_w8a8_rounds_it_to(
    head_source: Source, tmp_path: Path
) -> None:
    head = tiny_head(head_source, SOME)
    with torch.no_grad():
        head.fc.weight[3] = 0
    folder = save_head(tmp_path / "head", head, head_source, SOME, eight_bits=True)
    stored = load_file(folder / "model.safetensors")
    opened = open_head(folder, head_source).head.state_dict()
    matrices = [name for name, tensor in stored.items() if tensor.dtype == torch.int8]
    assert len(matrices) == 9  # fc, four of attention, three of the block, the output
    for name, weight in head.state_dict().items():
        if name not in matrices:
            assert torch.equal(opened[name], weight), name
            continue
        integers, scales = quantize_columns(weight.detach().numpy().T)
        assert np.array_equal(stored[name].numpy(), integers.T)
        again, same_scales = quantize_columns(opened[name].numpy().T)
        assert np.array_equal(again, integers)
        np.testing.assert_allclose(same_scales, scales, rtol=1e-6)
        assert (opened[name] - weight).abs().max() <= 0.51 * scales.max()
    del stored[f"{matrices[0]}_scale"]
    save_file(stored, folder / "model.safetensors")
    with pytest.raises(ExportError, match=f"{matrices[0]} is quantized, and its scale, .* missing"):
        open_head(folder, head_source)


def test_heads_are_random_from_their_seed(head_source: Source) -> None:
    heads = [tiny_head(head_source, SOME, seed) for seed in (1, 1, 2)]
    first, same, other = (head.fc.weight for head in heads)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_targets_that_can_have_no_head_are_refused(tmp_path: Path, head_source: Source) -> None:
    folder = write_checkpoint(
        tmp_path / "target", model_type="gpt2", n_layer=3, n_head=4, n_embd=64,
        intermediate_size=None, num_key_value_heads=None, head_dim=None,
    )  # fmt: skip
    with pytest.raises(ExportError, match="'gpt2': have llama"):
        head_shape(open_source(folder).config, TINY_LAYERS, 100, 600)
    with pytest.raises(ExportError, match="vocab_size is 261: give 1 to 260"):
        head_shape(head_source.config, TINY_LAYERS, 261, 600)
    with pytest.raises(ExportError, match="max_length is 1200: give 1 to 1199"):
        head_shape(head_source.config, TINY_LAYERS, 100, 1200)
    with pytest.raises(ExportError, match="the target has 3"):
        head_shape(head_source.config, (0, 3), 100, 600)

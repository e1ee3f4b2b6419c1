from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from itgan import artefacts
from itgan.errors import InputError
from itgan.latents import (
    LatentAdam,
    LatentBank,
    check_fits,
    check_images,
    deal,
    initial_latents,
    sample_latents,
)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def a_bank(rows, latents=None, stage="inverted", generator="g"):
    rows = torch.as_tensor(rows)
    latents = randn(len(rows), 3) if latents is None else latents
    return LatentBank(
        latents, rows % 2, rows, stage, {"loss": [2.0, 1.0]}, {"generator": generator}
    )


# --- first latents ------------------------------------------------------------------------------


@settings(max_examples=20)
@given(st.permutations(range(12)), st.integers(1, 12))
def test_a_latent_belongs_to_its_row_whatever_order_and_company(order, size):
    rows = torch.tensor(order[:size])
    apart = torch.cat([initial_latents((3, 2), rows[i : i + 1], seed=5) for i in range(size)])
    assert torch.equal(initial_latents((3, 2), rows, seed=5), apart)


def test_latents_are_standard_normal_and_differ_by_seed_and_row():
    latents = initial_latents((64,), torch.arange(300), seed=0)
    assert abs(float(latents.mean())) < 0.03
    assert abs(float(latents.std()) - 1) < 0.03
    correlation = torch.corrcoef(latents) - torch.eye(300)
    assert correlation.abs().max() < 0.65  # 5 standard errors of 64 draws
    assert not torch.equal(latents, initial_latents((64,), torch.arange(300), seed=1))


def test_sample_latents_follows_the_images(generator, images):
    before = torch.get_rng_state()
    bank = sample_latents(generator, images, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert bank.stage == "random"
    assert bank.latents.shape == (40, 8)
    assert torch.equal(bank.labels, images.labels)
    assert torch.equal(bank.rows, images.rows)
    assert bank.provenance == {
        "generator": generator.fingerprint,
        "seed": 3,
        "dataset": "digits",
        "class_names": [str(digit) for digit in range(10)],
    }
    backwards = sample_latents(generator, images.select(torch.arange(39, -1, -1)), seed=3)
    assert torch.equal(backwards.latents.flip(0), bank.latents)


# --- banks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latents": torch.empty(0, 3)}, "it is empty"),
        ({"labels": torch.zeros(2, dtype=torch.long)}, r"3 latents, but labels of shape \(2,\)"),
        ({"rows": torch.arange(4)}, r"and rows of shape \(4,\); give one of each per latent"),
        ({"latents": torch.tensor([[1.0], [float("nan")], [0.0]])}, "hold NaN or infinity"),
        ({"latents": torch.tensor([[1.0], [float("inf")], [0.0]])}, "hold NaN or infinity"),
    ],
)
def test_banks_whose_parts_do_not_fit(change, message):
    with pytest.raises(InputError, match=rf"^latent bank: .*{message}"):
        replace(a_bank([0, 1, 2]), **change)


def test_a_bank_round_trips(tmp_path):
    bank = a_bank([7, 2, 5])
    bank.save(tmp_path / "bank.safetensors")
    found = LatentBank.load(tmp_path / "bank.safetensors")
    for name in ("latents", "labels", "rows"):
        assert torch.equal(getattr(found, name), getattr(bank, name))
        assert getattr(found, name).dtype == getattr(bank, name).dtype
    assert found.stage == "inverted"
    assert dict(found.history) == {"loss": [2.0, 1.0]}
    assert dict(found.provenance) == {"generator": "g"}


def test_what_is_no_bank_is_refused(tmp_path):
    path = tmp_path / "bank.safetensors"
    artefacts.save(path, {}, {"kind": "generator"})
    with pytest.raises(InputError, match="holds a 'generator', expected a 'bank'"):
        LatentBank.load(path)
    artefacts.save(path, {"latents": randn(2, 2)}, {"kind": "bank"})
    with pytest.raises(InputError, match=r"bank\.safetensors: .*labels"):
        LatentBank.load(path)


def test_select_keeps_order_and_history():
    bank = a_bank([7, 2, 5])
    part = bank.select(torch.tensor([2, 0]))
    assert part.rows.tolist() == [5, 7]
    assert torch.equal(part.latents, bank.latents[[2, 0]])
    assert torch.equal(part.labels, bank.labels[[2, 0]])
    assert (part.stage, part.history, len(part)) == ("inverted", bank.history, 2)


@given(st.permutations(range(8)), st.lists(st.integers(1, 7), max_size=4), st.randoms())
def test_merging_in_any_order_gives_the_bank_that_was_split(order, cuts, random):
    whole = a_bank(torch.arange(8) * 3)
    pieces = [p for p in torch.tensor(order).tensor_split(sorted(cuts)) if len(p)]
    banks = [whole.select(piece) for piece in pieces]
    random.shuffle(banks)
    merged = LatentBank.merge(banks)
    for name in ("latents", "labels", "rows"):
        assert torch.equal(getattr(merged, name), getattr(whole, name))
    assert merged.stage == "inverted"
    assert merged.provenance["generator"] == "g"


@pytest.mark.parametrize(
    ("banks", "message"),
    [
        ([], "^merge: give at least one bank"),
        ([a_bank([0]), a_bank([1], randn(1, 4))], r"different latent shapes: \['\(3,\)', '\(4,\)"),
        ([a_bank([0]), a_bank([1], stage="random")], r"stages: \['inverted', 'random'\]"),
        ([a_bank([0]), a_bank([1], generator="h")], r"different generators: \['g', 'h'\]"),
        ([a_bank([0]), a_bank([1, 0])], "^merge: training row 0 appears twice; .* --repeat-rows"),
    ],
)
def test_banks_that_cannot_be_merged(banks, message):
    with pytest.raises(InputError, match=message):
        LatentBank.merge(banks)


def test_an_ensemble_keeps_several_latents_of_a_row():
    first, second = a_bank([4, 1]), a_bank([1, 3], randn(2, 3, seed=1))
    merged = LatentBank.merge([first, second], repeat_rows=True)
    assert merged.rows.tolist() == [1, 1, 3, 4]
    assert merged.labels.tolist() == [1, 1, 1, 0]
    parts = [first.latents[1], second.latents[0], second.latents[1], first.latents[0]]
    assert torch.equal(merged.latents, torch.stack(parts))
    other = replace(second, labels=second.labels + 1)
    with pytest.raises(InputError, match="merge: a training row has two labels"):
        LatentBank.merge([first, other], repeat_rows=True)


# --- what belongs together ----------------------------------------------------------------------


def test_a_fitting_bank_generator_and_data_set(generator, bank, images):
    check_fits(generator, bank, images)


def test_what_does_not_belong_together(generator, bank, images, make_biggan):
    def refused(message, change, pictures=images):
        with pytest.raises(InputError, match=message):
            check_fits(generator, replace(bank, **change), pictures)

    refused(r"latents of shape \(5,\), but the generator takes \(8,\)", {"latents": randn(40, 5)})
    refused("label 10, but the generator has only classes 0...9", {"labels": bank.labels + 1})
    refused("labels must be int64 and not negative", {"labels": bank.labels - 1})
    stranger = {**bank.provenance, "generator": "feed" * 16}
    refused("made with generator feedfeedfeedfeed…, but this one is ", {"provenance": stranger})
    moved = replace(bank, provenance=stranger).moved_to(generator)
    check_fits(generator, moved, images)
    assert moved.provenance["moved_from"] == stranger["generator"]
    check_fits(generator, replace(bank, provenance={}), images)  # it does not know
    wide = replace(images, images=images.images.repeat(1, 1, 1, 2))
    refused(r"makes images of shape \(1, 8, 8\), but the data set has \(1, 8, 16\)", {}, wide)
    more = replace(images, class_names=tuple("abcdefghijk"))
    refused("has 10 classes, but the data set has 11", {}, more)
    with pytest.raises(InputError, match="choose a generator trained for it"):
        check_images(generator, wide)


# --- Adam by rows -------------------------------------------------------------------------------


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.9), (0.0, 0.999)])
def test_visiting_all_rows_is_adam(betas):
    start = randn(5, 2, 3)
    reference = start.clone().requires_grad_()
    adam = torch.optim.Adam([reference], lr=0.05, betas=betas)
    latents = start.clone()
    ours = LatentAdam(latents, 0.05, betas)
    for step in range(30):
        gradient = randn(5, 2, 3, seed=step) * 10.0 ** (step % 5 - 2)
        reference.grad = gradient.clone()
        adam.step()
        ours.step(torch.arange(5), gradient)
        torch.testing.assert_close(latents, reference.detach(), rtol=1e-6, atol=1e-6)


def test_a_decaying_rate_is_that_of_cosine_annealing():
    start = randn(5, 3)
    reference = start.clone().requires_grad_()
    adam = torch.optim.Adam([reference], lr=0.05)
    annealing = torch.optim.lr_scheduler.CosineAnnealingLR(adam, T_max=12)
    ours = LatentAdam(start, 0.05, decay_steps=12)
    for step in range(12):
        gradient = randn(5, 3, seed=step)
        reference.grad = gradient.clone()
        adam.step()
        annealing.step()
        ours.step(torch.arange(5), gradient)
        torch.testing.assert_close(start, reference.detach(), rtol=1e-5, atol=1e-6)
    ours.step(torch.arange(5), randn(5, 3))
    torch.testing.assert_close(start, reference.detach(), rtol=1e-5, atol=1e-6)


def test_the_first_step_is_the_learning_rate_against_the_sign():
    latents = torch.zeros(3, 1)
    LatentAdam(latents, 0.1).step(torch.arange(3), torch.tensor([[5.0], [-1e-3], [0.0]]))
    torch.testing.assert_close(latents, torch.tensor([[-0.1], [0.1], [0.0]]), rtol=1e-4, atol=0)


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True), max_size=8))
@settings(max_examples=25, deadline=None)
def test_a_row_ages_only_when_it_is_visited(visits):
    latents = randn(4, 2)
    alone = [latents[i : i + 1].clone() for i in range(4)]
    together = LatentAdam(latents, 0.1)
    apart = [LatentAdam(row, 0.1) for row in alone]
    for step, rows in enumerate(visits):
        gradient = randn(len(rows), 2, seed=step)
        untouched = [i for i in range(4) if i not in rows]
        before = latents[untouched].clone()
        together.step(torch.tensor(rows), gradient)
        assert torch.equal(latents[untouched], before)
        for row, g in zip(rows, gradient, strict=True):
            apart[row].step(torch.tensor([0]), g[None])
    torch.testing.assert_close(latents, torch.cat(alone), rtol=1e-6, atol=1e-6)
    assert together.visits.tolist() == [sum(i in rows for rows in visits) for i in range(4)]


def test_adam_restored_goes_on_bit_for_bit():
    whole, half = randn(4, 3), randn(4, 3)
    unbroken, first = LatentAdam(whole, 0.1), LatentAdam(half, 0.1)
    for step in range(3):
        for adam in (unbroken, first):
            adam.step(torch.tensor([0, 2, 3]), randn(3, 3, seed=step))
    kept = {name: t.clone() for name, t in first.state().items()}
    second = LatentAdam(torch.zeros(4, 3), 0.1)
    second.restore(kept)
    for step in range(3, 6):
        for adam in (unbroken, second):
            adam.step(torch.tensor([1, 2]), randn(2, 3, seed=step))
    for name, tensor in unbroken.state().items():
        assert torch.equal(second.state()[name], tensor), name


# --- dealing ------------------------------------------------------------------------------------


LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=40).map(torch.tensor)


@given(LABELS, st.one_of(st.none(), st.integers(1, 9)), st.sampled_from(["fixed", "random"]))
def test_every_position_is_in_one_shard(labels, size, splitting):
    shards = list(deal(labels, size, splitting, seed=0, step=1))
    assert torch.cat(shards).sort().values.tolist() == list(range(len(labels)))
    for shard in shards:
        members = labels[shard]
        assert torch.equal(members, members.sort().values), "ordered by class"
        if size is not None:
            assert torch.bincount(members).max() <= size
    sizes = torch.stack([torch.bincount(labels[s], minlength=5) for s in shards])
    assert (sizes.diff(dim=0) <= 0).all(), "only the last shard of a class is smaller"
    assert len(shards) == (-(-int(torch.bincount(labels).max()) // size) if size else 1)


def test_fixed_shards_by_hand():
    labels = torch.tensor([1, 0, 1, 0, 1])
    shards = list(deal(labels, 2, "fixed", seed=0, step=0))
    assert [s.tolist() for s in shards] == [[1, 3, 0, 2], [4]]


def test_fixed_is_fixed_and_random_is_dealt_anew():
    labels = torch.arange(60) % 3

    def dealt(splitting, seed, step):
        return [s.tolist() for s in deal(labels, 5, splitting, seed, step)]

    assert dealt("fixed", 0, 0) == dealt("fixed", 1, 9)
    assert dealt("random", 0, 3) == dealt("random", 0, 3)
    assert dealt("random", 0, 3) != dealt("random", 0, 4)
    assert dealt("random", 0, 3) != dealt("random", 1, 3)


def test_how_a_class_is_dealt_does_not_depend_on_the_others():
    labels = torch.tensor([0] * 8 + [1] * 8)
    with_others = [s[labels[s] == 0].tolist() for s in deal(labels, 3, "random", 0, 2)]
    alone = [s.tolist() for s in deal(labels[:8], 3, "random", 0, 2)]
    assert with_others == alone

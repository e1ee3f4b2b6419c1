import json
import shutil
from dataclasses import replace
from html import escape

import pytest
import torch

import itgan.banks
import itgan.pipeline
import itgan.runs
from itgan import artefacts
from itgan.configs import PLUS
from itgan.data import Dataset, ImageSet, load_dataset
from itgan.errors import InputError
from itgan.evaluation import Trial, summarize
from itgan.generator_configs import PretrainingConfig
from itgan.generators import BigGANShape, load_encoder
from itgan.latents import LatentBank, sample_latents
from itgan.pipeline import Experiment, compute
from itgan.planning import plan
from itgan.pretraining import pretrain
from itgan.publishing import publish, tabulate
from itgan.randomness import derive
from itgan.recipes import command
from itgan.reconstruction import psnr
from itgan.run_configs import RunConfig
from itgan.runs import Run, with_inputs
from itgan.soft_labels import soften
from itgan.sources import SyntheticSet
from itgan.splits import unpack_rows

SOURCES = ("real", "random", "gan", "gan-fresh", "inversion", "itgan")
SHORT = {"updates": 2, "batch_size": 16}
SHORT_ENCODER = {"pair_steps": 2, "refine_steps": 1, "batch_size": 8}
TINY = {
    "latents_per_class": 2,
    "sources": SOURCES,
    "latent_seeds": (0,),
    "network_seeds": (0,),
    "inversion": {"steps": 2, "extractor": SHORT},
    "condensation": {"steps": 2, "real_per_class": 4},
    "evaluation": {**SHORT, "curve_points": 2},
}


@pytest.fixture(scope="module")
def file(biggan, tmp_path_factory):
    """An untrained generator, as a file of this project."""
    path = tmp_path_factory.mktemp("generator") / "tiny.safetensors"
    artefacts.save(path, biggan.state_dict(), {"kind": "generator"})
    return path


def merged(base, changes):
    """A nested dict with some values replaced."""
    both = {**base, **changes}
    for key, value in changes.items():
        if isinstance(value, dict) and key in base:
            both[key] = merged(base[key], value)
    return both


@pytest.fixture
def experiment(file, digits):
    """Makes the experiment of a changed tiny config."""

    def make(**changes):
        config = RunConfig.model_validate(merged({**TINY, "generator": str(file)}, changes))
        made = Experiment(config)
        if not (config.validation or config.image_size):
            made.data = digits  # loaded once for all tests
        return made

    return make


@pytest.fixture(scope="module")
def finished(file, digits, tmp_path_factory):
    """A run directory with everything in it; not to be changed."""
    made = Experiment(RunConfig.model_validate({**TINY, "generator": str(file)}))
    made.data = digits
    run = Run(tmp_path_factory.mktemp("runs") / "tiny")
    compute(made, run)
    publish(made, run)
    return run.path


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of it that a test may change."""
    return Run(shutil.copytree(finished, tmp_path / "copy"))


def forbid(monkeypatch):
    """Any computation raises from now on."""

    def work(*args, **kwargs):
        raise AssertionError("computed again")

    for name in ("train_extractor", "invert", "condense"):
        monkeypatch.setattr(itgan.banks, name, work)
    monkeypatch.setattr(itgan.pipeline, "evaluate", work)


def trials_of(path):
    rows = artefacts.read_jsonl(path / "trials.jsonl")
    return [{**row, "seconds": 0} for row in rows]


def names(cells):
    return {cell.label: cell.name for cell in with_inputs(cells)}


# What a run writes


def test_a_run_directory_holds_what_the_contract_says(finished):
    there = {path.name for path in finished.iterdir()} - {".lock", "partial"}
    assert there >= {
        "config.json",
        "environment.json",
        "cells",
        "metrics.jsonl",
        "trials.jsonl",
        "results.json",
        "report.html",
        "report.md",
    }
    assert not list(finished.glob("partial/*"))
    config = RunConfig.model_validate_json((finished / "config.json").read_text())
    assert config.latents_per_class == 2
    cells = {line["cell"] for line in artefacts.read_jsonl(finished / "metrics.jsonl")}
    assert cells == {path.stem for path in (finished / "cells").iterdir()}
    assert len(cells) == 3 + len(SOURCES)  # extractor, two banks, six trials


def test_results_json_has_a_row_for_each_source(finished, digits):
    rows = json.loads((finished / "results.json").read_text())
    assert [row["source"] for row in rows] == list(SOURCES)
    by_source = {row["source"]: row for row in rows}
    assert {row["dataset"] for row in rows} == {"digits"}
    whole = None  # is no number of latents per class
    assert {row["latents_per_class"] for row in rows} == {2, whole}
    assert {(row["n"], row["sets"], row["std"]) for row in rows} == {(1, 1, 0)}
    images = {name: row["images"] for name, row in by_source.items()}
    assert images == {"real": len(digits.train), "gan-fresh": None} | dict.fromkeys(
        ("random", "gan", "inversion", "itgan"), 20
    )
    assert by_source["random"]["variant"] == "same-rows"
    assert by_source["random"]["bytes"] == 20 * (64 + 1)
    assert by_source["itgan"]["bytes"] == by_source["gan"]["bytes"]
    assert all(0 <= row["mean"] <= 100 for row in rows)


def test_trials_jsonl_is_what_the_results_summarise(finished):
    lines = (finished / "trials.jsonl").read_text().splitlines()
    trials = [Trial(**json.loads(line)) for line in lines]
    assert [trial.source for trial in trials] == list(SOURCES)
    assert all(0 <= trial.accuracy <= 1 for trial in trials)
    assert all(trial.updates == 2 for trial in trials)
    assert all([point["update"] for point in trial.curve] == [1, 2] for trial in trials)
    assert summarize(trials) == json.loads((finished / "results.json").read_text())


def test_the_report_shows_the_results(finished):
    html = (finished / "report.html").read_text()
    assert "<h1>digits</h1>" in html
    assert "596 real test images" in html
    assert "Condensation (Eq. 11)" in html
    assert "still to be computed" not in html
    markdown = (finished / "report.md").read_text()
    assert all(source in markdown for source in SOURCES)


def test_the_synthetic_set_of_each_condensed_bank_is_stored(finished, experiment, digits):
    (path,) = (finished / "sets").iterdir()
    stored = SyntheticSet.load(path)
    bank = Run(finished).value(experiment().condensed(0))
    assert torch.equal(stored.bank.latents, bank.latents)
    assert torch.equal(stored.labels, bank.labels)
    assert stored.bank.stage == "condensed"
    assert stored.about["dataset"] == "digits"
    assert stored.about["class_names"] == list(digits.class_names)


def test_banks_are_stratified_and_keep_their_rows(finished, experiment, digits):
    made, run = experiment(), Run(finished)
    inverted, condensed = run.value(made.inverted(0)), run.value(made.condensed(0))
    assert (inverted.stage, condensed.stage) == ("inverted", "condensed")
    assert inverted.labels.bincount().tolist() == [2] * 10
    assert torch.equal(inverted.rows, condensed.rows)
    position = {row: i for i, row in enumerate(digits.train.rows.tolist())}
    found = torch.tensor([position[row] for row in inverted.rows.tolist()])
    assert torch.equal(digits.train.labels[found], inverted.labels)
    assert not torch.equal(inverted.latents, condensed.latents)


def test_each_source_is_what_its_name_says(finished, experiment, digits):
    made, run = experiment(), Run(finished)
    inverted, condensed = run.value(made.inverted(0)), run.value(made.condensed(0))
    rows = made.subset(0)
    assert torch.equal(rows.rows, inverted.rows)
    real, random = made.source("real", 0), made.source("random", 0)
    assert torch.equal(real.images, digits.train.images)
    assert torch.equal(random.images, rows.images)
    gan = made.source("gan", 0)
    start = sample_latents(made.generator, rows, made._seed(0))
    assert torch.equal(gan.bank.latents, start.latents)
    for name, bank in (("inversion", inverted), ("itgan", condensed)):
        source = made.source(name, 0, bank)
        assert source.name == name
        assert torch.equal(source.bank.latents, bank.latents)
    for name in ("random", "gan", "gan-fresh", "inversion", "itgan"):
        banks = {"inversion": [inverted], "itgan": [condensed]}.get(name, [])
        source = made.source(name, 3, *banks)
        assert (source.name, len(source), source.latent_seed) == (name, 20, 3)


def test_sources_that_would_be_the_same_images_count_as_one_set(experiment):
    names = ("real", "herding", "random", "random-raw", "gan", "dm")
    made = experiment(sources=names, latent_seeds=(0, 1))
    sets = {source: made.latent_seeds(source) for source in made.config.sources}
    every = made.config.latent_seeds
    assert len(every) > 1
    fits = len(made.source("random-raw", 0)) == len(made.data.train)
    one = ("real", "herding", "random-raw") if fits else ("real", "herding")
    assert sets == {s: every[:1] if s in one else every for s in sets}
    whole = experiment(sources=("random",), latents_per_class=None, latent_seeds=(0, 1))
    assert whole.latent_seeds("random") == every[:1]


def test_baselines_are_as_many_or_as_many_bytes(finished, experiment):
    made, run = experiment(), Run(finished)
    herded = made.source("herding", 0, run.value(made.extractor()))
    assert (herded.name, herded.labels.bincount().tolist()) == ("herding", [2] * 10)
    budget = made.synthetic_bytes()
    for name, variant in (("random-raw", "same-bytes-raw"), ("random-jpeg", "same-bytes-jpeg")):
        source = made.source(name, 0)
        assert (source.name, source.variant) == ("random", variant)
        assert source.nbytes <= budget
    assert [cell.label for cell in made.needs("dm", 0)] == ["dm bank, latent seed 0"]
    assert made.needs("random-jpeg", 0) == ()


@pytest.mark.parametrize("name", ["random-raw", "random-jpeg"])
def test_same_bytes_follow_the_storage_type_and_the_labels(experiment, name):
    made = experiment(sources=(name,), dtypes=("fp32", "int8"), soft_labels=True)
    bank = sample_latents(made.generator, made.subset(0))
    synthetic = made.synthetic(bank, 0)
    for dtype in ("fp32", "int8"):
        budget = synthetic.stored_as(dtype).nbytes
        source = made.source(name, 0, dtype=dtype)
        each = source.nbytes / len(source)
        assert budget - 2 * each < source.nbytes <= budget or len(source) == len(made.data.train)
        assert source.variant.endswith(" int8") == (dtype == "int8")
    hard, soft = made.source(name, 0), made.source(name, 0, soft=True)
    more = 2 * 10 - 1  # bytes of ten probabilities less those of a class number
    assert len(soft) <= len(hard)
    assert soft.nbytes + more * len(soft) <= synthetic.nbytes + more * len(synthetic)
    labels = [cell.label.split(",")[0] for cell in made.trials()]
    forms = (name, f"{name} int8", f"{name} with soft labels")
    assert labels == [f"trial of {form}" for form in forms]


def test_fresh_samples_are_made_as_classifiers_are_trained(experiment):
    evaluation = {"precision": "bf16", "compile": True}
    fresh = experiment(evaluation=evaluation).source("gan-fresh", 0)
    assert (fresh.precision, fresh.compiled) == ("bf16", True)
    plain = experiment().source("gan-fresh", 0)
    assert (plain.precision, plain.compiled) == ("fp32", False)


# Resume


def test_a_second_run_computes_nothing_and_writes_the_same(copy, experiment, monkeypatch):
    forbid(monkeypatch)
    kept = ("results.json", "trials.jsonl", "report.md", "report.html", "config.json")
    before = {name: (copy.path / name).read_bytes() for name in kept}
    made = experiment()
    compute(made, Run(copy.path))
    publish(made, Run(copy.path))
    assert {name: (copy.path / name).read_bytes() for name in kept} == before


@pytest.mark.parametrize("kept", [(), ("extractor",), ("extractor", "inverted"), ("trial",)])
def test_what_was_deleted_is_computed_again_and_equal(copy, experiment, kept):
    before = trials_of(copy.path)
    banks = {p.name: p.read_bytes() for p in (copy.path / "cells").glob("*.safetensors")}
    for path in (copy.path / "cells").iterdir():
        if not path.name.startswith(kept or "nothing"):
            path.unlink()
    made = experiment()
    compute(made, copy)
    publish(made, copy)
    assert trials_of(copy.path) == before
    again = {p.name: p.read_bytes() for p in (copy.path / "cells").glob("*.safetensors")}
    if kept != ("trial",):  # trials alone need no banks
        assert again == banks


def test_stages_one_by_one_are_the_same_run(finished, experiment, tmp_path):
    counts = []
    for stage in ("embed", "invert", "condense", "evaluate"):
        compute(experiment(), Run(tmp_path), stage)
        counts.append(len(list((tmp_path / "cells").iterdir())))
    publish(experiment(), Run(tmp_path))
    assert counts == [1, 2, 3, 9]
    assert trials_of(tmp_path) == trials_of(finished)


@pytest.mark.parametrize("done", [0, 1, 3])
def test_an_interrupted_run_goes_on_to_equal_trials(
    finished, experiment, tmp_path, monkeypatch, done
):
    left = iter(range(done))
    evaluate = itgan.pipeline.evaluate

    def interrupted(*args, **kwargs):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return evaluate(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(itgan.pipeline, "evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compute(experiment(), Run(tmp_path))
    made = experiment()
    if done:
        rows, _, html = publish(made, Run(tmp_path))
        assert len(rows) == done
        assert f"{6 - done} trials of this run are still to be computed" in html.read_text()
    else:
        with pytest.raises(InputError, match="no classifier has been trained yet"):
            publish(made, Run(tmp_path))
    compute(made, Run(tmp_path))
    publish(made, Run(tmp_path))
    assert trials_of(tmp_path) == trials_of(finished)


@pytest.mark.parametrize("stage", ["inversion", "condensation"])
def test_a_bank_goes_on_from_its_snapshot(finished, experiment, tmp_path, monkeypatch, stage):
    module = getattr(itgan, stage)

    def first_step_only(steps, label):
        yield steps[0]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "track", first_step_only)
        with pytest.raises(KeyboardInterrupt):
            compute(experiment(), Run(tmp_path, checkpoint_seconds=0.0))
    (snapshot,) = (tmp_path / "partial").iterdir()
    assert artefacts.load(snapshot)[1]["step"] == 1
    compute(experiment(), Run(tmp_path), "condense")
    assert not snapshot.exists()
    cell = experiment().condensed(0)
    resumed = (tmp_path / "cells" / f"{cell.name}.safetensors").read_bytes()
    assert resumed == (finished / "cells" / f"{cell.name}.safetensors").read_bytes()


def test_only_trials_with_shared_seeds_are_compared():
    def made(source, *network_seeds):
        return [Trial(source, "convnet", 0, seed, 0.5, 1, 0.1) for seed in network_seeds]

    rows, differences = tabulate(made("gan", 1) + made("inversion", 0) + made("itgan", 0, 1))
    assert [row["source"] for row in rows] == ["gan", "inversion", "itgan"]
    found = [(d["a"], d["b"], d["n"]) for d in differences]
    assert found == [("itgan", "inversion", 1), ("itgan", "gan", 1)]


def test_variants_of_a_baseline_are_compared_under_their_names():
    def made(source, variant=""):
        return [Trial(source, "convnet", 0, 0, 0.5, 1, 0.1, variant=variant)]

    others = made("dc", "dsa") + made("random", "same-bytes-raw")
    _, differences = tabulate(made("itgan") + others + made("random", "same-bytes-jpeg"))
    names = [(d["a"], d["b"]) for d in differences]
    assert names == [("itgan", "random-raw"), ("itgan", "random-jpeg"), ("itgan", "dc")]


# What determines a cell

BANKS = {"inverted bank, latent seed 0", "condensed bank, latent seed 0"}


def trial(*sources):
    return {f"trial of {source}, latent seed 0, network seed 0" for source in sources}


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({"out": "elsewhere", "recipe": "other", "device": "cpu"}, "all"),
        ({"checkpoint_seconds": 5.0}, "all"),
        ({"evaluation": {"updates": 3}}, {"extractor", *BANKS}),
        ({"evaluation": {"augmentation": "none"}}, {"extractor", *BANKS}),
        (
            {"condensation": {"steps": 3}},
            {"extractor", "inverted bank, latent seed 0"} | trial(*SOURCES[:5]),
        ),
        (
            {"condensation": {"micro_batch": 7}},
            {"extractor", "inverted bank, latent seed 0"} | trial(*SOURCES[:5]),
        ),
        ({"inversion": {"steps": 3}}, {"extractor"} | trial(*SOURCES[:4])),
        ({"inversion": {"extractor": {"updates": 3}}}, trial(*SOURCES[:4])),
        ({"latents_per_class": 3}, {"extractor"} | trial("real")),
        ({"seed": 1}, trial("real")),
        # Options of ways that are not taken.
        ({"condensation": {"momentum": 0.1}}, "all"),
        ({"condensation": {"pool": {"networks": 3}}}, "all"),
        ({"evaluation": {"epochs": 3}}, "all"),
        ({"evaluation": {"precision": "fp32"}}, "all"),
    ],
)
def test_a_change_renames_just_the_cells_that_it_reaches(experiment, change, kept):
    before, after = names(experiment().trials()), names(experiment(**change).trials())
    assert before.keys() == after.keys()
    same = {label for label in before if before[label] == after[label]}
    assert same == (before.keys() if kept == "all" else kept)


def test_another_generator_renames_all_that_it_makes(experiment, make_biggan, tmp_path):
    other = tmp_path / "other.safetensors"
    model = make_biggan(BigGANShape(4, 10, (1, 8, 8), 8), seed=1)
    artefacts.save(other, model.state_dict(), {"kind": "generator"})
    before = names(experiment().trials())
    after = names(experiment(generator=str(other)).trials())
    same = {label for label in before if before[label] == after[label]}
    assert same == {"extractor"} | trial("real", "random")
    # The same tensors in another file are the same generator.
    twin = shutil.copy(experiment().config.generator, tmp_path / "twin.safetensors")
    assert names(experiment(generator=str(twin)).trials()) == before


def test_other_images_rename_everything(experiment):
    before = names(experiment().trials())
    after = names(experiment(validation=100).trials())
    assert not set(before.values()) & set(after.values())


def test_other_test_images_rename_the_trials_alone(experiment, digits):
    before = names(experiment().trials())
    made = experiment()
    fewer = digits.test.select(range(100))
    made.data = Dataset(digits.name, digits.train, None, fewer)
    after = names(made.trials())
    same = {label for label in before if before[label] == after[label]}
    assert same == {"extractor", *BANKS}


def test_sources_and_seeds_share_their_cells(experiment):
    few = names(experiment(sources=("itgan", "gan")).trials())
    many = names(experiment(network_seeds=(3, 0), latent_seeds=(5, 0)).trials())
    assert few.items() <= names(experiment().trials()).items()
    assert few.items() <= many.items()
    assert len(few) == 5  # extractor, two banks, two trials
    assert len(set(many.values())) == len(many) == 1 + 2 * 2 + 5 * 4 + 2  # real has one bank


def test_cells_that_two_runs_share_can_be_copied(finished, experiment, tmp_path, monkeypatch):
    shutil.copytree(finished / "cells", tmp_path / "cells")
    forbid(monkeypatch)
    made = experiment(sources=("itgan", "random"))
    compute(made, Run(tmp_path))
    rows, differences, _ = publish(made, Run(tmp_path))
    assert [row["source"] for row in rows] == ["random", "itgan"]
    assert [(d["a"], d["b"]) for d in differences] == [("itgan", "random")]
    theirs = {row["source"]: row for row in json.loads((finished / "results.json").read_text())}
    assert rows == [theirs["random"], theirs["itgan"]]


def test_each_latent_seed_has_rows_and_latents_of_its_own(experiment):
    made = experiment(latent_seeds=(0, 1))
    first, second = made.subset(0), made.subset(1)
    assert not torch.equal(first.rows, second.rows)
    assert torch.equal(first.rows, experiment().subset(0).rows)
    assert first.labels.bincount().tolist() == second.labels.bincount().tolist() == [2] * 10
    assert made._seed(0) != made._seed(1)


def test_all_training_images_without_a_number_of_latents(experiment, digits):
    made = experiment(latents_per_class=None)
    assert torch.equal(made.subset(0).rows, digits.train.rows)


# DC and the encoder


DC = {"steps": 1, "image_steps": 2, "network_epochs": 1, "real_per_class": 3}


@pytest.mark.parametrize("augmentation", ["none", "color_crop"])
def test_dc_is_a_source_of_pixels(experiment, tmp_path, augmentation):
    config = {**DC, "augmentation": augmentation}
    made, run = experiment(sources=("dc", "random"), dc=config), Run(tmp_path)
    compute(made, run)
    rows, _, _ = publish(made, run)
    found = {row["source"]: row for row in rows}
    assert found["dc"]["variant"] == ("dsa" if augmentation != "none" else "")
    assert found["dc"]["bytes"] == found["random"]["bytes"] == 20 * (64 + 1)
    bank = run.value(made.dc(0))
    assert torch.equal(bank.rows, made.subset(0).rows)
    assert len(bank.history["loss"]) == 2
    before, after = names(made.trials()), names(experiment(sources=("dc", "random")).trials())
    changed = {label for label in before if before[label] != after[label]}
    assert changed == {"dc bank, latent seed 0"} | trial("dc")


ENCODER = {"start": "encoder", "encoder": {**SHORT_ENCODER, "width": 2}}


def test_condensation_from_random_latents_needs_no_inversion(experiment, tmp_path):
    made = experiment(sources=("gan", "itgan"), condensation={"start": "random", "steps": 1})
    run = Run(tmp_path)
    compute(made, run)
    publish(made, run)
    names = {cell.name.rsplit("-", 1)[0] for cell in with_inputs(made.trials())}
    assert names == {"trial", "condensed"}
    condensed = run.value(made.condensed(0))
    start = sample_latents(made.generator, made.subset(0), made._seed(0))
    assert condensed.provenance["start"] == "random"
    # The first step of Adam moves each number by the learning rate, or not at all.
    assert (condensed.latents - start.latents).abs().max() <= 1.001 * 0.01
    assert torch.equal(condensed.rows, made.subset(0).rows)
    assert (tmp_path / "sets" / "itgan-0.itgan.safetensors").is_file()
    assert experiment().condensed(0).name != made.condensed(0).name


def test_banks_of_fewer_dimensions_are_smaller_sets(experiment, tmp_path):
    whole = experiment()
    made = experiment(latent_dim=3, sources=("gan", "itgan"), condensation={"steps": 1})
    run = Run(tmp_path)
    compute(made, run)
    publish(made, run)
    assert run.value(made.condensed(0)).latents.shape[1] == 3
    stored = SyntheticSet.load(tmp_path / "sets" / "itgan-0.itgan.safetensors")
    assert stored.generator.latent_shape == (3,)
    fewer = whole.generator.latent_shape[0] - 3
    linear = whole.generator.tensors()["linear.weight"].shape[0]
    less = 4 * fewer * (linear + len(stored))
    assert made.synthetic_bytes() == whole.synthetic_bytes() - less
    assert not names(made.trials()).items() & names(whole.trials()).items() - {
        ("extractor", whole.extractor().name)
    }


def test_an_encoder_is_a_cell_that_all_inversions_share(experiment, tmp_path):
    made, run = experiment(inversion=ENCODER, latent_seeds=(0, 1)), Run(tmp_path)
    compute(made, run, "invert")
    cells = [path.name.split("-")[0] for path in (tmp_path / "cells").iterdir()]
    assert sorted(cells) == ["encoder", "extractor", "inverted", "inverted"]
    (encoder,) = (run.value(cell) for cell in made.encoder())
    rows, extractor = made.subset(1), run.value(made.extractor())
    expected = itgan.banks.invert(
        made.generator, rows, made.config.inversion, made._seed(1), extractor, encoder=encoder
    )
    assert torch.equal(run.value(made.inverted(1)).latents, expected.latents)
    before = {p.name: p.read_bytes() for p in (tmp_path / "cells").glob("*")}
    for path in (tmp_path / "cells").glob("[ei]*"):
        path.unlink()
    compute(experiment(inversion=ENCODER, latent_seeds=(0, 1)), Run(tmp_path), "invert")
    assert {p.name: p.read_bytes() for p in (tmp_path / "cells").glob("*")} == before


def test_the_encoder_depends_on_its_own_settings_alone(experiment):
    before = names(experiment(inversion=ENCODER).trials())
    longer = names(experiment(inversion={**ENCODER, "steps": 3}).trials())
    assert longer["encoder"] == before["encoder"]
    for change in ({"lambda_pixel": 2.0}, {"encoder": {**ENCODER["encoder"], "pair_steps": 5}}):
        other = names(experiment(inversion={**ENCODER, **change}).trials())
        kept = {label for label in before if before[label] == other[label]}
        assert kept == {"extractor"} | trial(*SOURCES[:4])
    # Without it, its settings change nothing.
    idle = {"encoder": ENCODER["encoder"]}
    assert names(experiment(inversion=idle).trials()) == names(experiment().trials())


def test_an_autoencoder_starts_the_inversion_with_its_own_encoder(experiment, tmp_path):
    change = {"generator": "ae-digits", "validation": 200}
    made = experiment(**change, inversion={"start": "own-encoder"})
    (bank, *_) = compute(made, Run(tmp_path), "invert")
    assert not list(tmp_path.glob("cells/encoder*"))
    guess, rows = load_encoder("ae-digits"), made.subset(0)
    encoded = replace(bank, latents=guess(rows.floats(), rows.labels))
    started, found = (psnr(made.generator, each, rows) for each in (encoded, bank))
    (blind, *_) = compute(experiment(**change), Run(tmp_path / "blind"), "invert")
    assert blind.history["psnr"][0] < started - 5 < found

    other = names(experiment(**change).trials())
    same = {n for n, name in names(made.trials()).items() if other[n] == name}
    assert same == {"extractor"} | trial(*SOURCES[:4])


def test_a_generator_without_an_encoder_is_told_before_any_work(experiment, tmp_path):
    made = experiment(inversion={"start": "own-encoder"})
    with pytest.raises(InputError, match=r"tiny\.safetensors: holds no encoder"):
        compute(made, Run(tmp_path), "embed")
    compute(experiment(inversion={"start": "own-encoder"}, sources=("random",)), Run(tmp_path))


# Pools of snapshots

POOL = {"kind": "snapshots", "networks": 1, "snapshots": 2, "training": SHORT}


def test_a_pool_of_snapshots_is_a_cell_that_all_banks_share(experiment, tmp_path, monkeypatch):
    made = experiment(
        condensation={"pool": POOL}, sources=("itgan",), latent_seeds=(0, 1), network_seeds=(0,)
    )
    compute(made, Run(tmp_path))
    cells = [path.name.split("-")[0] for path in (tmp_path / "cells").iterdir()]
    assert {kind: cells.count(kind) for kind in cells} == {
        "extractor": 1,
        "pool": 1,
        "inverted": 2,
        "condensed": 2,
        "trial": 2,
    }
    (pool,) = (Run(tmp_path).value(cell) for cell in made.pool())
    assert len(pool.accuracies) == 2
    before = {p.name: p.read_bytes() for p in (tmp_path / "cells").glob("*.safetensors")}
    for path in (tmp_path / "cells").glob("[pc]*"):
        path.unlink()
    compute(made, Run(tmp_path), "condense")
    assert {p.name: p.read_bytes() for p in (tmp_path / "cells").glob("*.safetensors")} == before


def test_banks_are_matched_in_the_pool_within_its_window(experiment, tmp_path, monkeypatch):
    condense, given = itgan.banks.condense, []

    def spy(*args):
        given.append(args[5])
        return condense(*args)

    monkeypatch.setattr(itgan.banks, "condense", spy)
    made = experiment(condensation={"pool": {**POOL, "window": (0.0, 0.9)}})
    compute(made, Run(tmp_path), "condense")
    (kept,) = (Run(tmp_path).value(cell) for cell in made.pool())
    assert given[0].window == (0.0, 0.9)
    assert torch.equal(given[0].accuracies, kept.accuracies)
    compute(experiment(), Run(tmp_path / "untrained"), "condense")
    assert given[1] is None  # new untrained networks


def test_the_window_of_a_pool_is_no_part_of_it(experiment):
    before = names(experiment(condensation={"pool": POOL}).trials())
    window = {**POOL, "window": (0.1, 0.9)}
    after = names(experiment(condensation={"pool": window}).trials())
    changed = {label for label in before if before[label] != after[label]}
    assert changed == {"condensed bank, latent seed 0"} | trial("itgan")
    larger = names(experiment(condensation={"pool": {**POOL, "snapshots": 3}}).trials())
    assert larger["pool"] != before["pool"]


# Validation


class Untouchable(ImageSet):
    """Images that must not be looked at."""

    sealed = False

    def __getattribute__(self, name):
        if not name.startswith("__") and type(self).sealed:
            raise AssertionError(f"test images were touched: {name}")
        return super().__getattribute__(name)

    def __len__(self):
        raise AssertionError("test images were counted")


def test_with_validation_images_the_test_images_stay_untouched(experiment, tmp_path, monkeypatch):
    made = experiment(validation=100, sources=("random", "itgan"))
    data = made.data
    assert len(data.validation) == 100
    test = Untouchable(data.test.images, data.test.labels, class_names=data.class_names)
    made.data = Dataset(data.name, data.train, data.validation, test)
    monkeypatch.setattr(Untouchable, "sealed", True)
    compute(made, Run(tmp_path))
    rows, _, html = publish(made, Run(tmp_path))
    assert "100 real validation images" in html.read_text()
    for row in rows:
        hits = row["mean"]  # percent of 100 images
        assert hits == pytest.approx(round(hits))
    held = set(data.validation.rows.tolist())
    assert not held & set(Run(tmp_path).value(made.inverted(0)).rows.tolist())
    monkeypatch.setattr(Untouchable, "sealed", False)


# Refusals


def test_more_latents_than_images_of_a_class_are_refused(experiment, tmp_path):
    made = experiment(latents_per_class=500)
    with pytest.raises(InputError, match=r"latents_per_class=500: class '\d' has only \d+ train"):
        compute(made, Run(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_generator_of_other_images_is_refused(experiment, make_biggan, tmp_path):
    path = tmp_path / "colour.safetensors"
    model = make_biggan(BigGANShape(2, 10, (3, 16, 16), 4))
    artefacts.save(path, model.state_dict(), {"kind": "generator"})
    with pytest.raises(InputError, match=r"generator: makes images of shape \(3, 16, 16\), but"):
        compute(experiment(generator=str(path)), Run(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_sources_that_need_no_generator_do_without(experiment, tmp_path):
    made = experiment(
        generator="nobody",
        validation=100,
        sources=("real", "random", "herding", "dm", "dc"),
        dm={"optimiser": "sgd", "steps": 1, "real_per_class": 4},
        dc={"steps": 1, "image_steps": 1, "real_per_class": 4},
    )
    run = Run(tmp_path / "run")
    assert {row["stage"] for row in plan(made, run)} == {"extractor", "dm", "dc", "trial"}
    compute(made, run)
    rows, _, _ = publish(made, run)
    assert {row["source"] for row in rows} == set(made.config.sources)


def test_a_missing_generator_is_refused_by_name(experiment, tmp_path):
    with pytest.raises(InputError, match="generator 'nobody': no such file, and not one of the"):
        compute(experiment(generator="nobody"), Run(tmp_path))


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        ("inversion", "inversion.extractor"),
        ("condensation", "condensation"),
        ("dc", "dc"),
        ("evaluation", "evaluation"),
    ],
)
@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("network", "perceptron", "network: no 'perceptron'; choose convnet"),
        ("network", "vgg19", "network: vgg19 needs images of at least 32x32"),
        ("augmentation", "crop_blur", "augmentation: no operation 'blur'"),
    ],
)
def test_what_a_later_stage_would_stumble_over_is_refused_at_once(
    experiment, tmp_path, stage, name, field, value, why
):
    change = {field: value}
    made = experiment(**{stage: {"extractor": change} if stage == "inversion" else change})
    with pytest.raises(InputError) as error:
        compute(made, Run(tmp_path / "run"))
    assert str(error.value).startswith(f"{name}.{why}")
    assert not (tmp_path / "run").exists()


def test_a_directory_in_use_is_refused(experiment, tmp_path):
    refused = pytest.raises(InputError, match="another process is working in this directory")
    with artefacts.locked(tmp_path), refused:
        compute(experiment(), Run(tmp_path))
    assert not (tmp_path / "cells").exists()


def test_a_directory_of_another_configuration_is_refused(copy, experiment, monkeypatch):
    forbid(monkeypatch)
    with pytest.raises(InputError, match=r"evaluation\.updates \(2 there, 3 here\); give another"):
        compute(experiment(evaluation={"updates": 3}), copy)


def test_banks_are_ordinary_artefacts(finished):
    stages = set()
    for path in (finished / "cells").glob("*.safetensors"):
        if artefacts.read_metadata(path)["kind"] == "bank":
            stages.add(LatentBank.load(path).stage)
    assert stages == {"inverted", "condensed"}


def test_the_report_says_what_went_in_and_how_to_do_it_again(finished, experiment):
    made = experiment()
    page, plain = ((finished / f"report.{end}").read_text() for end in ("html", "md"))
    expected = command(made.config)
    assert f"<code>{escape(expected)}</code>" in page
    assert f"\n```console\n$ {expected}\n```\n" in plain
    for text in (page, plain):
        assert f"sha256 {made.data.train.fingerprint[:16]}" in text
        assert f"sha256 {made.generator.fingerprint[:16]}" in text
        assert "digits: 1,201 training images of 1x8x8 in 10 classes" in text
        assert "root 0; latent sets 0; networks 0" in text
        assert "There is one latent set" in text


# Storage types, published constants, training without augmentation


def test_the_hash_of_a_trial_stays_that_of_fp32_with_augmentation(experiment):
    plain = experiment()
    more = experiment(dtypes=("fp32", "fp16", "int8"), unaugmented=True)
    before = {cell.name for cell in plain.trials()}
    after = [cell.name for cell in more.trials()]
    assert len(set(after)) == len(after) == 1 + 2 * 2 + 3 * 6  # real; random, gan-fresh; stored
    assert before < set(after)
    assert "dtype" not in plain.trials()[0].determinants
    assert "normalisation" not in plain.trials()[0].determinants
    assert len(experiment(dtypes=("int8",)).trials()) == 6


def test_what_a_storage_type_costs_is_in_the_tables(copy, experiment):
    made = experiment(
        sources=("real", "random", "itgan"),
        dtypes=("fp32", "int8"),
        unaugmented=True,
        evaluation={"curve_points": 0},
    )
    run = Run(copy.path.parent / "types")
    compute(made, run)
    rows, differences, html = publish(made, run)
    table = {(row["source"], row["variant"]): row for row in rows}
    assert set(table) == {
        ("real", ""),
        ("random", "same-rows"),
        ("random", "same-rows unaugmented"),
        ("itgan", ""),
        ("itgan", "unaugmented"),
        ("itgan", "int8"),
        ("itgan", "int8 unaugmented"),
    }
    stored = made.source("itgan", 0, run.value(made.condensed(0))).stored_as("int8")
    assert table["itgan", "int8"]["bytes"] == stored.nbytes < table["itgan", ""]["bytes"]
    (cost,) = [row for row in differences if row["a"] == "itgan int8"]
    expected = table["itgan", "int8"]["mean"] - table["itgan", ""]["mean"]
    assert cost["b"] == "itgan"
    assert cost["mean"] == pytest.approx(expected, abs=2e-3)
    scores = json.loads((run.path / "scores.json").read_text())
    assert [(row["source"], row["variant"]) for row in scores] == [
        ("itgan", ""),
        ("itgan", "int8"),
    ]
    best = max(table["itgan", v]["mean"] for v in ("", "unaugmented"))
    assert scores[0]["hlr"] == pytest.approx(
        table["real", ""]["mean"] / 100 - best / 100, abs=1e-4
    )
    assert None not in scores[0].values()
    assert "## Scores" in html.with_name("report.md").read_text()
    assert "LRS" in html.read_text()


def test_no_scores_without_real_images(experiment, tmp_path):
    made = experiment(sources=("random", "gan"))
    compute(made, Run(tmp_path))
    publish(made, Run(tmp_path))
    assert not (tmp_path / "scores.json").exists()
    assert "Scores" not in (tmp_path / "report.md").read_text()


def test_published_constants_name_other_cells(experiment):
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8, generator=rng)
    images = ImageSet(pixels, torch.arange(40) % 10)
    sources = ("random", "dm", "herding")
    names = []
    for choice in ("measured", "published"):
        made = experiment(sources=sources, normalisation=choice)
        data = Dataset("cifar10-mini", images, None, images)
        made.data = data.normalised_by((0.4,), (0.3,)) if choice == "published" else data
        names.append({cell.name for cell in with_inputs(made.trials())})
    assert not names[0] & names[1]


def test_published_constants_name_other_banks_where_no_extractor_does(experiment):
    """From random latents in untrained networks: nothing before them has the constants."""
    condensation = {"start": "random"}
    banks = [
        experiment(normalisation=choice, condensation=condensation).condensed(0).name
        for choice in ("measured", "published")
    ]
    assert banks[0] != banks[1]


def test_a_set_says_how_its_data_were_read(experiment):
    made = experiment(image_size=8)
    about = made.synthetic(sample_latents(made.generator, made.subset(0)), 0).about
    assert about["image_size"] == 8
    assert "image_column" not in about


def test_herding_that_joins_with_other_seeds_is_shown(experiment, tmp_path):
    compute(experiment(sources=("random",), out=str(tmp_path)), run := Run(tmp_path))
    changes = {"sources": ("herding",), "latent_seeds": (1,), "out": str(tmp_path)}
    joining = Experiment(experiment(**changes).config, run)
    compute(joining, run)
    rows, _, _ = publish(joining.viewing(run.config()), run)
    assert "herding" in {row["source"] for row in rows}


def test_another_pool_of_dm_names_another_bank(experiment):
    banks = set()
    for networks, updates in ((1, 2), (2, 2), (1, 3)):
        training = {"updates": updates, "augmentation": "none"}
        pool = {"kind": "snapshots", "networks": networks, "training": training}
        banks.add(experiment(sources=("dm",), dm={"pool": pool}).dm(0).name)
    assert len(banks) == 3


# itgan-plus, soft labels


@pytest.fixture(scope="module")
def improved(file, digits, tmp_path_factory):
    """A run of itgan beside itgan-plus with soft labels; not to be changed."""
    brief = {"updates": 4, "batch_size": 16}
    pool = {"kind": "snapshots", "networks": 1, "training": brief}
    plus = {"steps": 2, "real_per_class": 4, "gains_rate": 0.05, "pool": pool}
    changes = {
        "sources": ("real", "random", "itgan", "itgan-plus"),
        "plus": {**PLUS, **plus},
        "soft_labels": True,
        "dtypes": ("fp32", "int8"),
    }
    config = RunConfig.model_validate({**TINY, "generator": str(file), **changes})
    made = Experiment(config)
    made.data = digits
    run = Run(tmp_path_factory.mktemp("runs") / "improved")
    compute(made, run)
    rows, differences, _ = publish(made, run)
    return made, run, rows, differences


def test_itgan_plus_is_a_row_of_the_same_bytes(improved):
    _, run, rows, differences = improved
    table = {(row["source"], row["variant"], row["labels"]): row for row in rows}
    assert set(table) == {
        ("real", "", "hard"),
        *(("random", "same-rows", labels) for labels in ("hard", "soft")),
        *((s, "", labels) for s in ("itgan", "itgan-plus") for labels in ("hard", "soft")),
        *((s, "int8", "hard") for s in ("itgan", "itgan-plus")),
    }
    for variant in ("", "int8"):
        ours, plain = (table[s, variant, "hard"]["bytes"] for s in ("itgan-plus", "itgan"))
        assert ours == plain
    for source, variant in (("random", "same-rows"), ("itgan", ""), ("itgan-plus", "")):
        soft, hard = (table[source, variant, labels]["bytes"] for labels in ("soft", "hard"))
        assert soft == hard + 20 * (10 * 2 - 1)  # 20 images, ten classes in fp16 for one byte
    assert {(row["a"], row["b"]) for row in differences} == {
        ("itgan-plus", "itgan"),
        ("itgan-plus", "random"),
        ("itgan", "random"),
        ("itgan-plus soft", "itgan soft"),
        ("itgan-plus soft", "random soft"),
        ("itgan soft", "random soft"),
        *((f"{source} soft", source) for source in ("random", "itgan", "itgan-plus")),
        *((f"{source} int8", source) for source in ("itgan", "itgan-plus")),
    }
    page = (run.path / "report.html").read_text()
    assert "Condensation with additions" in page
    assert "itgan with this project&#39;s additions" in page


def test_the_set_of_itgan_plus_is_stored_with_its_gains(improved):
    made, run, _, _ = improved
    names = {path.name for path in (run.path / "sets").iterdir()}
    assert names == {f"{s}-0.itgan.safetensors" for s in ("itgan", "itgan-plus")}
    stored = SyntheticSet.load(run.path / "sets" / "itgan-plus-0.itgan.safetensors")
    bank = run.value(made.plus(0))
    assert stored.name == "itgan-plus"
    assert bank.tables.keys() == made.generator.tables().keys()
    tuned = made.generator.with_tables(bank.tables)
    assert torch.equal(stored.images(), tuned(bank.latents, bank.labels))
    assert stored.generator.fingerprint == tuned.fingerprint != made.generator.fingerprint
    assert bank.provenance["config"]["lambda_class"] == PLUS["lambda_class"]


def test_soft_labels_are_the_extractor_s(improved):
    made, run, _, _ = improved
    extractor = run.value(made.extractor())
    for source in ("random", "itgan-plus"):
        inputs = [run.value(cell) for cell in made.needs(source, 0)]
        hard = made.source(source, 0, *inputs)
        soft = soften(hard, extractor)
        images = hard.pixels() if source == "itgan-plus" else hard.images
        assert torch.equal(soft.images, images)
        expected = extractor(images.float() / 127.5 - 1).softmax(1)
        torch.testing.assert_close(soft.labels, expected, rtol=1e-3, atol=1e-6)
        assert torch.equal(soft.labels.half().float(), soft.labels)
        assert (soft.name, soft.variant) == (hard.name, hard.variant)
    with pytest.raises(InputError, match="soft labels: are given to stored images with hard"):
        soften(soft, extractor)
    trials = [cell for cell in made.trials() if "soft" in cell.label]
    assert len(trials) == 3
    assert all(made.extractor().name in {c.name for c in cell.inputs} for cell in trials)


def test_soft_labels_go_with_the_first_storage_type(experiment):
    made = experiment(sources=("random", "itgan"), dtypes=("int8", "fp32"), soft_labels=True)
    soft = [cell.label for cell in made.trials() if "soft" in cell.label]
    assert {label.split(",")[0] for label in soft} == {
        "trial of random with soft labels",
        "trial of itgan int8 with soft labels",
    }


def test_additions_and_soft_labels_leave_other_cells_as_they_were(experiment):
    before = names(experiment().trials())
    more = (*SOURCES, "itgan-plus")
    after = names(experiment(sources=more, soft_labels=True, plus={"steps": 9}).trials())
    assert before.items() <= after.items()
    unused = (("layers", "last"), ("average", 0.0), ("gains_rate", 0.0), ("lambda_class", 0.0))
    for field, value in unused:
        assert names(experiment(condensation={field: value}).trials()) == before
    for field, value in (("layers", "all"), ("average", 0.5), ("gains_rate", 0.1)):
        changed = names(experiment(condensation={field: value}).trials())
        label = "condensed bank, latent seed 0"
        assert changed[label] != before[label]


def test_what_the_additions_cannot_do_is_refused_before_anything_is_computed(experiment, tmp_path):
    wrong = {"gains_rate": 0.1, "shard_per_class": 1}
    made = experiment(sources=("itgan-plus",), plus=wrong)
    with pytest.raises(InputError, match=r"^plus\.gains_rate=0\.1: shard_per_class=1 deals the 2"):
        compute(made, Run(tmp_path))
    experiment(sources=("itgan",), plus=wrong).check()  # is not computed
    with pytest.raises(InputError, match=r"^condensation\.gains_rate=0\.1: shard_per_class=1"):
        experiment(condensation=wrong).check()


# Who has seen what


def test_nothing_that_learns_sees_validation_or_test_images(experiment, tmp_path):
    data = load_dataset("digits", validation=100)
    config = PretrainingConfig(
        steps=2, batch_size=4, channels=2, latent_dim=4, validation=100, device="cpu"
    )
    generator = pretrain(config, data, tmp_path / "gan")
    pool = {"kind": "snapshots", "networks": 1, "snapshots": 1, "training": SHORT}
    made = experiment(
        generator=str(generator), validation=100, condensation={"pool": pool}, sources=("itgan",)
    )
    run = Run(tmp_path / "run")
    compute(made, run)
    held = set(data.validation.rows.tolist())
    everything = set(range(len(data.train) + len(held)))
    extractor, (snapshots,) = run.value(made.extractor()), (run.value(c) for c in made.pool())
    records = [
        artefacts.read_metadata(generator)["trained_on"],
        extractor.trained_on,
        snapshots.trained_on,
    ]
    for record in records:
        rows = set(unpack_rows(record["rows"]).tolist())
        assert len(rows) == record["images"] > 900
        assert rows <= everything - held
    # A pool's own held-out rows are training rows that its networks have not seen.
    own = set(snapshots.held_out.tolist())
    assert own
    assert own <= everything - held - set(unpack_rows(snapshots.trained_on["rows"]).tolist())
    for cell in (made.inverted(0), made.condensed(0)):
        assert not set(run.value(cell).rows.tolist()) & held
    assert made.scored_images_seen() == 0
    # Its test images are no training images: their hash stands in the record of none.
    assert data.test.fingerprint not in {record["sha256"] for record in records}


def test_a_generator_that_saw_the_scored_images_is_told_in_the_report(experiment, tmp_path):
    config = PretrainingConfig(steps=1, batch_size=4, channels=2, latent_dim=4, device="cpu")
    generator = pretrain(config, load_dataset("digits"), tmp_path / "gan")
    made = experiment(generator=str(generator), validation=100, sources=("gan",))
    run = Run(tmp_path / "run")
    compute(made, run)
    assert made.scored_images_seen() == 100
    _, _, page = publish(made, run)
    assert "trained on 100 of the images that score" in page.read_text()
    assert experiment(generator=str(generator), sources=("gan",)).scored_images_seen() == 0


def test_the_best_along_the_way_is_a_flagged_diagnostic(finished):
    plain = (finished / "report.md").read_text()
    trials = [json.loads(line) for line in (finished / "trials.jsonl").read_text().splitlines()]
    (note,) = [line for line in plain.splitlines() if "For diagnosis only, no result" in line]
    for trial in trials:
        best = 100 * max(point["accuracy"] for point in trial["curve"])
        assert f"{trial['source']}" in note
        assert f"{best:.1f}" in note
        assert trial["accuracy"] == trial["curve"][-1]["accuracy"]


def test_another_root_seed_draws_other_fresh_samples_and_other_images(file):
    def drawn(seed, source):
        made = Experiment(RunConfig(generator=str(file), seed=seed, latents_per_class=2))
        chosen = made.source(source, 0)
        images, _ = next(chosen.batches(derive(0), 8))
        return chosen.latent_seed, images

    for source in ("gan-fresh", "random-raw", "random-jpeg"):
        (number, one), (same, other) = drawn(0, source), drawn(1, source)
        assert number == same == 0
        assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sources": ("dc",), "dc": {"network": "resnet18@32"}}, "dc.network: resnet18@32 has a"),
        (
            {"sources": ("dm",), "dm": {"network": "resnet18@32", "micro_batch": 19}},
            "dm.micro_batch=19: the network's batch norm .* all 20 must",
        ),
        (
            {"sources": ("dm",), "dm": {"network": "resnet18@32", "micro_batch": "auto"}},
            "dm.micro_batch=auto: the network's batch norm .* give 20",
        ),
        (
            {"evaluation": {"network": "resnet18@32", "batch_size": 2}, "sources": ("real",)},
            "evaluation.batch_size=2: leaves a batch of one of 1201 images",
        ),
    ],
)
def test_batch_norms_that_would_stumble_later_are_refused_at_once(changes, said):
    config = {"latents_per_class": 2, "sources": ("random",), **changes}
    with pytest.raises(InputError, match=said):
        Experiment(RunConfig.model_validate(config)).check()
    # Without the source that needs it, or in other batches, the same network is no fault.
    sound = {**config, "sources": ("random",), "latents_per_class": 3}
    Experiment(RunConfig.model_validate(sound)).check()
    Experiment(RunConfig.model_validate({**config, "sources": ("random-raw",)})).check()

import re

import pytest

from itgan import reproduction
from itgan.errors import InputError
from itgan.pipeline import Experiment
from itgan.reproduction import cells_of, entries
from itgan.run_configs import RunConfig, StudyConfig
from itgan.scales import SCALES, vary
from itgan.studies import METHODS, STUDIES, published

TABLES = [name for name in STUDIES if name.startswith("table")]


def placed(name, scale):
    return {(e.row, e.column): e for e in STUDIES[name].entries(SCALES[scale]())}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("scale", ["paper", "smoke"])
def test_a_table_has_the_papers_rows_and_columns(name, scale):
    paper = {(row, c) for row, values in published()[name].items() for c in values}
    assert placed(name, scale).keys() == paper


@pytest.mark.parametrize("name", TABLES)
def test_a_small_scale_has_no_other_rows_and_columns(name):
    here = placed(name, "cpu")
    paper = {(row, c) for row, values in published()[name].items() for c in values}
    assert here
    assert here.keys() <= paper
    assert {"CIFAR100" in row for row, _ in paper - here.keys()} <= {True}


def test_the_published_figures_are_the_papers():
    tables = published()
    assert sum(len(values) for rows in tables.values() for values in rows.values()) == 69
    assert tables["table1"]["CIFAR10"]["IT-GAN"] == (85.7, 0.4)
    # Where the paper prints a figure twice, so do we.
    for dataset in ("CIFAR10", "CIFAR100"):
        for network in ("ConvNet", "ResNet18"):
            both = tables["table2"][f"{dataset} {network}"]["IT-GAN"]
            assert both == tables["table3"][dataset][network]
        assert tables["table3"][dataset]["ResNet18"] == tables["table1"][dataset]["IT-GAN"]
    assert tables["table5"]["Accuracy"]["1/5"] == tables["table6"]["Fixed"]["0"]


@pytest.mark.parametrize("scale", SCALES)
def test_figures_that_are_one_experiment_share_their_cells(scale):
    def same(one, other):
        a, b = one.config.model_dump(), other.config.model_dump()
        return one.source == other.source and a == b

    split, fixed = placed("table5", scale), placed("table6", scale)
    assert same(split["Accuracy", "1/5"], fixed["Fixed", "0"])
    if scale != "cpu":  # where Table 2 has a shorter training
        across, storage = placed("table3", scale), placed("table2", scale)
        assert same(across["CIFAR10", "ConvNet"], storage["CIFAR10 ConvNet", "IT-GAN"])
    rates, pools = placed("table4", scale), placed("table7", scale)
    rate = f"{SCALES[scale]().few.condensation.learning_rate:g}"
    assert same(rates["Distribution", rate], pools["Accuracy", "Random"])


def test_one_experiment_has_one_name_for_each_cell():
    split = {e.column: e for e in entries("table5", StudyConfig(scale="smoke"))}["1/5"]
    fixed = next(e for e in entries("table6", StudyConfig(scale="smoke", only=("Fixed",))))
    assert [c.name for c in cells_of(split)[1]] == [c.name for c in cells_of(fixed)[1]]


def test_a_split_matches_what_its_name_says():
    for scale in SCALES:
        whole = SCALES[scale]().many.latents_per_class
        shards = [e.config.condensation.shard_per_class for e in placed("table5", scale).values()]
        parts = [-(-whole // (shard or whole)) for shard in shards]
        assert parts == [1, 2, 4 if whole > 5 else 3, 5]


@pytest.mark.parametrize("scale", SCALES)
def test_ablations_change_what_rows_and_columns_say(scale):
    for (row, column), entry in placed("table4", scale).items():
        found = entry.config.condensation
        assert (found.matching, found.learning_rate) == (row.lower(), float(column))
    for (row, column), entry in placed("table6", scale).items():
        found = entry.config.condensation
        assert (found.splitting, found.lambda_reg) == (row.lower(), float(column))
    for (_, column), entry in placed("table7", scale).items():
        pool = entry.config.condensation.pool
        assert pool.kind == ("random" if column == "Random" else "snapshots")
        low, high = re.fullmatch(r"(?:>=)?(\d*)-?(\d*)|Random|All", column).groups()
        assert pool.window == (float(low or 0) / 100, float(high or 100) / 100)


def test_ablations_leave_everything_else_alone():
    base = SCALES["cpu"]().many.model_dump(exclude={"condensation"})
    for entry in placed("table6", "cpu").values():
        assert entry.config.model_dump(exclude={"condensation"}) == base


@pytest.mark.parametrize(
    ("name", "row", "images"),
    [
        ("sources", "DM", (50, 57, 65)),
        ("rate", "DM, fp32's bytes", (50, 57, 65)),
        ("rate", "DM, int8's bytes", (12, 14, 16)),
        ("rate-long", "DM, int8's bytes", (12, 14, 16)),
    ],
)
def test_dm_has_the_bytes_of_the_experiment_beside_it(name, row, images):
    scale = SCALES["cpu"]()
    sizes = {
        entry.column.split(",")[0]: entry.config.latents_per_class
        for entry in STUDIES[name].entries(scale)
        if entry.row == row
    }
    assert sizes == dict(zip(("10", "50", "100"), images, strict=True))
    shared = [e for e in STUDIES["table2"].entries(scale) if e.column == "DM"]
    assert {entry.config.latents_per_class for entry in shared} == {57}


def test_vary_changes_what_it_names_and_checks_it():
    config = vary(RunConfig(), {"condensation": {"pool": {"networks": 3}}, "seed": 4})
    assert (config.seed, config.condensation.pool.networks) == (4, 3)
    assert config.condensation.steps == RunConfig().condensation.steps
    with pytest.raises(ValueError, match="networks"):
        vary(RunConfig(), {"condensation": {"pool": {"networks": 0}}})


def test_a_users_places_and_seeds_reach_every_entry(monkeypatch):
    monkeypatch.setattr(reproduction, "pixels_in_the_bytes", lambda config, dtype: 7)
    config = StudyConfig(dataset="here", generator="file", latent_seeds=(5,), network_seeds=(6, 7))
    for name in set(STUDIES) - {"fig4"}:
        for entry in entries(name, config):
            assert entry.config.dataset == "here"
            assert entry.config.generator == "file"
            assert (entry.config.latent_seeds, entry.config.network_seeds) == ((5,), (6, 7))


def test_a_second_data_set_joins_where_it_is_given():
    config = StudyConfig(dataset100="there", generator100="other")
    both = {e.row: e.config for e in entries("table1", config)}
    assert both.keys() == {"CIFAR10", "CIFAR100"}
    assert (both["CIFAR100"].dataset, both["CIFAR100"].generator) == ("there", "other")
    with pytest.raises(InputError, match="fig4: is about CIFAR-100"):
        entries("fig4", StudyConfig())
    assert entries("fig4", config)


def test_only_chooses_rows_and_columns():
    chosen = entries("table6", StudyConfig(only=("Random", "0.1")))
    assert {(e.row, e.column) for e in chosen} >= {("Fixed", "0.1"), ("Random", "1")}
    assert len(chosen) == 10
    (one,) = entries("table6", StudyConfig(only=("Fixed=0.01",)))
    assert (one.row, one.column) == ("Fixed", "0.01")
    (pool,) = entries("table7", StudyConfig(only=(">=70",)))
    assert pool.config.condensation.pool.window == (0.7, 1.0)
    said = "only=nothing: choose rows or columns, or ROW=COLUMN: Fixed, 0, "
    with pytest.raises(InputError, match=said):
        entries("table6", StudyConfig(only=("nothing",)))
    with pytest.raises(InputError, match="study 'table8': choose one of table1"):
        entries("table8", StudyConfig())


def test_methods_are_sources():
    for source in METHODS.values():
        RunConfig(sources=(source,))
    assert isinstance(Experiment(RunConfig()), Experiment)

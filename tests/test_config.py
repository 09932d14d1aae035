"""Settings: they check themselves, survive TOML, are explained, and are overridden by flags."""

import dataclasses
import tomllib
from pathlib import Path

import pytest

from ffalora_jax import cli, flags
from ffalora_jax.config import (
    DataConfig,
    Experiment,
    MethodConfig,
    ModelConfig,
    MonitorConfig,
    OptimizerConfig,
    PartitionConfig,
    PrivacyConfig,
)
from ffalora_jax.errors import InputError
from ffalora_jax.experiment_file import from_table, load_experiment, settings, to_toml
from ffalora_jax.run_folder import RunFolder

NAN = float("nan")
UNUSUAL = Experiment(
    name='quotes " and \\ and ü',
    noise_seed=2**64 - 1,
    client_chunk="3",
    weights="size",
    cohort_size=2,
    data=DataConfig(name="csv", path="a dir/b.csv", text_pair="second", max_examples=7),
    partition=PartitionConfig(name="dirichlet", dirichlet_alpha=0.05),
    model=ModelConfig(head="personal", dtype="bfloat16", remat=True, scan_layers=True),
    method=MethodConfig(
        targets=r"layers\.(0|1)\..*(query|value)",
        layers="0-1",
        use_rslora=True,
        rank_pattern={r".*\.value": 4.0},
        dropout=0.1,
    ),
    optimizer=OptimizerConfig(name="adam", options={"b1": 0.8, "eps": 1e-6}, control_variates=True),
    monitor=MonitorConfig(on=True, private=True),
    privacy=PrivacyConfig(noise_multiplier=0.7, delta=1e-7, capacity=40),
)


def leaves(cls=Experiment, prefix=""):
    for name, setting in settings(cls).items():
        if dataclasses.is_dataclass(setting.kind):
            yield from leaves(setting.kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", setting


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rounds", 0),
        ("local_steps", -1),
        ("batch_size", 0),
        ("cohort_size", 0),
        ("cohort_sampling", "some"),
        ("client_chunk", "0"),
        ("client_chunk", "many"),
        ("evaluate_every", 0),
        ("max_validation", 0),
        ("max_test", 0),
        ("seed", -1),
        ("seed", 2**32),
        ("noise_seed", 2**64),
        ("data.max_examples", 0),
        ("partition.name", "random"),
        ("partition.num_clients", 0),
        ("partition.dirichlet_alpha", 0.0),
        ("partition.quantity_skew", -1.0),
        ("partition.quantity_skew", NAN),
        ("partition.test_share", 1.0),
        ("partition.test_share", 0.95),
        ("partition.validation_share", -0.1),
        ("model.max_tokens", 3),
        ("model.head", "loose"),
        ("method.rank", 0),
        ("method.lora_alpha", NAN),
        ("optimizer.learning_rate", 0.0),
        ("optimizer.learning_rate", NAN),
        ("privacy.epsilon", 0.0),
        ("privacy.epsilon", float("inf")),
        ("privacy.noise_multiplier", -1.0),
        ("privacy.delta", 0.1),
        ("privacy.delta", 0.0),
        ("privacy.clip_norm", 0.0),
        ("privacy.capacity", 0),
        ("privacy.accountant", "moments"),
        ("privacy.accountant", "rdp"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name_and_value(name, value):
    with pytest.raises(InputError) as raised:
        Experiment().replace(**{name: value})
    assert name in str(raised.value)
    assert str(value) in str(raised.value)


def test_an_experiment_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Experiment().rounds = 3


def test_replace_changes_what_is_named_and_nothing_else():
    changed = Experiment().replace(rounds=5, **{"privacy.epsilon": 3.0, "privacy.delta": 1e-6})
    before, after = dataclasses.asdict(Experiment()), dataclasses.asdict(changed)
    before |= {"rounds": 5}
    before["privacy"] |= {"epsilon": 3.0, "delta": 1e-6}
    assert after == before


@pytest.mark.parametrize(
    ("privacy", "budget"),
    [
        (PrivacyConfig(), 6.0),
        (PrivacyConfig(epsilon=2.0), 2.0),
        (PrivacyConfig(noise_multiplier=1.0), None),
        (PrivacyConfig(noise_multiplier=1.0, epsilon=2.0), 2.0),
    ],
)
def test_the_budget_is_six_unless_epsilon_or_the_noise_is_given(privacy, budget):
    assert privacy.budget == budget
    assert Experiment(privacy=privacy).resolved().privacy.epsilon == budget


def test_without_privacy_no_epsilon_is_resolved():
    assert Experiment(privacy=PrivacyConfig(mechanism="none")).resolved().privacy.epsilon is None


@pytest.mark.parametrize("comments", [False, True])
@pytest.mark.parametrize("experiment", [Experiment(), UNUSUAL], ids=["defaults", "unusual"])
def test_an_experiment_survives_toml(experiment, comments, tmp_path):
    file = tmp_path / "experiment.toml"
    file.write_text(to_toml(experiment, comments), encoding="utf-8")
    assert load_experiment(file) == experiment


def test_an_empty_file_is_the_defaults(tmp_path):
    (tmp_path / "empty.toml").touch()
    assert load_experiment(tmp_path / "empty.toml") == Experiment()


def test_init_prints_the_defaults(capsys):
    assert cli.main(["init"]) == 0
    assert from_table(tomllib.loads(capsys.readouterr().out)) == Experiment()


def test_init_explains_every_setting(capsys):
    cli.main(["init"])
    lines = capsys.readouterr().out.splitlines()
    for name, setting in leaves():
        last = name.rpartition(".")[2]
        mine = [line for line in lines if line.lstrip("# ").startswith((f"{last} =", f"[{name}]"))]
        assert any(setting.help and setting.help in line for line in mine), name


def test_flags_override_the_file(tmp_path):
    file = tmp_path / "experiment.toml"
    file.write_text('rounds = 4\nseed = 5\n[privacy]\nepsilon = 2\n[method]\ninit = "gaussian"\n')
    experiment, out = flags.read_run(
        [str(file), "--rounds", "7", "--privacy.epsilon=3", "--out", "there", "--monitor.on"]
    )
    assert out == "there"
    assert experiment == Experiment(
        rounds=7,
        seed=5,
        monitor=MonitorConfig(on=True),
        method=MethodConfig(init="gaussian"),
        privacy=PrivacyConfig(epsilon=3.0),
    )


@pytest.mark.parametrize("spelling", [["--out", "there"], ["--out=there"]])
def test_out_is_read_in_both_spellings(spelling):
    assert flags.read_run([*spelling, "--rounds", "2"])[1] == "there"


@pytest.mark.parametrize("name", [name for name, setting in leaves() if setting.default != {}])
def test_every_setting_is_a_flag(name):
    value = from_table(tomllib.loads(to_toml(UNUSUAL)))
    for part in name.split("."):
        value = getattr(value, part)
    given = [f"--{name}"] if value is True else [f"--{name}", str(value)]
    read, _ = flags.read_run(given)
    for part in name.split("."):
        read = getattr(read, part)
    assert read == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ronds = 3", ["'ronds'", "'rounds'"]),
        ("[privacy]\nepsilom = 3", ["'privacy.epsilom'", "'epsilon'"]),
        ("[privat]\nepsilon = 3", ["'privat'", "'privacy'"]),
        ("zzzzz = 1", ["'zzzzz'", "There are", "rounds"]),
    ],
)
def test_an_unknown_setting_in_a_file_names_the_nearest(text, words):
    with pytest.raises(InputError) as raised:
        from_table(tomllib.loads(text), "my.toml")
    assert all(word in str(raised.value) for word in [*words, "my.toml"])


@pytest.mark.parametrize(
    ("flag", "nearest"),
    [
        ("--ronds", "--rounds"),
        ("--method.rnk", "--method.rank"),
        ("--privacy.noise-multplier", "--privacy.noise-multiplier"),
        ("--batch_sise", "--batch-size"),
    ],
)
def test_an_unknown_flag_names_the_nearest(flag, nearest):
    with pytest.raises(InputError, match=nearest) as raised:
        flags.read_run([flag, "3"])
    assert flag in str(raised.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('rounds = "3"', ["int", "rounds", "'3'"]),
        ("rounds = 2.5", ["int", "rounds", "2.5"]),
        ("rounds = true", ["int", "rounds", "True"]),
        ("packing = 1", ["bool", "packing"]),
        ("privacy = 3", ["table", "[privacy]"]),
        ("[privacy]\nepsilon = '6'", ["float", "privacy.epsilon"]),
        ("[optimizer]\noptions = 3", ["dict", "optimizer.options"]),
        ("[optimizer.options]\nmomentum = 'x'", ["float", "optimizer.options.momentum"]),
    ],
)
def test_a_value_of_the_wrong_type_is_named(text, words):
    with pytest.raises(InputError) as raised:
        from_table(tomllib.loads(text))
    assert all(word in str(raised.value) for word in words)


def test_a_whole_number_passes_for_a_real_one():
    assert from_table({"privacy": {"epsilon": 3}}).privacy.epsilon == 3.0


def test_toml_nested_without_end_is_refused(tmp_path):
    file = tmp_path / "deep.toml"
    file.write_text("x = " + "[" * 5000)
    with pytest.raises(InputError, match=r"deep\.toml: nested too deeply"):
        load_experiment(file)


def test_broken_toml_names_the_line(tmp_path):
    file = tmp_path / "broken.toml"
    file.write_text("rounds = 3\nseed = = 4\n")
    with pytest.raises(InputError, match=r"broken\.toml.*line 2"):
        load_experiment(file)


def test_the_noise_seed_is_not_in_the_resolved_file(tmp_path):
    secret = 1234567890123456789
    folder = RunFolder.create(tmp_path / "run", Experiment(noise_seed=secret))
    written = [file.read_text() for file in Path(folder.path).rglob("*") if file.is_file()]
    assert folder.experiment() == Experiment().resolved()
    assert not any(str(secret) in text or "noise_seed" in text for text in written)


def test_every_setting_of_the_commented_file_stands_in_its_own_table():
    text = to_toml(Experiment(), comments=True)
    assert "# start =   #" in text
    opened = tomllib.loads(text.replace("# start =   #", 'start = "adapter" #'))
    assert from_table(opened).method.start == "adapter"


def test_replacing_an_unknown_setting_suggests_the_nearest():
    with pytest.raises(InputError, match=r"'method\.ranks'\. Did you mean 'rank'"):
        Experiment().replace(**{"method.ranks": 3})
    with pytest.raises(InputError, match="'rouns'"):
        Experiment().replace(rouns=3)

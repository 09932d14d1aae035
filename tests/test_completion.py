"""Shells complete what there is: their own answers to the printed scripts."""

import shutil
import subprocess

import pytest

from tests.command import here

ASK = """
COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _ffalora; printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def completed(*words, shell="bash"):
    """What bash offers for the last word."""
    script = here("completion", shell) + ASK.format(words=" ".join(f"'{word}'" for word in words))
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert not done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("ffalora", "re"), ["resume", "report"]),
        (("ffalora", "run", "--method.na"), ["--method.name"]),
        (("ffalora", "sweep", "--search.stra"), ["--search.strategy"]),
        (("ffalora", "run", "--method.name", "ffa"), ["ffa_lora"]),
        (("ffalora", "list", "mech"), ["mechanisms"]),
        (("ffalora", "sweep", "--strat"), ["--strategy"]),
        (("ffalora", "sweep", "--strategy", "hal"), ["halving"]),
        (("ffalora", "run", "--track", "ten"), ["tensorboard"]),
        (("ffalora", "completion", "z"), ["zsh"]),
    ],
)
def test_bash_offers_commands_flags_and_names(words, offered):
    assert completed(*words) == offered


def test_bash_offers_files_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").touch()
    assert completed("ffalora", "run", "mi") == ["mine.toml"]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh here")
def test_zsh_takes_the_script():
    script = (
        "autoload -U compinit && compinit -u -D\n"
        + here("completion", "zsh")
        + "whence -w _ffalora"
    )
    done = subprocess.run(["zsh", "-fc", script], capture_output=True, text=True, check=True)
    assert "function" in done.stdout


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish here")
def test_fish_offers_the_same():
    script = here("completion", "fish") + "\ncomplete -C 'ffalora run --method.name ffa'"
    done = subprocess.run(["fish", "-c", script], capture_output=True, text=True, check=True)
    assert "ffa_lora" in done.stdout.split()

"""``ffalora completion bash|zsh|fish``: prints what makes a shell complete commands, flags and names."""

from collections.abc import Sequence

from ffalora_jax.cli_privacy import parser_of
from ffalora_jax.errors import DONE

SHELLS = ("bash", "zsh", "fish")
TAKES_SETTINGS = ("run", "sweep", "pilot", "plan", "check", "audit")

BASH = """_ffalora() {{
  local cur="${{COMP_WORDS[COMP_CWORD]}}" prev="${{COMP_WORDS[COMP_CWORD-1]}}"
  if [ "$COMP_CWORD" -eq 1 ]; then COMPREPLY=($(compgen -W "{commands}" -- "$cur")); return; fi
  case "$prev" in
{values}
  esac
  case "${{COMP_WORDS[1]}}" in
    {takes}) case "$cur" in -*) COMPREPLY=($(compgen -W "{flags}" -- "$cur")); return;; esac;;
    list) COMPREPLY=($(compgen -W "{shelves}" -- "$cur")); return;;
    completion) COMPREPLY=($(compgen -W "{shells}" -- "$cur")); return;;
  esac
  COMPREPLY=($(compgen -f -- "$cur"))
}}
complete -o filenames -F _ffalora ffalora
"""
VALUES = '    --{flag}) COMPREPLY=($(compgen -W "{names}" -- "$cur")); return;;'


def run(arguments: list[str], commands: Sequence[str]) -> int:
    """Prints a shell's script."""
    parser = parser_of(
        "completion",
        'Print a shell\'s completion. bash: eval "$(ffalora completion bash)" in ~/.bashrc; zsh the same in '
        "~/.zshrc; fish: ffalora completion fish > ~/.config/fish/completions/ffalora.fish",
    )
    parser.add_argument("shell", choices=SHELLS)
    asked = parser.parse_args(arguments)
    script = fish(commands) if asked.shell == "fish" else bash(commands)
    if asked.shell == "zsh":
        script = "autoload -U +X bashcompinit && bashcompinit\n" + script
    print(script, end="")
    return DONE


def bash(commands: Sequence[str]) -> str:
    """Returns bash's script, which zsh takes too."""
    from ffalora_jax import registry

    values = [
        VALUES.format(flag=name, names=" ".join(registry.available(shelf)))
        for name, shelf in _shelves().items()
    ]
    return BASH.format(
        commands=" ".join(commands),
        values="\n".join(values),
        takes="|".join(TAKES_SETTINGS),
        flags=" ".join(f"--{flag}" for flag in _flags()),
        shelves=" ".join(sorted(registry.SHELVES)),
        shells=" ".join(SHELLS),
    )


def fish(commands: Sequence[str]) -> str:
    """Returns fish's script."""
    from ffalora_jax import registry

    lines = [f"complete -c ffalora -n __fish_use_subcommand -f -a '{name}'" for name in commands]
    where = f"'__fish_seen_subcommand_from {' '.join(TAKES_SETTINGS)}'"
    for flag in _flags():
        shelf = _shelves().get(flag)
        names = " ".join(registry.available(shelf)) if shelf else ""
        more = f" -x -a '{names}'" if names else " -r"
        lines.append(f"complete -c ffalora -n {where} -l {flag}{more}")
    shelves = " ".join(sorted(registry.SHELVES))
    lines.append(f"complete -c ffalora -n '__fish_seen_subcommand_from list' -f -a '{shelves}'")
    return "\n".join(lines) + "\n"


def _flags() -> list[str]:
    from ffalora_jax.flags import PILOT_SHORT, SHORT, Piloted, Searched, names_of

    names = [name.replace("_", "-") for cls in (Searched, Piloted) for name in names_of(cls)]
    short = [name.removeprefix("--") for name in (*SHORT, *PILOT_SHORT)]
    return list(dict.fromkeys([*names, *short, "out", "over", "track", "json"]))


def _shelves() -> dict[str, str]:
    """Returns the shelf of each flag whose values are names."""
    from ffalora_jax import registry

    return registry.SHELF_OF | {"strategy": "searches", "track": "trackers"}

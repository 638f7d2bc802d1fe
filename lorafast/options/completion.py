"""Completion of command lines in a shell: a script for it, made from the table of commands.

    source <(lorafast --completion bash)
    lorafast --completion fish > ~/.config/fish/completions/lorafast.fish
"""
from __future__ import annotations

from collections.abc import Mapping

from ..errors import UsageError
from .declare import Options, fields

SHELLS = ("bash", "zsh", "fish")

BASH = """\
_lorafast() {{
    local words
    case "$COMP_CWORD ${{COMP_WORDS[1]}}" in
        1\\ *) words="{commands}" ;;
{cases}
    esac
    [ "$COMP_CWORD" = 1 ] || [ "${{2:0:1}}" = - ] || words=
    COMPREPLY=($(compgen -W "$words" -- "$2"))
}}
complete -o default -o bashdefault -F _lorafast lorafast"""


def completion(shell: str, commands: Mapping[str, type[Options]]) -> str:
    """The script for a shell; UsageError for one that is not known."""
    if shell not in SHELLS:
        raise UsageError(f"--completion {shell}: must be one of {', '.join(SHELLS)}" if shell else
                         f"--completion needs a shell: {', '.join(SHELLS)}")
    names = {name: [each for _, spec in fields(options) for each in (*spec.names, *spec.off) if each.startswith("--")]
             for name, options in commands.items()}
    if shell == "fish":
        lines = ["complete -c lorafast -n __fish_use_subcommand -a '" + " ".join(commands) + "'"]
        lines += [f"complete -c lorafast -n '__fish_seen_subcommand_from {name}' -l {option.removeprefix('--')}"
                  for name, of_command in names.items() for option in of_command]
        return "\n".join(lines)
    cases = "\n".join(f"        *\\ {name}) words=\"{' '.join(of_command)}\" ;;" for name, of_command in names.items())
    script = BASH.format(commands=" ".join(commands), cases=cases)
    return "autoload -U +X bashcompinit && bashcompinit\n" + script if shell == "zsh" else script

"""``danlu completion``: the few lines that a shell needs to ask ``danlu`` itself what can stand at the cursor."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from cyclopts import Parameter

BASH: Final = r"""
_danlu() {
    local word meaning mode=
    COMPREPLY=()
    while IFS=$'\t' read -r word meaning; do
        if [[ -z $mode ]]; then mode=$word; else COMPREPLY+=("$word"); fi
    done < <(command "${COMP_WORDS[0]}" __complete bash "${COMP_LINE:0:COMP_POINT}" 2>/dev/null)
    case $mode in
        files) ;;
        beginnings) compopt -o nospace +o default 2>/dev/null ;;
        folders) compopt -o dirnames +o default 2>/dev/null ;;
        programs) while read -r word; do COMPREPLY+=("$word"); done < <(compgen -c -- "${COMP_WORDS[COMP_CWORD]}") ;;
        *) compopt +o default 2>/dev/null ;;
    esac
}
complete -o default -F _danlu danlu
"""
ZSH: Final = r"""
#compdef danlu
_danlu() {
    local -a answer candidates
    local line
    local -a after
    answer=("${(@f)$("${words[1]}" __complete zsh "${(@Q)words[2,CURRENT-1]}" "$PREFIX" 2>/dev/null)}")
    case "${answer[1]}" in
        files) [[ $PREFIX == -*=* ]] && compset -P '*='; _files; return ;;
        folders) [[ $PREFIX == -*=* ]] && compset -P '*='; _files -/; return ;;
        beginnings) after=(-S '') ;;
        programs) _command_names -e; return ;;
    esac
    for line in "${(@)answer[2,-1]}"; do
        if [[ $line == *$'\t'* ]]; then
            candidates+=("${${line%%$'\t'*}//:/\\:}:${line#*$'\t'}")
        elif [[ -n $line ]]; then
            candidates+=("${line//:/\\:}")
        fi
    done
    (( $#candidates )) && _describe -V danlu candidates "${after[@]}"
}
if [[ "${funcstack[1]}" == _danlu ]]; then _danlu "$@"; else compdef _danlu danlu; fi
"""
FISH: Final = r"""
function __danlu_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l answer (command $words[1] __complete fish $words[2..-1] "$current" 2>/dev/null)
    switch "$answer[1]"
        case files
            __fish_complete_path "$current"
        case folders
            __fish_complete_directories "$current"
        case programs
            complete -C "$current"
        case '*'
            test (count $answer) -gt 1; and printf '%s\n' $answer[2..-1]
    end
end
complete -c danlu -f -a '(__danlu_complete)'
"""
SCRIPTS: Final = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def completion(shell: Annotated[Literal["bash", "zsh", "fish"], Parameter(help="bash, zsh or fish")], /) -> int:
    """Print a script that completes commands, flags and the names of jobs and environments in a shell.

    In bash and zsh, for this shell alone: source <(danlu completion bash). For good: bash
    ~/.local/share/bash-completion/completions/danlu, zsh a folder of $fpath as _danlu, fish
    ~/.config/fish/completions/danlu.fish.

    Example: danlu completion bash > ~/.local/share/bash-completion/completions/danlu
    """
    from danlu.cli.completing import table
    from danlu.cli.output import write

    table()  # it is written down now, so that the first key press is as fast as the others
    write(SCRIPTS[shell].strip("\n"))
    return 0

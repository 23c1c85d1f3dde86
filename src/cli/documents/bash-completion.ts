/** Completion for bash. */

import type {
  CompletedCommand,
  CompletedOption,
  CompletedProgram,
  Completion,
} from "./completion-model.ts";

export function bashCompletion({ options, commands }: CompletedProgram): string {
  return `# Completion of tsimgfs for bash, made from its help.

_tsimgfs_complete() { # words that are possible
  mapfile -t COMPREPLY < <(compgen -W "$1" -- "$current")
}

_tsimgfs_paths() { # default: files; dirnames: directories. Readline knows best how to quote them.
  compopt -o "$1" 2>/dev/null
}

_tsimgfs_mounts() { # whoever mounts chooses the name: it is never expanded
  local typed=\${current//\\\\/} escaped place type
  typed=\${typed#[\\'\\"]}
  compopt -o filenames 2>/dev/null
  while read -r _ escaped type _; do
    printf -v place %b "\${escaped//\\\\/\\\\0}"
    if [[ $type == fuse.tsimgfs && $place == "$typed"* ]]; then COMPREPLY+=("$place"); fi
  done </proc/self/mounts
}

_tsimgfs() {
  local words=("\${COMP_WORDS[@]:0:COMP_CWORD}") current=\${COMP_WORDS[COMP_CWORD]}
  local command="" previous word
  COMPREPLY=()
  # Bash takes --output=json for three words.
  if [[ $current == = ]]; then
    words+=("=")
    current=""
  fi
  previous=\${words[\${#words[@]} - 1]}
  if [[ $previous == = ]]; then previous=\${words[\${#words[@]} - 2]}=; fi
  for word in "\${words[@]:1}"; do
    case $word in
      -*) ;;
      *) command=$word; break ;;
    esac
  done
  case "$command $previous" in
${commands.flatMap(valueCases).join("\n")}
  esac
  case "$command" in
    "")
      _tsimgfs_complete ${quotedWords([...commands.map(({ name }) => name), ...flagsOf(options)])}
      ;;
${commands.map(commandCase).join("\n")}
  esac
}

complete -F _tsimgfs tsimgfs
`;
}

function quotedWords(words: readonly string[]): string {
  return `"${words.join(" ")}"`;
}

function flagsOf(options: readonly CompletedOption[]): string[] {
  return options.flatMap(({ short, long }) => [short, long].filter((flag) => flag !== undefined));
}

/** What completes a value or an argument. */
function action(completion: Completion): string {
  if (completion === "nothing") return ":";
  if (completion === "file") return "_tsimgfs_paths default";
  if (completion === "directory") return "_tsimgfs_paths dirnames";
  if (completion === "mount") return "_tsimgfs_mounts";
  return `_tsimgfs_complete ${quotedWords(completion)}`;
}

function valueCases({ name, options }: CompletedCommand): string[] {
  return options.flatMap(({ short, long, value }) => {
    if (value === undefined) return [];
    const flags = [short, long].filter((flag) => flag !== undefined);
    const typed = flags.flatMap((flag) => (value.isOptional ? [`${flag}=`] : [flag, `${flag}=`]));
    const patterns = typed.map((flag) => `"${name} ${flag}"`).join(" | ");
    return [`    ${patterns}) ${action(value.completion)}; return ;;`];
  });
}

function commandCase({ name, options, argument }: CompletedCommand): string {
  return `    ${name})
      if [[ $current == -* ]]; then
        _tsimgfs_complete ${quotedWords(flagsOf(options))}
      else
        ${action(argument)}
      fi
      ;;`;
}

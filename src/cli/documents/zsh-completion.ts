/** Completion for zsh, with `_arguments`. */

import {
  type CompletedCommand,
  type CompletedOption,
  type CompletedProgram,
  type CompletedValue,
  type Completion,
  quoted,
} from "./completion-model.ts";

export function zshCompletion({ options, commands }: CompletedProgram): string {
  return `#compdef tsimgfs
# Completion of tsimgfs for zsh, made from its help.

_tsimgfs_commands() {
  local -a commands=(
${commands.map(({ name, summary }) => `    ${quoted(`${name}:${summary}`)}`).join("\n")}
  )
  _describe command commands
}

_tsimgfs_mounts() {
  local -a mounts=(\${(f)"$(awk '$3 == "fuse.tsimgfs" { print $2 }' /proc/self/mounts)"})
  mounts=("\${(@g:o:)mounts}")
  _wanted mounts expl 'mount' compadd -a mounts
}

_tsimgfs() {
  local curcontext=$curcontext state line
  local -A opt_args
  _arguments -C \\
${options.map((option) => `    ${optionSpecs(option)} \\`).join("\n")}
    '1: :_tsimgfs_commands' \\
    '*:: :->arguments'
  [[ $state == arguments ]] || return
  curcontext=\${curcontext%:*:*}:tsimgfs-$line[1]:
  case $line[1] in
${commands.map(commandCase).join("\n")}
  esac
}

_tsimgfs "$@"
`;
}

function commandCase({ name, options, argument }: CompletedCommand): string {
  const specs = [...options.map(optionSpecs), quoted(`*: :${action(argument)}`)];
  return `    ${name})
      _arguments -s \\
${specs.map((spec) => `        ${spec}`).join(" \\\n")}
      ;;`;
}

/** Each may be given more than once: some are lists. */
function optionSpecs({ short, long, description, value }: CompletedOption): string {
  const explanation = description.replace(/[[\]\\:]/g, "\\$&");
  return [short, long]
    .filter((flag) => flag !== undefined)
    .map((flag) => quoted(`*${flag}${joint(flag, value)}[${explanation}]${operand(value)}`))
    .join(" ");
}

/** How a value is joined to its option: `-f raw`, `-fraw`, `--format raw`, `--format=raw`. */
function joint(flag: string, value: CompletedValue | undefined): string {
  if (value === undefined) return "";
  if (value.isOptional) return "=-";
  return flag.startsWith("--") ? "=" : "+";
}

function operand(value: CompletedValue | undefined): string {
  if (value === undefined) return "";
  return `${value.isOptional ? "::" : ":"}${value.name}:${action(value.completion)}`;
}

function action(completion: Completion): string {
  if (completion === "nothing") return " ";
  if (completion === "file") return "_files";
  if (completion === "directory") return "_files -/";
  if (completion === "mount") return "_tsimgfs_mounts";
  return `(${completion.join(" ")})`;
}

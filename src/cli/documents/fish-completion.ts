/** Completion for fish. */

import {
  type CompletedCommand,
  type CompletedOption,
  type CompletedProgram,
  type Completion,
  quoted,
} from "./completion-model.ts";

export function fishCompletion({ options, commands }: CompletedProgram): string {
  return `# Completion of tsimgfs for fish, made from its help.

function __tsimgfs_is --description 'whether this is the command that was typed'
    set -l words (commandline -opc)
    set -e words[1]
    for word in $words
        if not string match -q -- '-*' $word
            test $word = "$argv[1]"
            return
        end
    end
    test -z "$argv[1]"
end

function __tsimgfs_mounts
    for escaped in (awk '$3 == "fuse.tsimgfs" { print $2 }' /proc/self/mounts)
        printf '%b\\n' (string replace --all '\\\\' '\\\\0' -- $escaped)
    end
end

complete -c tsimgfs -f
${options.map((option) => optionLine("", option)).join("\n")}
${commands.map(commandLines).join("\n")}
`;
}

function commandLines({ name, summary, options, argument }: CompletedCommand): string {
  return [
    `complete -c tsimgfs -n "__tsimgfs_is ''" -a ${name} -d ${quoted(summary)}`,
    ...options.map((option) => optionLine(name, option)),
    ...(argument === "nothing"
      ? []
      : [`complete -c tsimgfs ${condition(name)} ${action(argument)}`]),
  ].join("\n");
}

const condition = (command: string): string =>
  command === "" ? `-n "__tsimgfs_is ''"` : `-n "__tsimgfs_is ${command}"`;

function optionLine(command: string, { short, long, description, value }: CompletedOption): string {
  const words = ["complete -c tsimgfs", condition(command)];
  if (short !== undefined) words.push(`-s ${short.slice(1)}`);
  if (long !== undefined) words.push(`-l ${long.slice(2)}`);
  if (value !== undefined && !value.isOptional) words.push(`-r ${action(value.completion)}`);
  return [...words, `-d ${quoted(description)}`].join(" ");
}

function action(completion: Completion): string {
  if (completion === "nothing") return "-f";
  if (completion === "file") return "-F";
  if (completion === "directory") return "-f -a '(__fish_complete_directories)'";
  if (completion === "mount") return "-f -a '(__tsimgfs_mounts)'";
  return `-f -a ${quoted(completion.join(" "))}`;
}

// Completion, asked of the shells themselves: what they offer is what `tsimgfs help` lists.

import { mkdir, rm, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { commandNames, fullHelpOf, optionsOf } from "../support/help-text.ts";
import { MAIN } from "../support/repository.ts";
import { run } from "../support/run.ts";
import { makeScratch } from "../support/scratch.ts";

const COMPLETIONS = join(dirname(MAIN), "../completions");

/** Prints, for each line of input, what would be offered for the last word: on one line. */
const BASH = `
  source "$1"
  compopt() { paths=$2; }
  while IFS= read -r typed; do
    # Bash takes = for a word of its own.
    eval "COMP_WORDS=(\${typed//=/ = })"
    [[ $typed != *" " ]] || COMP_WORDS+=("")
    COMP_CWORD=$((\${#COMP_WORDS[@]} - 1))
    paths=
    _tsimgfs
    echo "\${COMPREPLY[*]}\${paths:+ ($paths)}"
  done`;

const FISH = `
  source $argv[1]
  while read -l typed
    echo (complete -C$typed | string replace -r '\\t.*' '')
  end`;

/** \`_arguments\` as it is called: with the options of the program, then with those of the command. */
const ZSH = `
  _arguments() {
    if [[ $state == arguments ]]; then print -rl -- "$@"; fi
    state=arguments
    line=($chosen)
  }
  file=$1
  for chosen in "\${@:2}"; do
    state=
    print "COMMAND $chosen"
    source $file
  done`;

async function asked(shell: string[], lines: readonly string[], cwd?: string): Promise<string[]> {
  const [program = "", ...args] = shell;
  const input = `${lines.join("\n")}\n`;
  const { stdout } = await run(program, args, { input, ...(cwd === undefined ? {} : { cwd }) });
  return stdout.trimEnd().split("\n");
}

const bash = (lines: readonly string[]): Promise<string[]> =>
  asked(["bash", "--norc", "-c", BASH, "bash", join(COMPLETIONS, "tsimgfs.bash")], lines);

describe("completion", () => {
  const options = new Map<string, string[]>();
  let commands: readonly string[] = [];
  let directory = "";

  beforeAll(async () => {
    directory = await makeScratch("completion");
    commands = await commandNames();
    for (const command of commands) options.set(command, optionsOf(await fullHelpOf(command)));
  });
  afterAll(async () => {
    await rm(directory, { recursive: true, force: true });
  });

  const sorted = (text: string): string[] => text.split(" ").sort();
  const longOf = (command: string): string[] =>
    (options.get(command) ?? []).filter((flag) => flag.startsWith("--")).sort();

  describe("in bash", () => {
    it("offers the commands, and every option of the full help", async () => {
      const lines = await bash(["tsimgfs ", ...commands.map((name) => `tsimgfs ${name} -`)]);
      const program = optionsOf(await fullHelpOf(""));
      expect(sorted(lines[0] ?? "")).toEqual([...commands, ...program].sort());
      const offered = commands.map((_, index) => sorted(lines[index + 1] ?? ""));
      expect(offered).toEqual(commands.map((name) => [...(options.get(name) ?? [])].sort()));
    });

    it.each([
      ["tsimgfs mo", "mount"],
      ["tsimgfs -v re", "rebase resize"],
      ["tsimgfs mount --detect-zeroes ", "off on unmap"],
      ["tsimgfs mount --detect-zeroes=u", "unmap"],
      ["tsimgfs convert -O q", "qcow2 qed"],
      ["tsimgfs resize --preallocation fa", "falloc"],
      ["tsimgfs map --output=", "human json"],
      ["tsimgfs mount --threads ", ""],
      ["tsimgfs mount --stream ", " (default)"],
      ["tsimgfs mount --stream=", ""],
      ["tsimgfs info ", " (default)"],
      ["tsimgfs create -b ", " (default)"],
      ["tsimgfs attach --mount ", " (dirnames)"],
      ["tsimgfs list ", ""],
      ["tsimgfs help ex", "exit-status"],
    ])("completes %j with %j", async (typed, offered) => {
      expect(await bash([typed])).toEqual([offered]);
    });

    it("completes file names at the keyboard", async () => {
      await mkdir(join(directory, "disks"));
      await writeFile(join(directory, "disks/my disk.qcow2"), "");
      // What is typed waits in the terminal's buffer until it is read.
      const script = `. ${COMPLETIONS}/tsimgfs.bash; tsimgfs() { printf 'argument: %s\\n' "$@"; }`;
      await writeFile(join(directory, "bashrc"), `${script}\nPS1=\n`);
      const typed = "tsimgfs inf\tdisks/my\t\nexit\n";
      const { stdout } = await run(
        "script",
        ["-qec", `bash --noprofile --rcfile ${directory}/bashrc -i`, "/dev/null"],
        { input: typed, cwd: directory, env: { TERM: "dumb", HISTFILE: "" } },
      );
      expect(stdout).toContain("argument: info\r\nargument: disks/my disk.qcow2\r\n");
    });
  });

  describe("in fish", () => {
    const fish = (lines: readonly string[], cwd?: string): Promise<string[]> =>
      asked(["fish", "-N", "-c", FISH, join(COMPLETIONS, "tsimgfs.fish")], lines, cwd);

    it("offers the commands, and every long option of the full help", async () => {
      const lines = await fish(["tsimgfs ", ...commands.map((name) => `tsimgfs ${name} --`)]);
      expect(sorted(lines[0] ?? "")).toEqual([...commands].sort());
      expect(commands.map((_, index) => sorted(lines[index + 1] ?? ""))).toEqual(
        commands.map(longOf),
      );
    });

    it("completes values and file names", async () => {
      await writeFile(join(directory, "fish.qcow2"), "");
      const typed = [
        "mo",
        "convert -O q",
        "map --output ",
        "-q info fi",
        "create -b fi",
        "help en",
      ];
      expect(
        await fish(
          typed.map((words) => `tsimgfs ${words}`),
          directory,
        ),
      ).toEqual(["mount", "qcow2 qed", "human json", "fish.qcow2", "fish.qcow2", "environment"]);
    });
  });

  describe("in zsh", () => {
    it("is a function without faults that describes every option of the full help", async () => {
      const file = join(COMPLETIONS, "_tsimgfs");
      await run("zsh", ["-f", "-n", file]);
      const { stdout } = await run("zsh", ["-f", "-c", ZSH, "zsh", file, ...commands]);
      const sections = stdout.split(/^COMMAND /m).slice(1);
      expect(sections.map((section) => section.split("\n")[0])).toEqual(commands);
      for (const [index, command] of commands.entries()) {
        const specs = [...(sections[index] ?? "").matchAll(/^\*(-[\w-]*\w)[=+]?-?\[/gm)];
        expect(specs.map(([, flag = ""]) => flag)).toEqual(options.get(command));
      }
    });
  });
});

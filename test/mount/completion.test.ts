// Completion of mount points: whoever mounts chooses their names, and whoever types them trusts the shell.

import { mkdir, readdir, rm, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { createImage } from "../support/qemu.ts";
import { MAIN } from "../support/repository.ts";
import { run } from "../support/run.ts";
import { makeScratch } from "../support/scratch.ts";
import { tsimgfs } from "../support/tsimgfs.ts";

const COMPLETIONS = join(dirname(MAIN), "../completions");

/** Blanks, what shells expand, and what the kernel's table escapes. */
const NAMES = ["plain", "my images", "$(>pwned)", "`touch pwned`;", "é\\040*", "tab\there"];

describe("completion of mount points", () => {
  let directory = "";
  let places: readonly string[] = [];

  beforeAll(async () => {
    directory = await makeScratch("completion-mounts");
    const image = join(directory, "vm.qcow2");
    await createImage(image, "qcow2", { size: 2 ** 20 });
    places = NAMES.map((name) => join(directory, name));
    for (const place of places) {
      await mkdir(place);
      await tsimgfs(["mount", "-r", image, place]);
    }
  });
  afterAll(async () => {
    for (const place of places) await tsimgfs(["umount", place]);
    await rm(directory, { recursive: true, force: true });
  });

  async function offered(shell: string, args: readonly string[]): Promise<string[]> {
    const { stdout, stderr } = await run(shell, args, { cwd: directory });
    expect(stderr).toBe("");
    expect(await readdir(directory)).not.toContain("pwned");
    // Others may have mounts meanwhile.
    return stdout.split("\n").filter((line) => line.startsWith(directory));
  }

  it("in bash", async () => {
    const script = `source "$1"; compopt() { :; }; COMP_WORDS=(tsimgfs umount "$2"); COMP_CWORD=2
      _tsimgfs; printf '%s\\n' "\${COMPREPLY[@]}"`;
    const bash = (typed: string): Promise<string[]> =>
      offered("bash", ["--norc", "-c", script, "bash", join(COMPLETIONS, "tsimgfs.bash"), typed]);
    expect(await bash("")).toEqual(places);
    expect(await bash(`${directory}/my\\ im`)).toEqual([`${directory}/my images`]);
    expect(await bash(`'${directory}/my im`)).toEqual([`${directory}/my images`]);
    expect(await bash("/nowhere")).toEqual([]);
  });

  it("in bash, at the keyboard", async () => {
    const script = `. ${COMPLETIONS}/tsimgfs.bash; tsimgfs() { printf 'argument: %s\\n' "$@"; }`;
    await writeFile(join(directory, "bashrc"), `${script}\nPS1=\n`);
    const { stdout } = await run(
      "script",
      ["-qec", `bash --noprofile --rcfile ${directory}/bashrc -i`, "/dev/null"],
      {
        input: `tsimgfs umount ${directory}/my\t\ntsimgfs umount ${directory}/\\$\t\nexit\n`,
        cwd: directory,
        env: { TERM: "dumb", HISTFILE: "" },
      },
    );
    expect(stdout).toContain(`argument: ${directory}/my images/\r\n`);
    expect(stdout).toContain(`argument: ${directory}/$(>pwned)/\r\n`);
    expect(await readdir(directory)).not.toContain("pwned");
  });

  it("in fish", async () => {
    const script = "source $argv[1]; complete -C'tsimgfs umount '; __tsimgfs_mounts";
    const lines = await offered("fish", ["-N", "-c", script, join(COMPLETIONS, "tsimgfs.fish")]);
    expect(lines.slice(-places.length)).toEqual(places);
  });

  it("in zsh", async () => {
    const script = `_arguments() { :; }; _wanted() { print -rl -- $mounts; }
      source $1; _tsimgfs_mounts`;
    const args = ["-f", "-c", script, "zsh", join(COMPLETIONS, "_tsimgfs")];
    expect(await offered("zsh", args)).toEqual(places);
  });
});

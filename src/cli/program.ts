/** The commands that there are; each loads what it needs when it is chosen. */

import { createRequire } from "node:module";
import { Command, CommanderError } from "commander";
import { PendingDaemon } from "../daemon/launch.ts";
import { printable } from "../errors.ts";
import { printMessage } from "./print.ts";
import { forgetSecrets } from "./secrets.ts";

type Define = (command: Command) => void;

const COMMANDS: Readonly<
  Record<string, { summary: string; load: (daemon: PendingDaemon | undefined) => Promise<Define> }>
> = {
  mount: {
    summary: "show images as flat raw devices",
    load: async (daemon) => {
      const { defineMount } = await import("./commands/mount.ts");
      return (command) => defineMount(command, daemon ?? new PendingDaemon());
    },
  },
  umount: {
    summary: "end a mount",
    load: async () => (await import("./commands/umount.ts")).defineUmount,
  },
  attach: {
    summary: "make an image a block device",
    load: async () => (await import("./commands/attach.ts")).defineAttach,
  },
  detach: {
    summary: "end what attach has begun",
    load: async () => (await import("./commands/detach.ts")).defineDetach,
  },
  list: {
    summary: "show the active mounts",
    load: async () => (await import("./commands/list.ts")).defineList,
  },
  info: {
    summary: "show what an image is",
    load: async () => (await import("./commands/info.ts")).defineInfo,
  },
  map: {
    summary: "show where the bytes of a disk are",
    load: async () => (await import("./commands/map.ts")).defineMap,
  },
  stats: {
    summary: "show what the bytes of an image are for",
    load: async () => (await import("./commands/stats.ts")).defineStats,
  },
  top: {
    summary: "show what all mounts do right now",
    load: async () => (await import("./commands/top.ts")).defineTop,
  },
  create: {
    summary: "make a new image",
    load: async () => (await import("./commands/create.ts")).defineCreate,
  },
  convert: {
    summary: "copy a disk into an image of any format",
    load: async () => (await import("./commands/convert.ts")).defineConvert,
  },
  compare: {
    summary: "say whether two disks are equal",
    load: async () => (await import("./commands/compare.ts")).defineCompare,
  },
  measure: {
    summary: "say how large an image will be",
    load: async () => (await import("./commands/measure.ts")).defineMeasure,
  },
  dd: {
    summary: "copy a part of a disk into a new image",
    load: async () => (await import("./commands/dd.ts")).defineDd,
  },
  bench: {
    summary: "measure how fast an image is read or written",
    load: async () => (await import("./commands/bench.ts")).defineBench,
  },
  io: {
    summary: "read and write a disk by hand",
    load: async () => (await import("./commands/io.ts")).defineIo,
  },
  snapshot: {
    summary: "list, make, apply and delete internal snapshots",
    load: async () => (await import("./commands/snapshot.ts")).defineSnapshot,
  },
  stream: {
    summary: "copy what an image lacks from its backing files",
    load: async () => (await import("./commands/stream.ts")).defineStream,
  },
  commit: {
    summary: "copy what an image has into its backing file",
    load: async () => (await import("./commands/commit.ts")).defineCommit,
  },
  rebase: {
    summary: "give an image another backing file",
    load: async () => (await import("./commands/rebase.ts")).defineRebase,
  },
  resize: {
    summary: "change the size of an image's disk",
    load: async () => (await import("./commands/resize.ts")).defineResize,
  },
  amend: {
    summary: "change the properties of an image",
    load: async () => (await import("./commands/amend.ts")).defineAmend,
  },
  bitmap: {
    summary: "add, remove and change the dirty bitmaps of an image",
    load: async () => (await import("./commands/bitmap.ts")).defineBitmap,
  },
  check: {
    summary: "find damage in an image, and repair it",
    load: async () => (await import("./commands/check.ts")).defineCheck,
  },
};

function packageVersion(): string {
  const description: { version: string } = createRequire(import.meta.url)("../../package.json");
  return description.version;
}

/** Options whose value may be left out have it after `=`: else they would take what follows, an image. */
const OPTIONAL_VALUES: readonly string[] = ["--stream"];

/** Errors and help go through us: one line, `tsimgfs: REASON`. */
function configure(command: Command): Command {
  return command.exitOverride().configureOutput({
    writeErr: () => undefined,
    outputError: () => undefined,
  });
}

async function buildProgram(
  chosen: string | undefined,
  daemon: PendingDaemon | undefined,
): Promise<Command> {
  const program = configure(new Command("tsimgfs"))
    .description("Show qcow2, QED and raw disk images as flat raw devices.")
    .version(packageVersion())
    .addHelpText(
      "after",
      "\nExample:\n  tsimgfs mount vm.qcow2 /mnt/images\n  tsimgfs umount /mnt/images",
    );
  for (const [name, { summary, load }] of Object.entries(COMMANDS)) {
    const command = configure(program.command(name)).summary(summary);
    if (name === chosen) (await load(daemon))(command);
  }
  return program;
}

/** A last word such as -10M is a size: no option begins with a digit. */
function sizeApart(words: readonly string[]): readonly string[] {
  const last = words.at(-1);
  if (last === undefined || !/^-\d/.test(last) || words.includes("--")) return words;
  return [...words.slice(0, -1), "--", last];
}

function reasonOf(error: unknown, chosen: string | undefined): string {
  if (error instanceof CommanderError) {
    const reason = error.message.replace(/^error: /, "").replaceAll("\n", " ");
    return printable(
      `${reason}; see tsimgfs ${chosen !== undefined && Object.hasOwn(COMMANDS, chosen) ? `${chosen} ` : ""}--help`,
    );
  }
  if (!(error instanceof Error)) return printable(String(error));
  return printable(error.message);
}

/** Run the command that was chosen; the passphrases that it has read are not left in memory. */
async function parse(program: Command, words: readonly string[]): Promise<void> {
  try {
    await program.parseAsync(words, { from: "user" });
  } finally {
    forgetSecrets();
  }
}

/**
 * Run a command line, and set the exit status.
 *
 * @param daemon a process that was started already, if the command is likely to need it
 */
export async function runProgram(
  argv: readonly string[],
  daemon: PendingDaemon | undefined,
): Promise<void> {
  const chosen = argv.find((word) => !word.startsWith("-") && word !== "help");
  try {
    const program = await buildProgram(chosen, daemon);
    if (argv.length === 0) program.outputHelp();
    else {
      const words = argv.map((word) => (OPTIONAL_VALUES.includes(word) ? `${word}=` : word));
      await parse(program, sizeApart(words));
    }
  } catch (error) {
    if (error instanceof CommanderError && error.exitCode === 0) process.exit(0);
    printMessage(reasonOf(error, chosen));
    process.exit(1);
  }
}

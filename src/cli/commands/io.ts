/** `tsimgfs io`: read and write a disk by hand, with the commands of qemu-io. */

import { setImmediate as pause } from "node:timers/promises";
import type { BackingPolicy } from "../../block/referenced-file.ts";
import {
  DETECT_ZEROES,
  type DetectZeroes,
  DISCARD,
  type Discard,
} from "../../block/write-policy.ts";
import { UsageError } from "../../errors.ts";
import type { FormatName } from "../../formats/driver.ts";
import type { DocumentedCommand } from "../documented-command.ts";
import type { IoContext } from "../io/command.ts";
import { runPrompt } from "../io/prompt.ts";
import { IoSession } from "../io/session.ts";
import { openOffline } from "../offline-disk.ts";
import {
  backingPolicyOption,
  choiceOption,
  collect,
  detectZeroesHelp,
  discardHelp,
  forceShareOption,
  formatOption,
} from "../options.ts";
import { printMessage } from "../print.ts";
import {
  backingSecretOption,
  forgetSecrets,
  type SecretOptions,
  secretOption,
} from "../secrets.ts";
import { STOP_SIGNALS, signalStatus } from "../stop-signals.ts";

interface IoOptions extends SecretOptions {
  readonly cmd?: readonly string[];
  readonly readOnly?: boolean;
  readonly format?: FormatName;
  readonly copyOnRead?: boolean;
  readonly discard: Discard;
  readonly detectZeroes: DetectZeroes;
  readonly backingPolicy?: BackingPolicy;
  readonly forceShare?: boolean;
}

/** qemu-io has two names for each way to discard. */
const DISCARD_MODES: Readonly<Record<string, Discard>> = {
  ...{ ignore: "ignore", off: "ignore" },
  ...{ unmap: "unmap", on: "unmap" },
};

export function defineIo(command: DocumentedCommand): void {
  command
    .description(
      "Read and write a disk by hand, with the commands of qemu-io: from -c, a pipe or the keyboard.",
    )
    .argument("<image>")
    .option(
      "-c, --cmd <command>",
      "run this command, such as 'read -P 0 0 64k'; 'help' lists them; may be repeated",
      collect,
    )
    .addOption(formatOption("-f, --format <name>"))
    .option("-r, --read-only", "refuse commands that change the disk")
    .option("-C, --copy-on-read", "store in the image what is read from a backing file")
    .addOption(
      choiceOption("-d, --discard <mode>", DISCARD, discardHelp)
        .default("unmap")
        .argParser((text) => {
          const mode = DISCARD_MODES[text];
          if (mode !== undefined) return mode;
          throw new UsageError("--discard", `${text} is not one of unmap, ignore`);
        }),
    )
    .addOption(
      choiceOption("--detect-zeroes <mode>", DETECT_ZEROES, detectZeroesHelp).default("off"),
    )
    .addOption(backingPolicyOption())
    .addOption(forceShareOption("with -r: open it even if another process may be writing"))
    .addOption(secretOption())
    .addOption(backingSecretOption())
    .document({
      examples: [
        [
          "Write, read back, and see where it is",
          "tsimgfs io -c 'write -P 0x41 0 64k' -c 'read -v 0 32' -c map vm.qcow2",
        ],
      ],
      seeAlso: ["dd", "map", "qemu-io(1)"],
    })
    .action(runIo);
}

async function runIo(image: string, options: IoOptions): Promise<void> {
  const disk = openDisk(image, options);
  // Also where something in between ends the process: then nothing asynchronous happens any more.
  process.once("exit", disk.close);
  for (const signal of STOP_SIGNALS) {
    // The disk is closed all the same.
    process.once(signal, () => process.exit(signalStatus(signal)));
  }
  const session = new IoSession(disk.io);
  if (options.cmd === undefined) {
    await runPrompt(session, () => process.exit(signalStatus("SIGINT")));
  }
  for (const line of options.cmd ?? []) {
    if (session.hasEnded) break;
    await session.run(line);
    // Signals are heard of in between.
    await pause();
  }
  disk.close();
  if (session.hasFailed) process.exitCode = 1;
}

/** Open the disk of an image, and know how to close it, once, orderly. */
function openDisk(image: string, options: IoOptions): { io: IoContext; close: () => void } {
  const { forceShare = false, readOnly = false, discard } = options;
  const { detectZeroes, copyOnRead = false } = options;
  if (forceShare && !readOnly) {
    throw new UsageError("--force-share", "is for reading only: what two write to is lost; add -r");
  }
  if (detectZeroes === "unmap" && discard === "ignore") {
    throw new UsageError("--detect-zeroes unmap", "contradicts --discard ignore");
  }
  const policy = { copyOnRead, detectZeroes, discard, growable: true };
  const opened = openOffline(image, options, readOnly ? undefined : { policy });
  forgetSecrets();
  const close = (): void => {
    try {
      opened.close();
    } catch (error) {
      printMessage(error instanceof Error ? error.message : String(error));
      process.exitCode = 1;
    }
  };
  return { io: { path: image, format: options.format, disk: opened.disk, discard }, close };
}

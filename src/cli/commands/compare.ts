/** `tsimgfs compare`: whether two disks are equal, with the messages and exit codes of qemu-img compare. */

import { DiskComparison } from "../../block/convert/disk-comparison.ts";
import type { BackingPolicy } from "../../block/referenced-file.ts";
import { TsimgfsError } from "../../errors.ts";
import { FORMAT_NAMES, type FormatName } from "../../formats/driver.ts";
import type { DocumentedCommand } from "../documented-command.ts";
import { runLongWork } from "../long-work.ts";
import { type OfflineDisk, openOffline } from "../offline-disk.ts";
import {
  backingPolicyOption,
  cacheOption,
  choiceOption,
  forceShareOption,
  formatOption,
  progressOption,
} from "../options.ts";
import { print, printMessage } from "../print.ts";
import { forgetSecrets, type SecretOptions, secretOption } from "../secrets.ts";
import { signalStatus } from "../stop-signals.ts";

/** Exit codes, as qemu-img compare has them. */
const EXIT = { different: 1, cannotOpen: 2, cannotRead: 4 } as const;

interface CompareOptions extends SecretOptions {
  readonly format?: FormatName;
  readonly secondFormat?: FormatName;
  readonly progress?: boolean;
  readonly quiet?: boolean;
  readonly strict?: boolean;
  readonly forceShare?: boolean;
  readonly backingPolicy?: BackingPolicy;
}

export function defineCompare(command: DocumentedCommand): void {
  command
    .description("Compare the disks of two images, as qemu-img compare does.")
    .argument("<first>", "an image")
    .argument("<second>", "the other one")
    .addOption(formatOption("-f, --format <name>"))
    .addOption(
      choiceOption(
        "-F, --second-format <name>",
        FORMAT_NAMES,
        (names) => `of the second: ${names}`,
      ),
    )
    .option("-s, --strict", "their sizes, and what is allocated, must be equal too")
    .addOption(progressOption())
    .option("-q, --quiet", "print nothing but errors; the exit status tells")
    .addOption(cacheOption("-T, --source-cache <mode>", "source"))
    .addOption(forceShareOption())
    .addOption(backingPolicyOption())
    .addOption(secretOption())
    .document({
      exitStatus: [
        [0, "they are equal; where one is longer, it has zeros there"],
        [1, "they are not"],
        [2, "an image cannot be opened"],
        [4, "an image cannot be read"],
      ],
      examples: [["Is the copy the same disk?", "tsimgfs compare vm.raw vm.qcow2"]],
      seeAlso: ["convert", "map", "qemu-img(1)"],
    })
    .action(compare);
}

async function compare(first: string, second: string, options: CompareOptions): Promise<void> {
  const disks: OfflineDisk[] = [];
  try {
    disks.push(openOffline(first, options));
    disks.push(openOffline(second, { ...options, format: options.secondFormat }));
    forgetSecrets();
    await compareDisks(disks, options);
  } catch (error) {
    if (!(error instanceof TsimgfsError)) throw error;
    printMessage(error.message);
    process.exitCode = disks.length < 2 ? EXIT.cannotOpen : EXIT.cannotRead;
  } finally {
    for (const disk of disks) disk.close();
  }
}

async function compareDisks(
  [first, second]: readonly OfflineDisk[],
  { strict = false, progress = false, quiet = false }: CompareOptions,
): Promise<void> {
  if (first === undefined || second === undefined) throw new RangeError("two disks are compared");
  const comparison = new DiskComparison(first.disk, second.disk, strict);
  const signal = await runLongWork(comparison, { progress: progress && !quiet });
  if (signal !== undefined) {
    printMessage(`${first.path}: stopped before the end; no difference so far`);
    process.exitCode = signalStatus(signal);
    return;
  }
  if (!quiet) print(textOf(comparison));
  if (comparison.difference !== undefined) process.exitCode = EXIT.different;
}

function textOf({ difference, passedShorter }: DiskComparison): string {
  const warning = passedShorter ? "Warning: Image size mismatch!\n" : "";
  switch (difference?.kind) {
    case undefined:
      return `${warning}Images are identical.\n`;
    case "size":
      return "Strict mode: Image size mismatch!\n";
    case "status":
      return `Strict mode: Offset ${difference.offset} block status mismatch!\n`;
    case "content":
      return `${warning}Content mismatch at offset ${difference.offset}!\n`;
  }
}

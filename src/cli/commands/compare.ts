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
  forceShareOption,
  formatOption,
  namedFormatOption,
  oneOf,
  parseCacheMode,
  progressOption,
} from "../options.ts";
import { OutputError, print, printMessage } from "../print.ts";
import {
  backingSecretOption,
  forgetSecrets,
  type SecretOptions,
  secretOption,
} from "../secrets.ts";
import { signalStatus } from "../stop-signals.ts";

/** Exit codes, as qemu-img compare has them. */
const EXIT = { different: 1, cannotOpen: 2, cannotPrint: 2, cannotRead: 4 } as const;

/** Of what is parsed when the images are opened: what is wrong with it has that exit status. */
interface CompareOptions extends SecretOptions {
  readonly format?: string;
  readonly secondFormat?: string;
  readonly progress?: boolean;
  readonly quiet?: boolean;
  readonly strict?: boolean;
  readonly sourceCache?: string;
  readonly forceShare?: boolean;
  readonly backingPolicy?: BackingPolicy;
}

export function defineCompare(command: DocumentedCommand): void {
  command
    .description("Compare the disks of two images, as qemu-img compare does.")
    .argument("<first>")
    .argument("<second>")
    .addOption(formatOption("-f, --format <name>").argParser(asText))
    .addOption(
      namedFormatOption("-F, --second-format <name>", "format of the second").argParser(asText),
    )
    .option("-s, --strict", "sizes and allocation must be equal, too")
    .addOption(progressOption())
    .option("-q, --quiet", "print only errors; the exit status is the result")
    .addOption(cacheOption("-T, --source-cache <mode>", "source").argParser(asText))
    .addOption(forceShareOption())
    .addOption(backingPolicyOption())
    .addOption(secretOption())
    .addOption(backingSecretOption())
    .document({
      exitStatus: [
        [0, "they are equal; if one is longer, the rest of it is zeros"],
        [1, "they differ"],
        [2, "an image cannot be opened, or the result cannot be printed"],
        [4, "an image cannot be read"],
      ],
      examples: [["Is the copy the same disk?", "tsimgfs compare vm.raw vm.qcow2"]],
      seeAlso: ["convert", "map", "qemu-img(1)"],
    })
    .action(compare);
}

function asText(text: string): string {
  return text;
}

function formatOf(option: string, text: string | undefined): FormatName | undefined {
  return text === undefined ? undefined : oneOf<FormatName>(option, FORMAT_NAMES)(text);
}

async function compare(first: string, second: string, options: CompareOptions): Promise<void> {
  const disks: OfflineDisk[] = [];
  try {
    const { format, secondFormat, sourceCache, ...others } = options;
    const cache = sourceCache === undefined ? undefined : parseCacheMode("-T")(sourceCache);
    const formats = [formatOf("-f", format), formatOf("-F", secondFormat)];
    disks.push(openOffline(first, { ...others, cache, format: formats[0] }));
    disks.push(openOffline(second, { ...others, cache, format: formats[1] }));
    forgetSecrets();
    await compareDisks(disks, options);
  } catch (error) {
    if (!(error instanceof TsimgfsError)) throw error;
    printMessage(error.message);
    process.exitCode = exitCode(error, disks.length);
  } finally {
    for (const disk of disks) disk.close();
  }
}

function exitCode(error: TsimgfsError, opened: number): number {
  if (error instanceof OutputError) return EXIT.cannotPrint;
  return opened < 2 ? EXIT.cannotOpen : EXIT.cannotRead;
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
  // First: whoever reads the text may go away before its end.
  if (comparison.difference !== undefined) process.exitCode = EXIT.different;
  if (!quiet) print(textOf(comparison));
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

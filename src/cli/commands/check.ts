/** `tsimgfs check`: whether an image is intact, with the fields and exit codes of qemu-img check. */

import { type CheckOutcome, checkImage } from "../../block/check-image.ts";
import { printable } from "../../errors.ts";
import { REPAIR_MODES, type RepairMode } from "../../formats/check-result.ts";
import type { FormatName } from "../../formats/driver.ts";
import { decimals } from "../decimals.ts";
import type { DocumentedCommand } from "../documented-command.ts";
import {
  choiceOption,
  forceShareOption,
  formatOption,
  type Output,
  outputOption,
} from "../options.ts";
import { print, printMessage } from "../print.ts";

/** Exit codes, as qemu-img check has them; errors that stop a check exit with 1. */
const EXIT = { clean: 0, incomplete: 1, corruptions: 2, leaks: 3, noCheck: 63 } as const;

interface CheckCommandOptions {
  readonly format?: FormatName;
  readonly output: Output;
  readonly repair?: RepairMode;
  readonly forceShare?: boolean;
  readonly quiet?: boolean;
}

export function defineCheck(command: DocumentedCommand): void {
  command
    .description("Check a qcow2 or QED image for damage and repair it, as qemu-img check does.")
    .argument("<image>")
    .addOption(formatOption("-f, --format <name>"))
    .addOption(outputOption())
    .addOption(
      choiceOption(
        "-r, --repair <what>",
        REPAIR_MODES,
        () => "leaks: free space that nothing uses; all: repair everything that can be repaired",
      ),
    )
    .addOption(forceShareOption())
    .option("-q, --quiet", "print only errors; the exit status is the result")
    .document({
      exitStatus: [
        [0, "no errors, or none left after a repair"],
        [1, "the check could not be completed"],
        [2, "errors were found"],
        [3, "only leaked clusters were found"],
        [63, "images of this format cannot be checked"],
      ],
      examples: [["Free leaked clusters", "tsimgfs check -r leaks vm.qcow2"]],
      seeAlso: ["info", "map", "qemu-img(1)"],
    })
    .action(check);
}

function check(image: string, options: CheckCommandOptions): void {
  const { format: stated, output, repair, forceShare = false, quiet = false } = options;
  const say = (text: string): void => (quiet ? undefined : print(text));
  const { format, outcome } = checkImage(image, {
    format: stated,
    repair,
    forceShare,
    report: (line) => (quiet ? undefined : printMessage(printable(`${image}: ${line}`))),
  });
  if (outcome === undefined) {
    printMessage(printable(`${image}: ${format} images have nothing to check`));
    process.exitCode = EXIT.noCheck;
    return;
  }
  // First: whoever reads the text may go away before its end.
  process.exitCode = exitCode(outcome);
  say(output === "human" ? humanText(outcome) : jsonText(image, format, outcome));
}

function exitCode({ checkErrors, corruptions, leaks }: CheckOutcome): number {
  if (checkErrors > 0) return EXIT.incomplete;
  if (corruptions > 0) return EXIT.corruptions;
  return leaks > 0 ? EXIT.leaks : EXIT.clean;
}

/** Fields that are 0 are left out, except check-errors: as qemu-img. */
function jsonText(image: string, format: FormatName, outcome: CheckOutcome): string {
  const fields = {
    "image-end-offset": outcome.imageEndOffset,
    "total-clusters": outcome.totalClusters,
    "allocated-clusters": outcome.allocatedClusters,
    "fragmented-clusters": outcome.fragmentedClusters,
    "compressed-clusters": outcome.compressedClusters,
    leaks: outcome.leaks,
    corruptions: outcome.corruptions,
    "leaks-fixed": outcome.leaksFixed,
    "corruptions-fixed": outcome.corruptionsFixed,
  };
  const present = Object.entries(fields).filter(([, value]) => value !== 0);
  const json = {
    filename: image,
    format,
    "check-errors": outcome.checkErrors,
    ...Object.fromEntries(present),
  };
  return `${JSON.stringify(json, null, 4)}\n`;
}

function humanText(outcome: CheckOutcome): string {
  const { leaks, corruptions, checkErrors, leaksFixed, corruptionsFixed } = outcome;
  const paragraphs: string[] = [];
  if (leaksFixed > 0 || corruptionsFixed > 0) {
    paragraphs.push(
      "The following inconsistencies were found and repaired:\n",
      `    ${leaksFixed} leaked clusters\n    ${corruptionsFixed} corruptions\n`,
      "Double checking the fixed image now...",
    );
  }
  if (leaks === 0 && corruptions === 0 && checkErrors === 0) {
    paragraphs.push("No errors were found on the image.");
  }
  if (corruptions > 0) {
    paragraphs.push(
      `\n${corruptions} errors were found on the image.`,
      "Data may be corrupted, or further writes to the image may corrupt it.",
    );
  }
  if (leaks > 0) {
    paragraphs.push(
      `\n${leaks} leaked clusters were found on the image.`,
      "This means waste of disk space, but no harm to data.",
    );
  }
  if (checkErrors > 0) {
    paragraphs.push(`\n${checkErrors} internal errors have occurred during the check.`);
  }
  const { totalClusters, allocatedClusters, fragmentedClusters, compressedClusters } = outcome;
  if (totalClusters > 0 && allocatedClusters > 0) {
    const percent = (part: number, whole: number): string => decimals((part * 100) / whole, 2);
    paragraphs.push(
      `${allocatedClusters}/${totalClusters} = ${percent(allocatedClusters, totalClusters)}% allocated, ` +
        `${percent(fragmentedClusters, allocatedClusters)}% fragmented, ` +
        `${percent(compressedClusters, allocatedClusters)}% compressed clusters`,
    );
  }
  if (outcome.imageEndOffset !== undefined) {
    paragraphs.push(`Image end offset: ${outcome.imageEndOffset}`);
  }
  return `${paragraphs.join("\n")}\n`;
}
